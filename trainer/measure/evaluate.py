"""Evaluation of a critic on held-out answers, which are judged, refined and graded through the serving pipeline.

Each function returns items for `trainer/measure/metrics.py`. Decoding is greedy unless samples are requested. Errors of
the engine and the grader are raised, and no item is skipped. An item that does not fit the model is not an error: it is
marked `is_too_long` and counts as a wrong verdict and, with a reference, as a wrong refinement.

The caller can store finished items (`on_item`) and pass them again (`done`) to resume an interrupted evaluation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar
from uuid import UUID

from gadfly.actor import Actor
from gadfly.concurrency import gather
from gadfly.critique import critique
from gadfly.engine_client import Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import PromptTooLong, UnreadableReference
from gadfly.grading import Grade, Submission, TaskGrader, grade_one, group_by_answer
from gadfly.prompts import Prompt, PromptSet, joined
from gadfly.refinement import When, refine, refine_chain
from gadfly.seeds import seed_of_sample
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import seed_of
from gadfly.trainer.measure.leakage import leaks_gold
from gadfly.trainer.measure.metrics import Judged, Samples
from gadfly.verdict import Verdict, count_verdicts

T = TypeVar("T")

OnItem = Callable[[Judged], Awaitable[None]]
"""Called with each item when it is finished, in any order."""

_NOTHING_DONE: Mapping[str, Judged] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Engines, actor, prompts and grader of an evaluation, and its limits.

    `priority` is the engine's (lower goes first), `concurrency` the most answers in progress at a time.
    """

    engines: EnginePool
    actor: Actor
    prompts: PromptSet
    grader: TaskGrader
    max_critique_tokens: int
    max_answer_tokens: int
    concurrency: int
    priority: int = 10

    def sampling(self, max_tokens: int, *, temperature: float = 0.0, seed: int | None = None) -> Sampling:
        return Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed, priority=self.priority)

    async def each(self, work: Callable[[LabelledAnswer], Awaitable[T]], answers: Sequence[LabelledAnswer]) -> list[T]:
        """The results of `work`, in the order of `answers`. At most `concurrency` run at a time; an error ends all."""
        slots = asyncio.Semaphore(self.concurrency)

        async def one(answer: LabelledAnswer) -> T:
            async with slots:
                return await work(answer)

        return await gather(*(one(answer) for answer in answers))


async def evaluate(
    bench: Bench,
    answers: Sequence[LabelledAnswer],
    *,
    model: str,
    with_refinement: bool,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    done: Mapping[str, Judged] = _NOTHING_DONE,
    on_item: OnItem | None = None,
) -> list[Judged]:
    """Have `model` judge every answer and, `with_refinement`, the frozen actor rewrite those that have a reference.

    The actor rewrites whatever the verdict is, which is the paper's soft gate. Items are in the order of `answers`;
    those whose key is in `done` are taken from there. With `samples` above 1 each answer is judged that often at
    `temperature`, one sample after another. Sample k of an answer has the same seed under every critic, and another one
    than sample k of other answers: with a common seed, one unlucky draw would be that of all answers.

    Raises:
        EngineError: the engine does not answer.
        UnreadableReference: a reference cannot be read.
    """

    async def one(answer: LabelledAnswer) -> list[Judged]:
        items = []
        for sample in range(samples):
            item = replace(_item(answer), sample=sample)
            if item.key in done:
                items.append(done[item.key])
                continue
            sampling = bench.sampling(
                bench.max_critique_tokens,
                temperature=temperature,
                seed=seed_of_sample(seed_of(seed, "evaluate", answer.key), sample) if temperature else None,
            )
            turn = await _turn(
                bench, bench.prompts, answer, item, model=model, rewrites=with_refinement, sampling=sampling
            )
            items.append(await _finished(turn.item, on_item))
        return items

    return [item for items in await bench.each(one, answers) for item in items]


def without_critic(answers: Sequence[LabelledAnswer]) -> list[Judged]:
    """The items without a critic: every answer stays unchanged, so Acc@Refine equals Acc."""
    return [_kept(answer) for answer in answers]


async def oracle_gate(
    bench: Bench, answers: Sequence[LabelledAnswer], *, model: str, on_item: OnItem | None = None
) -> list[Judged]:
    """Have only wrong answers judged and rewritten (figure 5), which shows the value of perfect verdicts.

    Raises as `evaluate`.
    """

    async def one(answer: LabelledAnswer) -> Judged:
        if answer.is_right:
            return await _finished(_kept(answer), on_item)
        turn = await _turn(bench, bench.prompts, answer, _item(answer), model=model, rewrites=True)
        return await _finished(turn.item, on_item)

    return await bench.each(one, answers)


