"""The parts of one service process: built once, connected here, and closed in reverse order."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

import structlog

from gadfly import store
from gadfly.actor import open_actor
from gadfly.concurrency import gather
from gadfly.engine_fleet import EngineFleet
from gadfly.errors import StoreUnavailable
from gadfly.grading import TaskGrader
from gadfly.redaction import open_redactor
from gadfly.repeating import retry
from gadfly.service.admin import Keys
from gadfly.service.answering.answer import Answerer
from gadfly.service.answering.idempotency import Idempotency
from gadfly.service.critics.serving import CriticServing
from gadfly.service.forgetting import Forgetting
from gadfly.service.front.answer import ChatAnswerer
from gadfly.service.front.background import BackgroundJudge
from gadfly.service.guardrail import Guardrail
from gadfly.service.health import Health
from gadfly.service.history import History
from gadfly.service.keyring import Keyring
from gadfly.service.label_queue import LabelQueue
from gadfly.service.labels import Labels
from gadfly.service.metrics import Metrics
from gadfly.service.overview import Overview
from gadfly.service.quotas import Quotas
from gadfly.service.recording.recorder import Recorder
from gadfly.service.room import Room
from gadfly.service.runs import Runs
from gadfly.service.sessions import Sessions
from gadfly.service.strangers import Strangers
from gadfly.service.webhooks import Webhooks, WebhookSender
from gadfly.settings import Settings
from gadfly.store.database import Database, require_current_schema
from gadfly.tasks import ServedTasks, load_tasks, open_grader

log = structlog.get_logger(__name__)

_RETRY_S = 1.0
_GRADING_PATIENCE_S = 30.0  # references that take long to compare must not block other grading


@dataclass(kw_only=True)
class Service:
    """The parts of one process of the service."""

    settings: Settings
    tasks: ServedTasks
    metrics: Metrics
    critics: CriticServing
    keyring: Keyring
    quotas: Quotas
    keys: Keys
    sessions: Sessions
    history: History
    forgetting: Forgetting
    answerer: Answerer
    chat: ChatAnswerer
    guardrail: Guardrail
    background: BackgroundJudge
    health: Health
    room: Room
    runs: Runs
    graders: Mapping[str, TaskGrader]
    labels: Labels
    label_queue: LabelQueue
    overview: Overview
    webhooks: Webhooks
    _webhook_sender: WebhookSender
    _requests: Idempotency
    _database: Database
    _stack: AsyncExitStack

    @classmethod
    async def open(cls, settings: Settings, metrics: Metrics) -> Self:
        """Build every part. Postgres and the engines may still be unavailable: `run` waits for them.

        Raises:
            BadSettings: no database or engine address, or a task or prompt set that cannot be used.
        """
        database_url, _ = settings.require_addresses()
        tasks = load_tasks(settings)
        async with AsyncExitStack() as stack:  # closes the opened parts when a later one fails
            database = await stack.enter_async_context(Database.of(settings, database_url))
            critics = CriticServing(
                settings=settings,
                tasks=tasks,
                database=database,
                engines=EngineFleet.of(settings, timeout_s=settings.engine_timeout_s),
                metrics=metrics,
            )
            stack.push_async_callback(critics.aclose)
            actor = open_actor(settings, critics.engines)
            stack.push_async_callback(actor.aclose)
            graders = {
                each.name: await stack.enter_async_context(
                    open_grader(each.task, settings, patience_s=_GRADING_PATIENCE_S)
                )
                for each in tasks
            }
            redactor = open_redactor(settings.redactor)
            if redactor is not None:
                stack.push_async_callback(redactor.aclose)
            recorder = await stack.enter_async_context(
                Recorder(
                    database,
                    settings.home / "spool",
                    heldout_share=settings.heldout_share,
                    split_blocks=settings.split_blocks,
                    spool_max_bytes=settings.spool_max_bytes,
                    redactor=redactor,
                )
            )
            requests = Idempotency(database, recorder, is_alone=lambda: len(critics.replicas.known) <= 1)
            room = Room(settings.home, min_free_bytes=settings.min_free_bytes)
            history = History(database, recorder, on_deleted=requests.forget)
            quotas, strangers = Quotas(), Strangers()
            sender = WebhookSender(database, is_eldest=lambda: critics.replicas.is_eldest, metrics=metrics)
            stack.push_async_callback(sender.aclose)
            answerer = Answerer(
                settings=settings,
                tasks=tasks,
                actor=actor,
                critics=critics,
                graders=graders,
                recorder=recorder,
                requests=requests,
                metrics=metrics,
                quotas=quotas,
            )
            return cls(
                settings=settings,
                tasks=tasks,
                metrics=metrics,
                critics=critics,
                keyring=Keyring(database, open_without_keys=settings.is_loopback, strangers=strangers),
                quotas=quotas,
                sessions=Sessions(database, strangers),
                keys=Keys(database),
                history=history,
                forgetting=Forgetting(
                    database,
                    recorder,
                    base_model=settings.model,
                    retention=settings.retention_days(),
                    on_deleted=requests.forget,
                ),
                answerer=answerer,
                chat=ChatAnswerer(
                    settings=settings,
                    actor=actor,
                    answerer=answerer,
                    requests=requests,
                    history=history,
                    leases=critics.leases,
                    quotas=quotas,
                ),
                guardrail=Guardrail(database, settings=settings, answerer=answerer),
                background=BackgroundJudge(database, critics, settings=settings, tasks=tasks, metrics=metrics),
                health=Health(
                    tasks=tasks,
                    database=database,
                    critics=critics,
                    actor=actor,
                    recorder=recorder,
                    room=room,
                    metrics=metrics,
                ),
                room=room,
                runs=Runs(
                    database, settings=settings, tasks=tasks, metrics=metrics, actor=actor, loader=critics.loader
                ),
                labels=Labels(database),
                label_queue=LabelQueue(database, settings=settings, tasks=tasks),
                overview=Overview(database),
                webhooks=Webhooks(database),
                _webhook_sender=sender,
                _requests=requests,
                _database=database,
                graders=graders,
                _stack=stack.pop_all(),
            )

    async def run(self) -> None:
        """Wait for Postgres, read which critics are live, start the graders; then run background tasks until cancelled.

        Raises:
            Conflict: the database belongs to another base model, and replicas that serve it are running.
        """
        await retry(self._start, on=StoreUnavailable, every_s=_RETRY_S, event="waiting_for_database")
        await gather(  # all have ended before the pool is closed
            self._requests.run_claim_renewal(),
            self.critics.run(),
            self.labels.run(),
            self.background.run(),
            self.forgetting.run(),
            self.quotas.run(self._database),
            self._webhook_sender.run(),
        )

    async def _start(self) -> None:
        await require_current_schema(self._database)
        if keyed := await store.wall.key_stored_questions(self._database):
            log.info("stored_questions_keyed", questions=keyed)
        live = await self.critics.start()
        await self.keyring.start()
        await self._requests.start()
        for grader in self.graders.values():
            await grader.start()
        self.health.running = True
        log.info(
            "service_started",
            live_critic=live.version,
            tasks=[f"{each.name} {each.task.version}" for each in self.tasks],
        )

    def require_started(self) -> None:
        """Refuse requests before the live critic is known.

        Raises:
            StoreUnavailable: Postgres has not been available since this process started.
        """
        if not self.health.running:
            raise StoreUnavailable("the service is starting and waiting for Postgres", retry_after_s=2.0)

    async def aclose(self) -> None:
        await self._stack.aclose()
