"""The audit log: each act of an admin, with its time and reason. Rows are appended and never changed."""

from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import AdminAct, AdminAction, new_id
from gadfly.store.mapping import record_of
from gadfly.store.tables import AdminActRow


async def record_act(
    session: AsyncSession,
    action: AdminAction,
    subject: UUID,
    *,
    key_id: UUID | None,
    reason: str | None,
    details: dict[str, Any] | None = None,
) -> None:
    """Store an act in the transaction that does it. `subject` is the id of what it is about: a key, ..."""
    await session.execute(
        insert(AdminActRow).values(
            id=new_id(), key_id=key_id, action=action, subject=str(subject), reason=reason, details=details or {}
        )
    )


async def list_acts(session: AsyncSession, *, limit: int, before: UUID | None = None) -> list[AdminAct]:
    """Acts, the newest first; those older than the act `before`, if given."""
    statement = select(AdminActRow).order_by(AdminActRow.id.desc()).limit(limit)  # ids are in order of creation
    if before is not None:
        statement = statement.where(AdminActRow.id < before)
    return [record_of(AdminAct, row) for row in await session.scalars(statement)]
