"""The engines of a deployment: those at fixed addresses, and those that DNS names lead to, which come and go.

`dns+http://engines.example:8000` stands for an engine at every address of that name, such as the pods of a headless
Service of Kubernetes. The name is looked up every few seconds.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Self, overload
from urllib.parse import urlsplit

import structlog
from pydantic import SecretStr

from gadfly.engine_client import Engine
from gadfly.repeating import repeat
from gadfly.settings import NAME_SCHEME, Settings, without_password

_EVERY_S = 5.0
_LOOK_UP_LIMIT_S = 5.0
_MISSED = 3  # look-ups without an address after which its engine is removed: answers of DNS servers differ for moments
_LINGER_S = 3600.0  # before a removed engine is closed: longer than any request may take

Resolve = Callable[[str], Awaitable[frozenset[str]]]
"""The addresses of engines (`http://10.0.0.3:8000`) that a name (`dns+http://...`) leads to; none if unknown."""

log = structlog.get_logger(__name__)


async def look_up(name: str) -> frozenset[str]:
    """The addresses that the system's resolver gives for a name; none if it gives none, or does not answer in time.

    Of a name with IPv4 and IPv6 addresses only the former: an engine that has both would count twice.
    """
    parts = urlsplit(name.removeprefix(NAME_SCHEME))
    port = parts.port or 80
    with suppress(OSError, TimeoutError, UnicodeError):  # UnicodeError: no name that DNS can have
        async with asyncio.timeout(_LOOK_UP_LIMIT_S):
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        families = {family for family, *_ in found}
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        hosts = {str(address[0]) for each, *_, address in found if each == family}
        return frozenset(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts)
    return frozenset()


async def addressed(settings: Settings) -> Settings:
    """Settings with the addresses that names lead to now, each with its key. A name that leads nowhere stays."""
    found = [sorted(await look_up(url)) if url.startswith(NAME_SCHEME) else [url] for url in settings.engine_urls]
    pairs = [
        (address, settings.engine_access(entry).key)
        for entry, addresses in zip(settings.engine_urls, found, strict=True)
        for address in addresses or [entry]
    ]
    keys = ",".join(key for _, key in pairs)
    is_one = settings.engine_key is None or "," not in settings.engine_key.get_secret_value()
    changes = {"engine_urls": tuple(address for address, _ in pairs)}
    return settings.model_copy(update=changes if is_one else {**changes, "engine_key": SecretStr(keys)})


class EngineFleet(Sequence[Engine]):
    """The engines as they are now. A loop that waits between two looks at it takes a copy first: `tuple(fleet)`."""

    def __init__(
        self, urls: Sequence[str], open_engine: Callable[[str, str], Engine], *, resolve: Resolve = look_up
    ) -> None:
        """`open_engine` gets the address of an engine and the entry of `urls` by which it was found."""
        self._open = open_engine
        self._resolve = resolve
        self._names = tuple(url for url in urls if url.startswith(NAME_SCHEME))
        self._fixed = tuple(open_engine(url, url) for url in urls if url not in self._names)
        self._found: dict[tuple[str, str], Engine] = {}  # by name and address
        self._missed: dict[tuple[str, str], int] = {}  # look-ups in a row that did not give the address
        self._leaving: set[asyncio.Task[None]] = set()
        self._looked_at = -_EVERY_S  # monotonic seconds
        self._looking = asyncio.Lock()
        self._now = self._fixed
        self.on_change: Callable[[Engine], None] = lambda engine: None
        """Called with each engine that joined or was removed, before it is used or after it is no longer."""

    @classmethod
    def of(cls, settings: Settings, *, timeout_s: float) -> Self:
        """The engines of a deployment, each with its key; those that are found by name join at the first `look`.

        Raises:
            BadSettings: no address, or the file with certificates cannot be used.
        """
        _, urls = settings.require_addresses()
        return cls(urls, lambda url, entry: Engine(url, timeout_s=timeout_s, access=settings.engine_access(entry)))

    @overload
    def __getitem__(self, index: int) -> Engine: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Engine, ...]: ...

    def __getitem__(self, index: int | slice) -> Engine | tuple[Engine, ...]:
        return self._now[index]

    def __len__(self) -> int:
        return len(self._now)

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._now)

    async def run(self) -> None:
        """Look the names up every five seconds, until cancelled."""
        if self._names:
            await repeat(self.look, wait=partial(asyncio.sleep, _EVERY_S), failure="engines_not_looked_up")

    async def look_if_due(self) -> None:
        """`look`, unless it was done in the last five seconds: for callers that meet failures, maybe many at once."""
        async with self._looking:
            if time.monotonic() - self._looked_at >= _EVERY_S:
                await self.look()

    async def look(self) -> None:
        """Look the names up, take in the engines that are new, and remove those that were missing three times.

        A name without any address, or without an answer, changes nothing: an outage of DNS is none of the engines.
        """
        for name in self._names:
            addresses = await self._resolve(name)
            if not addresses:
                if not any(entry == name for entry, _ in self._found):
                    log.warning("no_engine_found", name=without_password(name))
                continue
            for address in sorted(addresses):
                self._missed.pop((name, address), None)
                if (name, address) not in self._found and not any(each.url == address for each in self._now):
                    self._join(name, address)
            for entry, address in [key for key in self._found if key[0] == name and key[1] not in addresses]:
                self._missed[entry, address] = self._missed.get((entry, address), 0) + 1
                if self._missed[entry, address] >= _MISSED:
                    self._remove(entry, address)
        self._looked_at = time.monotonic()

    def _join(self, name: str, address: str) -> None:
        engine = self._open(address, name)
        self.on_change(engine)
        self._found[name, address] = engine
        self._now = (*self._now, engine)
        log.info("engine_found", engine=without_password(address), name=without_password(name))

    def _remove(self, name: str, address: str) -> None:
        engine = self._found.pop((name, address))
        del self._missed[name, address]
        self._now = tuple(each for each in self._now if each is not engine)
        self.on_change(engine)
        log.info("engine_removed", engine=without_password(address), name=without_password(name))
        task = asyncio.create_task(_close_later(engine))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def aclose(self) -> None:
        """Close all engines, also those that were removed."""
        leaving = list(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        await asyncio.gather(*(engine.aclose() for engine in self._now))


async def _close_later(engine: Engine) -> None:
    try:
        await asyncio.sleep(_LINGER_S)
    finally:
        await engine.aclose()
