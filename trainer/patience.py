"""Waiting for a database that is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import StoreUnavailable
from gadfly.store.database import Database

T = TypeVar("T")
log = structlog.get_logger(__name__)

_PATIENCE_S = 900.0
_RETRY_S = 2.0


async def in_session(
    database: Database, work: Callable[[AsyncSession], Awaitable[T]], *, limit_s: float | None = None
) -> T:
    """Do `work` in a transaction of its own, and again while the database is away. Raises as `patiently`.

    With `limit_s` a statement may take that long instead of the usual seconds.
    """

    async def once() -> T:
        async with database.session(limit_s=limit_s) as session:
            if limit_s is not None:
                await session.execute(text(f"SET LOCAL statement_timeout = {int(1000 * limit_s)}"))
            return await work(session)

    return await patiently(once)


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`, and again while the database is away: hours of training must not end over its restart.

    Raises:
        StoreUnavailable: it stayed away for a quarter of an hour.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await work()
        except StoreUnavailable as error:
            if time.monotonic() > deadline:
                raise
            log.warning("database_away", reason=str(error))
            await asyncio.sleep(_RETRY_S)
