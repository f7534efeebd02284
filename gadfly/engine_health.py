"""The health of one engine, as its callers experience it: one state for routing, retries and readiness.

Several failures in a row eject an engine: requests go to the others. When the ejection ends, a probe in the background
decides whether the engine is put on trial, where it gets one request at a time, and one success ends the trial. While
calls wait for an engine that has not answered for some seconds, its health route is asked; an engine that does not
answer that either is frozen, and its calls end, so that another engine can answer them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

import structlog

from gadfly.errors import EngineError, EngineTimeout
from gadfly.settings import without_password

log = structlog.get_logger(__name__)


class EngineStanding(StrEnum):
    """Whether an engine gets requests while others can answer them."""

    SOUND = "sound"
    EJECTED = "ejected"
    TRIAL = "trial"  # one request at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthLimits:
    """When an engine is ejected, and for how long."""

    failures: int = 3  # in a row
    first_ejection_s: float = 1.0  # doubles with each further failure
    longest_ejection_s: float = 10.0
    watch_every_s: float = 2.0  # how often a silent engine with calls is asked; the limit of that question, too
    missed: int = 3  # questions without an answer before it counts as frozen


class EngineFrozen(EngineTimeout):
    """The engine holds its connections and answers nothing, not even its health route."""


class EngineHealth:
    """The state of one engine. `epoch` counts the ejections: what began before the last one proves nothing after it."""

    def __init__(self, url: str, limits: HealthLimits) -> None:
        self.standing = EngineStanding.SOUND
        self.epoch = 0
        self.ejected_until = 0.0  # monotonic seconds
        self.reason = ""  # of the last failure
        self._where = without_password(url)
        self._limits = limits
        self._failures = 0
        self._next_s = limits.first_ejection_s
        self._is_tried = False
        self._heard_at = 0.0
        self._calls: set[asyncio.Timeout] = set()
        self._watch: asyncio.Task[None] | None = None

    @property
    def admits(self) -> bool:
        """Whether the engine may get a request that another engine could answer."""
        return self.standing is EngineStanding.SOUND or (self.standing is EngineStanding.TRIAL and not self._is_tried)

    def is_due(self, now: float | None = None) -> bool:
        """Whether the ejection has lasted its time: a probe shall decide."""
        return self.standing is EngineStanding.EJECTED and self.ejected_until <= _or_now(now)

    def note_success(self, *, begun: int) -> None:
        """A call that began in epoch `begun` was answered."""
        self._heard_at = time.monotonic()
        if begun != self.epoch:
            return
        if self.standing is not EngineStanding.SOUND:
            log.info("engine_in_use_again", engine=self._where)
        self.standing = EngineStanding.SOUND
        self._failures = 0
        self._next_s = self._limits.first_ejection_s

    def note_failure(self, reason: str, *, begun: int, now: float | None = None, is_certain: bool = False) -> None:
        """A call that began in epoch `begun` failed. `is_certain`: one such failure is enough."""
        if begun != self.epoch:
            return
        self.reason = reason
        self._failures += 1
        if is_certain or self.standing is not EngineStanding.SOUND or self._failures >= self._limits.failures:
            self._eject(_or_now(now))

    def note_probe(self, failure: str | None, *, now: float | None = None) -> None:
        """The result of a probe: None for a success."""
        now = _or_now(now)
        if failure is not None:
            if self.standing is not EngineStanding.EJECTED or self.is_due(now):
                self.note_failure(failure, begun=self.epoch, now=now)
        elif self.is_due(now):
            self.standing = EngineStanding.TRIAL

    def _eject(self, now: float) -> None:
        if self.standing is EngineStanding.SOUND:
            log.warning("engine_ejected", engine=self._where, reason=self.reason)
        self.standing = EngineStanding.EJECTED
        self.epoch += 1
        self.ejected_until = now + self._next_s
        self._next_s = min(2 * self._next_s, self._limits.longest_ejection_s)

    @asynccontextmanager
    async def calling(self, is_alive: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
        """A call to the engine. `is_alive` asks its health route, and raises EngineError when nothing answers.

        Raises:
            EngineFrozen: the engine stopped answering.
        """
        is_trial = self.standing is EngineStanding.TRIAL
        self._is_tried = self._is_tried or is_trial
        if not self._calls:
            self._heard_at = time.monotonic()
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_calls(is_alive))
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._calls.add(limit)
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise EngineFrozen(f"the engine at {self._where} stopped answering") from None
        finally:
            self._calls.discard(limit)
            if is_trial:
                self._is_tried = False

    async def _watch_calls(self, is_alive: Callable[[], Awaitable[object]]) -> None:
        missed = 0
        while self._calls:
            await asyncio.sleep(self._limits.watch_every_s)
            if not self._calls or time.monotonic() - self._heard_at < self._limits.watch_every_s:
                missed = 0
                continue
            try:
                async with asyncio.timeout(self._limits.watch_every_s):
                    await is_alive()
                missed = 0
            except (TimeoutError, EngineError):
                missed += 1
            if missed >= self._limits.missed:
                missed = 0
                self.note_failure("it stopped answering", begun=self.epoch, is_certain=True)
                for limit in self._calls:
                    limit.reschedule(asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)


def _or_now(now: float | None) -> float:
    return time.monotonic() if now is None else now
