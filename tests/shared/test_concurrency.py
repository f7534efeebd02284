"""Several things at once end together."""

import asyncio

import pytest

from gadfly.concurrency import gather


async def test_results_come_in_order() -> None:
    async def after(seconds: float, value: int) -> int:
        await asyncio.sleep(seconds)
        return value

    assert await gather(after(0.02, 1), after(0.0, 2), after(0.01, 3)) == [1, 2, 3]
    assert await gather() == []


async def test_a_failure_ends_the_others_before_it_is_raised() -> None:
    ended: list[str] = []

    async def works() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # work at its cancellation
            ended.append("works")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        await gather(works(), fails(), works())
    assert ended == ["works", "works"]


async def test_a_cancelled_caller_takes_all_of_them_along() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    async def works() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("works")

    caller = asyncio.create_task(gather(works(), works()))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == ["works", "works"]
