"""The parts that serve critics in one process of the service: built, run and closed together."""

import asyncio
from functools import partial
from uuid import UUID

import structlog

from gadfly.concurrency import gather
from gadfly.engine_client import Engine, LabelWords
from gadfly.engine_fleet import EngineFleet
from gadfly.engine_pool import EnginePool
from gadfly.errors import Conflict, EngineError, EngineUnavailable, SameTokens
from gadfly.records import CanaryTerms, CriticVersion, Swap, SwapKind
from gadfly.repeating import repeat
from gadfly.service.critics.canaries import Canaries
from gadfly.service.critics.leases import Leases
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.pointers import CriticPointers
from gadfly.service.critics.receipts import SwapReceipts
from gadfly.service.critics.replicas import Replicas
from gadfly.service.critics.sampling import SamplingProofs
from gadfly.service.critics.scores import Scoreboards
from gadfly.service.critics.shadow import ShadowJudge
from gadfly.service.critics.swapper import Swapper
from gadfly.service.critics.upkeep import PINNED_S, EngineUpkeep
from gadfly.service.critics.watch import RollbackWatch
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings, without_password
from gadfly.store.database import Database
from gadfly.tasks import ServedTasks

_TICK_S = 1.0

log = structlog.get_logger(__name__)


class CriticServing:
    """Pointers, leases, loading, swaps and the rollback watch over the engines of a deployment."""

    def __init__(
        self,
        *,
        settings: Settings,
        tasks: ServedTasks,
        database: Database,
        engines: EngineFleet,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._members = engines
        self.same_words: dict[str, str] = {}  # by task, why its verdict words cannot be told apart
        self.pointers = CriticPointers(database, tasks.names)
        self.leases = Leases(limit=settings.max_in_flight, metrics=metrics)
        self.replicas = Replicas(database)
        self.loader = Loader(
            settings=settings,
            tasks=tasks,
            database=database,
            engines=engines,
            pointers=self.pointers,
            leases=self.leases,
            replicas=self.replicas,
            metrics=metrics,
        )
        self.engines = EnginePool(engines, router=self.loader)
        self._receipts = SwapReceipts(database=database, loader=self.loader, leases=self.leases, replicas=self.replicas)
        self.upkeep = EngineUpkeep(
            engines=engines,
            pointers=self.pointers,
            loader=self.loader,
            leases=self.leases,
            replicas=self.replicas,
            receipts=self._receipts,
        )
        engines.on_change = self._forget
        self._swappers = {
            line.task: Swapper(
                database=database,
                line=line,
                pointers=self.pointers,
                loader=self.loader,
                replicas=self.replicas,
                receipts=self._receipts,
                upkeep=self.upkeep,
                metrics=metrics,
                quorum=settings.swap_quorum,
            )
            for line in self.pointers
        }
        self.scoreboards = Scoreboards(database)
        self.sampling = SamplingProofs(engines, temperature=settings.temperature)
        share = settings.shadow_share if settings.auto_rollback else 0.0
        self.watch = RollbackWatch(database, self.pointers, is_on=settings.auto_rollback, shadow_share=share)
        self.canaries = Canaries(
            database, self.pointers, watch=self.watch if settings.auto_rollback else None, replicas=self.replicas
        )
        self.shadow = ShadowJudge(
            database,
            self.pointers,
            engines=self.engines,
            loader=self.loader,
            leases=self.leases,
            replicas=self.replicas,
            share=share,
            candidate_share=settings.candidate_share,
        )

    def _forget(self, engine: Engine) -> None:
        """Drop what is known of an engine that joined or was removed: another one may have had its address."""
        self.loader.forget_all(engine)
        self.loader.note_served(engine, ())
        self.upkeep.forget(engine)
        self.sampling.forget(engine)

    async def start(self) -> CriticVersion:
        """Read which critics are live, and return that of the default task.

        Raises:
            StoreUnavailable: Postgres is unavailable.
            Conflict: the live critic is based on another model, and replicas that serve it are running.
        """
        await self._members.look()
        return await self.pointers.start(base_model=self._settings.model, tasks=[task.id for task in self._tasks])

    def require_words(self, task: str) -> None:
        """Refuse requests of a task whose verdict words the model's tokens do not tell apart.

        Raises:
            Conflict: they do not.
        """
        if task in self.same_words:
            raise Conflict(f"the task {task} cannot be served: {self.same_words[task]}")

    async def _check_words(self) -> None:
        """Ask an engine once, as soon as one answers, for the tokens of each task's verdict words."""
        for task in self._tasks:
            prompts = task.prompts
            words = LabelWords(":", prompts.correct, prompts.incorrect)
            while True:
                try:
                    if not self._members:
                        raise EngineUnavailable("no engine is known yet")
                    await self._members[0].label_tokens(words)
                except SameTokens as error:
                    log.error("verdict_words_not_distinct", task=task.name, reason=str(error))
                    self.same_words[task.name] = str(error)
                except EngineError:
                    await asyncio.sleep(_TICK_S)
                    continue
                break

    @property
    def problem(self) -> str | None:
        """Why this replica does not serve a live critic, if so."""
        return "; ".join(swapper.problem for swapper in self._swappers.values() if swapper.problem) or None

    async def request_swap(
        self,
        *,
        version: int | None,
        kind: SwapKind,
        task: str | None = None,
        from_version: int | None = None,
        canary: CanaryTerms | None = None,
        key_id: UUID | None,
        reason: str | None,
        patience_s: float,
    ) -> Swap:
        """Request a swap of a task's live critic, without one of the version's task; else as `Swapper.request`.

        Raises:
            NotFound: there is no such version.
            Conflict: its task is not served or is another one than `task`, or an engine cannot load the version that an
                admin wants to promote; or as `gadfly.store.swaps.request_swap`.
            StoreUnavailable: Postgres is unavailable, so the swap was not requested.
        """
        if version is not None:
            critic = await self.pointers.resolve(version, task)
            if critic.task not in self._swappers:
                raise Conflict(
                    f"version {critic.version} is a critic of the task {critic.task}, which is not served here"
                )
            if kind is SwapKind.PROMOTE and critic.adapter_path is not None:
                self.loader.require_adapters()
            version, task = critic.version, task or critic.task
        return await self._swappers[task or self.pointers.default.task].request(
            version=version,
            kind=kind,
            from_version=from_version,
            canary=canary,
            key_id=key_id,
            reason=reason,
            patience_s=patience_s,
        )

    async def run(self) -> None:
        """Follow the pointers, do swaps, reconcile and check the engines and watch live traffic, until cancelled."""
        try:
            await gather(
                self.pointers.run_refresh(),
                self.pointers.run_listener(),
                self._members.run(),
                self._run_heartbeat(),
                self._check_words(),
                *(swapper.run() for swapper in self._swappers.values()),
                self.upkeep.run(),
                self.watch.run(),
                self.canaries.run(),
                self.shadow.run(),
                self.sampling.run(),
            )
        finally:
            await self.replicas.leave()

    async def _run_heartbeat(self) -> None:
        """Send a heartbeat every second, until cancelled."""

        async def beat() -> None:
            urls = tuple(without_password(engine.url) for engine in self._members)
            live = {line.task: line.serving for line in self.pointers if line.serving is not None}
            busy = {live[line.task]: 0 for line in self.pointers if line.task in live and self.loader.is_busy(line)}
            await self.replicas.beat(
                live=live,
                default=self.pointers.default.task,
                leases=busy | self.leases.used_within(PINNED_S),
                engines=urls,
                problem=self.problem,
            )

        await repeat(beat, wait=partial(asyncio.sleep, _TICK_S), failure="heartbeat_failed", waits_first=False)

    async def aclose(self) -> None:
        await self._receipts.aclose()
        await self.engines.aclose()
        await self._members.aclose()
