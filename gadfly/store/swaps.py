"""Swaps of the live critic, and their receipts."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import Conflict, NotFound
from gadfly.records import AdminAction, CanaryOutcome, CanaryTerms, Swap, SwapKind, SwapReceipt, SwapStatus, new_id, now
from gadfly.store import canaries, webhooks
from gadfly.store.acts import record_act
from gadfly.store.critics import pointed_version, require_live_lineage, set_pointer
from gadfly.store.mapping import record_of, values_of
from gadfly.store.notices import notify_of_critics
from gadfly.store.tables import CriticPointerRow, CriticVersionRow, SwapReceiptRow, SwapRow
from gadfly.task_names import DEFAULT_TASK
from gadfly.webhooks import WebhookEvent

_BACK = (SwapKind.ROLLBACK, SwapKind.WATCH)
_BY_PERSON = {SwapKind.PROMOTE: AdminAction.PROMOTE, SwapKind.ROLLBACK: AdminAction.ROLLBACK}


async def request_swap(
    session: AsyncSession,
    *,
    version: int | None = None,
    kind: SwapKind,
    from_version: int | None = None,
    key_id: UUID | None = None,
    reason: str | None = None,
    task: str | None = None,
    canary: CanaryTerms | None = None,
) -> Swap:
    """Request a move of a task's live pointer: that of the version, else of `task`.

    The replicas of the service prove the version and move the pointer.

    A rollback goes to the version of `previous`; its `version` may be omitted. It does not wait for a promotion in
    progress: that is refused in the same transaction. With `from_version`, that version must be live. With `canary`, a
    promotion begins as one.

    Raises:
        NotFound: there is no such version.
        Conflict: another swap of the task is in progress, the version is live already, archived or of another task
            than `task`, another version than `from_version` is live, a canary is running, which only a rollback may
            interrupt, or there is no version to go back to.
    """
    task = await _task_of(session, version, task)
    # Before the pointers are read: a promotion about to move them has then ended, or can no longer move them.
    promotion = await _lock_promotion(session, task) if kind in _BACK else None
    live = await pointed_version(session, "live", task=task)
    if live is None:
        raise Conflict("no critic is live yet: the service has not been started")
    if from_version not in (None, live):
        raise Conflict(f"version {live} is live, and not {from_version}")
    if kind in _BACK:
        previous = await pointed_version(session, "previous", task=task)
        if previous is None:
            still = "" if promotion is None else f"; the swap to version {promotion.version} is still in progress"
            raise Conflict(f"there is no critic to go back to: none was live before this one{still}")
        if version not in (None, previous):
            raise Conflict(f"a rollback goes to version {previous}, the previous one, not to version {version}")
        version = previous
    elif (running := await canaries.has_running(session, task)) is not None:
        raise Conflict(
            f"version {running.version} is a canary and answers {running.share:.0%} of the requests: let it answer all "
            "of them, or roll back, before another version is promoted"
        )
    if version is None:
        raise NotFound("a swap needs a version")
    await require_live_lineage(session, version)
    if version == live:
        raise Conflict(f"version {version} is live already")
    if promotion is not None:
        await finish_swap(session, promotion.id, SwapStatus.REFUSED, "superseded by a rollback")
    statement = insert(SwapRow).values(
        id=new_id(),
        version=version,
        from_version=live,
        kind=kind,
        status=SwapStatus.PENDING,
        requested_at=now(),
        key_id=key_id,
        reason=reason,
        task=task,
    )
    row = await session.scalar(
        statement.on_conflict_do_nothing(
            index_elements=[SwapRow.task], index_where=text("status = 'pending'")
        ).returning(SwapRow)
    )
    if row is None:
        raise Conflict("another swap is in progress")
    if kind in _BY_PERSON:
        details = {"version": row.version, "from_version": row.from_version}
        await record_act(session, _BY_PERSON[kind], row.id, key_id=key_id, reason=reason, details=details)
    swap = record_of(Swap, row)
    if canary is not None and kind not in _BACK:
        await canaries.plan(session, swap, canary)
    await notify_of_critics(session)
    return swap


async def _task_of(session: AsyncSession, version: int | None, task: str | None) -> str:
    """The task of a version; that of `task`, or the default one, where there is no such version or none is named.

    Raises:
        Conflict: the version is of another task than `task`.
    """
    own = None
    if version is not None:
        own = await session.scalar(select(CriticVersionRow.task).where(CriticVersionRow.version == version))
    if own is not None and task not in (None, own):
        raise Conflict(f"version {version} is a critic of the task {own}, and not of {task}")
    return own or task or DEFAULT_TASK


async def _lock_promotion(session: AsyncSession, task: str) -> SwapRow | None:
    statement = select(SwapRow).where(
        SwapRow.status == SwapStatus.PENDING, SwapRow.kind.not_in(_BACK), SwapRow.task == task
    )
    return await session.scalar(statement.with_for_update())


@dataclass(frozen=True, slots=True)
class Finished:
    """A swap that has ended; `ended_here` if by this call, rather than earlier by another replica."""

    swap: Swap
    ended_here: bool


async def move_pointer(session: AsyncSession, swap_id: UUID) -> Finished:
    """Complete a pending swap, in one transaction: `live` gets the new version, `previous` the version to go back to.

    After a promotion that is the version that was live; after a rollback it is the one before the restored version, so
    that a second rollback does not restore the version that the first one removed.

    A candidate that goes live is no longer the candidate. Replicas that do this concurrently wait for each other, and
    one moves the pointer. If `live` has moved since the swap was requested, the swap is refused.
    """
    row = await _locked(session, swap_id)
    if row.status is not SwapStatus.PENDING:
        return Finished(record_of(Swap, row), False)
    live = await pointed_version(session, "live", task=row.task, lock=True)
    if live != row.from_version:
        return await finish_swap(
            session,
            swap_id,
            SwapStatus.REFUSED,
            f"version {live} went live in the meantime; this swap was requested from version {row.from_version}",
        )
    before = await _good_before(session, row.version) if row.kind in _BACK else live
    await _set_previous(session, before, task=row.task)
    await set_pointer(session, "live", row.version, task=row.task)
    ended = CanaryOutcome.ROLLED_BACK if row.kind in _BACK else CanaryOutcome.REPLACED
    await canaries.end_of_task(session, row.task, ended, row.reason)
    await canaries.begin(session, swap_id)
    await session.execute(
        delete(CriticPointerRow).where(CriticPointerRow.name == "candidate", CriticPointerRow.version == row.version)
    )
    return await finish_swap(session, swap_id, SwapStatus.DONE, row.reason)


async def _set_previous(session: AsyncSession, version: int | None, *, task: str) -> None:
    if version is None:
        await session.execute(
            delete(CriticPointerRow).where(CriticPointerRow.name == "previous", CriticPointerRow.task == task)
        )
    else:
        await set_pointer(session, "previous", version, task=task)


async def _good_before(session: AsyncSession, version: int) -> int | None:
    """The version that a rollback from `version` goes to: the one that was live before its promotion.

    A version that the deployment was rolled back from is skipped in favour of the one before it.
    """
    bad = set(
        await session.scalars(
            select(SwapRow.from_version).where(SwapRow.status == SwapStatus.DONE, SwapRow.kind.in_(_BACK))
        )
    )
    seen: set[int] = set()
    while version not in seen:
        seen.add(version)
        before = await session.scalar(
            select(SwapRow.from_version)
            .where(SwapRow.version == version, SwapRow.status == SwapStatus.DONE, SwapRow.kind.not_in(_BACK))
            .order_by(SwapRow.finished_at.desc(), SwapRow.id.desc())
            .limit(1)
        )
        if before is None:
            return None
        if before not in bad:
            return before
        version = before
    return None


async def finish_swap(session: AsyncSession, swap_id: UUID, status: SwapStatus, reason: str | None) -> Finished:
    """End a pending swap with its reason; one that has ended stays unchanged."""
    row = await _locked(session, swap_id)
    is_pending = row.status is SwapStatus.PENDING
    if is_pending:
        row.status, row.reason, row.finished_at = status, reason, now()
        await session.flush()
        await notify_of_critics(session)
        if status is SwapStatus.DONE:
            await _announce(session, record_of(Swap, row))
    return Finished(record_of(Swap, row), is_pending)


async def _announce(session: AsyncSession, swap: Swap) -> None:
    canary = await canaries.begun_by(session, swap.id)
    data = {
        "swap_id": str(swap.id),
        "task": swap.task,
        "version": swap.version,
        "from_version": swap.from_version,
        "kind": swap.kind.value,
        "canary_share": None if canary is None else canary.share,
        "reason": swap.reason,
    }
    event = WebhookEvent.CRITIC_ROLLED_BACK if swap.kind in _BACK else WebhookEvent.CRITIC_PROMOTED
    await webhooks.announce(session, event, data)


async def _locked(session: AsyncSession, swap_id: UUID) -> SwapRow:
    row = await session.get(SwapRow, swap_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no swap {swap_id}")
    return row


async def read_swap(session: AsyncSession, id: UUID) -> Swap:
    """One swap.

    Raises:
        NotFound: there is none.
    """
    row = await session.get(SwapRow, id, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no swap {id}")
    return record_of(Swap, row)


async def pending_swap(session: AsyncSession, task: str = DEFAULT_TASK) -> Swap | None:
    """The swap of a task that is in progress."""
    return (await pending_swaps(session)).get(task)


async def pending_swaps(session: AsyncSession) -> dict[str, Swap]:
    """The swaps in progress, by task."""
    rows = await session.scalars(select(SwapRow).where(SwapRow.status == SwapStatus.PENDING))
    return {row.task: record_of(Swap, row) for row in rows}


async def last_swap(session: AsyncSession, *, done: bool = False, task: str = DEFAULT_TASK) -> Swap | None:
    """The newest swap of a task that has ended, or with `done` the newest that moved the pointer."""
    return (await last_swaps(session, done=done)).get(task)


async def last_swaps(session: AsyncSession, *, done: bool = False) -> dict[str, Swap]:
    """The newest swap of each task that has ended, or with `done` the newest that moved its pointer."""
    statement = select(SwapRow).where(SwapRow.status != SwapStatus.PENDING)
    if done:
        statement = statement.where(SwapRow.status == SwapStatus.DONE)
    rows = await session.scalars(
        statement.ext(distinct_on(SwapRow.task)).order_by(SwapRow.task, SwapRow.finished_at.desc(), SwapRow.id.desc())
    )
    return {row.task: record_of(Swap, row) for row in rows}


async def list_swaps(session: AsyncSession, version: int, *, limit: int = 100) -> list[Swap]:
    """The requested swaps to a version, the newest first."""
    rows = await session.scalars(
        select(SwapRow)
        .where(SwapRow.version == version)
        .order_by(SwapRow.requested_at.desc(), SwapRow.id.desc())
        .limit(limit)
    )
    return [record_of(Swap, row) for row in rows]


async def insert_receipt(session: AsyncSession, receipt: SwapReceipt) -> None:
    """Store a replica's receipt of a swap; a later receipt replaces the details of an earlier one."""
    statement = insert(SwapReceiptRow).values(values_of(SwapReceiptRow, receipt))
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[SwapReceiptRow.swap_id, SwapReceiptRow.replica_id],
            set_={"details": statement.excluded.details},
        )
    )


async def receipts(session: AsyncSession, version: int, *, limit: int = 100) -> list[SwapReceipt]:
    """The replicas' receipts of swaps to a version, the newest first."""
    rows = await session.scalars(
        select(SwapReceiptRow)
        .where(SwapReceiptRow.version == version)
        .order_by(SwapReceiptRow.created_at.desc(), SwapReceiptRow.id.desc())
        .limit(limit)
    )
    return [record_of(SwapReceipt, row) for row in rows]
