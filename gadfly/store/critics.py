"""Critic versions, and the pointers that name some of them: live, candidate and previous, for each task.

Every task has a line of critics of its own over the base model that is served. A line begins with its root: the base
model under the task's prompts. Versions are numbered over all tasks; the first root of a database is version 0.
"""

from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    delete,
    exists,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import Conflict, NotFound
from gadfly.records import CanaryOutcome, CriticVersion, Pointer, SwapKind, SwapStatus, TaskId, now
from gadfly.store.canaries import end_of_task
from gadfly.store.critic_examples import PromptExamples, incomplete_versions, insert_examples
from gadfly.store.mapping import record_of
from gadfly.store.replicas import fresh_replicas
from gadfly.store.runs import append_event
from gadfly.store.tables import CriticPointerRow, CriticVersionRow, SwapRow
from gadfly.store.tasks import MATH
from gadfly.task_names import DEFAULT_TASK
from gadfly.training import EventKind

Origin = dict[str, Any]
"""What the deployment that made a pulled critic recorded: `source`, `run_id` and `gate`."""
LEAST_SILENCE_S = 10.0
"""How long no replica may have reported before another base model may be served from a database."""


async def ensure_version_zero(session: AsyncSession, base_model: str, *, task: TaskId = MATH) -> CriticVersion:
    """Store the base model under the task's prompts as a version, and make it live if none is; return it.

    The first one of a database is version 0. That of another task, or of another base model, gets the next number.
    Another base model begins a lineage of its own: its last live version, or the base model itself, becomes live, and
    the critics of other lineages are archived. Labelled answers belong to no lineage.

    Raises:
        Conflict: the live critic is based on another model, and replicas that serve it are running.
    """
    if await session.scalar(_lineage(base_model, task.name).limit(1)) is None:
        await _lock_numbers(session)
        if await session.scalar(_lineage(base_model, task.name).limit(1)) is None:
            await _insert_root(session, base_model, task)
    root = await base_version(session, base_model, task.name)
    await session.execute(
        insert(CriticPointerRow)
        .values(task=task.name, name="live", version=root.version, moved_at=now())
        .on_conflict_do_nothing()
    )
    live = await resolve_critic(session, "live", task.name)
    if live.base_model != base_model:
        await _change_lineage(session, live, root)
    await session.execute(  # under these prompts now
        update(CriticVersionRow)
        .where(
            is_base(),
            CriticVersionRow.task == task.name,
            CriticVersionRow.task_version.is_distinct_from(task.version),
        )
        .values(task_version=task.version)
    )
    return await base_version(session, base_model, task.name)


def _lineage(base_model: str, task: str) -> Select[int]:
    """The versions of a task that are based on a model."""
    return select(CriticVersionRow.version).where(
        CriticVersionRow.base_model == base_model, CriticVersionRow.task == task
    )


async def _insert_root(session: AsyncSession, base_model: str, task: TaskId) -> None:
    newest = await session.scalar(select(func.max(CriticVersionRow.version)))
    session.add(
        CriticVersionRow(
            version=0 if newest is None else newest + 1,
            base_model=base_model,
            created_at=now(),
            task=task.name,
            task_version=task.version,
        )
    )
    await session.flush()


async def _change_lineage(session: AsyncSession, live: CriticVersion, root: CriticVersion) -> None:
    await _lock_numbers(session)
    if await fresh_replicas(session, within_s=LEAST_SILENCE_S):
        raise Conflict(
            f"the live critic is based on the model {live.base_model}, and a replica reported within the last "
            f"{LEAST_SILENCE_S:g} seconds: stop all replicas before {root.base_model} is served from this database, or "
            "use another database"
        )
    last_live = await session.scalar(
        select(SwapRow.version)
        .where(SwapRow.version.in_(_lineage(root.base_model, root.task)), SwapRow.status == SwapStatus.DONE)
        .order_by(SwapRow.finished_at.desc(), SwapRow.id.desc())
        .limit(1)
    )
    await session.execute(
        update(SwapRow)
        .where(SwapRow.status == SwapStatus.PENDING, SwapRow.task == root.task)
        .values(status=SwapStatus.REFUSED, finished_at=now(), reason=f"the base model is now {root.base_model}")
    )
    await end_of_task(session, root.task, CanaryOutcome.REPLACED, f"the base model is now {root.base_model}")
    await session.execute(
        delete(CriticPointerRow).where(
            CriticPointerRow.task == root.task, CriticPointerRow.name.in_(("candidate", "previous"))
        )
    )
    await set_pointer(session, "live", root.version if last_live is None else last_live, task=root.task)


