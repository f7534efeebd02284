"""Quick comparisons do not wait for those that take seconds, and calls with few rows not for those with many."""

import asyncio
import time

import pytest

from gadfly.errors import UnreadableReference
from gadfly.grading import Grade, GradingLanes

BOMB = ("The answer is \\sqrt{2^{2^{2^{24}}}}", "\\sqrt{3^{3^{3^{14}}}}")  # ended at its limit
QUICK = ("The answer is 43.", "43")


async def test_outcomes_are_in_order_whichever_process_gives_them() -> None:
    rows = [
        QUICK,
        ("The answer is \\frac{x^2}{2}", "0.5 x^2"),
        ("The answer is Paris.", "Paris"),
        ("The answer is x + 2", "x + 1"),
        ("The answer is 44.", "43"),
        ("The answer is 1", "(" * 40),
    ]
    async with GradingLanes(timeout_s=5.0, hard=1) as grader:
        *grades, unreadable = await grader.grade_all(rows)
        assert await grader.grade_all([]) == []
    assert grades == [Grade.RIGHT, Grade.RIGHT, Grade.RIGHT, Grade.WRONG, Grade.WRONG]
    assert isinstance(unreadable, UnreadableReference)


async def test_an_answer_that_takes_until_its_limit_delays_no_quick_one() -> None:
    async with GradingLanes(timeout_s=2.0, hard=1) as grader:
        await grader.start()
        slow = asyncio.create_task(grader.grade_all([BOMB]))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        for _ in range(5):
            assert await grader.grade_all([QUICK]) == [Grade.RIGHT]
        if slow.done():
            pytest.fail("the slow comparison was not slow, so this shows nothing")
        assert time.monotonic() - started < 2.0
        await slow


async def test_calls_take_turns_after_each_expression() -> None:
    many = [(f"The answer is x + {number}", f"{number} + x") for number in range(60)]
    ended: list[str] = []

    async def grade(name: str, count: int) -> None:
        await grader.grade_all(many[:count])
        ended.append(name)

    async with GradingLanes(timeout_s=5.0, hard=1) as grader:
        await grader.grade_all(many[:1])
        async with asyncio.TaskGroup() as group:
            group.create_task(grade("many", 60))
            await asyncio.sleep(0)
            group.create_task(grade("few", 2))
    assert ended == ["few", "many"]
