"""Training runs, their events, and their jobs in the queue."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import exists, func, select, text, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, defer

from gadfly.errors import Conflict, NotFound
from gadfly.records import SwapKind, SwapStatus, new_id, now
from gadfly.store import webhooks
from gadfly.store.mapping import record_of
from gadfly.store.tables import CriticVersionRow, RunEventRow, SwapRow, TrainingRunRow
from gadfly.task_names import DEFAULT_TASK
from gadfly.training import EventKind, GateOutcome, Progress, Run, RunEvent, RunStatus, TrainConfig, Trigger
from gadfly.webhooks import WebhookEvent

TRAINING_ROLE = "gadfly_training"
"""The database role of training code: row security hides held-out rows from it."""

QUEUE = "training"
TASK = "train"

_NO_RUN = "there is no training run {}"


@dataclass(frozen=True, slots=True)
class Requested:
    """A requested run; `is_repeat` when an earlier request with the same request id created it."""

    run: Run
    is_repeat: bool


async def request_run(
    session: AsyncSession,
    *,
    config: TrainConfig,
    trigger: Trigger,
    key_id: UUID | None = None,
    request_id: str | None = None,
    reproduces: UUID | None = None,
    task: str = DEFAULT_TASK,
) -> Requested:
    """Store a run of a task and put its job into the queue, in one transaction.

    A config without a seed gets the run's own.

    Raises:
        Conflict: the request id belongs to a run with another config, or of another task.
    """
    id = new_id()
    values = {
        "id": id,
        "status": RunStatus.QUEUED,
        "trigger": trigger,
        "created_at": func.clock_timestamp(),  # the clock of labels, of which a run learns the older ones
        "key_id": key_id,
        "request_id": request_id,
        "config": config.seeded(id).model_dump(mode="json"),
        "reproduces": reproduces,
        "attempt": 0,
        "step": 0,
        "steps": config.steps,
        "task": task,
    }
    statement = insert(TrainingRunRow).values(values)
    if request_id is not None:
        statement = statement.on_conflict_do_nothing(
            index_elements=[TrainingRunRow.request_id, TrainingRunRow.key_id],
            index_where=TrainingRunRow.request_id.is_not(None),
        )
    inserted = await session.scalar(statement.returning(TrainingRunRow.id))
    if inserted is None:
        row = await session.scalar(
            select(TrainingRunRow).where(
                TrainingRunRow.request_id == request_id, TrainingRunRow.key_id.is_not_distinct_from(key_id)
            )
        )
        assert row is not None
        run = await read_run(session, row.id)
        if run.config != config.seeded(run.id):
            raise Conflict(f"the request id {request_id!r} belongs to a run with another config")
        if run.task != task:
            raise Conflict(f"the request id {request_id!r} belongs to a run of the task {run.task}")
        return Requested(run, True)
    await append_event(session, id, EventKind.STATUS, {"status": RunStatus.QUEUED.value})
    await enqueue_run(session, id)
    return Requested(await read_run(session, id), False)


async def enqueue_run(session: AsyncSession, run_id: UUID) -> None:
    """Put a run's job into the queue, in this transaction. The lock admits one run at a time, whatever its trigger."""
    await session.execute(
        text(
            "SELECT procrastinate_defer_jobs_v1(ARRAY[ROW(CAST(:queue AS varchar), CAST(:task AS varchar), 0,"
            " CAST(:lock AS text), CAST(:queueing_lock AS text), jsonb_build_object('run_id', CAST(:run_id AS text)),"
            " NULL::timestamptz)::procrastinate_job_to_defer_v1])"
        ),
        {"queue": QUEUE, "task": TASK, "lock": QUEUE, "queueing_lock": f"run {run_id}", "run_id": str(run_id)},
    )


