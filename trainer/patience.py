"""Waiting for Postgres while it is unavailable."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import StoreUnavailable
from gadfly.repeating import retry
from gadfly.store.database import Database

T = TypeVar("T")

_PATIENCE_S = 900.0
_RETRY_S = 2.0


async def in_session(
    database: Database, work: Callable[[AsyncSession], Awaitable[T]], *, limit_s: float | None = None
) -> T:
    """Do `work` in a transaction of its own, retried while Postgres is unavailable. Raises as `patiently`.

    `limit_s` replaces the usual time limit of a statement.
    """

    async def once() -> T:
        async with database.session(limit_s=limit_s) as session:
            if limit_s is not None:
                await session.execute(text(f"SET LOCAL statement_timeout = {int(1000 * limit_s)}"))
            return await work(session)

    return await patiently(once)


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`, retried while Postgres is unavailable: a restart of Postgres must not end hours of training.

    Raises:
        StoreUnavailable: Postgres stayed unavailable for a quarter of an hour.
    """
    return await retry(work, on=StoreUnavailable, every_s=_RETRY_S, limit_s=_PATIENCE_S, event="waiting_for_database")