async def several_rounds(
    bench: Bench,
    answers: Sequence[LabelledAnswer],
    *,
    model: str,
    rounds: int,
    with_history: bool,
    on_item: OnItem | None = None,
) -> list[tuple[Judged, ...]]:
    """For every answer one item per round: each round judges and rewrites the answer of the round before.

    An item's `was_right` is about the answer at the start of its round, its `refined` about the answer at the end. From
    the second round on, an answer without a readable final answer counts as not right, as in the paper. It labels
    nothing.
    Without history a round sees the question and the last answer, as in serving and in the code released with the
    paper. With history critic and actor see all earlier rounds, as in the paper's formula (`PromptSetWithHistory`). A
    round that does not fit the model ends the chain, and its item is repeated for the remaining rounds.

    Raises:
        ValueError: an answer has no reference.
        EngineError, UnreadableReference: as `evaluate`.
    """
    _need_references(answers)

    async def one(answer: LabelledAnswer) -> tuple[Judged, ...]:
        items: list[Judged] = []
        history: tuple[PastRound, ...] = ()
        response, was_right = answer.response, answer.is_right
        for round in range(rounds):
            prompts = PromptSetWithHistory.of(bench.prompts, history) if with_history else bench.prompts
            item = replace(_item(answer), was_right=was_right, round=round)
            turn = await _turn(bench, prompts, replace(answer, response=response), item, model=model, rewrites=True)
            items.append(await _finished(turn.item, on_item))
            if turn.item.is_too_long:
                items += [
                    await _finished(replace(turn.item, round=later), on_item) for later in range(round + 1, rounds)
                ]
                break
            history += (PastRound(response, turn.critique, turn.refined),)
            response, was_right = turn.refined, turn.item.refined is Grade.RIGHT
        return tuple(items)

    return await bench.each(one, answers)


async def several_samples(
    bench: Bench,
    answers: Sequence[LabelledAnswer],
    *,
    model: str,
    samples: int,
    temperature: float,
    seed: int,
    rounds: int = 1,
) -> list[Samples]:
    """For every answer `samples` chains of `rounds`, sampled at `temperature`, for MV@K and Pass@K.

    Final answers are grouped as in serving. A chain that does not fit the model has no final answer.

    Raises:
        ValueError: an answer has no reference.
        EngineError, UnreadableReference: as `evaluate`.
    """
    references = _need_references(answers)

    async def chain(answer: LabelledAnswer, sample: int) -> tuple[str, bool, int]:
        chain_seed = seed_of_sample(seed, sample)
        try:
            refined = await refine_chain(
                bench.engines,
                bench.actor,
                bench.prompts,
                critic=model,
                question=answer.question,
                response=answer.response,
                rounds=rounds,
                when=When.ALWAYS,
                critique_sampling=bench.sampling(bench.max_critique_tokens, temperature=temperature, seed=chain_seed),
                refine_sampling=bench.sampling(bench.max_answer_tokens, temperature=temperature, seed=chain_seed),
                sample=sample,
            )
        except PromptTooLong:
            return "", False, 0
        usages = [part.usage for part in refined.critiques] + [part.usage for part in refined.refinements]
        return refined.text, refined.is_cut, sum(usage.completion_tokens for usage in usages)

    async def one(answer: LabelledAnswer) -> Samples:
        chains = await gather(*(chain(answer, sample) for sample in range(samples)))
        texts, cut, tokens = zip(*chains, strict=True)
        return await graded_samples(bench.grader, answer, references[answer.id], texts, tokens, cut=cut)

    return await bench.each(one, answers)


async def graded_samples(
    grader: TaskGrader,
    answer: LabelledAnswer,
    reference: str,
    texts: Sequence[str],
    tokens: Sequence[int],
    *,
    cut: Sequence[bool],
) -> Samples:
    """Group and grade several final texts of one answer.

    `tokens` is the cost of each, `cut` whether its token limit ended it.

    Raises:
        UnreadableReference: no rule can read the reference.
    """
    grades = await grader.grade_all(
        [Submission(text, reference, is_cut, answer.question) for text, is_cut in zip(texts, cut, strict=True)]
    )
    for grade in grades:
        if isinstance(grade, UnreadableReference):
            raise grade
    groups = [0] * len(texts)
    cut_places = {place for place, is_cut in enumerate(cut) if is_cut}
    for number, members in enumerate(await group_by_answer(grader, texts, cut=cut_places)):
        for member in members:
            groups[member] = number
    return Samples(
        answer_id=answer.id,
        question_hash=answer.question_hash,
        groups=tuple(groups),
        rights=tuple(grade is Grade.RIGHT for grade in grades),
        tokens=tuple(tokens),
    )


# ------------------------------------------------------------------------------------------------------------ one round


