"""All SQL about which critic answers: pointers, swaps and their receipts, replicas, and what live traffic says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import and_, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from core.errors import Conflict, NotFound
from core.labels import Label
from core.records import Pointer, Receipt, Replica, Swap, SwapKind, SwapStatus, new_id, now
from core.tables import (
    CriticPointerRow,
    CriticVersionRow,
    CritiqueRow,
    InteractionRow,
    ReplicaRow,
    SwapReceiptRow,
    SwapRow,
)
from core.verdict import Verdict

CHANNEL = "gadfly_swaps"
"""Where a notice goes when a swap was asked for or is over (`Database.notices`)."""

WATCH_LOCK = 0x6761_6477_6174  # "gadwat": one replica at a time looks at live traffic

_BACK = (SwapKind.ROLLBACK, SwapKind.WATCH)
_PER_KEY = 3  # the outcomes that one key's labels made are at most one in so many, and one more
_FORGOTTEN_S = 3600  # a replica that was not heard of for this long left without a word


# ------------------------------------------------------------------------------------------------------------- pointers


async def read_at_once(session: AsyncSession) -> None:
    """Have everything that this transaction reads be of one moment. To be called before it reads."""
    await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


async def set_candidate(session: AsyncSession, version: int) -> None:
    """Have `candidate` name a version.

    Raises:
        NotFound: there is no such version.
    """
    await require_version(session, version)
    await set_pointer(session, "candidate", version)


async def require_version(session: AsyncSession, version: int) -> None:
    if await session.get(CriticVersionRow, version) is None:
        raise NotFound(f"there is no critic version {version}")


async def set_pointer(session: AsyncSession, name: Pointer, version: int) -> None:
    statement = insert(CriticPointerRow).values(name=name, version=version, moved_at=func.clock_timestamp())
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[CriticPointerRow.name],
            set_={"version": statement.excluded.version, "moved_at": statement.excluded.moved_at},
        )
    )


async def pointed_version(session: AsyncSession, name: Pointer, *, lock: bool = False) -> int | None:
    statement = select(CriticPointerRow.version).where(CriticPointerRow.name == name)
    return await session.scalar(statement.with_for_update() if lock else statement)


# ---------------------------------------------------------------------------------------------------------------- swaps


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
            still = (
                "" if under_way is None else f"; the swap to version {under_way.version} has not moved it and goes on"
            )
            raise Conflict(f"there is no critic to go back to: none was live before this one{still}")
        if version not in (None, previous):
            raise Conflict(f"a rollback goes to version {previous}, the one before, and not to {version}")
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
        raise Conflict("another swap is under way")
    await _notify(session)
    return _to_swap(row)


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
        return Finished(_to_swap(row), False)
    live = await pointed_version(session, "live", lock=True)
    if live != row.from_version:
        return await finish_swap(
            session,
            swap_id,
            SwapStatus.REFUSED,
            f"version {live} went live in the meantime, and this was to follow {row.from_version}",
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
    return Finished(_to_swap(row), is_ours)


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
    return _to_swap(row)


async def pending_swap(session: AsyncSession) -> Swap | None:
    """The swap that is under way."""
    row = await session.scalar(select(SwapRow).where(SwapRow.status == SwapStatus.PENDING))
    return None if row is None else _to_swap(row)


async def last_swap(session: AsyncSession, *, done: bool = False) -> Swap | None:
    """The newest swap that is over, or with `done` the newest that moved the pointer."""
    statement = select(SwapRow).where(SwapRow.status != SwapStatus.PENDING)
    if done:
        statement = statement.where(SwapRow.status == SwapStatus.DONE)
    row = await session.scalar(statement.order_by(SwapRow.finished_at.desc(), SwapRow.id.desc()).limit(1))
    return None if row is None else _to_swap(row)


async def list_swaps(session: AsyncSession, version: int, *, limit: int = 100) -> list[Swap]:
    """The swaps that were to make a version live, the newest first."""
    rows = await session.scalars(
        select(SwapRow)
        .where(SwapRow.version == version)
        .order_by(SwapRow.requested_at.desc(), SwapRow.id.desc())
        .limit(limit)
    )
    return [_to_swap(row) for row in rows]


def _to_swap(row: SwapRow) -> Swap:
    return Swap(
        id=row.id,
        version=row.version,
        from_version=row.from_version,
        kind=row.kind,
        status=row.status,
        requested_at=row.requested_at,
        finished_at=row.finished_at,
        key_id=row.key_id,
        reason=row.reason,
    )


# ------------------------------------------------------------------------------------------------------------- receipts


async def insert_receipt(session: AsyncSession, receipt: Receipt) -> None:
    """Keep what a replica did in a swap; what it says later takes the place of what it said before."""
    statement = insert(SwapReceiptRow).values(
        id=receipt.id,
        swap_id=receipt.swap_id,
        replica_id=receipt.replica_id,
        version=receipt.version,
        created_at=receipt.created_at,
        details=receipt.details,
    )
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[SwapReceiptRow.swap_id, SwapReceiptRow.replica_id],
            set_={"details": statement.excluded.details},
        )
    )


async def receipts(session: AsyncSession, version: int, *, limit: int = 100) -> list[Receipt]:
    """What replicas proved and did when a version went live, the newest first."""
    rows = await session.scalars(
        select(SwapReceiptRow)
        .where(SwapReceiptRow.version == version)
        .order_by(SwapReceiptRow.created_at.desc(), SwapReceiptRow.id.desc())
        .limit(limit)
    )
    return [
        Receipt(
            id=row.id,
            swap_id=row.swap_id,
            replica_id=row.replica_id,
            version=row.version,
            created_at=row.created_at,
            details=row.details,
        )
        for row in rows
    ]


# ------------------------------------------------------------------------------------------------------------- replicas


async def upsert_replica(session: AsyncSession, replica: Replica) -> None:
    """Note that a replica is alive and what it is doing. By the database's clock: replicas need not share one."""
    values: dict[str, Any] = {
        "live_version": replica.live_version,
        "leases": {str(version): count for version, count in replica.leases.items()},
        "engines": {"urls": list(replica.engines)},
        "problem": replica.problem,
        "seen_at": func.clock_timestamp(),
    }
    statement = insert(ReplicaRow).values(id=replica.id, started_at=replica.started_at, **values)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[ReplicaRow.id], set_={name: statement.excluded[name] for name in values}
        )
    )
    await session.execute(delete(ReplicaRow).where(ReplicaRow.seen_at < _ago(_FORGOTTEN_S)))


