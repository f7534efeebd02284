"""Run several awaitables concurrently and end them together."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def gather(*work: Awaitable[T]) -> list[T]:
    """The results, in order. When one fails, the others are cancelled and have ended before its error is raised.

    `asyncio.gather` would leave the others running, and `asyncio.TaskGroup` would wrap the error.
    """
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