async def base_version(session: AsyncSession, base_model: str, task: str = DEFAULT_TASK) -> CriticVersion:
    """The version that is this base model under the task's prompts: the root of its line.

    Raises:
        NotFound: the database has no critic of this model for this task.
    """
    row = await session.scalar(
        select(CriticVersionRow).where(
            CriticVersionRow.base_model == base_model, CriticVersionRow.task == task, is_base()
        )
    )
    if row is None:
        of_task = "" if task == DEFAULT_TASK else f" for the task {task}"
        raise NotFound(f"there is no critic of the model {base_model}{of_task}: start the service with it first")
    return record_of(CriticVersion, row)


def is_base() -> ColumnElement[bool]:
    """Whether a version is the root of a line: as `CriticVersion.is_base`."""
    return and_(CriticVersionRow.adapter_path.is_(None), CriticVersionRow.examples == 0)


async def refining_version(session: AsyncSession, task: str = DEFAULT_TASK, *, canary: int | None = None) -> int:
    """The version that answers /refine in the place of a critic of a task that learned verdicts only.

    The live one, unless it is such a critic itself or a canary, which answers no more than its share: then the newest
    version that learned more, has been live, was not rolled back from and has all its examples, else the base model.
    """
    live = await resolve_critic(session, "live", task)
    if not live.verdict_only and live.version != canary:
        return live.version
    version = await session.scalar(
        select(func.max(CriticVersionRow.version)).where(
            CriticVersionRow.base_model == live.base_model,
            CriticVersionRow.task == task,
            CriticVersionRow.verdict_only.is_(False),
            *(() if canary is None else (CriticVersionRow.version != canary,)),
            CriticVersionRow.version.not_in(await incomplete_versions(session)),
            exists().where(SwapRow.version == CriticVersionRow.version, SwapRow.status == SwapStatus.DONE),
            ~exists().where(
                SwapRow.from_version == CriticVersionRow.version,
                SwapRow.status == SwapStatus.DONE,
                SwapRow.kind.in_((SwapKind.ROLLBACK, SwapKind.WATCH)),
            ),
        )
    )
    return (await base_version(session, live.base_model, task)).version if version is None else version


async def resolve_critic(session: AsyncSession, choice: Pointer | int, task: str = DEFAULT_TASK) -> CriticVersion:
    """The critic that a pointer of a task, or a number, names.

    Raises:
        NotFound: there is none.
    """
    statement = select(CriticVersionRow)
    if isinstance(choice, int):
        statement = statement.where(CriticVersionRow.version == choice)
    else:
        statement = statement.join(CriticPointerRow, CriticPointerRow.version == CriticVersionRow.version).where(
            CriticPointerRow.name == choice, CriticPointerRow.task == task
        )
    row = await session.scalar(statement)
    if row is None:
        raise NotFound(
            f"there is no critic version {choice}" if isinstance(choice, int) else f"there is no {choice} critic now"
        )
    return record_of(CriticVersion, row)


async def list_critic_versions(session: AsyncSession) -> list[CriticVersion]:
    """All versions of all tasks, newest first."""
    rows = await session.scalars(select(CriticVersionRow).order_by(CriticVersionRow.version.desc()))
    return [record_of(CriticVersion, row) for row in rows]


async def read_pointers(session: AsyncSession, task: str = DEFAULT_TASK) -> dict[Pointer, int]:
    """The version that each pointer of a task names; a pointer that is not set is absent."""
    return (await read_all_pointers(session)).get(task, {})


async def read_all_pointers(session: AsyncSession) -> dict[str, dict[Pointer, int]]:
    """The pointers of every task that has any, as `read_pointers`."""
    rows = await session.execute(select(CriticPointerRow.task, CriticPointerRow.name, CriticPointerRow.version))
    found: dict[str, dict[Pointer, int]] = {}
    for task, name, version in rows:
        found.setdefault(task, {})[cast(Pointer, name)] = version
    return found