async def fresh_replicas(session: AsyncSession, *, within_s: float) -> list[Replica]:
    """The replicas that said something in the last seconds, the oldest first."""
    rows = await session.scalars(
        select(ReplicaRow).where(ReplicaRow.seen_at >= _ago(within_s)).order_by(ReplicaRow.started_at, ReplicaRow.id)
    )
    return [
        Replica(
            id=row.id,
            started_at=row.started_at,
            seen_at=row.seen_at,
            live_version=row.live_version,
            leases={int(version): count for version, count in row.leases.items()},
            engines=tuple(row.engines["urls"]),
            problem=row.problem,
        )
        for row in rows.all()
    ]


async def drop_replica(session: AsyncSession, id: UUID) -> None:
    """Forget a replica that ends."""
    await session.execute(delete(ReplicaRow).where(ReplicaRow.id == id))


def _ago(seconds: float) -> Any:
    return func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)


# --------------------------------------------------------------------------------------------------------- live traffic


async def lock_watch(session: AsyncSession) -> bool:
    """Take the watch for this transaction. False when another replica has it."""
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(WATCH_LOCK))))


async def live_since(session: AsyncSession) -> datetime | None:
    """When the live pointer moved last."""
    return await session.scalar(select(CriticPointerRow.moved_at).where(CriticPointerRow.name == "live"))


async def verdict_outcomes(
    session: AsyncSession, version: int, *, since: datetime | None = None, limit: int = 10_000
) -> list[bool]:
    """Whether a critic's verdicts on labelled live traffic were right, in the order in which their labels came.

    An interaction counts once, by the first critique that the critic wrote of its response: by the verdict that it
    states, and stating none is wrong. `core.labels` says which label counts. Asked again later, what was there keeps
    its place unless its label changed.

    No one caller's labels decide: an outcome whose label came with a key is left out where more than a third of those
    before it are that key's already. So it takes three keys' labels, or labels without a key (of a service that has
    none), to come to many outcomes.
    """
    label = Label()
    statement = (
        label.joined(
            select(CritiqueRow.stated, label.is_right.label("is_right"), label.key_id.label("key_id")).select_from(
                InteractionRow
            )
        )
        .join(
            CritiqueRow,
            and_(
                CritiqueRow.interaction_id == InteractionRow.id,
                CritiqueRow.round == 0,
                CritiqueRow.sample == 0,
                CritiqueRow.supplied.is_(False),
            ),
        )
        .where(InteractionRow.critic_version == version, label.exists)
        .order_by(label.changed_at, InteractionRow.id)
        .limit(limit)
    )
    if since is not None:
        statement = statement.where(InteractionRow.created_at >= since)
    rows = await session.execute(statement)
    outcomes: list[bool] = []
    by_key: Counter[UUID] = Counter()
    for row in rows:
        if row.key_id is not None:
            if _PER_KEY * by_key[row.key_id] > len(outcomes):
                continue
            by_key[row.key_id] += 1
        outcomes.append(row.stated is (Verdict.CORRECT if row.is_right else Verdict.INCORRECT))
    return outcomes


def all_versions_in_use(replicas: Sequence[Replica]) -> set[int]:
    """The versions that some replica answers with or has requests of."""
    used = {version for replica in replicas for version in replica.leases}
    return used | {replica.live_version for replica in replicas if replica.live_version is not None}