async def enqueue_lost_runs(session: AsyncSession) -> list[UUID]:
    """Queue a job for every unfinished run without one: its worker was stopped, or its job was removed manually."""
    lost = await session.scalars(
        text(
            "SELECT id FROM training_runs AS run WHERE status IN ('queued', 'running') AND NOT EXISTS (SELECT FROM"
            " procrastinate_jobs AS job WHERE job.queueing_lock = 'run ' || run.id AND job.status IN ('todo', 'doing'))"
            " ORDER BY id FOR UPDATE SKIP LOCKED"
        )
    )
    run_ids = list(lost)
    for run_id in run_ids:
        await enqueue_run(session, run_id)
    return run_ids


async def read_run(session: AsyncSession, id: UUID) -> Run:
    """One run.

    Raises:
        NotFound: there is none.
    """
    row = (await session.execute(_runs().where(TrainingRunRow.id == id))).one_or_none()
    if row is None:
        raise NotFound(_NO_RUN.format(id))
    return _to_run(*row)


async def list_runs(
    session: AsyncSession, *, limit: int, before: UUID | None = None, task: str | None = None
) -> list[Run]:
    """Runs of one task, or of all, without their manifests, which are long, the newest first.

    With `before`, those older than that run.
    """
    statement = _runs().order_by(TrainingRunRow.id.desc()).limit(limit)  # ids are in order of creation
    if before is not None:
        statement = statement.where(TrainingRunRow.id < before)
    if task is not None:
        statement = statement.where(TrainingRunRow.task == task)
    rows = await session.execute(statement.options(defer(TrainingRunRow.manifest, raiseload=True)))
    return [_to_run(*row, with_manifest=False) for row in rows]


async def run_status(session: AsyncSession, id: UUID) -> RunStatus:
    """The status of one run.

    Raises:
        NotFound: there is none.
    """
    status = await session.scalar(select(TrainingRunRow.status).where(TrainingRunRow.id == id))
    if status is None:
        raise NotFound(_NO_RUN.format(id))
    return status


async def unfinished_runs(session: AsyncSession, task: str | None = None) -> list[Run]:
    """Runs of one task, or of all, that are queued or running, the oldest first."""
    statement = _runs().where(TrainingRunRow.status.in_([RunStatus.QUEUED, RunStatus.RUNNING]))
    if task is not None:
        statement = statement.where(TrainingRunRow.task == task)
    return [_to_run(*row) for row in await session.execute(statement.order_by(TrainingRunRow.id))]


async def begin_run(session: AsyncSession, id: UUID) -> Run:
    """Record that a run starts, for the first time or again. A finished run is returned unchanged."""
    attempt = await session.scalar(
        update(TrainingRunRow)
        .where(TrainingRunRow.id == id, TrainingRunRow.status.in_([RunStatus.QUEUED, RunStatus.RUNNING]))
        .values(
            status=RunStatus.RUNNING,
            attempt=TrainingRunRow.attempt + 1,
            started_at=func.coalesce(TrainingRunRow.started_at, func.clock_timestamp()),
        )
        .returning(TrainingRunRow.attempt)
    )
    if attempt is not None:
        await append_event(session, id, EventKind.STATUS, {"status": RunStatus.RUNNING.value, "attempt": attempt})
    return await read_run(session, id)


async def finish_run(session: AsyncSession, id: UUID, status: RunStatus, *, error: str | None = None) -> bool:
    """End a run. False when it had ended already."""
    ended = await session.scalar(
        update(TrainingRunRow)
        .where(TrainingRunRow.id == id, TrainingRunRow.status.in_([RunStatus.QUEUED, RunStatus.RUNNING]))
        .values(status=status, error=error, finished_at=func.clock_timestamp(), eta_s=None)
        .returning(TrainingRunRow.id)
    )
    if ended is not None:
        await append_event(session, id, EventKind.STATUS, {"status": status.value, "error": error})
        await _announce_end(session, id)
    return ended is not None


