"""Swaps of the live critic, and their receipts."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import Conflict, NotFound
from gadfly.records import Swap, SwapKind, SwapReceipt, SwapStatus, new_id, now
from gadfly.store.critics import pointed_version, require_version, set_pointer
from gadfly.store.mapping import record_of, values_of
from gadfly.store.tables import CriticPointerRow, SwapReceiptRow, SwapRow

CHANNEL = "gadfly_swaps"
"""Where a notice goes when a swap was asked for or is over (`Database.notices`)."""

_BACK = (SwapKind.ROLLBACK, SwapKind.WATCH)


async def request_swap(
    session: AsyncSession,
    *,
    version: int | None = None,
    kind: SwapKind,
    from_version: int | None = None,
    key_id: UUID | None = None,
    reason: str | None = None,
) -> Swap:
    """Ask for the live pointer to move. The replicas of the service prove the version and do it.

    A rollback goes to what `previous` names; its `version` may be left out. It does not wait for a promotion that is
    under way: that is refused in the same transaction. With `from_version`, that version must be live.

    Raises:
        NotFound: there is no such version.
        Conflict: another swap is under way, the version is live already, something else than `from_version` is live, or
            there is nothing to go back to.
    """
    # Before the pointers are read: a swap that is about to move them is then over, or does not move them any more.
    under_way = await _lock_promotion(session) if kind in _BACK else None
    live = await pointed_version(session, "live")
    if live is None:
        raise Conflict("no critic is live yet: the service has not been started")
    if from_version not in (None, live):
        raise Conflict(f"version {live} is live, and not {from_version}")
    if kind in _BACK:
        previous = await pointed_version(session, "previous")
        if previous is None:
            still = "" if under_way is None else f"; the swap to version {under_way.version} is still in progress"
            raise Conflict(f"there is no critic to go back to: none was live before this one{still}")
        if version not in (None, previous):
            raise Conflict(f"a rollback goes to version {previous}, the previous one, not to version {version}")
        version = previous
    if version is None:
        raise NotFound("a swap needs a version")
    await require_version(session, version)
    if version == live:
        raise Conflict(f"version {version} is live already")
    if under_way is not None:
        await finish_swap(session, under_way.id, SwapStatus.REFUSED, "superseded by a rollback")
    statement = insert(SwapRow).values(
        id=new_id(),
        version=version,
        from_version=live,
        kind=kind,
        status=SwapStatus.PENDING,
        requested_at=now(),
        key_id=key_id,
        reason=reason,
    )
    row = await session.scalar(
        statement.on_conflict_do_nothing(
            index_elements=[SwapRow.status], index_where=text("status = 'pending'")
        ).returning(SwapRow)
    )
    if row is None:
        raise Conflict("another swap is in progress")
    await _notify(session)
    return record_of(Swap, row)


async def _lock_promotion(session: AsyncSession) -> SwapRow | None:
    statement = select(SwapRow).where(SwapRow.status == SwapStatus.PENDING, SwapRow.kind.not_in(_BACK))
    return await session.scalar(statement.with_for_update())


@dataclass(frozen=True, slots=True)
class Finished:
    """How a swap ended; `is_ours` when it was this call that ended it, and not another replica's before."""

    swap: Swap
    is_ours: bool


async def move_pointer(session: AsyncSession, swap_id: UUID) -> Finished:
    """Do a pending swap, in one transaction: `previous` names what was live, `live` the new version.

    A candidate that goes live is no candidate any more. Replicas that do it at once wait for each other, and one does
    it. When `live` is not what it was when the swap was asked for, the swap is refused.
    """
    row = await _locked(session, swap_id)
    if row.status is not SwapStatus.PENDING:
        return Finished(record_of(Swap, row), False)
    live = await pointed_version(session, "live", lock=True)
    if live != row.from_version:
        return await finish_swap(
            session,
            swap_id,
            SwapStatus.REFUSED,
            f"version {live} went live in the meantime; this swap was requested from version {row.from_version}",
        )
    await set_pointer(session, "previous", live)
    await set_pointer(session, "live", row.version)
    await session.execute(
        delete(CriticPointerRow).where(CriticPointerRow.name == "candidate", CriticPointerRow.version == row.version)
    )
    return await finish_swap(session, swap_id, SwapStatus.DONE, row.reason)


async def finish_swap(session: AsyncSession, swap_id: UUID, status: SwapStatus, reason: str | None) -> Finished:
    """End a pending swap with its reason; one that is over stays as it is."""
    row = await _locked(session, swap_id)
    is_ours = row.status is SwapStatus.PENDING
    if is_ours:
        row.status, row.reason, row.finished_at = status, reason, now()
        await session.flush()
        await _notify(session)
    return Finished(record_of(Swap, row), is_ours)


async def _locked(session: AsyncSession, swap_id: UUID) -> SwapRow:
    row = await session.get(SwapRow, swap_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no swap {swap_id}")
    return row


async def _notify(session: AsyncSession) -> None:
    await session.execute(select(func.pg_notify(CHANNEL, "")))


async def read_swap(session: AsyncSession, id: UUID) -> Swap:
    """One swap.

    Raises:
        NotFound: there is none.
    """
    row = await session.get(SwapRow, id, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no swap {id}")
    return record_of(Swap, row)


async def pending_swap(session: AsyncSession) -> Swap | None:
    """The swap that is under way."""
    row = await session.scalar(select(SwapRow).where(SwapRow.status == SwapStatus.PENDING))
    return None if row is None else record_of(Swap, row)


async def last_swap(session: AsyncSession, *, done: bool = False) -> Swap | None:
    """The newest swap that is over, or with `done` the newest that moved the pointer."""
    statement = select(SwapRow).where(SwapRow.status != SwapStatus.PENDING)
    if done:
        statement = statement.where(SwapRow.status == SwapStatus.DONE)
    row = await session.scalar(statement.order_by(SwapRow.finished_at.desc(), SwapRow.id.desc()).limit(1))
    return None if row is None else record_of(Swap, row)


async def list_swaps(session: AsyncSession, version: int, *, limit: int = 100) -> list[Swap]:
    """The swaps that were to make a version live, the newest first."""
    rows = await session.scalars(
        select(SwapRow)
        .where(SwapRow.version == version)
        .order_by(SwapRow.requested_at.desc(), SwapRow.id.desc())
        .limit(limit)
    )
    return [record_of(Swap, row) for row in rows]


async def insert_receipt(session: AsyncSession, receipt: SwapReceipt) -> None:
    """Keep what a replica did in a swap; what it says later takes the place of what it said before."""
    statement = insert(SwapReceiptRow).values(values_of(SwapReceiptRow, receipt))
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[SwapReceiptRow.swap_id, SwapReceiptRow.replica_id],
            set_={"details": statement.excluded.details},
        )
    )


async def receipts(session: AsyncSession, version: int, *, limit: int = 100) -> list[SwapReceipt]:
    """What replicas proved and did when a version went live, the newest first."""
    rows = await session.scalars(
        select(SwapReceiptRow)
        .where(SwapReceiptRow.version == version)
        .order_by(SwapReceiptRow.created_at.desc(), SwapReceiptRow.id.desc())
        .limit(limit)
    )
    return [record_of(SwapReceipt, row) for row in rows]
