"""Rollouts: critiques sampled under the current adapter through the serving engine, refined by the actor, scored.

Sampling goes through `gadfly.critique` and `gadfly.refinement`, at low priority, and returns the engine's own token ids
and log-probabilities. A complete group is stored on disk, so a killed run does not sample it again.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gadfly import tracing
from gadfly.actor import Actor
from gadfly.concurrency import gather
from gadfly.critique import sample_critiques
from gadfly.engine_client import Reply, Sampling
from gadfly.errors import PromptTooLong
from gadfly.grading import Grade, Submission, TaskGrader
from gadfly.prompts import PromptSet
from gadfly.refinement import rewrite
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import StoredAnswer, seed_of
from gadfly.trainer.engines import ROLLOUT_PRIORITY, RunEngines
from gadfly.trainer.measure.evaluate import Bench
from gadfly.trainer.rl.packing import Group
from gadfly.trainer.rl.rewards import score
from gadfly.trainer.workspace import Lines
from gadfly.training import Stage, TrainConfig
from gadfly.verdict import Verdict, count_verdicts, parse_critique


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled critique, its verdict, its refinement's grade and its score."""

    text: str
    verdict: Verdict  # the stated one; UNPARSED without exactly one
    verdict_lines: int
    finish_reason: str | None
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the tokens, by the engine, in nats at temperature 1
    refined: Grade | None  # None in stage I
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """The critiques of one answer: a group of the leave-one-out baseline."""

    item: StoredAnswer
    prompt: tuple[int, ...]  # as the engine's tokens
    rollouts: tuple[Rollout, ...]

    def to_group(self) -> Group:
        return Group(
            prompt=self.prompt,
            replies=tuple(rollout.tokens for rollout in self.rollouts),
            engine_logprobs=tuple(rollout.logprobs for rollout in self.rollouts),
            scores=tuple(rollout.score for rollout in self.rollouts),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptGroup:
    """A group as a step's file holds it."""

    place: int  # in the step
    adapter: str  # the hash of the adapter that the group was sampled with
    group: RolloutGroup


class WaitedFor:
    """What the answers of a step waited for, in seconds, summed over answers that are sampled at the same time."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, part: str) -> Generator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - began

    @property
    def attributes(self) -> dict[str, object]:
        """For the step's span."""
        return {f"gadfly.{part}_s": round(seconds, 3) for part, seconds in self._seconds.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Collector:
    """Samples, refines and scores critiques."""

    engines: RunEngines
    actor: Actor
    prompts: PromptSet
    grader: TaskGrader
    config: TrainConfig

    def bench(self) -> Bench:
        """The same engines, prompts, grader and token limits for an evaluation."""
        return Bench(
            engines=self.engines.pool,
            actor=self.actor,
            prompts=self.prompts,
            grader=self.grader,
            max_critique_tokens=self.config.max_critique_tokens,
            max_answer_tokens=self.config.max_answer_tokens,
            concurrency=self.engines.at_once(1),
        )

    async def collect(
        self, items: Sequence[LabelledAnswer], *, stage: Stage, model: str, adapter_sha256: str, seed: str, file: Path
    ) -> list[RolloutGroup]:
        """The groups of one step, in the order of `items`. Groups that `file` holds are not sampled again.

        `adapter_sha256` is the hash of the adapter that is served as `model`; groups sampled with another one are
        sampled again.
        """
        kept = Lines(file, KeptGroup)
        known = {line.place: line.group for line in kept.read() if line.adapter == adapter_sha256}
        turn = asyncio.Semaphore(self.engines.at_once(self.config.samples_per_prompt))
        waited = WaitedFor()

        async def one(place: int, item: LabelledAnswer) -> RolloutGroup:
            if place in known and known[place].item == item:
                return known[place]
            async with turn:
                group = await self.engines.patiently(
                    lambda: self._group(item, stage=stage, model=model, seed=f"{seed} {place}", waited=waited)
                )
            kept.append(KeptGroup(place=place, adapter=adapter_sha256, group=group))
            return group

        with tracing.span("sample", {"gadfly.answers": len(items), "gadfly.kept": len(known)}) as span:
            groups = await gather(*(one(place, item) for place, item in enumerate(items)))
            span.set(waited.attributes)
            return groups

    async def _group(
        self, item: LabelledAnswer, *, stage: Stage, model: str, seed: str, waited: WaitedFor
    ) -> RolloutGroup:
        with waited.on("critiques"):
            replies = await sample_critiques(
                self.engines.pool,
                self.prompts,
                model=model,
                question=item.question,
                response=item.response,
                sampling=Sampling(
                    n=self.config.samples_per_prompt,
                    temperature=self.config.temperature,
                    max_tokens=self.config.max_critique_tokens,
                    seed=seed_of(seed),
                    priority=ROLLOUT_PRIORITY,
                    with_tokens=True,
                ),
            )
        grades: Sequence[Grade | None] = [None] * len(replies)
        if stage is Stage.STAGE_2:
            grades = await self._refine(item, [reply.text for reply in replies], waited)
        rollouts = tuple(self._score(item, stage, reply, grade) for reply, grade in zip(replies, grades, strict=True))
        return RolloutGroup(item=item, prompt=replies[0].prompt_tokens, rollouts=rollouts)

    async def _refine(self, item: LabelledAnswer, critiques: Sequence[str], waited: WaitedFor) -> list[Grade]:
        """The grade of one greedy refinement by the frozen actor per critique (arXiv 2510.24320, section 4.2)."""
        assert item.reference is not None
        sampling = Sampling(max_tokens=self.config.max_answer_tokens, priority=ROLLOUT_PRIORITY)
        different = list(dict.fromkeys(critiques))  # greedy: equal critiques have equal refinements

        async def refinement(critique: str) -> tuple[str, bool]:
            try:
                reply = await rewrite(
                    self.actor,
                    self.prompts,
                    question=item.question,
                    response=item.response,
                    critique=critique,
                    sampling=sampling,
                )
            except PromptTooLong:
                return "", False  # a critique that leaves the actor no room is of no help
            return reply.text.strip(), reply.is_cut

        with waited.on("rewrites"):
            texts = await gather(*map(refinement, different))
        grades: dict[str, Grade] = {}
        with waited.on("scores"):
            graded = await self.grader.grade_all(
                [Submission(text, item.reference, is_cut, item.question) for text, is_cut in texts]
            )
        for critique, grade in zip(different, graded, strict=True):
            if isinstance(grade, Exception):  # readable when it was stored: the grading rules have changed since
                raise grade
            grades[critique] = grade
        return [grades[critique] for critique in critiques]

    def _score(self, item: LabelledAnswer, stage: Stage, reply: Reply, refined: Grade | None) -> Rollout:
        verdict = parse_critique(reply.text, self.prompts.words).verdict
        return Rollout(
            text=reply.text,
            verdict=verdict,
            verdict_lines=count_verdicts(reply.text),
            finish_reason=reply.finish_reason,
            tokens=reply.tokens,
            logprobs=reply.logprobs,
            refined=refined,
            score=score(
                self.config.profile,
                self.config.helpfulness,
                stage=stage,
                verdict=verdict,
                was_right=item.is_right,
                refined_right=None if refined is None else refined is Grade.RIGHT,
                discrimination_weight=self.config.discrimination_weight,
            ),
        )
