"""Which answers are the same."""

from gadfly.grading import Grader, group_by_answer


async def test_answers_are_grouped_by_value_in_order_of_appearance() -> None:
    texts = ["The answer is 5.", "So 10 / 2 = 5", "The answer is 7", "I do not know!", "the answer is 5.0"]
    async with Grader(timeout_s=5) as grader:
        groups = await group_by_answer(grader, [*texts, "I do not know!"])
    assert groups == [[0, 1, 4], [2], [3, 5]]


async def test_nothing_has_no_groups() -> None:
    async with Grader(timeout_s=5) as grader:
        assert await group_by_answer(grader, []) == []