async def _announce_end(session: AsyncSession, id: UUID) -> None:
    if not await webhooks.wanting(session, WebhookEvent.RUN_ENDED):
        return
    run = await read_run(session, id)
    data = {
        "run_id": str(id),
        "task": run.task,
        "status": run.status.value,
        "outcome": None if run.outcome is None else run.outcome.value,
        "version": run.version,
    }  # without the error: it may quote a line of the log, and that a text of callers
    await webhooks.announce(session, WebhookEvent.RUN_ENDED, data)


async def request_cancel(session: AsyncSession, id: UUID) -> Run:
    """Request the cancellation of a run. A queued run ends here, a running one is ended by its worker.

    Raises:
        NotFound: there is none.
        Conflict: it has ended.
    """
    row = await session.get(TrainingRunRow, id, with_for_update=True)
    if row is None:
        raise NotFound(_NO_RUN.format(id))
    if row.status.is_over:
        raise Conflict(f"the run {id} is over: {row.status.value}")
    row.cancel_requested_at = row.cancel_requested_at or now()
    await session.flush()
    if row.status is RunStatus.QUEUED:
        await finish_run(session, id, RunStatus.CANCELLED)
        await session.refresh(row)
    return await read_run(session, id)


async def seconds_per_step(session: AsyncSession, config: TrainConfig) -> float | None:
    """Mean seconds of a rollout step in the newest run with steps of the same size; None without such a run."""
    size = config.model_dump(
        mode="json",
        include={"prompts_per_step", "samples_per_prompt", "max_critique_tokens", "max_answer_tokens", "inner_epochs"},
    )
    newest = (
        select(TrainingRunRow.id)
        .join(RunEventRow, RunEventRow.run_id == TrainingRunRow.id)
        .where(type_coerce(TrainingRunRow.config, JSONB).contains(size), RunEventRow.kind == EventKind.STEP)
        .order_by(TrainingRunRow.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    return await session.scalar(
        select(func.avg(type_coerce(RunEventRow.data, JSONB)["seconds"].as_float())).where(
            RunEventRow.run_id == newest, RunEventRow.kind == EventKind.STEP
        )
    )


async def is_cancel_requested(session: AsyncSession, id: UUID) -> bool:
    """Whether the cancellation of a run was requested."""
    statement = select(TrainingRunRow.cancel_requested_at.is_not(None)).where(TrainingRunRow.id == id)
    return bool(await session.scalar(statement))


async def refuse_cancelled(session: AsyncSession, id: UUID) -> None:
    """Lock a run, so that a cancellation happens either before this transaction or after it.

    Raises:
        Conflict: it was cancelled.
    """
    row = await session.get(TrainingRunRow, id, with_for_update=True, populate_existing=True)
    if row is None or row.cancel_requested_at is not None:
        raise Conflict("the run was cancelled")


async def save_progress(session: AsyncSession, id: UUID, progress: Progress) -> None:
    await session.execute(update(TrainingRunRow).where(TrainingRunRow.id == id).values(**asdict(progress)))


async def save_manifest(session: AsyncSession, id: UUID, manifest: dict[str, Any]) -> None:
    await session.execute(update(TrainingRunRow).where(TrainingRunRow.id == id).values(manifest=manifest))


async def save_gate(session: AsyncSession, id: UUID, outcome: GateOutcome, report: dict[str, Any]) -> None:
    await session.execute(update(TrainingRunRow).where(TrainingRunRow.id == id).values(outcome=outcome, gate=report))


async def gate_reports(session: AsyncSession, live: int) -> list[tuple[int, dict[str, Any]]]:
    """The versions that were measured against a live critic, each with its gate's report, oldest first."""
    rows = await session.execute(
        select(CriticVersionRow.version, TrainingRunRow.gate)
        .join(CriticVersionRow, CriticVersionRow.run_id == TrainingRunRow.id)
        .where(type_coerce(TrainingRunRow.gate, JSONB)["live"].as_integer() == live)
        .order_by(CriticVersionRow.version)
    )
    return [(version, gate) for version, gate in rows if gate is not None]


async def promoted_reports(
    session: AsyncSession, base_model: str, task: str = DEFAULT_TASK
) -> dict[int, dict[str, Any]]:
    """The gate's report of every version of a task and base model that was live, measured, and not rolled back from."""
    rows = await session.execute(
        select(CriticVersionRow.version, TrainingRunRow.gate)
        .join(CriticVersionRow, CriticVersionRow.run_id == TrainingRunRow.id)
        .where(
            TrainingRunRow.gate.is_not(None),
            CriticVersionRow.base_model == base_model,
            CriticVersionRow.task == task,
            exists().where(SwapRow.version == CriticVersionRow.version, SwapRow.status == SwapStatus.DONE),
            ~exists().where(
                SwapRow.from_version == CriticVersionRow.version,
                SwapRow.status == SwapStatus.DONE,
                SwapRow.kind.in_((SwapKind.ROLLBACK, SwapKind.WATCH)),
            ),
        )
    )
    return {version: gate for version, gate in rows if gate is not None}


async def published_base(session: AsyncSession, base_model: str) -> tuple[int, str] | None:
    """The newest version that was trained on a model of this name, and the hash of that model; None without one."""
    rows = await session.execute(
        select(CriticVersionRow.version, TrainingRunRow.manifest)
        .join(CriticVersionRow, CriticVersionRow.run_id == TrainingRunRow.id)
        .where(CriticVersionRow.base_model == base_model, TrainingRunRow.manifest.is_not(None))
        .order_by(CriticVersionRow.version.desc())
        .limit(1)
    )
    row = rows.one_or_none()
    return None if row is None or row[1] is None else (row[0], row[1]["base_sha256"])


def _runs() -> Any:
    published = aliased(CriticVersionRow)
    return select(TrainingRunRow, published.version).outerjoin(published, published.run_id == TrainingRunRow.id)


def _to_run(row: TrainingRunRow, version: int | None, *, with_manifest: bool = True) -> Run:
    return record_of(
        Run,
        row,
        config=TrainConfig.model_validate(row.config),
        progress=record_of(Progress, row),
        manifest=row.manifest if with_manifest else None,
        version=version,
    )


async def append_event(session: AsyncSession, run_id: UUID, kind: EventKind, data: dict[str, Any]) -> None:
    """Append an event to a run.

    One writer at a time: ids then become visible in order, and a reader that continues after an id misses nothing.
    """
    await session.execute(select(TrainingRunRow.id).where(TrainingRunRow.id == run_id).with_for_update(key_share=True))
    await session.execute(
        insert(RunEventRow).values(run_id=run_id, created_at=func.clock_timestamp(), kind=kind, data=data)
    )
    if kind is EventKind.ALARM:
        alarm = {"run_id": str(run_id), "message": data["message"]}
        await webhooks.announce(session, WebhookEvent.RUN_ALARM, alarm)


async def events_of(
    session: AsyncSession,
    run_id: UUID,
    kinds: Collection[EventKind],
    *,
    after: int = 0,
    limit: int,
    newest: bool = False,
) -> list[RunEvent]:
    """A run's events of some kinds with an id above `after`, in order; the first ones, or the `newest`."""
    order = RunEventRow.id.desc() if newest else RunEventRow.id
    rows = await session.scalars(
        select(RunEventRow)
        .where(RunEventRow.run_id == run_id, RunEventRow.id > after, RunEventRow.kind.in_(kinds))
        .order_by(order)
        .limit(limit)
    )
    return sorted((record_of(RunEvent, row) for row in rows), key=lambda event: event.id)


async def events_after(session: AsyncSession, run_id: UUID, *, after: int, limit: int = 500) -> list[RunEvent]:
    """A run's events with an id above `after`, in order."""
    rows = await session.scalars(
        select(RunEventRow)
        .where(RunEventRow.run_id == run_id, RunEventRow.id > after)
        .order_by(RunEventRow.id)
        .limit(limit)
    )
    return [record_of(RunEvent, row) for row in rows]
