"""Rollouts: critiques sampled under the current adapter through the serving engine, refined by the actor, scored.

Everything goes through `gadfly.critique` and `gadfly.refinement`, at low priority, with the engine's own token ids and
log-probabilities. A group that is complete is kept on disk, so that a killed run samples nothing twice.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from gadfly.concurrency import gather
from gadfly.critique import sample_critiques
from gadfly.engine_client import Reply, Sampling
from gadfly.errors import PromptTooLong
from gadfly.grading import Grade, Grader
from gadfly.prompts import PromptSet
from gadfly.refinement import rewrite
from gadfly.trainer.data import Item, seed_of
from gadfly.trainer.engines import ROLLOUT_PRIORITY, RunEngines
from gadfly.trainer.rl.packing import Group
from gadfly.trainer.rl.rewards import score
from gadfly.trainer.workspace import Lines
from gadfly.training import Stage, TrainConfig
from gadfly.verdict import Verdict, count_verdicts, parse_critique


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled critique and what became of it. `refined` is None in stage I."""

    text: str
    verdict: Verdict  # as stated; one that states none, or two, is UNPARSED
    verdict_lines: int
    finish_reason: str | None
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    refined: Grade | None
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """The critiques of one answer: a group of the leave-one-out baseline."""

    item: Item
    prompt: tuple[int, ...]
    rollouts: tuple[Rollout, ...]

    def to_group(self) -> Group:
        return Group(
            prompt=self.prompt,
            replies=tuple(rollout.tokens for rollout in self.rollouts),
            engine_logprobs=tuple(rollout.logprobs for rollout in self.rollouts),
            scores=tuple(rollout.score for rollout in self.rollouts),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "item": self.item.to_json(),
            "prompt": self.prompt,
            "rollouts": [
                {
                    "text": rollout.text,
                    "verdict": rollout.verdict,
                    "verdict_lines": rollout.verdict_lines,
                    "finish_reason": rollout.finish_reason,
                    "tokens": rollout.tokens,
                    "logprobs": rollout.logprobs,
                    "refined": rollout.refined,
                    "score": rollout.score,
                }
                for rollout in self.rollouts
            ],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(
            item=Item.from_json(values["item"]),
            prompt=tuple(values["prompt"]),
            rollouts=tuple(
                Rollout(
                    text=each["text"],
                    verdict=Verdict(each["verdict"]),
                    verdict_lines=each["verdict_lines"],
                    finish_reason=each["finish_reason"],
                    tokens=tuple(each["tokens"]),
                    logprobs=tuple(each["logprobs"]),
                    refined=None if each["refined"] is None else Grade(each["refined"]),
                    score=each["score"],
                )
                for each in values["rollouts"]
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Collector:
    """Everything that collecting needs."""

    engines: RunEngines
    prompts: PromptSet
    grader: Grader
    config: TrainConfig

    async def collect(
        self, items: Sequence[Item], *, stage: Stage, model: str, adapter_sha256: str, seed: str, kept: Lines
    ) -> list[RolloutGroup]:
        """The groups of one step, in the order of `items`, from `kept` where they were sampled before.

        `adapter_sha256` is of the adapter behind `model`: what was kept under other weights is sampled anew.
        """
        known = {
            line["place"]: RolloutGroup.from_json(line["group"])
            for line in kept.read()
            if line["adapter"] == adapter_sha256
        }
        turn = asyncio.Semaphore(self.engines.at_once(self.config.samples_per_prompt))

        async def one(place: int, item: Item) -> RolloutGroup:
            if place in known and known[place].item == item:
                return known[place]
            async with turn:
                group = await self.engines.patiently(
                    lambda: self._group(item, stage=stage, model=model, seed=f"{seed} {place}")
                )
            kept.append({"place": place, "adapter": adapter_sha256, "group": group.to_json()})
            return group

        return await gather(*(one(place, item) for place, item in enumerate(items)))

    async def _group(self, item: Item, *, stage: Stage, model: str, seed: str) -> RolloutGroup:
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
            grades = await self._refine(item, [reply.text for reply in replies])
        rollouts = tuple(self._score(item, stage, reply, grade) for reply, grade in zip(replies, grades, strict=True))
        return RolloutGroup(item=item, prompt=replies[0].prompt_tokens, rollouts=rollouts)

    async def _refine(self, item: Item, critiques: Sequence[str]) -> list[Grade]:
        """The grade of one greedy refinement by the frozen actor per critique (arXiv 2510.24320, section 4.2)."""
        assert item.reference is not None
        sampling = Sampling(max_tokens=self.config.max_answer_tokens, priority=ROLLOUT_PRIORITY)
        different = list(dict.fromkeys(critiques))  # greedy: equal critiques have equal refinements

        async def refinement(critique: str) -> str:
            try:
                reply = await rewrite(
                    self.engines.pool,
                    self.prompts,
                    question=item.question,
                    response=item.response,
                    critique=critique,
                    sampling=sampling,
                )
            except PromptTooLong:
                return ""  # a critique that leaves the actor no room is of no help
            return reply.text.strip()

        texts = await gather(*map(refinement, different))
        grades: dict[str, Grade] = {}
        graded = await self.grader.grade_all([(text, item.reference) for text in texts])
        for critique, grade in zip(different, graded, strict=True):
            if isinstance(grade, Exception):  # readable when it was stored: the grading rules have changed since
                raise grade
            grades[critique] = grade
        return [grades[critique] for critique in critiques]

    def _score(self, item: Item, stage: Stage, reply: Reply, refined: Grade | None) -> Rollout:
        verdict = parse_critique(reply.text).verdict
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
