"""API keys, stored by the digest of their secret."""

from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    exists,
    func,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import NotFound
from gadfly.records import Key, now
from gadfly.store.mapping import record_of, values_of
from gadfly.store.tables import InteractionRow, KeyRow


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
    """Tokens of the interactions that these keys stored since a moment, by key."""
    tokens = func.sum(InteractionRow.prompt_tokens + InteractionRow.completion_tokens)
    found = await session.execute(
        select(InteractionRow.key_id, tokens)
        .where(InteractionRow.key_id.in_(ids), InteractionRow.created_at >= since)
        .group_by(InteractionRow.key_id)
    )
    return {id: int(count) for id, count in found if id is not None}


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
