"""Authentication of callers: API keys, checked in Postgres and cached for a few seconds."""

import math
import time
from dataclasses import dataclass
from uuid import UUID

from gadfly import store
from gadfly.api_keys import digest
from gadfly.errors import NotAllowed, StoreUnavailable
from gadfly.records import Key, KeyLimits, Scope, Tier, now
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.service.strangers import Strangers
from gadfly.settings import is_loopback
from gadfly.store.database import Database

_FRESH_S = 5.0  # a revoked key works at most this much longer, while Postgres is available
_MAX_UNKNOWN = 10_000  # unknown keys in the cache


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, and what its key allows."""

    key_id: UUID | None
    tier: Tier
    key_name: str | None = None
    tasks: tuple[str, ...] | None = None  # the tasks that its key may use; None: all
    scopes: tuple[Scope, ...] = tuple(Scope)
    limits: KeyLimits | None = None  # None: it has none
    sees_all: bool = False  # a scope of its key opens the rows of all callers to this request

    def may_use(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks

    def require_task(self, task: str) -> None:
        """Refuse a request of a task that the caller's key may not use.

        Raises:
            NotAllowed: it may not.
        """
        if not self.may_use(task):
            raise NotAllowed(f"this key is limited to other tasks than {task}", authenticated=True)

    @property
    def rows_of(self) -> UUID | None:
        """The key whose rows this request may read and change; None: all rows."""
        return None if self.sees_all or self.tier is Tier.ADMIN else self.key_id


def caller_with(key: Key) -> Caller:
    """The caller that sends this key."""
    limits = key if _is_limited(key) else None
    return Caller(key_id=key.id, tier=key.tier, key_name=key.name, tasks=key.tasks, scopes=key.granted, limits=limits)


def _is_limited(key: Key) -> bool:  # for each request, so without a list of the names
    return not (
        key.requests_per_minute is None
        and key.engine_calls_per_minute is None
        and key.tokens_per_day is None
        and key.max_in_flight is None
    )


LOCAL_ADMIN = Caller(key_id=None, tier=Tier.ADMIN)
"""The caller of a service on loopback without keys: every user of this machine is an admin."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, as far as its headers tell."""

    host: str | None  # the host name that it addresses
    proxy: str | None = None  # a header that only proxies add, by its name
    address: str | None = None  # the sender's
    page: str | None = None  # the origin of a web page on another host that sent it, if it changes something


class Keyring:
    """Authenticates secrets.

    Args:
        open_without_keys: accept every caller as long as no key has ever been created (a service on loopback).
        strangers: the addresses that sent unknown keys, shared with what else finds callers by a secret.
    """

    def __init__(self, database: Database, *, open_without_keys: bool, strangers: Strangers | None = None) -> None:
        self._database = database
        self._open_without_keys = open_without_keys
        self._known: dict[bytes, tuple[float, Key]] = {}
        self._unknown: dict[bytes, float] = {}
        self._strangers = strangers or Strangers()
        self._key_exists: tuple[float, bool] | None = None
        self._readings: SingleFlight[None] = SingleFlight()  # one for all callers that wait for it

    async def authenticate(self, secret: str | None, *, origin: Origin, is_placeholder: bool = False) -> Caller:
        """The caller with this secret. `is_placeholder`: while there are no keys, any secret counts as none.

        Raises:
            NotAllowed: the key is missing, unknown, expired or revoked.
            TooBusy: as `key_of`.
            StoreUnavailable: Postgres is unavailable and this key is not cached.
        """
        if is_placeholder and secret is not None and self._open_without_keys and not await self._has_keys():
            secret = None
        if secret is None:
            if not self._open_without_keys or await self._has_keys():
                raise NotAllowed("this service requires a key: send `Authorization: Bearer KEY`")
            _require_local(origin)
            return LOCAL_ADMIN
        key = await self.key_of(secret, address=origin.address)
        return caller_with(key)

    async def key_of(self, secret: str, *, address: str | None) -> Key:
        """The key with this secret, which an address sent.

        Raises:
            NotAllowed: the key is unknown, expired or revoked.
            TooBusy: this key is not cached, and the address has sent too many unknown ones.
            StoreUnavailable: Postgres is unavailable and this key is not cached.
        """
        key_digest = digest(secret)
        is_new = key_digest not in self._known and not self._is_unknown(key_digest)
        if is_new:
            self._strangers.admit(address)
        key = await self._find(key_digest)
        if key is None and is_new:  # a client that repeats one wrong key is not guessing
            self._strangers.note(address)
        if key is None or not key.is_active(now()):
            raise NotAllowed("this key is unknown, expired or revoked")
        return key

    async def start(self) -> None:
        """Check once whether there are keys, so that an outage of Postgres does not refuse callers without one."""
        await self._has_keys()

    async def _has_keys(self) -> bool:
        fresh = self._key_exists is not None and time.monotonic() - self._key_exists[0] < _FRESH_S
        if not fresh:
            try:
                await self._readings.run("has_keys", self._read_has_keys)
            except StoreUnavailable:
                if self._key_exists is None:
                    raise
        assert self._key_exists is not None
        return self._key_exists[1]

    async def _read_has_keys(self) -> None:
        async with self._database.session() as session:
            self._key_exists = (time.monotonic(), await store.keys.has_keys(session))

    async def _find(self, key_digest: bytes) -> Key | None:
        cached = self._known.get(key_digest)
        if cached is not None and time.monotonic() - cached[0] < _FRESH_S:
            return cached[1]
        if self._is_unknown(key_digest):
            return None
        try:
            await self._readings.run(key_digest, lambda: self._read_key(key_digest))
        except StoreUnavailable:
            if cached is None:
                raise
            return cached[1]
        known = self._known.get(key_digest)
        return None if known is None else known[1]

    def _is_unknown(self, key_digest: bytes) -> bool:
        """Whether Postgres was asked about a key a moment ago, and had none."""
        return time.monotonic() - self._unknown.get(key_digest, -math.inf) < _FRESH_S

    async def _read_key(self, key_digest: bytes) -> None:
        async with self._database.session() as session:
            key = await store.keys.find_key(session, key_digest)
        if key is None:
            self._known.pop(key_digest, None)
            if len(self._unknown) >= _MAX_UNKNOWN:
                self._unknown.clear()  # a flood of invented keys must not fill the memory or displace real keys
            self._unknown[key_digest] = time.monotonic()
        else:
            self._known[key_digest] = (time.monotonic(), key)


def _require_local(origin: Origin) -> None:
    """Refuse requests that do not come from a program on this machine: without keys, every caller is an admin.

    Raises:
        NotAllowed: a proxy forwarded the request, a page on another host sent it, or it addresses another host name.
    """
    if origin.host is not None and not is_loopback(origin.host):
        # DNS rebinding: a web page can point its own host name at this machine and would read the answers.
        raise NotAllowed(f"without keys this service answers only to localhost and 127.0.0.1, not to {origin.host!r}")
    if origin.proxy is not None:
        raise NotAllowed(
            f"a proxy forwarded this request (header {origin.proxy}), and without keys this service would make every "
            "caller of the proxy an admin: create a key with `gadfly keys create`"
        )
    if origin.page is not None:
        raise NotAllowed(
            f"a page of {origin.page} sent this request, and without keys this service accepts changes only from "
            "programs on this machine: create a key with `gadfly keys create`"
        )
