"""The answers that all rows of a study share, sampled from one actor: for learning, validation and tests."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from pydantic import TypeAdapter

from gadfly.actor import BaseActor
from gadfly.adapters import write_durably
from gadfly.concurrency import gather
from gadfly.engine_client import Sampling
from gadfly.grading import Grade, Grader
from gadfly.lab import world
from gadfly.lab.world import LabSplit, WordProblem
from gadfly.prompts import PromptSet
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import StoredAnswer, seed_of
from gadfly.trainer.engines import RunEngines
from gadfly.trainer.pool import sample_pool
from gadfly.training import TrainConfig
from gadfly.votes import LabelSource

MAX_ANSWER_TOKENS = 64
MAX_CRITIQUE_TOKENS = 128
TEMPERATURE = 1.0
"""The temperature of first answers."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The number of questions of each kind."""

    learn: int = 512
    validate: int = 128
    test: int = 512
    out_of_domain: int = 128
    samples: int = 10  # the actor's answers to each question for learning; the paper's number
    sampled: int = 64  # questions of the test for which many samples are drawn


@dataclass(frozen=True, slots=True)
class Arena:
    """The answers of one actor, all sampled at `TEMPERATURE`. The tests hold one answer per question.

    The paper's tests are greedy. Actor and critic are one model, and at this size it cannot see an error that it makes
    greedily, however the critic is trained. It can see its random errors.
    """

    learn: list[StoredAnswer]
    validate: list[StoredAnswer]
    tests: dict[LabSplit, list[StoredAnswer]]

    @property
    def accuracy(self) -> dict[LabSplit, float]:
        """The share of right answers in each test: the actor without a critic."""
        return {split: sum(each.is_right for each in answers) / len(answers) for split, answers in self.tests.items()}

    @staticmethod
    async def open(
        folder: Path, engines: RunEngines, prompts: PromptSet, grader: Grader, sizes: Sizes, *, seed: int
    ) -> "Arena":
        """Read the arena in a folder, or sample it and store it there. The same seed gives the same answers."""
        path = folder / "arena.json"
        if not path.exists():
            write_durably(path, _ARENA.dump_json(await _make(engines, prompts, grader, sizes, seed)))
        return _ARENA.validate_json(path.read_bytes())


_ARENA = TypeAdapter(Arena)


async def _make(engines: RunEngines, prompts: PromptSet, grader: Grader, sizes: Sizes, seed: int) -> Arena:
    in_domain = world.problems(LabSplit.IN_DOMAIN, sizes.learn + sizes.validate + sizes.test, seed=seed)
    learn, rest = in_domain[: sizes.learn], in_domain[sizes.learn :]
    config = TrainConfig(
        pool_questions=sizes.learn, pool_samples=sizes.samples, pool_temperature=TEMPERATURE,
        max_answer_tokens=MAX_ANSWER_TOKENS, seed=seed,
    )  # fmt: skip
    pool = await sample_pool(
        engines, BaseActor(engines.pool), prompts, grader, [asked(each) for each in learn], config, seed=seed
    )
    tests = {
        LabSplit.IN_DOMAIN: rest[sizes.validate :],
        LabSplit.LONGER: world.problems(LabSplit.LONGER, sizes.out_of_domain, seed=seed),
        LabSplit.LARGER: world.problems(LabSplit.LARGER, sizes.out_of_domain, seed=seed),
    }
    return Arena(
        learn=pool.items,
        validate=await sampled_answers(engines, prompts, grader, rest[: sizes.validate]),
        tests={split: await sampled_answers(engines, prompts, grader, problems) for split, problems in tests.items()},
    )


def asked(problem: WordProblem) -> LabelledAnswer:
    """A question with its right answer, as if it had been logged."""
    return LabelledAnswer(
        interaction_id=uuid5(NAMESPACE_URL, problem.text),
        question_hash=hashlib.sha256(problem.text.encode()).digest(),
        question=problem.text,
        response=world.solution(world.solve(problem)),
        is_right=True,
        source=LabelSource.REFERENCE,
        reference=str(problem.answer),
    )


async def sampled_answers(
    engines: RunEngines, prompts: PromptSet, grader: Grader, problems: Sequence[WordProblem]
) -> list[LabelledAnswer]:
    """One answer of the actor to each question. A text without a final answer counts as wrong."""
    slots = asyncio.Semaphore(engines.at_once(1))

    async def answer(problem: WordProblem) -> str:
        async with slots:
            sampling = Sampling(
                max_tokens=MAX_ANSWER_TOKENS, temperature=TEMPERATURE, seed=seed_of("first answer", problem.text)
            )
            [reply] = await BaseActor(engines.pool).chat(prompts.solve(question=problem.text), sampling=sampling)
        return reply.text.strip()

    texts = await gather(*map(answer, problems))
    grades = await grader.grade_all([(text, str(each.answer)) for text, each in zip(texts, problems, strict=True)])
    return [
        asked(problem).sampled(0, text, is_right=grade is Grade.RIGHT)
        for problem, text, grade in zip(problems, texts, grades, strict=True)
    ]
