"""API keys, stored by the digest of their secret."""

from collections.abc import Collection, Mapping
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import NotFound
from gadfly.records import Key, now
from gadfly.store.mapping import record_of, values_of
from gadfly.store.tables import DeletedUsageRow, InteractionRow, KeyRow


async def insert_key(session: AsyncSession, key: Key, digest: bytes) -> None:
    session.add(KeyRow(**values_of(KeyRow, key, digest=digest)))
    await session.flush()


async def find_key(session: AsyncSession, digest: bytes) -> Key | None:
    """The key with this digest, even if it is revoked or expired."""
    row = await session.scalar(select(KeyRow).where(KeyRow.digest == digest))
    return None if row is None else record_of(Key, row)


async def has_keys(session: AsyncSession) -> bool:
    """Whether a key was ever made, even if it is now revoked or expired."""
    return bool(await session.scalar(select(exists().where(KeyRow.id.is_not(None)))))


async def list_keys(session: AsyncSession) -> list[Key]:
    """All keys, oldest first, including revoked and expired ones."""
    return [record_of(Key, row) for row in await session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))]


async def revoke_key(session: AsyncSession, id: UUID) -> Key:
    """Revoke a key permanently. Revoking it again changes nothing.

    Raises:
        NotFound: there is no such key.
    """
    row = await session.get(KeyRow, id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no key {id}")
    row.revoked_at = row.revoked_at or now()
    await session.flush()
    return record_of(Key, row)


async def set_limits(session: AsyncSession, id: UUID, limits: Mapping[str, int | None]) -> Key:
    """Change some limits of a key, by name.

    Raises:
        NotFound: there is no such key.
    """
    row = await session.get(KeyRow, id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no key {id}")
    for name, value in limits.items():
        setattr(row, name, value)
    await session.flush()
    return record_of(Key, row)


async def tokens_since(session: AsyncSession, ids: Collection[UUID], since: datetime) -> dict[UUID, int]:
    """Tokens of the interactions that these keys stored since a midnight (UTC), by key, with the deleted ones."""
    kept = select(InteractionRow.key_id, InteractionRow.prompt_tokens + InteractionRow.completion_tokens).where(
        InteractionRow.key_id.in_(ids), InteractionRow.created_at >= since
    )
    deleted = select(DeletedUsageRow.key_id, DeletedUsageRow.tokens).where(
        DeletedUsageRow.key_id.in_(ids), DeletedUsageRow.day >= since.date()
    )
    every = kept.union_all(deleted).subquery("every")  # one statement: a deletion moves tokens from one to the other
    key_id, tokens = every.columns
    found = await session.execute(select(key_id, func.sum(tokens)).group_by(key_id))
    return {id: int(count) for id, count in found}


async def keep_usage(session: AsyncSession, tokens: Mapping[UUID, int], day: date) -> None:
    """Add the tokens of interactions that keys stored on this day, and that this transaction deletes.

    What was kept for earlier days is deleted.
    """
    await session.execute(delete(DeletedUsageRow).where(DeletedUsageRow.day < day))
    statement = insert(DeletedUsageRow).values(
        [{"key_id": key_id, "day": day, "tokens": count} for key_id, count in sorted(tokens.items())]
    )
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[DeletedUsageRow.key_id, DeletedUsageRow.day],
            set_={"tokens": DeletedUsageRow.tokens + statement.excluded.tokens},
        )
    )


async def set_trust(session: AsyncSession, id: UUID, *, is_trusted: bool) -> Key:
    """Count the labels of a key, or none of them. `gadfly.store.labels.refresh` then brings all labels up to date.

    Raises:
        NotFound: there is no such key.
    """
    row = await session.get(KeyRow, id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no key {id}")
    if is_trusted:
        row.distrusted_at = None
    elif row.distrusted_at is None:
        row.distrusted_at = await session.scalar(select(func.clock_timestamp()))
    await session.flush()
    return record_of(Key, row)
