"""Single flight: concurrent calls for the same key share one run of the work."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs of asynchronous work by key.

    A call for a key whose run is in progress joins that run. A run whose callers have all been cancelled is cancelled.
    Results are not cached: a call after the end of a run starts a new one.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._waiting: dict[Hashable, int] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the run in progress for `key`, or of a new run of `work`. All callers get its error."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(_run(work))
            self._waiting[key] = 0
            task.add_done_callback(lambda done: self._ended(key, done))
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if self._tasks.get(key) is task:
                self._waiting[key] -= 1
                if self._waiting[key] == 0 and not task.done():
                    self._forget(key)  # before the cancellation, so that the next call starts a new run
                    task.cancel()

    def _forget(self, key: Hashable) -> None:
        del self._tasks[key], self._waiting[key]

    def _ended(self, key: Hashable, task: "asyncio.Task[T]") -> None:
        if self._tasks.get(key) is task:
            self._forget(key)
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not report an error without a caller as never retrieved


async def _run(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
