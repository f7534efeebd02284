"""The overview: verdict accuracy over time, what runs, and what waits for a person."""

import time
from datetime import datetime

from gadfly import store
from gadfly.records import Swap
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.store.database import Database
from gadfly.store.overview import Bucket, VerdictCounts, WaitingForPerson
from gadfly.training import Run

_VALID_S = 5.0  # pages that are open at the same time share one reading
_MOST = 100  # readings in memory

Accuracy = tuple[list[VerdictCounts], list[VerdictCounts], list[Swap]]


class Overview:
    """Reads what the overview shows."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads: SingleFlight[Accuracy] = SingleFlight()
        self._known: dict[tuple[datetime, datetime, Bucket], tuple[float, Accuracy]] = {}

    async def accuracy(self, *, since: datetime, until: datetime, bucket: Bucket) -> Accuracy:
        """Verdicts on labelled traffic by bucket and in total, and the swaps of that time; at most five seconds old."""
        key = (since, until, bucket)
        known = self._known.get(key)
        if known is not None and time.monotonic() - known[0] < _VALID_S:
            return known[1]
        return await self._reads.run(key, lambda: self._read(since, until, bucket))

    async def _read(self, since: datetime, until: datetime, bucket: Bucket) -> Accuracy:
        async with self._database.session(snapshot=True) as session:
            parts = await store.overview.judgements(session, since=since, until=until, bucket=bucket)
            totals = await store.overview.judgements(session, since=since, until=until, bucket=None)
            swaps = await store.overview.swaps_between(session, since=since, until=until)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[since, until, bucket] = (time.monotonic(), (parts, totals, swaps))
        return parts, totals, swaps

    async def now(self, *, live: int, task: str) -> tuple[Run | None, WaitingForPerson, tuple[int, int]]:
        """The run in progress, else the next queued one; what waits; interactions and labels of the last 24 hours."""
        async with self._database.session(snapshot=True) as session:
            runs = await store.runs.unfinished_runs(session)
            waiting = await store.overview.waiting(session, live=live, task=task)
            rows = await store.overview.rows_of_today(session)
        return (runs[0] if runs else None), waiting, rows
