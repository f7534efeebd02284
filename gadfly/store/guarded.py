"""Conversations that a proxy announced before it called a model, until the model's answer comes to be judged."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.store.tables import GuardedConversationRow


async def keep(
    session: AsyncSession,
    call_id: str,
    messages: list[dict[str, Any]],
    *,
    key_id: UUID | None,
    keep_for: timedelta,
) -> None:
    """Store a call's conversation, in place of an earlier one of the same call; those older than `keep_for` go."""
    await session.execute(
        delete(GuardedConversationRow).where(GuardedConversationRow.kept_at < func.clock_timestamp() - keep_for)
    )
    values = {"messages": messages, "kept_at": func.clock_timestamp()}
    statement = insert(GuardedConversationRow).values(call_id=call_id, key=_key(key_id), **values)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[GuardedConversationRow.key, GuardedConversationRow.call_id], set_=values
        )
    )


async def read(session: AsyncSession, call_id: str, *, key_id: UUID | None) -> list[dict[str, Any]] | None:
    """The conversation of a call that the same key announced; None if there is none."""
    return await session.scalar(
        select(GuardedConversationRow.messages).where(
            GuardedConversationRow.call_id == call_id, GuardedConversationRow.key == _key(key_id)
        )
    )


def _key(key_id: UUID | None) -> str:
    return "" if key_id is None else str(key_id)
