"""Notices to all processes that the critics of a task have changed, or are about to (`Database.notices`)."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

CRITICS_CHANGED = "gadfly_swaps"
"""The channel of notices about swaps and canaries that were requested or have ended."""


async def notify_of_critics(session: AsyncSession) -> None:
    """Send a notice when this transaction commits."""
    await session.execute(select(func.pg_notify(CRITICS_CHANGED, "")))
