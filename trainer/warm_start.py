"""The warm start: fine-tuning of a critic that cannot keep the format, on the best of its own critiques.

Without the format a critic earns nothing, so reinforcement teaches it nothing. The critic writes critiques of some
answers. Critiques without a verdict are cut after their last complete step, and the critic continues them from the
verdict field on. It is fine-tuned on those with the right verdict, or only on those that led the actor to a right
answer, if there are enough (arXiv 2510.24320, section 5.1). A critic that calls every answer correct has no right
verdict on a wrong answer; it is then given the known verdict and explains it (STaR's rationalization, arXiv 2203.14465,
section 3.2). Where the prompts make a critique begin with its verdict, no steps come before it, and the
known verdict is given at once.
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
from gadfly.trainer.data import Dealer, seed_of
from gadfly.trainer.engines import ROLLOUT_PRIORITY, RunEngines
from gadfly.trainer.report import Report
from gadfly.trainer.rl.processes import ProcessGroup
from gadfly.trainer.rl.rewards import states_the_truth
from gadfly.trainer.rl.sft import Pair
from gadfly.trainer.rollouts import Collector, Rollout, RolloutGroup
from gadfly.trainer.workspace import Workspace, new_folder
from gadfly.training import Stage, TrainConfig, WarmStart
from gadfly.verdict import STEP_FIELD, USUAL_WORDS, VERDICT_FIELD, Verdict, VerdictWords, parse_critique

_FEWEST = 4  # examples of each class: fewer would teach a single word instead of a format
_MOST_STEPS = 8
_ENDING_TOKENS = 64  # from the verdict field to the end of the critique
_STEP = re.compile(rf"^{re.escape(STEP_FIELD)}:", re.MULTILINE)
_FINAL = re.compile(rf"^{re.escape(VERDICT_FIELD)}\b", re.MULTILINE)


class FormatUnknown(GadflyError):
    """Too few of the critic's own critiques are good enough to learn the format from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A critique with exactly one verdict that the critic may be fine-tuned on. `pair` holds the tokens to learn."""

    item: LabelledAnswer
    pair: Pair
    verdict: Verdict
    refined: Grade | None  # None: not refined
    is_given: bool = False  # whether the critic was given the verdict

    @property
    def is_right(self) -> bool:
        return states_the_truth(self.verdict, was_right=self.item.is_right)


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStarter:
    """Fine-tunes the policy on its own critiques before stage I."""

    config: TrainConfig
    processes: ProcessGroup
    engines: RunEngines
    collector: Collector
    workspace: Workspace
    report: Report
    items: Sequence[LabelledAnswer]

    async def run(self, name: str) -> None:
        """Fine-tune the policy if it needs that. The engines serve the critic at the start as `name`.

        Raises:
            FormatUnknown: the policy needs it, and too few of its critiques are good.
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
        candidates = [*complete(groups), *await self._continued(name, groups)]
        examples = chosen(candidates)
        await self.report.note(
            "warm start", kept_format=kept_format, sampled=len(rollouts), written=len(candidates), kept=len(examples)
        )
        if len(examples) < 2 * _FEWEST:
            raise FormatUnknown(
                f"too few critiques to learn the format from: {kept_format:.0%} of the critic's critiques state one "
                f"verdict, and {len(examples) // 2} of each class have steps that a verdict can follow. Use more "
                "`warm_start_prompts` or `max_critique_tokens`, another prompt set or a larger model"
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
            Dealer(items, seed=f"{self.config.fixed_seed} warm start", balance=self.config.balance).deal(
                min(self.config.warm_start_prompts, len(items))
            ),
            stage=Stage.STAGE_2 if can_refine else Stage.STAGE_1,
            model=name,
            adapter_sha256="start",
            seed=f"{self.config.fixed_seed} warm start",
            file=self.workspace.warm_start,
        )

    async def _continued(self, name: str, groups: Sequence[RolloutGroup]) -> list[Candidate]:
        """The critiques without the right verdict, continued by the critic from the verdict field on."""
        slots = asyncio.Semaphore(self.engines.at_once(1))
        prompts = self.collector.prompts

        async def one(group: RolloutGroup, rollout: Rollout, place: int) -> Candidate | None:
            opener = prompts.critique(question=group.item.question, response=group.item.response).opener
            is_ended = rollout.finish_reason == "stop"
            beginning = before_verdict(rollout.text, opener=opener, is_ended=is_ended, words=prompts.words)
            if not beginning:
                return None
            seed = f"{self.config.fixed_seed} {group.item.key} {place}"
            async with slots:
                if rollout.verdict is Verdict.UNPARSED and beginning != VERDICT_PREFIX:
                    own = await self._continue(name, group, beginning, seed)
                    if own is not None and own.is_right:
                        return own
                word = prompts.correct if group.item.is_right else prompts.incorrect
                return await self._continue(name, group, f"{beginning} {word}", seed, is_given=True)

        continued = await gather(
            *(
                one(group, rollout, place)
                for group in groups
                for place, rollout in enumerate(group.rollouts)
                if not states_the_truth(rollout.verdict, was_right=group.item.is_right)
            )
        )
        return [candidate for candidate in continued if candidate is not None]

    async def _continue(
        self, name: str, group: RolloutGroup, beginning: str, seed: str, *, is_given: bool = False
    ) -> Candidate | None:
        """The critique that begins with `beginning`; None if it does not end, or states no verdict or several."""
        prompt = self.collector.prompts.critique(question=group.item.question, response=group.item.response)
        sampling = Sampling(
            temperature=self.config.temperature,
            max_tokens=min(_ENDING_TOKENS, self.config.max_critique_tokens),
            seed=seed_of(seed),
            priority=ROLLOUT_PRIORITY,
            with_tokens=True,
        )
        try:
            [reply] = await self.engines.patiently(
                lambda: self.engines.pool.chat(prompt.continued(beginning), model=name, sampling=sampling)
            )
        except PromptTooLong:
            return None
        length = len(group.prompt)
        verdict = parse_critique(beginning + reply.text, self.collector.prompts.words).verdict
        is_whole = reply.finish_reason == "stop" and reply.prompt_tokens[:length] == group.prompt
        if verdict is Verdict.UNPARSED or not is_whole:
            return None
        # The engine's tokens of the beginning are at the end of its prompt.
        return Candidate(
            item=group.item,
            pair=(group.prompt, reply.prompt_tokens[length:] + reply.tokens),
            verdict=verdict,
            refined=None,
            is_given=is_given,
        )


def complete(groups: Sequence[RolloutGroup]) -> list[Candidate]:
    """The critiques that ended by themselves and state a verdict."""
    return [
        Candidate(
            item=group.item,
            pair=(group.prompt, rollout.tokens),
            verdict=rollout.verdict,
            refined=rollout.refined,
        )
        for group in groups
        for rollout in group.rollouts
        if rollout.verdict is not Verdict.UNPARSED and rollout.finish_reason == "stop"
    ]


def chosen(candidates: Sequence[Candidate]) -> list[Pair]:
    """Critiques with the right verdict, as many of right answers as of wrong ones, each text once.

    They are taken from those that led to a right refinement if these are enough, else from all whose verdict is the
    critic's own, else from all.
    """
    right = [candidate for candidate in candidates if candidate.is_right]
    own = [candidate for candidate in right if not candidate.is_given]
    helpful = [candidate for candidate in own if candidate.refined is Grade.RIGHT]
    choices = [_balanced(each) for each in (helpful, own, right)]
    return next((pairs for pairs in choices if len(pairs) >= 2 * _FEWEST), choices[-1])


def _balanced(candidates: Sequence[Candidate]) -> list[Pair]:
    by_class: dict[bool, dict[Pair, None]] = {True: {}, False: {}}
    for candidate in candidates:
        by_class[candidate.item.is_right][candidate.pair] = None
    fewest = min(map(len, by_class.values()))
    return [*list(by_class[True])[:fewest], *list(by_class[False])[:fewest]]


def before_verdict(text: str, *, opener: str, is_ended: bool, words: VerdictWords = USUAL_WORDS) -> str:
    """The whole steps of a critique and the verdict field after them; the field alone if it is the opener.

    Empty if there is no step. `opener` is that of the prompt.
    """
    if opener.strip() == VERDICT_PREFIX:
        return VERDICT_PREFIX
    steps = whole_steps(text, is_ended=is_ended, words=words)
    return f"{steps.rstrip()}\n{VERDICT_PREFIX}" if steps else ""


def whole_steps(text: str, *, is_ended: bool, words: VerdictWords = USUAL_WORDS) -> str:
    """A critique up to its last whole step. A whole step is judged, explained, and repeats no earlier one.

    Without `is_ended`, the token limit may have cut the last step, unless a final verdict follows it.
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
        steps = parse_critique(text[start:stop], words).steps
        is_cut = stop == len(text) and not is_ended
        if len(steps) != 1 or is_cut or steps[0].verdict is Verdict.UNPARSED or not steps[0].explanation:
            break
        if steps[0].text in seen:
            break
        seen.add(steps[0].text)
        end = stop
    return text[starts[0] : end]
