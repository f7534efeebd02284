"""Sessions of browsers, stored by the digest of the secret in their cookie."""

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import BrowserSession, Key, now
from gadfly.store.mapping import record_of, values_of
from gadfly.store.tables import BrowserSessionRow, KeyRow


async def insert_session(session: AsyncSession, opened: BrowserSession, digest: bytes) -> None:
    """Store a session, and remove those that have expired."""
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.expires_at < now()))
    session.add(BrowserSessionRow(**values_of(BrowserSessionRow, opened, key_id=opened.key.id, digest=digest)))
    await session.flush()


async def find_session(session: AsyncSession, digest: bytes) -> BrowserSession | None:
    """The session with this digest, even if it or its key has expired."""
    found = await session.execute(
        select(BrowserSessionRow, KeyRow)
        .join(KeyRow, KeyRow.id == BrowserSessionRow.key_id)
        .where(BrowserSessionRow.digest == digest)
    )
    row = found.one_or_none()
    return None if row is None else record_of(BrowserSession, row[0], key=record_of(Key, row[1]))


async def delete_session(session: AsyncSession, digest: bytes) -> None:
    """Remove a session, if it exists."""
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.digest == digest))
