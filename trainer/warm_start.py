"""A critic that cannot keep the format earns nothing and learns nothing: teach it the format from its own best.

It writes critiques of some answers. Those without a verdict are cut after their last whole step and finished by the
critic itself from the verdict field on, so that every critique states one. Those with the right verdict are what it is
fine-tuned on; where enough of them led the actor to a right answer, those alone (arXiv 2510.24320, section 5.1). A
critic that calls every answer correct has no right verdict of a wrong one: it is then told the verdict, which is known,
and explains it by itself (STaR's rationalization, arXiv 2203.14465, section 3.2).
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gadfly.concurrency import gather
from gadfly.critique import VERDICT_PREFIX
from gadfly.engine_client import Sampling
from gadfly.errors import GadflyError, PromptTooLong
from gadfly.grading import Grade
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import draw, seed_of
from gadfly.trainer.engines import ROLLOUT_PRIORITY, RunEngines
from gadfly.trainer.report import Report
from gadfly.trainer.rl.processes import ProcessGroup
from gadfly.trainer.rl.rewards import states_the_truth
from gadfly.trainer.rl.sft import Pair
from gadfly.trainer.rollouts import Collector, Rollout, RolloutGroup
from gadfly.trainer.workspace import Workspace, new_folder
from gadfly.training import Stage, TrainConfig, WarmStart
from gadfly.verdict import STEP_FIELD, VERDICT_FIELD, Verdict, parse_critique

_FEWEST = 4  # examples of either verdict: fewer teach one word instead of a format
_MOST_STEPS = 8
_ENDING_TOKENS = 64  # from the verdict field to the end of the critique
_STEP = re.compile(rf"^{re.escape(STEP_FIELD)}:", re.MULTILINE)
_FINAL = re.compile(rf"^{re.escape(VERDICT_FIELD)}\b", re.MULTILINE)


class FormatUnknown(GadflyError):
    """The critic's own critiques do not hold enough good ones to learn the format from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A critique of an item with exactly one verdict, as the tokens to learn."""

    item: LabelledAnswer
    pair: Pair
    verdict: Verdict
    refined: Grade | None  # None: not refined
    is_told: bool = False  # the verdict was put into its mouth

    @property
    def is_right(self) -> bool:
        return states_the_truth(self.verdict, was_right=self.item.is_right)


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStarter:
    """Everything that a warm start needs."""

    config: TrainConfig
    processes: ProcessGroup
    engines: RunEngines
    collector: Collector
    workspace: Workspace
    report: Report
    items: Sequence[LabelledAnswer]

    async def run(self, name: str) -> None:
        """Fine-tune the policy if it needs it; `name` is what the engines serve the critic at the start under.

        Raises:
            FormatUnknown: it needs it, and too few of its critiques are good.
        """
        if self.config.warm_start is WarmStart.NEVER or self.workspace.newest_checkpoint() is not None:
            return
        done = self.workspace.path / "warm"
        if done.exists():
            self.processes.load_adapter(done)
            return
        await self.report.stage(Stage.WARM_START, step=0)
        groups = await self._critiques(name)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        kept_format = sum(rollout.verdict is not Verdict.UNPARSED for rollout in rollouts) / len(rollouts)
        if self.config.warm_start is WarmStart.AUTO and kept_format >= self.config.warm_start_below:
            await self.report.note("no warm start is needed", kept_format=kept_format)
            return
        written = [*stated(groups), *await self._finished(name, groups)]
        examples = chosen(written)
        await self.report.note(
            "warm start", kept_format=kept_format, sampled=len(rollouts), written=len(written), kept=len(examples)
        )
        if len(examples) < 2 * _FEWEST:
            raise FormatUnknown(
                f"{kept_format:.0%} of the critic's critiques state one verdict by themselves, and of either class "
                f"{len(examples) // 2} have steps that a verdict can follow, which is too few to learn the format "
                "from: use more `warm_start_prompts` or `max_critique_tokens`, another prompt set or a larger model"
            )
        for epoch, learned in enumerate(self.processes.warm_start(examples), start=1):
            await self.report.note("warm start", epoch=epoch, **learned)
        with new_folder(done) as unfinished:
            self.processes.save_adapter(unfinished)

    async def _critiques(self, name: str) -> list[RolloutGroup]:
        referenced = [item for item in self.items if item.reference is not None]
        can_refine = len({item.is_right for item in referenced}) == 2
        items = referenced if can_refine else self.items
        return await self.collector.collect(
            draw(
                items,
                seed=f"{self.config.seed} warm start",
                step=0,
                count=min(self.config.warm_start_prompts, len(items)),
                balance=self.config.balance,
            ),
            stage=Stage.STAGE_2 if can_refine else Stage.STAGE_1,
            model=name,
            adapter_sha256="start",
            seed=f"{self.config.seed} warm start",
            file=self.workspace.warm_start,
        )

    async def _finished(self, name: str, groups: Sequence[RolloutGroup]) -> list[Written]:
        """What becomes of the critiques without the right verdict when the critic goes on at the verdict field."""
        asked = [
            (group, rollout, place)
            for group in groups
            for place, rollout in enumerate(group.rollouts)
            if not states_the_truth(rollout.verdict, was_right=group.item.is_right)
        ]
        turn = asyncio.Semaphore(self.engines.at_once(1))

        async def one(group: RolloutGroup, rollout: Rollout, place: int) -> Written | None:
            steps = whole_steps(rollout.text, is_ended=rollout.finish_reason == "stop")
            if not steps:
                return None
            begun = f"{steps.rstrip()}\n{VERDICT_PREFIX}"
            seed = f"{self.config.seed} {group.item.key} {place}"
            async with turn:
                if rollout.verdict is Verdict.UNPARSED:
                    own = await self._finish(name, group, begun, seed)
                    if own is not None and own.is_right:
                        return own
                return await self._finish(name, group, f"{begun} {self._word(group.item)}", seed, is_told=True)

        finished = await gather(*(one(*each) for each in asked))
        return [each for each in finished if each is not None]

    def _word(self, item: LabelledAnswer) -> str:
        prompts = self.collector.prompts
        return prompts.correct if item.is_right else prompts.incorrect

    async def _finish(
        self, name: str, group: RolloutGroup, begun: str, seed: str, *, is_told: bool = False
    ) -> Written | None:
        prompt = self.collector.prompts.critique(question=group.item.question, response=group.item.response)
        sampling = Sampling(
            temperature=self.config.temperature,
            max_tokens=_ENDING_TOKENS,
            seed=seed_of(seed),
            priority=ROLLOUT_PRIORITY,
            with_tokens=True,
        )
        try:
            [reply] = await self.engines.patiently(
                lambda: self.engines.pool.chat(prompt.continued(begun), model=name, sampling=sampling)
            )
        except PromptTooLong:
            return None
        length = len(group.prompt)
        verdict = parse_critique(begun + reply.text).verdict
        is_whole = reply.finish_reason == "stop" and reply.prompt_tokens[:length] == group.prompt
        if verdict is Verdict.UNPARSED or not is_whole:
            return None
        # The engine's own tokens of what was begun, and those it went on with.
        return Written(
            item=group.item,
            pair=(group.prompt, reply.prompt_tokens[length:] + reply.tokens),
            verdict=verdict,
            refined=None,
            is_told=is_told,
        )


