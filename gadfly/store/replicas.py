"""Replicas: the running processes of the service, as they report themselves."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import Replica
from gadfly.store.mapping import record_of
from gadfly.store.tables import ReplicaRow

_EXPIRY_S = 3600  # a replica that has not reported for this long has ended without deleting its row


async def upsert_replica(session: AsyncSession, replica: Replica) -> None:
    """Store a replica's state, with the time of the database: replicas need not share a clock."""
    values: dict[str, Any] = {
        "live_version": replica.live_version,
        "leases": {str(version): count for version, count in replica.leases.items()},
        "engines": {"urls": list(replica.engines)},
        "problem": replica.problem,
        "live": replica.live,
        "seen_at": func.clock_timestamp(),
    }
    statement = insert(ReplicaRow).values(id=replica.id, started_at=replica.started_at, **values)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[ReplicaRow.id], set_={name: statement.excluded[name] for name in values}
        )
    )
    await session.execute(delete(ReplicaRow).where(ReplicaRow.seen_at < _ago(_EXPIRY_S)))


async def fresh_replicas(session: AsyncSession, *, within_s: float) -> list[Replica]:
    """The replicas that reported within the last `within_s` seconds, the oldest first."""
    rows = await session.scalars(
        select(ReplicaRow).where(ReplicaRow.seen_at >= _ago(within_s)).order_by(ReplicaRow.started_at, ReplicaRow.id)
    )
    return [
        record_of(
            Replica,
            row,
            leases={int(version): count for version, count in row.leases.items()},
            engines=tuple(row.engines["urls"]),
        )
        for row in rows.all()
    ]


async def drop_replica(session: AsyncSession, id: UUID) -> None:
    """Delete the row of a replica that ends."""
    await session.execute(delete(ReplicaRow).where(ReplicaRow.id == id))


def _ago(seconds: float) -> Any:
    return func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def all_versions_in_use(replicas: Sequence[Replica]) -> set[int]:
    """The versions that any replica answers with for its default task, or has requests in flight for."""
    used = {version for replica in replicas for version in replica.leases}
    return used | {replica.live_version for replica in replicas if replica.live_version is not None}