async def insert_critic(
    session: AsyncSession,
    *,
    run_id: UUID,
    parent: int,
    base_model: str,
    prompt_set: str,
    adapter_path: str | None = None,
    adapter_sha256: str | None = None,
    examples: PromptExamples | None = None,
    task: TaskId = MATH,
    verdict_only: bool = False,
) -> CriticVersion:
    """Store the next version, made by a run: an adapter, or examples for the critic's prompt.

    A run makes one version: a repeated call returns it.
    """
    await _lock_numbers(session)
    known = await session.scalar(select(CriticVersionRow).where(CriticVersionRow.run_id == run_id))
    if known is None:
        known = CriticVersionRow(
            version=await _next_number(session),
            parent=parent,
            base_model=base_model,
            adapter_path=adapter_path,
            adapter_sha256=adapter_sha256,
            created_at=now(),
            run_id=run_id,
            prompt_set=prompt_set,
            task=task.name,
            task_version=task.version,
            verdict_only=verdict_only,
            examples=0 if examples is None else len(examples.items),
            examples_sha256=None if examples is None else examples.sha256,
        )
        session.add(known)
        await session.flush()
        if examples is not None:
            await insert_examples(session, known.version, examples)
        await append_event(
            session,
            run_id,
            EventKind.PUBLISHED,
            {"version": known.version, "adapter_sha256": adapter_sha256, "examples": known.examples},
        )
    return record_of(CriticVersion, known)


async def _lock_numbers(session: AsyncSession) -> None:
    """Let this transaction alone assign version numbers until it ends."""
    await session.execute(text("LOCK TABLE critic_versions IN SHARE ROW EXCLUSIVE MODE"))


async def _next_number(session: AsyncSession) -> int:
    newest = await session.scalar(select(func.max(CriticVersionRow.version)))
    return (newest or 0) + 1


async def insert_pulled_critic(
    session: AsyncSession,
    *,
    base_model: str,
    prompt_set: str,
    adapter_path: str,
    adapter_sha256: str,
    origin: Origin,
    task: TaskId = MATH,
) -> CriticVersion:
    """Store a critic of another deployment as the next version; the same adapter is stored once."""
    await _lock_numbers(session)
    known = await session.scalar(select(CriticVersionRow).where(CriticVersionRow.adapter_sha256 == adapter_sha256))
    if known is None:
        known = CriticVersionRow(
            version=await _next_number(session),
            base_model=base_model,
            adapter_path=adapter_path,
            adapter_sha256=adapter_sha256,
            created_at=now(),
            prompt_set=prompt_set,
            task=task.name,
            task_version=task.version,
            origin=origin,
        )
        session.add(known)
        await session.flush()
    return record_of(CriticVersion, known)


async def set_candidate(session: AsyncSession, version: int) -> None:
    """Point `candidate` of a version's task at it.

    Raises:
        NotFound, Conflict: as `require_live_lineage`.
    """
    critic = await require_live_lineage(session, version)
    await set_pointer(session, "candidate", version, task=critic.task)


async def require_live_lineage(session: AsyncSession, version: int) -> CriticVersion:
    """The version, which must exist and be based on the model that is served.

    Raises:
        NotFound: there is no such version.
        Conflict: it is archived.
    """
    critic = await resolve_critic(session, version)
    live = await resolve_critic(session, "live", critic.task)
    if critic.base_model != live.base_model:
        raise Conflict(
            f"version {version} is archived: it is based on the model {critic.base_model}, and {live.base_model} is "
            "served"
        )
    return critic


async def set_pointer(session: AsyncSession, name: Pointer, version: int, *, task: str = DEFAULT_TASK) -> None:
    """Point `name` of a task at a version, at the database's time."""
    statement = insert(CriticPointerRow).values(task=task, name=name, version=version, moved_at=func.clock_timestamp())
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[CriticPointerRow.task, CriticPointerRow.name],
            set_={"version": statement.excluded.version, "moved_at": statement.excluded.moved_at},
        )
    )


async def pointed_version(
    session: AsyncSession, name: Pointer, *, task: str = DEFAULT_TASK, lock: bool = False
) -> int | None:
    """The version that a pointer names, None if it is not set; with `lock`, it is locked until the transaction ends."""
    statement = select(CriticPointerRow.version).where(CriticPointerRow.name == name, CriticPointerRow.task == task)
    return await session.scalar(statement.with_for_update() if lock else statement)
