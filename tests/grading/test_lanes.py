"""Quick comparisons do not wait for those that take seconds, and calls with few rows not for those with many."""

import asyncio
import time

import pytest

from gadfly.errors import UnreadableReference
from gadfly.grading import Grade, GradingLanes, grading_for
from gadfly.grading.turns import Turns

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


async def test_turns_go_round_between_parties_and_a_cancelled_one_is_passed_on() -> None:
    turns, order = Turns(), list[str]()

    async def work(name: str) -> None:
        grading_for.set(name[0])
        async with turns:
            order.append(name)
            await asyncio.sleep(0)

    await turns.acquire()
    tasks = {}
    for name in ("a1", "a2", "a3", "a4", "b1", "c1", "b2"):
        tasks[name] = asyncio.create_task(work(name))
        await asyncio.sleep(0)
    tasks["a2"].cancel()  # while it waits
    tasks["c1"].cancel()  # the only one of its party
    await asyncio.sleep(0)
    turns.release()
    tasks["a1"].cancel()  # its turn was given already, and is given on
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert order == ["b1", "a3", "b2", "a4"]
    await asyncio.wait_for(turns.acquire(), 1)  # nothing is left taken


async def test_a_turn_that_ends_just_when_its_next_party_gives_up_is_free() -> None:
    turns = Turns()
    await turns.acquire()
    waiting = asyncio.create_task(turns.acquire())
    await asyncio.sleep(0)
    waiting.cancel()
    turns.release()  # before the cancelled task has run
    await asyncio.wait_for(turns.acquire(), 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    turns.release()
    await asyncio.wait_for(turns.acquire(), 1)


async def test_a_dozen_expensive_calls_of_one_caller_delay_another_by_one_turn() -> None:
    async def grade(caller: str, row: tuple[str, str]) -> float:
        grading_for.set(caller)
        started = time.monotonic()
        await grader.grade_all([row])
        return time.monotonic() - started

    expression = ("The answer is x + 1", "1 + x")
    async with GradingLanes(timeout_s=1.0, hard=1) as grader:
        await grade("ann", expression)  # the processes are started
        expensive = [asyncio.create_task(grade("bob", BOMB)) for _ in range(6)]
        await asyncio.sleep(0.2)
        seconds = await grade("ann", ("The answer is x + 2", "2 + x"))
        left = sum(not task.done() for task in expensive)
        for task in expensive:
            task.cancel()
        await asyncio.gather(*expensive, return_exceptions=True)
    assert left >= 3, f"it waited for the others: {seconds:.1f} s"
