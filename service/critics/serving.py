"""The parts that serve critics in one process of the service: built, run and closed together."""

from collections.abc import Sequence

from gadfly.concurrency import gather
from gadfly.engine_client import Engine, EnginePool
from gadfly.prompts import PromptSet
from gadfly.records import CriticVersion
from gadfly.service.critics.leases import Leases
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.pointers import CriticPointers
from gadfly.service.critics.receipts import SwapReceipts
from gadfly.service.critics.replicas import Replicas
from gadfly.service.critics.sampling import SamplingProofs
from gadfly.service.critics.scores import Scoreboards
from gadfly.service.critics.shadow import ShadowJudge
from gadfly.service.critics.swapper import Swapper
from gadfly.service.critics.upkeep import EngineUpkeep
from gadfly.service.critics.watch import RollbackWatch
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.tasks import Task


class CriticServing:
    """Pointers, leases, loading, swaps and the rollback watch over the engines of a deployment."""

    def __init__(
        self,
        *,
        settings: Settings,
        task: Task,
        prompts: PromptSet,
        database: Database,
        engines: Sequence[Engine],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._task = task
        self.pointers = CriticPointers(database)
        self.leases = Leases(limit=settings.max_in_flight, metrics=metrics)
        self.replicas = Replicas(database)
        self.loader = Loader(
            settings=settings,
            task=task,
            prompts=prompts,
            engines=engines,
            pointers=self.pointers,
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
        self.swapper = Swapper(
            database=database,
            engines=engines,
            pointers=self.pointers,
            loader=self.loader,
            leases=self.leases,
            replicas=self.replicas,
            receipts=self._receipts,
            upkeep=self.upkeep,
            metrics=metrics,
        )
        self.scoreboards = Scoreboards(database)
        self.sampling = SamplingProofs(engines, temperature=settings.temperature)
        share = settings.shadow_share if settings.auto_rollback else 0.0
        self.watch = RollbackWatch(database, self.pointers, is_on=settings.auto_rollback, shadow_share=share)
        self.shadow = ShadowJudge(
            database,
            self.pointers,
            engines=self.engines,
            prompts=prompts,
            loader=self.loader,
            leases=self.leases,
            replicas=self.replicas,
            share=share,
            candidate_share=settings.candidate_share,
        )

    async def start(self) -> CriticVersion:
        """Read which critic is live, and return it.

        Raises:
            StoreUnavailable: Postgres is unavailable.
            Conflict: the live critic is based on another model, and replicas that serve it are running.
        """
        return await self.pointers.start(base_model=self._settings.model, task=self._task.id)

    async def run(self) -> None:
        """Follow the pointers, do swaps, reconcile and check the engines and watch live traffic, until cancelled."""
        try:
            await gather(
                self.pointers.run_refresh(),
                self.pointers.run_listener(),
                self.swapper.run_heartbeat(),
                self.swapper.run(),
                self.upkeep.run(),
                self.watch.run(),
                self.shadow.run(),
                self.sampling.run(),
            )
        finally:
            await self.swapper.leave()

    async def aclose(self) -> None:
        await self._receipts.aclose()
        await self.engines.aclose()
