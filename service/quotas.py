"""Limits of single keys.

What is counted lies in the memory of this process, so that no request waits for Postgres: each worker of each replica
grants the whole limit. Tokens are the exception: what all processes stored today is read in the background.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from uuid import UUID

from gadfly import store
from gadfly.errors import BadInput, TooBusy
from gadfly.records import KeyLimits, now
from gadfly.repeating import repeat
from gadfly.service.allowance import Allowance
from gadfly.service.keyring import Caller
from gadfly.store.database import Database

_READ_EVERY_S = 15.0  # tokens that other processes stored count at most this much later


@dataclass(slots=True)
class Meter:
    """What a piece of work has sent to its caller so far."""

    pieces: int = 0  # of text, about a token each


@dataclass(slots=True)
class _Used:
    """What a key has used in this process."""

    requests: Allowance = field(default_factory=Allowance)
    calls: Allowance = field(default_factory=Allowance)
    in_flight: int = 0
    day: date = date.min
    own: int = 0  # tokens of this process since midnight (UTC)
    stored: int = 0  # tokens of all processes since midnight, when they were last read
    since_read: int = 0  # tokens of this process since then

    def tokens(self, today: date) -> int:
        if self.day != today:
            self.day, self.own, self.stored, self.since_read = today, 0, 0, 0
        return max(self.own, self.stored + self.since_read)


class Quotas:
    """Keeps each key within its limits. Keys without limits leave no trace here."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, today: Callable[[], datetime] = now) -> None:
        self._clock = clock
        self._now = today
        self._used: dict[UUID, _Used] = {}

    def admit(self, caller: Caller) -> None:
        """Count a request of a key.

        Raises:
            TooBusy: the key has no request left in this minute.
        """
        limits = caller.limits
        if limits is None or limits.requests_per_minute is None:
            return
        bucket, at, per_minute = self._of(caller).requests, self._clock(), limits.requests_per_minute
        self._require(bucket.wait_s(1, per_minute, at), f"{per_minute} requests a minute")
        bucket.take(1, per_minute, at)

    @contextmanager
    def work(self, caller: Caller, *, calls: int) -> Iterator[Meter]:
        """Count work on the engine that makes at most so many calls, as long as it lasts.

        If it does not end well, the pieces of text on the yielded meter count as its tokens: a caller may have read
        them all and closed the connection before the last event.

        Raises:
            TooBusy: the key has too many requests in flight, or no call or token left.
            BadInput: the work needs more calls than the key may make in a minute.
        """
        limits, meter = caller.limits, Meter()
        if limits is None:
            yield meter
            return
        used = self._of(caller)
        self._start(used, limits, calls)
        used.in_flight += 1
        try:
            yield meter
        except BaseException:
            self.spend(caller, meter.pieces)
            raise
        finally:
            used.in_flight -= 1

    def spend(self, caller: Caller, tokens: int) -> None:
        """Count the tokens of an answer. The last answer of a day may exceed its limit."""
        if caller.limits is not None and caller.limits.tokens_per_day is not None:
            used = self._of(caller)
            used.tokens(self._now().date())
            used.own += tokens
            used.since_read += tokens

    async def run(self, database: Database) -> None:
        """Read what all processes stored today for the keys with a limit of tokens, until cancelled."""
        wait = partial(asyncio.sleep, _READ_EVERY_S)
        await repeat(partial(self.read, database), wait=wait, failure="tokens_not_read")

    async def read(self, database: Database) -> None:
        """Read them once.

        Raises:
            StoreUnavailable: Postgres is unavailable.
        """
        moment = self._now()
        midnight = datetime.combine(moment.date(), datetime.min.time(), UTC)
        limited = {id: used for id, used in self._used.items() if used.day == moment.date()}
        if not limited:
            return
        before = {id: used.since_read for id, used in limited.items()}
        async with database.session() as session:
            stored = await store.keys.tokens_since(session, list(limited), midnight)
        for id, used in limited.items():
            if used.day == moment.date():
                used.stored = stored.get(id, 0)
                used.since_read -= before[id]

    def _start(self, used: _Used, limits: KeyLimits, calls: int) -> None:
        if limits.max_in_flight is not None and used.in_flight >= limits.max_in_flight:
            self._require(1.0, f"{limits.max_in_flight} requests in flight")
        if limits.tokens_per_day is not None:
            moment = self._now()
            if used.tokens(moment.date()) >= limits.tokens_per_day:
                midnight = datetime.combine(moment.date() + timedelta(days=1), datetime.min.time(), UTC)
                self._require((midnight - moment).total_seconds(), f"{limits.tokens_per_day:,} tokens a day (UTC)")
        if limits.engine_calls_per_minute is not None:
            per_minute, at = limits.engine_calls_per_minute, self._clock()
            if calls > per_minute:
                raise BadInput(
                    f"this request may need {calls} calls of the engine, and its key may make {per_minute} a minute: "
                    "ask for fewer rounds or samples"
                )
            self._require(used.calls.wait_s(calls, per_minute, at), f"{per_minute} engine calls a minute")
            used.calls.take(calls, per_minute, at)

    @staticmethod
    def _require(wait_s: float, limit: str) -> None:
        if wait_s > 0:
            raise TooBusy(f"this key is limited to {limit}", retry_after_s=math.ceil(wait_s))

    def _of(self, caller: Caller) -> _Used:
        assert caller.key_id is not None
        return self._used.setdefault(caller.key_id, _Used())
