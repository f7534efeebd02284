"""The task that a database belongs to: all its interactions and critics are of one."""

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import Conflict
from gadfly.records import TaskId
from gadfly.store.tables import CriticVersionRow, InteractionRow

MATH = TaskId("math")


async def stored_task(session: AsyncSession) -> str | None:
    """The name of the task that the database belongs to; None while it holds no interaction and no trained critic."""
    trained = (
        select(CriticVersionRow.task)
        .where(or_(CriticVersionRow.adapter_path.is_not(None), CriticVersionRow.examples > 0))
        .order_by(CriticVersionRow.version.desc())
        .limit(1)
    )
    oldest = select(InteractionRow.task).order_by(InteractionRow.created_at, InteractionRow.id).limit(1)
    return await session.scalar(trained) or await session.scalar(oldest)


async def require_task(session: AsyncSession, name: str) -> None:
    """Check that a deployment that is set to this task may use the database.

    Raises:
        Conflict: it belongs to another task.
    """
    found = await stored_task(session)
    if found not in (None, name):
        raise Conflict(
            f"the database belongs to the task {found}, but GADFLY_TASK is {name}: set it to {found}, or use another "
            "GADFLY_HOME or another database"
        )
