"""Forgetting on request and by age: rows with all that was derived from them, and marks on critics that learned."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

import structlog

from gadfly import store
from gadfly.errors import StoreUnavailable
from gadfly.records import AdminAction, Kind, new_id
from gadfly.repeating import repeat
from gadfly.service.keyring import Caller
from gadfly.service.recording.recorder import Recorder
from gadfly.store.database import Database
from gadfly.store.forgetting import Affected, What

log = structlog.get_logger(__name__)

_BATCH = 200  # most interactions deleted in one transaction
_LEAST = 25  # fewer are not faster: what runs recorded is looked through once for each transaction
_BATCH_S = 0.25  # a longer transaction makes the next one smaller: others wait for what it has locked
_MOST = 10_000  # interactions deleted in one request
_EVERY_S = 3600.0
_LIMIT_S = 60.0  # of one transaction: a run's manifest is long


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """What was forgotten, or would be."""

    interactions: int
    feedback: int
    is_more: bool
    critics: list[Affected]
    runs: list[UUID]  # in progress
    clean_version: int | None


class Forgetting:
    """Deletes rows with their lineage, on request and by age."""

    def __init__(
        self,
        database: Database,
        recorder: Recorder,
        *,
        base_model: str,
        retention: Mapping[Kind, int],
        on_deleted: Callable[[UUID], None],
    ) -> None:
        """`on_deleted` is called with the id of each deleted interaction."""
        self._database = database
        self._recorder = recorder
        self._base_model = base_model
        self._retention = retention
        self._on_deleted = on_deleted

    async def run(self) -> None:
        """Delete once an hour what is older than `retention` allows, until cancelled. Replicas share the work."""
        if self._retention:
            await repeat(
                self._retire, wait=partial(asyncio.sleep, _EVERY_S), failure="retention_failed", waits_first=False
            )
        else:
            await asyncio.Event().wait()

    async def plan(self, what: What) -> Forgotten:
        """What would be forgotten."""
        async with self._database.session(snapshot=True, limit_s=_LIMIT_S) as session:
            interactions, feedback = await store.forgetting.count(session, what)
            runs = await store.forgetting.learned_from(session, what)
            critics = await store.forgetting.affected_critics(session, runs)
            unfinished = await store.runs.unfinished_runs(session)
            clean = await store.forgetting.clean_version(
                session, base_model=self._base_model, without=[critic.version for critic in critics]
            )
        return Forgotten(
            interactions=interactions,
            feedback=feedback,
            is_more=False,
            critics=critics,
            runs=[run.id for run in unfinished if run.id in runs],
            clean_version=clean,
        )

    async def forget(self, admin: Caller, what: What, *, reason: str | None) -> Forgotten:
        """Delete at most 10,000 interactions; `is_more` says whether others remain.

        Raises:
            StoreUnavailable: records wait in this replica's spool, and some of them may have to be forgotten.
        """
        if self._recorder.spooled:
            raise StoreUnavailable("records wait in the spool; try again when Postgres has stored them")
        planned = await self.plan(what)
        deleted = await self._delete(what)
        async with self._database.session() as session:
            await store.acts.record_act(
                session,
                AdminAction.FORGET,
                what.interaction_id or what.episode_id or what.key_id or new_id(),
                key_id=admin.key_id,
                reason=reason,
                details=_described(what) | {"interactions": deleted},
            )
        return Forgotten(
            interactions=deleted,
            feedback=planned.feedback if deleted >= planned.interactions else 0,
            is_more=deleted >= _MOST and deleted < planned.interactions,
            critics=planned.critics,
            runs=planned.runs,
            clean_version=planned.clean_version,
        )

    async def retention(self) -> list[tuple[Kind, int, int, datetime | None]]:
        """Each rule: the kind, its days, the rows that are due now, and the oldest of them."""
        rules = []
        async with self._database.session(snapshot=True) as session:
            for kind, days in self._retention.items():
                what = store.forgetting.due(kind, days)
                interactions, _ = await store.forgetting.count(session, what)
                rules.append((kind, days, interactions, await store.forgetting.oldest(session, what)))
        return rules

    async def _retire(self) -> None:
        for kind, days in self._retention.items():
            what, deleted = store.forgetting.due(kind, days), 0
            async for batch in batches(self._database, what, skip_locked=True):
                for id in batch.deleted:
                    self._on_deleted(id)
                deleted += len(batch.deleted)
                if deleted % _MOST < len(batch.deleted):
                    log.info("rows_are_being_retired", kind=kind.value, days=days, interactions=deleted)
                await asyncio.sleep(batch.took_s)  # so that it takes half of a connection and of a core at most
            if deleted:
                log.info("rows_retired", kind=kind.value, days=days, interactions=deleted)

    async def _delete(self, what: What) -> int:
        deleted = 0
        if what.interaction_id is None:
            async with self._database.session() as session:
                await store.forgetting.order(session, what)
        async for batch in batches(self._database, what, skip_locked=False):
            for id in batch.deleted:
                self._on_deleted(id)
            deleted += len(batch.deleted)
            if deleted >= _MOST:
                break
        return deleted


@dataclass(frozen=True, kw_only=True, slots=True)
class DeletedBatch:
    """What one transaction deleted, and how long it took."""

    deleted: list[UUID]
    took_s: float


async def batches(database: Database, what: What, *, skip_locked: bool) -> AsyncGenerator[DeletedBatch, None]:
    """Delete the oldest first, each batch in a transaction of its own, until nothing is left.

    Interactions with many critiques take longer, so the size of a batch follows from the time for which the
    one before held locks. `skip_locked` leaves out what another deletion holds. What was deleted stays deleted when
    this ends early; the next call goes on.
    """
    size, last = _BATCH, None
    while True:
        started = time.monotonic()
        async with database.session(limit_s=_LIMIT_S) as session:
            chosen = await store.forgetting.choose(session, what, limit=size, after=last, skip_locked=skip_locked)
            deleted = await store.forgetting.forget(session, [each.id for each in chosen])
        if deleted.ids:
            yield DeletedBatch(deleted=deleted.ids, took_s=time.monotonic() - started)
        if len(chosen) < size:
            return
        size, last = next_size(size, held_s=deleted.held_s), chosen[-1]


def next_size(size: int, *, held_s: float) -> int:
    """How many interactions the batch has that follows one of this size."""
    return max(_LEAST, size // 2) if held_s > _BATCH_S else min(_BATCH, 2 * size)


def _described(what: What) -> dict[str, str]:
    values = {
        "interaction_id": what.interaction_id,
        "episode_id": what.episode_id,
        "key_id": what.key_id,
        "since": what.since,
        "until": what.until,
        "kind": what.kind,
    }
    return {name: str(value) for name, value in values.items() if value is not None}
