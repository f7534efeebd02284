"""Everything one service process holds, built once and closed in order."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

import structlog

from gadfly import prompts
from gadfly.engine_client import EnginePool
from gadfly.errors import BadSettings, StoreUnavailable
from gadfly.grading import Grader
from gadfly.service.answering.answer import Answerer
from gadfly.service.answering.idempotency import Requests
from gadfly.service.critics.leases import Leases
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.pointers import Critics
from gadfly.service.critics.receipts import Receipts
from gadfly.service.critics.replicas import Replicas
from gadfly.service.critics.swapper import Swapper
from gadfly.service.critics.upkeep import Tender
from gadfly.service.critics.watch import Watch
from gadfly.service.health import Health
from gadfly.service.history import Memory
from gadfly.service.keyring import Keyring
from gadfly.service.metrics import Metrics
from gadfly.service.recording.recorder import Recorder
from gadfly.service.runs import Runs
from gadfly.settings import Settings
from gadfly.store.database import Database, require_current_schema

log = structlog.get_logger(__name__)

_RETRY_S = 1.0
_GRADING_PATIENCE_S = 30.0  # references that take long to compare must not hold up everybody for ever


@dataclass(kw_only=True)
class Service:
    settings: Settings
    metrics: Metrics
    critics: Critics
    swapper: Swapper
    keyring: Keyring
    memory: Memory
    requests: Requests
    answerer: Answerer
    health: Health
    runs: Runs
    _tender: Tender
    _watch: Watch
    _database: Database
    _grader: Grader
    _stack: AsyncExitStack

    @classmethod
    async def open(cls, settings: Settings, metrics: Metrics) -> Self:
        """Build everything. Nothing outside has to be up yet: `run` waits for it.

        Raises:
            BadSettings: no database or engine address, or an unknown prompt set.
        """
        if settings.database_url is None or not settings.engine_urls:
            raise BadSettings("the service needs GADFLY_DATABASE_URL and GADFLY_ENGINE_URLS; `gadfly up` sets both")
        prompt_set = prompts.load(settings.prompts)
        async with AsyncExitStack() as stack:  # closes what was opened when a later part fails
            database = await stack.enter_async_context(Database.of(settings, settings.database_url.get_secret_value()))
            engines = EnginePool.connect(settings.engine_urls, timeout_s=settings.engine_timeout_s)
            stack.push_async_callback(engines.aclose)
            grader = await stack.enter_async_context(
                Grader(timeout_s=settings.grade_timeout_s, patience_s=_GRADING_PATIENCE_S)
            )
            recorder = await stack.enter_async_context(
                Recorder(
                    database,
                    settings.home / "spool",
                    heldout_share=settings.heldout_share,
                    spool_max_bytes=settings.spool_max_bytes,
                )
            )
            critics = Critics(database)
            leases = Leases(limit=settings.max_in_flight, metrics=metrics)
            replicas = Replicas(database)
            loader = Loader(settings=settings, engines=engines, critics=critics, replicas=replicas, metrics=metrics)
            engines.may_serve, engines.restore = loader.may_serve, loader.restore
            receipts = Receipts(database=database, loader=loader, leases=leases, replicas=replicas)
            stack.push_async_callback(receipts.aclose)
            tender = Tender(
                engines=engines,
                critics=critics,
                loader=loader,
                leases=leases,
                replicas=replicas,
                receipts=receipts,
            )
            swapper = Swapper(
                database=database,
                engines=engines,
                critics=critics,
                loader=loader,
                leases=leases,
                replicas=replicas,
                receipts=receipts,
                tender=tender,
                metrics=metrics,
            )
            answerer = Answerer(
                settings=settings,
                engines=engines,
                prompts=prompt_set,
                critics=critics,
                grader=grader,
                recorder=recorder,
                metrics=metrics,
                loader=loader,
                leases=leases,
            )
            return cls(
                settings=settings,
                metrics=metrics,
                critics=critics,
                swapper=swapper,
                keyring=Keyring(database, open_without_keys=settings.is_loopback),
                memory=Memory(database, recorder),
                requests=Requests(database, recorder),
                answerer=answerer,
                health=Health(
                    database=database,
                    engines=engines,
                    critics=critics,
                    recorder=recorder,
                    leases=leases,
                    loader=loader,
                    tender=tender,
                    swapper=swapper,
                    replicas=replicas,
                    metrics=metrics,
                ),
                runs=Runs(database, settings=settings, metrics=metrics),
                _tender=tender,
                _watch=Watch(database, critics, is_on=settings.auto_rollback),
                _database=database,
                _grader=grader,
                _stack=stack.pop_all(),
            )

    async def run(self) -> None:
        """Wait for the database, settle which critic is live, start the grader; then keep what needs keeping, until
        cancelled.

        Raises:
            Conflict: the database's critics stand on another base model.
        """
        while not self.health.running:
            try:
                await require_current_schema(self._database)
                live = await self.critics.start(base_model=self.settings.model)
                await self.keyring.start()
                await self._grader.start()
                self.health.running = True
                log.info("service_started", live_critic=live.version, prompts=self.settings.prompts)
            except StoreUnavailable as error:
                log.warning("waiting_for_database", reason=str(error))
                await asyncio.sleep(_RETRY_S)
        try:
            await asyncio.gather(
                self.requests.keep_claims(),
                self.critics.keep_fresh(),
                self.critics.keep_listening(),
                self.swapper.keep_beating(),
                self.swapper.keep_swapping(),
                self._tender.keep_tending(),
                self._watch.keep_watching(),
            )
        finally:
            await self.swapper.leave()

    def require_started(self) -> None:
        """Raises:
        StoreUnavailable: the database has not answered since this process began, so the live critic is not known.
        """
        if not self.health.running:
            raise StoreUnavailable("the service is starting: it waits for its database", retry_after_s=2.0)

    async def aclose(self) -> None:
        await self._stack.aclose()
