"""The actor's own first answers to logged questions, sampled and graded, so that there are right and wrong ones.

Logged answers are one per question, and most are of one class. Critique-RL samples ten per training question at
temperature 0.7 before training (its released scripts).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gadfly.actor import Actor
from gadfly.concurrency import gather
from gadfly.engine_client import Sampling
from gadfly.errors import PromptTooLong, UnreadableReference
from gadfly.grading import Submission, TaskGrader
from gadfly.prompts import PromptSet
from gadfly.store.training_data import LabelledAnswer, OpenQuestion
from gadfly.trainer.data import seed_of
from gadfly.trainer.engines import ROLLOUT_PRIORITY, RunEngines
from gadfly.training import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The actor's usable answers, and how much could not be used."""

    items: list[LabelledAnswer]
    without_answer: int  # texts that state no answer, or were cut before it: a critic learns nothing from them
    unreadable: int  # questions whose reference no rule can read


async def sample_pool(
    engines: RunEngines,
    actor: Actor,
    prompts: PromptSet,
    grader: TaskGrader,
    items: Sequence[LabelledAnswer | OpenQuestion],
    config: TrainConfig,
    *,
    seed: int,
) -> Pool:
    """Sample `config.pool_samples` answers to each of the newest `config.pool_questions` questions with a reference.

    `items` may hold several answers to a question; it is still asked once. Equal answers to a question count once.
    """
    questions = list({item.question_hash: item for item in reversed(items) if item.reference is not None}.values())
    chosen = questions[::-1][: config.pool_questions] if config.pool_samples else []
    turn = asyncio.Semaphore(engines.at_once(config.pool_samples or 1))

    async def answers(item: LabelledAnswer | OpenQuestion) -> dict[str, bool]:
        async with turn:
            try:
                replies = await engines.patiently(
                    lambda: actor.chat(
                        prompts.solve(question=item.question),
                        sampling=Sampling(
                            n=config.pool_samples,
                            temperature=config.pool_temperature,
                            max_tokens=config.max_answer_tokens,
                            seed=seed_of(seed, "pool", item.question_hash.hex()),
                            priority=ROLLOUT_PRIORITY,
                        ),
                    )
                )
            except PromptTooLong:
                return {}
        return {reply.text.strip(): reply.is_cut for reply in replies}

    sampled = await gather(*(answers(item) for item in chosen))
    rows = [
        (item, place, Submission(text, item.reference or "", is_cut, item.question))
        for item, texts in zip(chosen, sampled, strict=True)
        for place, (text, is_cut) in enumerate(texts.items())
    ]
    submissions = [submission for _, _, submission in rows]
    grades = await engines.patiently(lambda: grader.grade_all(submissions))
    usable: list[LabelledAnswer] = []
    without_answer, unreadable = 0, set()
    for (item, place, submission), grade in zip(rows, grades, strict=True):
        if isinstance(grade, UnreadableReference):
            unreadable.add(item.question_hash)
        elif grade.label is None or not submission.response:
            without_answer += 1
        else:
            usable.append(item.sampled(place, submission.response, is_right=grade.label))
    return Pool(items=usable, without_answer=without_answer, unreadable=len(unreadable))
