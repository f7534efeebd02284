"""The tasks of a database. Rows, critics, pointers, runs and swaps belong to one task each."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import TaskId
from gadfly.store.tables import CriticPointerRow
from gadfly.task_names import DEFAULT_TASK

MATH = TaskId(DEFAULT_TASK)


async def known_tasks(session: AsyncSession) -> list[str]:
    """The names of the tasks that have a line of critics, in order."""
    names = await session.scalars(select(CriticPointerRow.task).where(CriticPointerRow.name == "live"))
    return sorted(names)
