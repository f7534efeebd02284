"""Resources that both phases of a run use, opened once and closed in order."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import text

from gadfly import store
from gadfly.actor import Actor, open_actor
from gadfly.adapters import AdapterFolder
from gadfly.base_model import model_location
from gadfly.engine_fleet import EngineFleet
from gadfly.engine_pool import EnginePool
from gadfly.errors import BadSettings
from gadfly.grading import TaskGrader
from gadfly.prompts import PromptSet
from gadfly.records import CriticVersion
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.tasks import Task, load_task_named, open_grader
from gadfly.trainer.engines import REQUEST_LIMIT_S, RunEngines
from gadfly.trainer.patience import in_session
from gadfly.trainer.report import Reporter
from gadfly.trainer.rl.policy import Policy
from gadfly.trainer.rollouts import Collector
from gadfly.trainer.workspace import Workspace
from gadfly.training import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """The resources of one phase."""

    settings: Settings
    run: Run
    database: Database
    engines: RunEngines
    actor: Actor
    task: Task
    prompts: PromptSet
    grader: TaskGrader
    workspace: Workspace
    report: Reporter
    location: str  # of the base model

    def load_policy(self) -> Policy:
        return Policy(
            self.location,
            rank=self.settings.adapter_rank,
            alpha=self.run.config.lora_alpha,
            seed=self.run.config.fixed_seed,
            name=self.settings.model,
            gradient_checkpointing=self.run.config.gradient_checkpointing,
        )

    def published(self, critic: CriticVersion) -> Path:
        """The folder of a published version, checked file by file.

        Raises:
            BadAdapter: a file is missing or differs from the published one.
        """
        assert critic.adapter_path is not None
        path = self.settings.adapters_folder / critic.adapter_path
        return AdapterFolder.read(path, base_model=self.settings.model, max_rank=self.settings.adapter_rank).path

    def collector(self) -> Collector:
        return Collector(
            engines=self.engines, actor=self.actor, prompts=self.prompts, grader=self.grader, config=self.run.config
        )


@asynccontextmanager
async def open_context(settings: Settings, run_id: UUID, *, role: str | None) -> AsyncIterator[RunContext]:
    """Open the resources of a phase. `role` is the database role to work under.

    Raises:
        BadSettings: the run's task is not served, or cannot be loaded.
    """
    database_url, _ = settings.require_addresses()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.of(settings, database_url, role=role))
        fleet = EngineFleet.of(settings, timeout_s=max(settings.engine_timeout_s, REQUEST_LIMIT_S))
        stack.push_async_callback(fleet.aclose)
        await fleet.look()
        pool = EnginePool(fleet)
        actor = open_actor(settings, pool)
        stack.push_async_callback(actor.aclose)
        if role is not None:
            await _require_role(database, role)
        run = await in_session(database, lambda session: store.runs.read_run(session, run_id))
        served = load_task_named(settings, run.task)
        grader = await stack.enter_async_context(open_grader(served.task, settings))
        engines = RunEngines(
            pool, run_id, settings.engine_max_num_seqs, temperature=run.config.temperature, fleet=fleet
        )
        stack.push_async_callback(engines.unload_all)
        workspace = Workspace.of(settings.home, run_id)
        report = Reporter(run_id=run_id, database=database, workspace=workspace, steps=run.config.steps)
        stack.callback(report.close)
        yield RunContext(
            settings=settings,
            run=run,
            database=database,
            engines=engines,
            actor=actor,
            task=served.task,
            prompts=served.prompts,
            grader=grader,
            workspace=workspace,
            report=report,
            location=model_location(settings),
        )
        if actor.spent.requests:
            spent = asdict(actor.spent.usage)
            await report.note(
                f"the actor {actor.name} answered at its own endpoint", requests=actor.spent.requests, **spent
            )


async def _require_role(database: Database, role: str) -> None:
    """Raises:
    BadSettings: the role is not in force, so held-out rows can be read. Some poolers drop a connection's options.
    """
    current = await in_session(database, lambda session: session.scalar(text("SELECT current_user::text")))
    if current != role:
        raise BadSettings(f"the database role is {current} instead of {role}: connect without a pooler")