@dataclass(frozen=True, slots=True)
class _JudgedTurn:
    """A judged answer, with the texts of its critique and refinement, or "" without one."""

    item: Judged
    critique: str = ""
    refined: str = ""


def _item(answer: LabelledAnswer) -> Judged:
    """The item of an answer that is not judged yet."""
    return Judged(answer_id=answer.id, question_hash=answer.question_hash, was_right=answer.is_right)


def _kept(answer: LabelledAnswer) -> Judged:
    """The item of an answer that is neither judged nor rewritten."""
    kept = Grade.RIGHT if answer.is_right else Grade.WRONG
    return replace(_item(answer), refined=None if answer.reference is None else kept)


async def _turn(
    bench: Bench,
    prompts: PromptSet,
    answer: LabelledAnswer,
    item: Judged,
    *,
    model: str,
    rewrites: bool,
    sampling: Sampling | None = None,
) -> _JudgedTurn:
    """Judge one answer, greedily without `sampling`; with `rewrites` and a reference, also rewrite and grade it."""
    rewrites = rewrites and answer.reference is not None
    refined = Grade.NO_ANSWER if rewrites else None
    try:
        (judged,) = await critique(
            bench.engines,
            prompts,
            model=model,
            question=answer.question,
            response=answer.response,
            sampling=sampling or bench.sampling(bench.max_critique_tokens),
            round=item.round,
        )
    except PromptTooLong:
        too_long = replace(item, stated=Verdict.UNPARSED, served=Verdict.UNPARSED, refined=refined, is_too_long=True)
        return _JudgedTurn(too_long)
    item = replace(
        item,
        stated=judged.stated,
        served=judged.verdict,
        verdict_lines=count_verdicts(judged.text),
        p_correct=judged.p_correct,
        p_incorrect=judged.p_incorrect,
        critique_tokens=judged.usage.completion_tokens - 1,  # without the token that reads the verdict
        leaks_gold=None
        if answer.reference is None
        else leaks_gold(judged.text, question=answer.question, response=answer.response, reference=answer.reference),
    )
    if not rewrites or answer.reference is None:
        return _JudgedTurn(item, judged.text)
    try:
        rewritten = await refine(
            bench.actor,
            prompts,
            question=answer.question,
            response=answer.response,
            judged=judged,
            sampling=bench.sampling(bench.max_answer_tokens),
            round=item.round,
        )
    except PromptTooLong:
        return _JudgedTurn(replace(item, refined=refined, is_too_long=True), judged.text)
    grade = await grade_one(
        bench.grader, Submission(rewritten.text, answer.reference, rewritten.is_cut, answer.question)
    )
    item = replace(item, refined=grade, refinement_tokens=rewritten.usage.completion_tokens)
    return _JudgedTurn(item, judged.text, rewritten.text)


async def _finished(item: Judged, on_item: OnItem | None) -> Judged:
    if on_item is not None:
        await on_item(item)
    return item


def _need_references(answers: Sequence[LabelledAnswer]) -> dict[UUID, str]:
    references = {answer.id: answer.reference for answer in answers if answer.reference is not None}
    if len(references) < len(answers):
        raise ValueError("every answer needs a reference")
    return references


# -------------------------------------------------------------------------------------------------------------- history


@dataclass(frozen=True, slots=True)
class PastRound:
    """A finished round: the answer at its start, its critique, and the answer at its end."""

    response: str
    critique: str
    refined: str


@dataclass(frozen=True, slots=True)
class PromptSetWithHistory(PromptSet):
    """A prompt set whose prompts include the earlier rounds, as a conversation of each role.

    The critic's conversation is the prompt of the first round, its critique as the assistant's turn, the last turn of
    the prompt for the next answer, and so on. The actor's is the prompt of the first round, its new answer, the last
    turn of the prompt with the next critique, and so on. Instructions and worked examples appear once.
    """

    history: tuple[PastRound, ...] = ()

    @classmethod
    def of(cls, prompts: PromptSet, history: tuple[PastRound, ...]) -> "PromptSetWithHistory":
        return cls(**{field.name: getattr(prompts, field.name) for field in fields(PromptSet)}, history=history)

    def critique(self, *, question: str, response: str) -> Prompt:
        responses = [*(past.response for past in self.history), response]
        prompts = [PromptSet.critique(self, question=question, response=each) for each in responses]
        return joined(prompts, [past.critique for past in self.history])

    def refine(self, *, question: str, response: str, critique: str) -> Prompt:
        rounds = [*((past.response, past.critique) for past in self.history), (response, critique)]
        prompts = [
            PromptSet.refine(self, question=question, response=each, critique=its_critique)
            for each, its_critique in rounds
        ]
        return joined(prompts, [past.refined for past in self.history])
