"""Training runs, as the service sees them: asked for, read back, cancelled, and followed while they work."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from gadfly import store
from gadfly.errors import Conflict, StoreUnavailable
from gadfly.planning import Plan, plan
from gadfly.records import Split
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.service.keyring import Caller
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.runs import Requested
from gadfly.training import Run, RunEvent, TrainConfig, Trigger

log = structlog.get_logger(__name__)

_POLL_S = 1.0
_PAGE = 500


@dataclass(frozen=True, slots=True)
class _Page:
    """A run's next events, and whether there will be no more."""

    events: list[RunEvent]
    is_last: bool


class Runs:
    """Asks for runs and tells of them. The work is the trainer's: all that is between the two is in Postgres."""

    def __init__(self, database: Database, *, settings: Settings, metrics: Metrics) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._pages: SingleFlight[_Page] = SingleFlight()
        self._one_read = asyncio.Semaphore()
        self._stopping = asyncio.Event()

    async def request(self, caller: Caller, changes: Mapping[str, Any], *, request_id: str | None) -> Requested:
        """Ask for a run with the deployment's own config and `changes` to it.

        Raises:
            BadInput: names the option that cannot be, or the deployment's file cannot be used.
            Conflict: nothing is labelled that it could learn from, or the request id stands for another config.
        """
        config = await self._effective(changes)
        async with self._database.session() as session:
            requested = await store.runs.request_run(
                session, config=config, trigger=Trigger.ADMIN, key_id=caller.key_id, request_id=request_id
            )
            if not requested.is_repeat:  # or it goes with this transaction
                needs_reference = config.steps_stage_1 == 0
                if not await store.training_data.has_labels(session, Split.TRAIN, with_reference=needs_reference):
                    raise Conflict(_nothing_to_learn(needs_reference=needs_reference))
        if not requested.is_repeat:
            log.info("run_requested", run=str(requested.run.id))
        return requested

    async def plan(self, changes: Mapping[str, Any]) -> Plan:
        """What a run with `changes` to the deployment's own config would do. Stores nothing.

        Raises:
            BadInput: as `request`.
        """
        config = await self._effective(changes)
        async with self._database.session() as session:
            train = await store.training_data.labelled_answers(session, Split.TRAIN, limit=config.max_questions)
            heldout = await store.training_data.labelled_answers(session, Split.HELDOUT, limit=config.max_questions)
            per_step = await store.runs.seconds_per_step(session, config)
        return await asyncio.to_thread(plan, train, heldout, config, seconds_per_step_history=per_step)

    async def reproduce(self, caller: Caller, id: UUID) -> Run:
        """Ask for a run that does again what the run `id` did.

        Raises:
            NotFound: there is none.
            Conflict: it has not written down yet what it learns from.
        """
        async with self._database.session() as session:
            original = await store.runs.read_run(session, id)
            if original.manifest is None:
                raise Conflict(f"the run {id} has no manifest yet, so there is nothing to do again")
            requested = await store.runs.request_run(
                session, config=original.config, trigger=Trigger.REPRODUCE, key_id=caller.key_id, reproduces=id
            )
        return requested.run

    async def cancel(self, id: UUID) -> Run:
        """Ask for a run's end. Raises as `run_queries.request_cancel`."""
        async with self._database.session() as session:
            return await store.runs.request_cancel(session, id)

    async def read(self, id: UUID) -> Run:
        """One run.

        Raises:
            NotFound: there is none.
        """
        async with self._database.session() as session:
            return await store.runs.read_run(session, id)

    async def page(self, *, limit: int, before: UUID | None) -> list[Run]:
        """Runs without their manifests, newest first; those older than the run `before`, if given."""
        async with self._database.session() as session:
            return await store.runs.list_runs(session, limit=limit, before=before)

    async def has_more(self, id: UUID, *, after: int) -> bool:
        """Whether the run has events after this one, or may still have some.

        Raises:
            NotFound: there is no such run.
        """
        page = await self._read_page(id, after)
        return bool(page.events) or not page.is_last

    async def follow(self, id: UUID, *, after: int) -> AsyncGenerator[RunEvent]:
        """A run's events after the one with the id `after`: those that are stored, then each as it comes.

        Ends with the run, or with `stop_following`. While Postgres is away it waits.
        """
        self._metrics.run_followers.inc()
        try:
            while not self._stopping.is_set():
                # All who have seen the same events ask at the same moment, and share one answer.
                page = await self._pages.run((id, after), partial(self._poll, id, after))
                for event in page.events:
                    yield event
                    after = event.id
                if page.is_last:
                    return
                if not page.events:
                    await self._tick()
        finally:
            self._metrics.run_followers.dec()

    def stop_following(self) -> None:
        """End every stream: the process is about to."""
        self._stopping.set()

    async def _poll(self, id: UUID, after: int) -> _Page:
        try:
            return await self._read_page(id, after)
        except StoreUnavailable as error:
            log.warning("run_not_read", run=str(id), reason=str(error))
            return _Page([], is_last=False)

    async def _read_page(self, id: UUID, after: int) -> _Page:
        async with self._one_read, self._database.session() as session:  # followers take one connection at most
            status = await store.runs.run_status(session, id)  # first: what an ended run said last is then read too
            events = await store.runs.events_after(session, id, after=after, limit=_PAGE)
        return _Page(events, is_last=status.is_over and len(events) < _PAGE)

    async def _tick(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S - time.monotonic() % _POLL_S):
                await self._stopping.wait()

    async def _effective(self, changes: Mapping[str, Any]) -> TrainConfig:
        return await asyncio.to_thread(TrainConfig.effective, self._settings.train_config, changes)


def _nothing_to_learn(*, needs_reference: bool) -> str:
    what = "answer with a reference" if needs_reference else "labelled answer"
    return f"there is no {what} to learn from: send references or feedback, or import answers that have them"
