"""One piece of work for all who ask for it: shared while it runs, cancelled when the last of them has gone."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs started under a key; whoever joins the same key waits for the same run."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._waiting: dict[Hashable, int] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, or of the run that is already under way for `key`.

        When every caller of a run has been cancelled, so is the run: nobody is left to answer.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(_started(work))
            self._waiting[key] = 0
            task.add_done_callback(lambda done: self._ended(key, done))
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if self._tasks.get(key) is task:
                self._waiting[key] -= 1
                if self._waiting[key] == 0 and not task.done():
                    self._forget(key)  # first, so that whoever asks from now on starts anew
                    task.cancel()

    def _forget(self, key: Hashable) -> None:
        del self._tasks[key], self._waiting[key]

    def _ended(self, key: Hashable, task: "asyncio.Task[T]") -> None:
        if self._tasks.get(key) is task:
            self._forget(key)
        if not task.cancelled():
            task.exception()  # read, so that a failure nobody waits for is not reported as never retrieved


async def _started(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
