"""Canaries: a promoted critic first answers a share of the requests, then all of them, unless it is rolled back.

Which critic a request gets is decided in `gadfly.service.critics.pointers`. Here a canary ends: after its time or its
number of answers, by an admin, or by a rollback, which is a swap like any other.
"""

import asyncio
import time
from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog

from gadfly import store
from gadfly.errors import Conflict, GadflyError
from gadfly.records import Canary, now
from gadfly.repeating import repeat
from gadfly.service.critics.pointers import CriticLine, CriticPointers
from gadfly.service.critics.replicas import Replicas
from gadfly.service.critics.watch import Decision, RollbackWatch
from gadfly.store.database import Database

_EVERY_S = 2.0
_HELD_EVERY_S = 60.0  # a test reads all outcomes of both critics
_LISTED = 20
_MOST_COUNTED = 100_000

log = structlog.get_logger(__name__)


class Canaries:
    """Ends the canaries of a deployment, in the eldest replica."""

    def __init__(
        self, database: Database, pointers: CriticPointers, *, watch: RollbackWatch | None, replicas: Replicas
    ) -> None:
        """`watch`: None where automatic rollback is off; then a canary goes on when it is due, without a test."""
        self._database = database
        self._pointers = pointers
        self._watch = watch
        self._replicas = replicas
        self._held: dict[str, str] = {}  # by task: why a canary that is due does not answer all requests
        self._held_at: dict[str, float] = {}  # by task: when that was last found

    def held(self, task: str) -> str | None:
        """Why the canary of a task, although it is due, waits for a person; None if it does not. In one replica."""
        return self._held.get(task)

    async def run(self) -> None:
        """Look every two seconds whether a canary is due, until cancelled."""
        await repeat(self.check, wait=partial(asyncio.sleep, _EVERY_S), failure="canaries_not_checked")

    async def check(self) -> None:
        """End the canaries that are due. One whose evidence cannot be read goes on."""
        for line in self._pointers:
            canary = line.canary
            if canary is None or canary.started_at is None or canary.share == 0:
                self._held.pop(line.task, None)
            elif self._replicas.is_eldest:
                try:
                    await self._check(line, canary)
                except GadflyError as error:
                    log.warning("canary_not_checked", version=canary.version, task=line.task, reason=str(error))

    async def _check(self, line: CriticLine, canary: Canary) -> None:
        if line.task in self._held and time.monotonic() - self._held_at[line.task] < _HELD_EVERY_S:
            return
        reason = await self._due(canary)
        if reason is None:
            return
        if self._watch is not None and canary.from_version not in self._pointers.incomplete:
            evidence = await self._watch.check(line)
            if evidence is None or evidence.decision is Decision.ROLL_BACK:
                return  # another replica tests it now, or the rollback is requested
            if evidence.decision is Decision.ONE_KEY:
                self._held_at[line.task] = time.monotonic()
                self._held[line.task] = "labels show a loss, but only those of one key: a person has to decide"
                return
            reason += f"; evidence of a loss {evidence.wealth:.3g} from {evidence.units} pairs of both classes"
        self._held.pop(line.task, None)
        await self.widen(line.task, version=canary.version, reason=reason, key_id=None, by_person=False)

    async def _due(self, canary: Canary) -> str | None:
        if canary.from_version in self._pointers.incomplete:
            return f"version {canary.from_version} lost an example of its prompt, so it can answer no requests"
        assert canary.started_at is not None
        if canary.for_s is not None and now() >= canary.started_at + timedelta(seconds=canary.for_s):
            return f"{canary.for_s} s have passed"
        if canary.for_requests is not None:
            async with self._database.session() as session:
                answers = await store.canaries.count_requests(
                    session, canary, canary.version, limit=canary.for_requests
                )
            if answers >= canary.for_requests:
                return f"it has given {answers} answers"
        return None

    async def widen(
        self, task: str, *, version: int | None, reason: str | None, key_id: UUID | None, by_person: bool = True
    ) -> Canary:
        """Let the canary of a task answer all requests.

        Raises:
            Conflict: none is running, or one of another version, or a rollback is in progress.
            StoreUnavailable: Postgres is unavailable.
        """
        async with self._database.session() as session:
            pending = await store.swaps.pending_swap(session, task)
            if pending is not None:
                raise Conflict(f"a swap to version {pending.version} is in progress")
            ended = await store.canaries.widen(
                session, task, version=version, reason=reason, key_id=key_id, by_person=by_person
            )
        log.info("canary_widened", version=ended.version, task=task, reason=reason)
        await self._pointers.refresh()
        return ended

    async def listed(self, tasks: list[str]) -> list[tuple[Canary, int, int]]:
        """The newest canaries, each with the stored answers of its critic and of the one before, 100,000 at most."""
        async with self._database.session() as session:
            found = await store.canaries.list_canaries(session, tasks, limit=_LISTED)
            return [
                (
                    canary,
                    await store.canaries.count_requests(session, canary, canary.version, limit=_MOST_COUNTED),
                    await store.canaries.count_requests(session, canary, canary.from_version, limit=_MOST_COUNTED),
                )
                for canary in found
            ]
