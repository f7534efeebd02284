"""The pool of sampled answers, with an actor whose replies are given."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from gadfly.engine_client import Reply
from gadfly.grading import Grader
from gadfly.prompts import load
from gadfly.records import Usage
from gadfly.store.training_data import LabelledAnswer, OpenQuestion
from gadfly.trainer.pool import sample_pool
from gadfly.training import TrainConfig
from gadfly.votes import LabelSource


class Actor:
    """Stands in for the engines of a run: it gives these replies to every question."""

    def __init__(self, *replies: tuple[str, str]) -> None:
        self.pool = self
        self._replies = tuple(Reply(text=text, finish_reason=reason, usage=Usage()) for text, reason in replies)

    def at_once(self, samples: int) -> int:
        return 1

    async def patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()

    async def chat(self, *args: Any, **options: Any) -> tuple[Reply, ...]:
        return self._replies


def answer(reference: str) -> LabelledAnswer:
    return LabelledAnswer(
        interaction_id=uuid4(),
        question_hash=reference.encode(),
        question="What is 2 + 1?",
        response="The answer is 3.",
        is_right=True,
        source=LabelSource.REFERENCE,
        reference=reference,
    )


async def test_only_a_stated_answer_is_an_example() -> None:
    actor = Actor(
        ("The answer is 3.", "stop"),
        ("The answer is 4.", "stop"),
        ("1. Add the numbers.\n2. Write the sum.\n3.", "length"),
        ("So 2 + 1 = 4", "length"),
        ("The answer is 4", "length"),
        ("The answer is 5.\n\nTo check this, I", "length"),
        ("The answer is 3 or 4.", "stop"),
        ("I do not know.", "stop"),
    )
    async with Grader(timeout_s=5) as grader:
        config = TrainConfig(pool_samples=8, pool_questions=1)
        pool = await sample_pool(actor, actor, load("stepwise@1"), grader, [answer("3")], config, seed=0)  # type: ignore[arg-type]
    assert {item.response: item.is_right for item in pool.items} == {
        "The answer is 3.": True,
        "The answer is 4.": False,
        "The answer is 5.\n\nTo check this, I": False,
    }
    assert (pool.without_answer, pool.unreadable) == (5, 0)


async def test_a_question_with_an_unreadable_reference_is_counted_and_left_out() -> None:
    async with Grader(timeout_s=5) as grader:
        config = TrainConfig(pool_samples=1, pool_questions=1)
        actor = Actor(("The answer is 3.", "stop"))
        pool = await sample_pool(actor, actor, load("stepwise@1"), grader, [answer("1/0")], config, seed=0)  # type: ignore[arg-type]
    assert (pool.items, pool.unreadable) == ([], 1)


async def test_questions_without_a_logged_answer_are_asked_first() -> None:
    open_question = OpenQuestion(
        interaction_id=uuid4(), question_hash=b"open", question="What is 3 + 4?", reference="7"
    )
    config = TrainConfig(pool_samples=1, pool_questions=1)
    actor = Actor(("The answer is 7.", "stop"))
    async with Grader(timeout_s=5) as grader:
        items = [open_question, answer("3")]
        pool = await sample_pool(actor, actor, load("stepwise@1"), grader, items, config, seed=0)  # type: ignore[arg-type]
    [found] = pool.items
    assert (found.question_hash, found.reference, found.source) == (b"open", "7", LabelSource.REFERENCE)
    assert found.is_right
    assert found.key == f"{open_question.interaction_id}/0"
