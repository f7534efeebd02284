"""Labelled answers for the critic's prompt: the same labels as a training run's, used without training.

The rule: answers that the run may learn from, with the most certain labels first, in an order drawn from the run's
seed; one per question; half of them wrong, wrong and right ones in turn; no key has more than its share of them
(setting max_key_share); each fits in an equal part of half the room in the model's context, and where none fits, half
as many are tried. A model copies what its examples look like, so each comes with a whole critique: the first one by the
base model that ends by itself and states the label. Where the base model writes none for a class, the verdict's line
alone is the critique.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from gadfly.concurrency import gather
from gadfly.critique import VERDICT_PREFIX, sample_critiques
from gadfly.engine_client import ACTOR, Sampling
from gadfly.errors import BadInput, PromptTooLong
from gadfly.prompts import Example
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.context import RunContext
from gadfly.trainer.data import seed_of
from gadfly.trainer.engines import ROLLOUT_PRIORITY
from gadfly.trainer.selection import Selection
from gadfly.trainer.workspace import EXAMPLES
from gadfly.training import Recipe
from gadfly.verdict import Verdict, parse_critique

_TRIED = 4  # answers that the base model writes critiques of, for each example
_PROMPT_SHARE = 0.5  # of the room for a prompt that the examples may take; the rest is for the answer to be judged


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenExample:
    """An example, and the interaction whose answer it shows."""

    interaction_id: UUID
    question: str
    response: str
    critique: str
    is_right: bool
    is_written: bool  # the base model wrote the critique

    @property
    def example(self) -> Example:
        return Example(self.question, self.response, self.critique)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenExamples:
    """The examples of a run, in the order of the prompt, as the run's folder stores them; empty: there are too few."""

    items: list[ChosenExample]


async def choose_examples(context: RunContext, selection: Selection) -> ChosenExamples:
    """The run's examples from its selected answers, decided at the first call.

    Raises:
        BadInput: the run has the recipe `examples`, and there is no example of each class.
    """
    kept = context.workspace.read(EXAMPLES, ChosenExamples)
    if kept is not None:
        return kept
    most, chosen = context.run.config.examples, ChosenExamples(items=[])
    while most >= 2 and not chosen.items:  # of fewer examples each may be longer
        chosen = await _chosen(context, selection.learn, most)
        most //= 2
    if not chosen.items and context.run.config.recipe is Recipe.EXAMPLES:
        raise BadInput(
            "there are no examples for the prompt: each class, right and wrong, needs a labelled answer that is short "
            "enough. Import more answers, or lower max_critique_tokens"
        )
    context.workspace.write(EXAMPLES, chosen)
    await context.report.note(
        "examples for the critic's prompt",
        examples=len(chosen.items),
        critiques_by_the_base_model=sum(each.is_written for each in chosen.items),
    )
    return chosen


async def _chosen(context: RunContext, items: Sequence[LabelledAnswer], most: int) -> ChosenExamples:
    """At most so many examples, each within an equal part of the room."""
    found = {
        is_right: await _written(context, [each for each in items if each.is_right is is_right], most)
        for is_right in (False, True)
    }
    fewest = min(map(len, found.values()))
    pairs = zip(found[False][:fewest], found[True][:fewest], strict=True)
    return ChosenExamples(items=[each for pair in pairs for each in pair])


def in_order(items: Sequence[LabelledAnswer], *, seed: int) -> list[LabelledAnswer]:
    """The candidates for examples, best first: one answer per question."""
    drawn = sorted(items, key=lambda each: each.key)
    random.Random(f"{seed} examples").shuffle(drawn)  # noqa: S311  # a sample, no secret
    first: dict[bytes, LabelledAnswer] = {}
    for item in sorted(drawn, key=lambda each: -each.certainty):
        first.setdefault(item.question_hash, item)
    return list(first.values())


def of_several_keys(
    found: Sequence[tuple[LabelledAnswer, ChosenExample]], wanted: int, *, max_key_share: float
) -> list[ChosenExample]:
    """The first `wanted` examples, of which no key has more than its share where several keys labelled them.

    Answers whose label several keys support, and the operator's, belong to no key.
    """
    keys = {item.key_id for item, _ in found if item.key_id is not None}
    limit = max(1, int(max_key_share * wanted)) if len(keys) > 1 else wanted
    taken: Counter[UUID] = Counter()
    chosen = []
    for item, example in found:
        if item.key_id is not None:
            if taken[item.key_id] >= limit:
                continue
            taken[item.key_id] += 1
        chosen.append(example)
    return chosen[:wanted]


async def _written(context: RunContext, items: Sequence[LabelledAnswer], most: int) -> list[ChosenExample]:
    """Up to half of the examples, all of one class; those with a critique by the base model first."""
    config = context.run.config
    wanted, room = most // 2, _room(context, most)
    candidates = in_order(items, seed=config.fixed_seed)[: _TRIED * wanted]
    slots = asyncio.Semaphore(context.engines.at_once(config.samples_per_prompt))

    async def one(item: LabelledAnswer) -> ChosenExample | None:
        async with slots:
            return await _with_critique(context, item, room=room)

    examples = await gather(*map(one, candidates))
    found = [(item, example) for item, example in zip(candidates, examples, strict=True) if example is not None]
    found.sort(key=lambda each: not each[1].is_written)
    return of_several_keys(found, wanted, max_key_share=context.settings.max_key_share)


def _room(context: RunContext, examples: int) -> int:
    """The most tokens that one of so many examples may add to a prompt."""
    config = context.run.config
    whole = context.settings.engine_max_model_len - config.max_critique_tokens
    return int(_PROMPT_SHARE * whole / examples)


async def _with_critique(context: RunContext, item: LabelledAnswer, *, room: int) -> ChosenExample | None:
    """An example with the base model's critique, or with the verdict alone; None if that is longer than `room`."""
    config, prompts, engines = context.run.config, context.prompts, context.engines
    bare = ChosenExample(
        interaction_id=item.interaction_id,
        question=item.question,
        response=item.response,
        critique=f"{VERDICT_PREFIX} {prompts.correct if item.is_right else prompts.incorrect}",
        is_right=item.is_right,
        is_written=False,
    )

    async def tokens(critique: str) -> int:
        example = Example(item.question, item.response, critique)
        with_it = prompts.with_examples([example]).critique(question=item.question, response=item.response)
        plain = prompts.critique(question=item.question, response=item.response)
        with_it_tokens, plain_tokens = await engines.patiently(
            lambda: gather(engines.pool.tokenize(with_it), engines.pool.tokenize(plain))
        )
        return len(with_it_tokens) - len(plain_tokens)

    try:
        if await tokens(bare.critique) > room:
            return None
        replies = await engines.patiently(
            lambda: sample_critiques(
                engines.pool,
                prompts,
                model=ACTOR,
                question=item.question,
                response=item.response,
                sampling=Sampling(
                    n=config.samples_per_prompt,
                    temperature=config.temperature,
                    max_tokens=config.max_critique_tokens,
                    seed=seed_of(config.fixed_seed, "examples", item.key),
                    priority=ROLLOUT_PRIORITY,
                ),
            )
        )
    except PromptTooLong:
        return None
    label = Verdict.CORRECT if item.is_right else Verdict.INCORRECT
    for reply in replies:
        fits = reply.finish_reason == "stop" and parse_critique(reply.text).verdict is label
        if fits and await tokens(reply.text.strip()) <= room:
            return replace(bare, critique=reply.text.strip(), is_written=True)
    return bare
