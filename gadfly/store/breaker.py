"""A breaker for Postgres: while it does not answer, transactions fail at once instead of one time limit each.

A transaction that takes long, or that fails, makes one probe: a new connection. If nothing answers it in its time, the
breaker opens: everything that waits for Postgres is released, and new transactions are refused, until a probe in the
background is answered. A statement that is only slow does not open it. Neither does a server that refuses connections:
that costs a transaction milliseconds, and the first one after its start is served.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from gadfly.errors import StoreUnavailable
from gadfly.store.countdown import countdown

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakerLimits:
    suspicious_s: float = 1.0  # a longer transaction makes a probe
    probe_limit_s: float = 2.0
    probe_every_s: float = 0.5  # while the breaker is open


class Breaker:
    """`probe` opens a connection and closes it; it raises StoreUnavailable where the server refuses one."""

    def __init__(self, probe: Callable[[], Awaitable[None]], limits: BreakerLimits) -> None:
        self._probe = probe
        self._limits = limits
        self._is_open = False
        self._task: asyncio.Task[None] | None = None
        self._waiting: set[Callable[[], None]] = set()  # each releases one transaction

    def require_closed(self) -> None:
        """Raises:
        StoreUnavailable: Postgres did not answer the last probe.
        """
        if self._is_open:
            raise StoreUnavailable("Postgres is unavailable: it does not answer", retry_after_s=2.0)

    @contextmanager
    def watching(self) -> Generator["Breaker"]:
        """A transaction, from the wait for its connection on."""
        timer = asyncio.get_running_loop().call_later(self._limits.suspicious_s, self.suspect)
        try:
            yield self
        finally:
            timer.cancel()

    @contextmanager
    def releasing(self, release: Callable[[], None]) -> Generator[None]:
        """Call `release` when the breaker opens meanwhile."""
        self._waiting.add(release)
        try:
            yield
        finally:
            self._waiting.discard(release)

    def suspect(self) -> None:
        """Probe Postgres, unless that is being done."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._decide())

    async def _decide(self) -> None:
        while not await self._is_answered():
            if not self._is_open:
                log.warning("database_does_not_answer")
            self._is_open = True
            for release in tuple(self._waiting):
                release()
            await asyncio.sleep(self._limits.probe_every_s)
        if self._is_open:
            log.info("database_answers_again")
        self._is_open = False

    async def _is_answered(self) -> bool:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                with countdown(self._limits.probe_limit_s, lambda: limit.reschedule(loop.time())):
                    await self._probe()
        except TimeoutError:
            return False
        except StoreUnavailable:
            return True
        return True

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
