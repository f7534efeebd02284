"""The trainer process: takes runs from the job queue and executes them, one at a time.

procrastinate provides jobs, their lock, schedules and heartbeats. Each phase of a run is a child process, so a crash
or an out-of-memory error does not end the trainer; the child is restarted and resumes.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import procrastinate
import structlog
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store, tracing
from gadfly.engine_fleet import EngineFleet
from gadfly.engine_pool import EnginePool
from gadfly.errors import BadInput, BadSettings, NotFound, StoreUnavailable
from gadfly.records import Split
from gadfly.repeating import repeat, retry
from gadfly.settings import Settings
from gadfly.store.database import Database, require_current_schema
from gadfly.store.labels import refresh
from gadfly.store.runs import QUEUE, TASK
from gadfly.task_names import DEFAULT_TASK
from gadfly.tasks import ServedTasks, load_tasks
from gadfly.tasks.training import TaskSchedule, check_training, schedule_of, train_config_of
from gadfly.tether import tether
from gadfly.trainer.engines import sweep
from gadfly.trainer.patience import in_session, patiently
from gadfly.trainer.phases import Phase, take_reason
from gadfly.trainer.workspace import Workspace
from gadfly.training import Run, RunStatus, TrainConfig, Trigger

log = structlog.get_logger(__name__)

_WATCH_S = 0.5  # between two checks for a cancellation
_GRACE_S = 3.0  # for a child to end its own processes; an interrupted write does no harm
_MOST_CRASHES = 3  # in a row, without a step between them
_HEARTBEAT_S = 3.0
_STALLED_S = 15.0  # without a heartbeat a worker counts as dead, and its run as interrupted
_RETRY_S = 1.0
_TAIL_BYTES = 4096


@dataclass(kw_only=True)
class Worker:
    """One trainer process."""

    settings: Settings
    database: Database
    engines: EnginePool
    url: str

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator["Worker"]:
        """Raises:
        BadSettings: there is no address of a database or an engine.
        """
        url, _ = settings.require_addresses()
        fleet = EngineFleet.of(settings, timeout_s=settings.engine_timeout_s)
        looking = asyncio.create_task(fleet.run())
        try:
            await fleet.look()
            async with Database.of(settings, url) as database:
                yield cls(settings=settings, database=database, engines=EnginePool(fleet), url=url)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await fleet.aclose()

    async def run(self) -> None:
        """Execute runs until SIGTERM or SIGINT. A run that this interrupts resumes at the next start.

        Raises:
            BadSettings: the deployment's training config or one of its tasks cannot be loaded.
        """
        try:
            TrainConfig.effective(self.settings.train_config, {})
        except BadInput as error:
            raise BadSettings(str(error)) from None
        served = load_tasks(self.settings)
        check_training(served, self.settings)
        await self._wait_for_database()
        await self._clean_up_ended()
        app = self.make_app()
        async with app.open_async():
            keeper = asyncio.create_task(self._repair_queue(app))
            log.info("trainer_started", schedule=_times(self.schedules(served)) or None)
            try:
                await app.run_worker_async(
                    queues=[QUEUE],
                    name="trainer",
                    concurrency=2,  # one run, and the periodic jobs beside it
                    update_heartbeat_interval=_HEARTBEAT_S,
                    stalled_worker_timeout=_STALLED_S,
                    shutdown_graceful_timeout=0.1,  # the child is ended; the next trainer resumes the run
                    delete_jobs="successful",
                )
            finally:
                keeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeper

    def make_app(self) -> procrastinate.App:
        """The jobs of the queue."""
        address = make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(
                conninfo=address,
                min_size=1,
                max_size=4,
                # In a database without an encoding (SQL_ASCII) the names of tasks would arrive as bytes.
                kwargs={"application_name": "gadfly-trainer", "client_encoding": "utf8"},
            )
        )

        @app.task(name=TASK, queue=QUEUE, lock=QUEUE, pass_context=False)
        async def train(run_id: str) -> None:
            await self.train(UUID(run_id))

        @app.task(name="scheduled", queue=QUEUE)
        async def scheduled(timestamp: int, cron: str = self.settings.train_schedule) -> None:
            await self.request_scheduled(cron)

        schedules = self.schedules(load_tasks(self.settings))
        for cron in _times(schedules):
            lock = f"scheduled {cron}"
            app.periodic(cron=cron, periodic_id=cron, task_kwargs={"cron": cron}, queueing_lock=lock)(scheduled)

        if any(schedule.after_labels for schedule in schedules.values()):

            @app.periodic(cron="* * * * *")
            @app.task(name="count_labels", queue=QUEUE, queueing_lock="count_labels")
            async def count_labels(timestamp: int) -> None:
                await self.request_after_labels()

        return app

    def schedules(self, served: ServedTasks) -> dict[str, TaskSchedule]:
        """When each task is trained without a request."""
        return {each.name: schedule_of(each.task, self.settings) for each in served}

    async def request_scheduled(self, cron: str) -> None:
        """Request a run of every task that is trained at these times and has labels to learn from.

        A job that an earlier release queued names no times: those of the deployment hold, and there may be none now.
        """
        if not cron:
            return
        served = load_tasks(self.settings)
        for task, schedule in self.schedules(served).items():
            if schedule.cron != cron:
                continue
            async with self.database.session() as session:
                has_labels = await store.training_data.has_labels(session, Split.TRAIN, task=task)
            if has_labels or task == served.default.name:
                await self.request(Trigger.SCHEDULE, task)

    async def request_after_labels(self) -> None:
        """Request a run of every task that has as many new labels as it waits for."""
        for task, schedule in self.schedules(load_tasks(self.settings)).items():
            wanted = schedule.after_labels
            if not wanted:
                continue
            async with self.database.session() as session:
                count = await store.training_data.count_new_labels(session, task, at_most=wanted)
            if count >= wanted:
                await self.request(Trigger.LABELS, task)

    async def request(self, trigger: Trigger, task: str = DEFAULT_TASK) -> None:
        """Request a run of a task with the deployment's and the task's own config, unless one of it is unfinished."""
        config = train_config_of(load_tasks(self.settings).get(task).task, self.settings)
        async with self.database.session() as session:
            if await store.runs.unfinished_runs(session, task):
                return
            requested = await store.runs.request_run(session, config=config, trigger=trigger, task=task)
        log.info("run_requested", run=str(requested.run.id), trigger=trigger.value, task=task)

    async def train(self, run_id: UUID) -> None:
        """Execute one run, phase by phase, and record its outcome."""
        run = await self._start(run_id)
        if run.status is not RunStatus.RUNNING:
            return
        log.info("run_started", run=str(run_id), attempt=run.attempt)
        if run.attempt == 1:  # later attempts have their answers in the run's folder
            await patiently(partial(refresh, self.database))
        status, error = RunStatus.SUCCEEDED, None
        attributes = {"gadfly.run_id": run_id, "gadfly.task": run.task, "gadfly.attempt": run.attempt}
        with tracing.root("run", attributes, trace_id=run_id) as span:
            for phase in Phase:
                status, error = await self._execute(phase, run_id)
                if status is not RunStatus.SUCCEEDED:
                    break
            span.set({"gadfly.run_status": status})
        await self._finish(run_id, status, error)

    async def _execute(self, phase: Phase, run_id: UUID) -> tuple[RunStatus, str | None]:
        """Execute one phase of a run. A phase that crashes is restarted as long as it makes progress."""
        crashes, last_step = 0, -1
        while True:
            code = await self._child(phase, run_id)
            run = await self._read(run_id)
            if run.version is None and run.cancel_requested_at is not None:
                return RunStatus.CANCELLED, None
            if code == 0 or run.version is not None:  # a published run can no longer be cancelled
                return RunStatus.SUCCEEDED, None
            reason = take_reason(Workspace.of(self.settings.home, run_id))
            if reason is not None:
                return RunStatus.FAILED, reason
            crashes = crashes + 1 if run.progress.step <= last_step or crashes == 0 else 1
            last_step = run.progress.step
            cause = _describe(code)
            if crashes >= _MOST_CRASHES:
                log_file = Workspace.of(self.settings.home, run_id).log
                return RunStatus.FAILED, (
                    f"the run's process ended {crashes} times in a row without completing a step: {cause}. The last "
                    f"line of its log: {last_line(log_file)} ({log_file})"
                )
            log.warning("run_crashed", run=str(run_id), phase=phase.value, cause=cause, crashes=crashes)
            await asyncio.sleep(_RETRY_S)

    async def _child(self, phase: Phase, run_id: UUID) -> int:
        """Run one phase in a child process, which a cancellation ends; its exit status, negative for a signal."""
        with Workspace.of(self.settings.home, run_id).log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *self._command(phase, run_id),
                env={**os.environ, **self.settings.to_environment(), **tracing.environment()},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        ended = asyncio.ensure_future(process.wait())
        try:
            while not ended.done():
                await asyncio.wait((ended,), timeout=_WATCH_S)
                if not ended.done() and await self._is_cancelled(run_id):
                    await _end_group(process)
            return await ended
        finally:
            await _end_group(process)
            await sweep(self.engines, run_id)

    def _command(self, phase: Phase, run_id: UUID) -> list[str]:
        program = ["gadfly.trainer.run", phase.value, str(run_id)]
        if phase is Phase.LEARN and self.settings.train_processes > 1:
            launch = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu"]  # that is, torchrun
            launch += ["--num_machines", "1", "--num_processes", str(self.settings.train_processes)]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
            launch += shlex.split(self.settings.train_launch_args)
            return [*tether(), *launch, "--module", *program]
        return [*tether(), sys.executable, "-P", "-m", *program]

    async def _start(self, run_id: UUID) -> Run:
        async def start(session: AsyncSession) -> Run:
            if await store.runs.is_cancel_requested(session, run_id):
                await store.runs.finish_run(session, run_id, RunStatus.CANCELLED)
            return await store.runs.begin_run(session, run_id)

        run = await in_session(self.database, start)
        if run.status.is_over:
            await self._clean_up(run)
        return run

    async def _finish(self, run_id: UUID, status: RunStatus, error: str | None) -> None:
        await in_session(self.database, lambda session: store.runs.finish_run(session, run_id, status, error=error))
        log.info("run_ended", run=str(run_id), status=status.value, error=error)
        await self._clean_up(await self._read(run_id))

    async def _clean_up(self, run: Run) -> None:
        """Remove the texts and adapters of an ended run, and its published folder if that became no version."""
        await sweep(self.engines, run.id)
        Workspace.of(self.settings.home, run.id).forget_texts()
        if run.version is None:
            for name in (f".{run.id}.unfinished", str(run.id)):
                await asyncio.to_thread(shutil.rmtree, self.settings.adapters_folder / name, ignore_errors=True)

    async def _clean_up_ended(self) -> None:
        """Clean up after runs that ended while no trainer was running."""
        for run_id in Workspace.all(self.settings.home):
            try:
                run = await self._read(run_id)
            except NotFound:
                continue  # the folder of another deployment
            if run.status.is_over:
                await self._clean_up(run)

    async def _read(self, run_id: UUID) -> Run:
        return await in_session(self.database, lambda session: store.runs.read_run(session, run_id))

    async def _is_cancelled(self, run_id: UUID) -> bool:
        try:
            async with self.database.session() as session:
                return await store.runs.is_cancel_requested(session, run_id)
        except StoreUnavailable:
            return False

    async def _wait_for_database(self) -> None:
        await retry(
            partial(require_current_schema, self.database),
            on=StoreUnavailable,
            every_s=_RETRY_S,
            event="waiting_for_database",
        )

    async def _repair_queue(self, app: procrastinate.App) -> None:
        """Requeue the jobs of dead workers, and queue a job for every run that has none."""

        async def repair() -> None:
            for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=_STALLED_S):
                log.warning("stalled_job_requeued", job=job.id)
                await app.job_manager.retry_job(job)
            async with self.database.session() as session:
                await store.runs.enqueue_lost_runs(session)

        await repeat(repair, wait=partial(asyncio.sleep, _HEARTBEAT_S), failure="queue_not_repaired", waits_first=False)


def _times(schedules: Mapping[str, TaskSchedule]) -> list[str]:
    return sorted({schedule.cron for schedule in schedules.values() if schedule.cron})


def last_line(path: Path) -> str:
    """The last line of a log that is not blank."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "nothing")


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End a child process and the processes that it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", often because memory ran out" if name == "SIGKILL" else "")
