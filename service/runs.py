"""Training runs in the service: requested, read, cancelled, reproduced, and followed while they run."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from gadfly import store
from gadfly.actor import Actor
from gadfly.errors import Conflict, EngineError, StoreUnavailable
from gadfly.planning import Plan, differences, plan, with_guessing, with_labels, with_threshold
from gadfly.records import Split
from gadfly.scoreboard import scoreboard
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.service.critics.loader import Loader
from gadfly.service.keyring import Caller
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.runs import Requested
from gadfly.tasks import ServedTasks
from gadfly.tasks.training import chosen_options_of, train_config_of
from gadfly.training import EventKind, Recipe, Run, RunEvent, TrainConfig, Trigger
from gadfly.votes import contradictions

log = structlog.get_logger(__name__)

_POLL_S = 1.0
_PAGE = 500


@dataclass(frozen=True, slots=True)
class _Page:
    """A run's next events, and whether they are its last."""

    events: list[RunEvent]
    is_last: bool


class Runs:
    """Requests and reads runs. The trainer runs them; the two processes share only Postgres."""

    def __init__(
        self,
        database: Database,
        *,
        settings: Settings,
        tasks: ServedTasks,
        metrics: Metrics,
        actor: Actor,
        loader: Loader,
    ) -> None:
        self._database = database
        self._settings = settings
        self._tasks = tasks
        self._metrics = metrics
        self._actor = actor
        self._loader = loader
        self._pages: SingleFlight[_Page] = SingleFlight()
        self._one_read = asyncio.Semaphore()
        self._stopping = asyncio.Event()

    async def request(
        self, caller: Caller, changes: Mapping[str, Any], *, request_id: str | None, task: str | None = None
    ) -> Requested:
        """Request a run of a task with the deployment's config, the task's own, and `changes` to them.

        Raises:
            NotFound: the task is not served.
            BadInput: an option is invalid (the message names it), or the deployment's config file cannot be used.
            Conflict: there is no labelled answer to learn from, an engine cannot load a new critic, or the request id
                belongs to another config.
        """
        name = self._tasks.get(task).name
        config = await self._effective(changes, name)
        if config.recipe is not Recipe.EXAMPLES:
            self._loader.require_adapters()
        async with self._database.session() as session:
            requested = await store.runs.request_run(
                session, config=config, trigger=Trigger.ADMIN, key_id=caller.key_id, request_id=request_id, task=name
            )
            if not requested.is_repeat:  # an error here rolls the request back
                needs_reference = config.recipe is not Recipe.EXAMPLES and config.steps_stage_1 == 0
                if not await store.training_data.has_labels(
                    session, Split.TRAIN, with_reference=needs_reference, task=name
                ):
                    raise Conflict(_nothing_to_learn(needs_reference=needs_reference))
        if not requested.is_repeat:
            log.info("run_requested", run=str(requested.run.id), task=name)
        return requested

    async def plan(self, changes: Mapping[str, Any], *, task: str | None = None) -> Plan:
        """The plan of a run of a task with `changes` to the deployment's config and the task's own.

        Stores no run; labels are brought up to date.

        Raises:
            BadInput, NotFound: as `request`.
        """
        name = self._tasks.get(task).name
        config = await self._effective(changes, name)
        model = await store.labels.refresh(self._database)
        async with self._database.session() as session:
            train = await store.training_data.answers_to_learn_from(session, limit=config.max_questions, task=name)
            heldout = await store.training_data.labelled_answers(
                session, Split.HELDOUT, limit=config.max_questions, task=name
            )
            train_questions = await store.training_data.count_open_questions(session, Split.TRAIN, name)
            heldout_questions = await store.training_data.count_open_questions(session, Split.HELDOUT, name)
            per_step = await store.runs.seconds_per_step(session, config)
            patterns = await store.labels.read_patterns(session)
            names = {key.id: key.name for key in await store.keys.list_keys(session)}
            live = await store.critics.resolve_critic(session, "live", name)
            judged = await store.scores.scored_answers(session, live)
        share = self._settings.max_key_share
        found = await asyncio.to_thread(
            plan,
            train,
            heldout,
            config,
            seconds_per_step_history=per_step,
            max_key_share=share,
            train_questions=train_questions,
            heldout_questions=heldout_questions,
        )
        contradicting = await asyncio.to_thread(contradictions, patterns, model)
        found = with_labels(found, model, contradicting, names=names, max_key_share=share)
        found = with_threshold(found, await asyncio.to_thread(scoreboard, judged), live=live.version)
        served = self._tasks.get(name).task
        found = with_guessing(found, served.guess_rate)
        options = await asyncio.to_thread(chosen_options_of, served, self._settings, changes)
        more = [
            *differences(config, self._settings),
            *self._about_engines(config),
            *await self._about_actor(found, config),
        ]
        return replace(found, warnings=(*found.warnings, *more), options=options)

    def _about_engines(self, config: TrainConfig) -> list[str]:
        if config.recipe is Recipe.EXAMPLES:
            return []
        try:
            self._loader.require_adapters()
        except Conflict as error:
            return [f"A run is refused: {error}."]
        return []

    async def _about_actor(self, found: Plan, config: TrainConfig) -> list[str]:
        """The cost of an actor with its own endpoint, and the features that it lacks."""
        if not self._settings.actor_url:
            return []
        cost = (
            f"The run asks the actor {self._actor.name} for up to {found.actor_answers:,} answers of at most "
            f"{config.max_answer_tokens} tokens each."
        )
        try:
            return [cost, *await self._actor.gaps()]
        except EngineError as error:
            return [cost, f"The actor could not be tried: {error}."]

    async def reproduce(self, caller: Caller, id: UUID) -> Run:
        """Request a run that repeats the run `id`.

        Raises:
            NotFound: no such run, or its task is not served any more.
            Conflict: the run has not stored its manifest yet, or an engine cannot load a new critic.
        """
        async with self._database.session() as session:
            original = await store.runs.read_run(session, id)
            if original.config.recipe is not Recipe.EXAMPLES:
                self._loader.require_adapters()
            if original.manifest is None:
                raise Conflict(f"the run {id} has no manifest yet, so it cannot be reproduced")
            requested = await store.runs.request_run(
                session,
                config=original.config,
                trigger=Trigger.REPRODUCE,
                key_id=caller.key_id,
                reproduces=id,
                task=self._tasks.get(original.task).name,
            )
        return requested.run

    async def cancel(self, id: UUID) -> Run:
        """Request the cancellation of a run. Raises as `gadfly.store.runs.request_cancel`."""
        async with self._database.session() as session:
            return await store.runs.request_cancel(session, id)

    async def read(self, id: UUID) -> Run:
        """One run.

        Raises:
            NotFound: no such run.
        """
        async with self._database.session() as session:
            return await store.runs.read_run(session, id)

    async def page(self, *, limit: int, before: UUID | None, task: str | None = None) -> list[Run]:
        """Runs of one task, or of all, without their manifests, newest first; with `before`, those older than it."""
        async with self._database.session() as session:
            return await store.runs.list_runs(session, limit=limit, before=before, task=task)

    async def events_of(
        self, id: UUID, kinds: Collection[EventKind], *, after: int, limit: int, newest: bool = False
    ) -> list[RunEvent]:
        """A run's events of some kinds; see `gadfly.store.runs.events_of`.

        Raises:
            NotFound: no such run.
        """
        async with self._database.session() as session:
            await store.runs.run_status(session, id)
            return await store.runs.events_of(session, id, kinds, after=after, limit=limit, newest=newest)

    async def has_more(self, id: UUID, *, after: int) -> bool:
        """Whether the run has events after this one, or may get more.

        Raises:
            NotFound: no such run.
        """
        page = await self._read_page(id, after)
        return bool(page.events) or not page.is_last

    async def follow(self, id: UUID, *, after: int) -> AsyncGenerator[RunEvent]:
        """A run's events after the one with the id `after`: the stored ones, then each new one.

        Ends with the run, or with `stop_following`. While Postgres is unavailable it waits.
        """
        self._metrics.run_followers.inc()
        try:
            while not self._stopping.is_set():
                # Followers that have seen the same events poll at the same moment and share one query.
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
        """End every stream, because the process is stopping."""
        self._stopping.set()

    async def _poll(self, id: UUID, after: int) -> _Page:
        try:
            return await self._read_page(id, after)
        except StoreUnavailable as error:
            log.warning("run_not_read", run=str(id), reason=str(error))
            return _Page([], is_last=False)

    async def _read_page(self, id: UUID, after: int) -> _Page:
        async with self._one_read, self._database.session() as session:  # followers use at most one connection
            status = await store.runs.run_status(session, id)  # first, so that a run's last events are never missed
            events = await store.runs.events_after(session, id, after=after, limit=_PAGE)
        return _Page(events, is_last=status.is_over and len(events) < _PAGE)

    async def _tick(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S - time.monotonic() % _POLL_S):
                await self._stopping.wait()

    async def _effective(self, changes: Mapping[str, Any], task: str) -> TrainConfig:
        return await asyncio.to_thread(train_config_of, self._tasks.get(task).task, self._settings, changes)


def _nothing_to_learn(*, needs_reference: bool) -> str:
    needed = "answer with a reference" if needs_reference else "labelled answer"
    return f"there is no {needed} to learn from: send references or feedback, or import answers that have them"