def stated(groups: Sequence[RolloutGroup]) -> list[Written]:
    """The critiques that came to their end and state a verdict by themselves."""
    return [
        Written(
            item=group.item,
            pair=(group.prompt, rollout.tokens),
            verdict=rollout.verdict,
            refined=rollout.refined,
        )
        for group in groups
        for rollout in group.rollouts
        if rollout.verdict is not Verdict.UNPARSED and rollout.finish_reason == "stop"
    ]


def chosen(written: Sequence[Written]) -> list[Pair]:
    """Critiques with the right verdict, as many of right answers as of wrong ones, each text once.

    Of those that led to a right refinement, of the critic's own, of all: the first that are enough.
    """
    right = [item for item in written if item.is_right]
    own = [item for item in right if not item.is_told]
    helpful = [item for item in own if item.refined is Grade.RIGHT]
    choices = [_alike(each) for each in (helpful, own, right)]
    return next((pairs for pairs in choices if len(pairs) >= 2 * _FEWEST), choices[-1])


def _alike(written: Sequence[Written]) -> list[Pair]:
    good: dict[bool, dict[Pair, None]] = {True: {}, False: {}}
    for item in written:
        good[item.item.is_right][item.pair] = None
    fewest = min(map(len, good.values()))
    return [*list(good[True])[:fewest], *list(good[False])[:fewest]]


def whole_steps(text: str, *, is_ended: bool) -> str:
    """A critique up to its last step that is whole: judged, explained, and no repetition of one before.

    The last step of a text that is not `is_ended` may have been cut by the limit, unless a final verdict follows it.
    """
    final = _FINAL.search(text)
    if final is not None:
        text, is_ended = text[: final.start()], True
    starts = [match.start() for match in _STEP.finditer(text)]
    if not starts:
        return ""
    seen: set[str] = set()
    end = starts[0]
    for start, stop in list(zip(starts, [*starts[1:], len(text)], strict=True))[:_MOST_STEPS]:
        steps = parse_critique(text[start:stop]).steps
        is_cut = stop == len(text) and not is_ended
        if len(steps) != 1 or is_cut or steps[0].verdict is Verdict.UNPARSED or not steps[0].explanation:
            break
        if steps[0].text in seen:
            break
        seen.add(steps[0].text)
        end = stop
    return text[starts[0] : end]
