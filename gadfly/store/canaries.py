"""Canaries: promotions whose critic first answers a share of the requests, and whether they went on or back.

A canary belongs to a swap and begins when that moves the live pointer. While it runs, `previous` names the critic that
answers the rest. A later move of the task's pointer ends it in the same transaction, so a rollback does too.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import Conflict
from gadfly.records import AdminAction, Canary, CanaryOutcome, CanaryTerms, Swap, SwapStatus
from gadfly.store.acts import record_act
from gadfly.store.mapping import record_of
from gadfly.store.notices import notify_of_critics
from gadfly.store.tables import CanaryRow, InteractionRow, SwapRow


async def plan(session: AsyncSession, swap: Swap, terms: CanaryTerms) -> None:
    """Let a swap that has been requested begin a canary when it moves the pointer."""
    await session.execute(
        insert(CanaryRow).values(
            swap_id=swap.id,
            task=swap.task,
            version=swap.version,
            from_version=swap.from_version,
            share=terms.share,
            for_s=terms.for_s,
            for_requests=terms.for_requests,
        )
    )


async def begin(session: AsyncSession, swap_id: UUID) -> None:
    """Begin the canary of a swap that moves the pointer now, if it has one."""
    await session.execute(
        update(CanaryRow).where(CanaryRow.swap_id == swap_id).values(started_at=func.clock_timestamp())
    )


async def end_of_task(session: AsyncSession, task: str, outcome: CanaryOutcome, reason: str | None) -> None:
    """End the running canary of a task, if there is one, because its live pointer moves."""
    await session.execute(
        update(CanaryRow)
        .where(CanaryRow.task == task, CanaryRow.started_at.is_not(None), CanaryRow.ended_at.is_(None))
        .values(ended_at=func.clock_timestamp(), outcome=outcome, reason=reason)
    )


async def widen(
    session: AsyncSession,
    task: str,
    *,
    version: int | None = None,
    reason: str | None,
    key_id: UUID | None = None,
    by_person: bool = False,
) -> Canary:
    """End the running canary of a task: its critic answers all requests from now on.

    Raises:
        Conflict: none is running, or one of another version than `version`.
    """
    row = await _running(session, task)
    if row is None:
        raise Conflict("no canary is running for this task")
    if version not in (None, row.version):
        raise Conflict(f"the canary is version {row.version}, and not {version}")
    row.ended_at = await session.scalar(select(func.clock_timestamp()))
    row.outcome, row.reason = CanaryOutcome.WIDENED, reason
    await session.flush()
    if by_person:
        details = {"version": row.version, "from_version": row.from_version}
        await record_act(session, AdminAction.WIDEN_CANARY, row.swap_id, key_id=key_id, reason=reason, details=details)
    await notify_of_critics(session)
    return record_of(Canary, row)


async def has_running(session: AsyncSession, task: str) -> Canary | None:
    """The running canary of a task, locked until the transaction ends."""
    row = await _running(session, task)
    return None if row is None else record_of(Canary, row)


async def _running(session: AsyncSession, task: str) -> CanaryRow | None:
    statement = select(CanaryRow).where(
        CanaryRow.task == task, CanaryRow.started_at.is_not(None), CanaryRow.ended_at.is_(None)
    )
    return await session.scalar(statement.with_for_update(), execution_options={"populate_existing": True})


async def open_canaries(session: AsyncSession) -> dict[str, Canary]:
    """By task, the canary that runs, or that the swap in progress begins when it moves the pointer."""
    rows = await session.scalars(
        select(CanaryRow)
        .join(SwapRow, SwapRow.id == CanaryRow.swap_id)
        .where(CanaryRow.ended_at.is_(None), SwapRow.status != SwapStatus.REFUSED)
        .order_by(CanaryRow.started_at.nulls_first())  # the running one replaces a planned one
    )
    return {row.task: record_of(Canary, row) for row in rows}


async def begun_by(session: AsyncSession, swap_id: UUID) -> Canary | None:
    """The canary that a swap began, whether or not it has ended."""
    row = await session.scalar(select(CanaryRow).where(CanaryRow.swap_id == swap_id, CanaryRow.started_at.is_not(None)))
    return None if row is None else record_of(Canary, row)


async def list_canaries(session: AsyncSession, tasks: Sequence[str], *, limit: int) -> list[Canary]:
    """The canaries of these tasks that have begun, the newest first."""
    rows = await session.scalars(
        select(CanaryRow)
        .where(CanaryRow.task.in_(tasks), CanaryRow.started_at.is_not(None))
        .order_by(CanaryRow.started_at.desc(), CanaryRow.swap_id.desc())
        .limit(limit)
    )
    return [record_of(Canary, row) for row in rows]


async def count_requests(session: AsyncSession, canary: Canary, version: int, *, limit: int) -> int:
    """Stored answers of one of the two versions since a canary began and until it ended; at most `limit`."""
    rows = select(InteractionRow.id).where(
        InteractionRow.critic_version == version, InteractionRow.created_at >= canary.started_at
    )
    if canary.ended_at is not None:
        rows = rows.where(InteractionRow.created_at <= canary.ended_at)
    return await session.scalar(select(func.count()).select_from(rows.limit(limit).subquery())) or 0
