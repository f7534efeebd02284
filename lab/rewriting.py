"""A simulated actor that rewrites answers with stated chances.

The lab's own actor copies the numbers of a critique, so that the reward for the refinement and the one for the verdict
agree. Here the options of a world set how much a rewrite gains from a right verdict, and how much it loses from a wrong
one. Questions are solved by the lab's model.

After the verdict "Correct", or without a verdict, the actor keeps the answer. After "Wrong" it rewrites with the chance
`compliance`, and keeps the answer otherwise. A rewrite of an answer that was right is spoilt with the chance `harm`. In
any other rewrite, the critique's numbers are masked with a chance: then the actor computes on its own, and is right
with the chance `OWN`. Where it sees them, it takes every number of the critique, right or wrong. So a rewrite of a
wrong answer after a critique with right numbers ends right with the chance `q`, and one of a right answer with
(1 - harm) q.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from gadfly.actor import BaseActor
from gadfly.engine_client import OnText, Reply, Sampling
from gadfly.lab import world
from gadfly.lab.world import Equation, Judgement, WordProblem
from gadfly.prompts import Prompt
from gadfly.records import Usage
from gadfly.store.training_data import LabelledAnswer
from gadfly.verdict import Verdict, parse_critique

OWN = 0.2
"""The chance that a rewrite without the critique's numbers ends right: the smallest `q`."""

_Answer = TypeVar("_Answer", bound=LabelledAnswer)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldOptions:
    """What rewrites and answers are like. All are chances or shares."""

    q: float  # a rewrite after "Wrong" ends right, if the critique's numbers are right
    right: float  # answers that are right, of all
    harm: float = 0.0  # the rewrite of a right answer is spoilt
    compliance: float = 1.0  # the actor rewrites after "Wrong"

    def __post_init__(self) -> None:
        if not OWN <= self.q <= 1:
            raise ValueError(f"q must be at least {OWN}, the chance without the critique's numbers, and at most 1")
        for name in ("right", "harm", "compliance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a chance between 0 and 1")

    @property
    def masked(self) -> float:
        """The chance that a critique's numbers are masked."""
        return (1 - self.q) / (1 - OWN)


@dataclass(frozen=True, slots=True)
class SimulatedActor(BaseActor):
    """Rewrites by simulation; solves as the base model.

    The same prompt gives the same rewrite under the same `seed`, so an interrupted run resumes with equal results.
    """

    options: WorldOptions = field(default_factory=lambda: WorldOptions(q=0.5, right=0.5))
    seed: str = ""
    is_masked: bool = False  # the numbers of all critiques are masked

    async def chat(self, prompt: Prompt, *, sampling: Sampling, on_text: OnText | None = None) -> tuple[Reply, ...]:
        if len(prompt.messages) == 1:
            return await BaseActor.chat(self, prompt, sampling=sampling, on_text=on_text)
        question, response, critique = (message.content for message in prompt.messages)
        return (Reply(text=self.rewritten(question, response, critique), finish_reason="stop", usage=Usage()),)

    def rewritten(self, question: str, response: str, critique: str) -> str:
        """The rewrite of a response with a critique, both in the format of the lab's world."""
        rng = random.Random(f"{self.seed}\n{question}\n{response}\n{critique}")
        follows, spoils, masks, succeeds = (rng.random() for _ in range(4))
        if parse_critique(critique).verdict is not Verdict.INCORRECT or follows >= self.options.compliance:
            return response
        problem = world.read_problem(question)
        if response.endswith(f"The answer is {problem.answer}.") and spoils < self.options.harm:
            return _spoilt(rng, problem)
        judgements = _judgements(critique)
        if not self.is_masked and masks >= self.options.masked and len(judgements) == len(problem.operations):
            return world.solution(world.refine(problem, judgements))
        return world.solution(world.solve(problem)) if succeeds < OWN else _spoilt(rng, problem)


def _judgements(critique: str) -> list[Judgement]:
    """The recomputed steps of a critique, as far as they can be read."""
    steps = ((world.read_equation(step.text), world.read_equation(step.explanation))
             for step in parse_critique(critique).steps)  # fmt: skip
    return [Judgement(step, again) for step, again in steps if step is not None and again is not None]


def _spoilt(rng: random.Random, problem: WordProblem) -> str:
    """A solution with an error in its last step."""
    *first, last = world.solve(problem)
    return world.solution([*first, Equation(last.left, last.sign, last.right, world.near(rng, last.result))])


def with_share(answers: Iterable[_Answer], share: float, *, seed: str) -> list[_Answer]:
    """As many of the answers as have this share of right ones, chosen at random, in their order.

    Raises:
        ValueError: there are no answers of a class that the share needs.
    """
    kept = list(answers)
    right = [answer for answer in kept if answer.is_right]
    wrong = [answer for answer in kept if not answer.is_right]
    sizes = [len(found) / part for found, part in ((right, share), (wrong, 1 - share)) if part > 0]
    total = min(sizes)
    chosen = {answer.key for answer in (*_some(right, total * share, seed), *_some(wrong, total * (1 - share), seed))}
    if not chosen:
        raise ValueError(f"no answers can be chosen of which {share:.0%} are right: one class is empty")
    return [answer for answer in kept if answer.key in chosen]


def _some(answers: Sequence[_Answer], count: float, seed: str) -> list[_Answer]:
    return random.Random(seed).sample(answers, min(len(answers), round(count)))
