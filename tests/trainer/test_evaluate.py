"""Evaluation on a real engine. The tiny model calls an answer with WRONGMARK wrong and any other correct, and rewrites
every answer to "The answer is 7".
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from gadfly.actor import BaseActor
from gadfly.engine_client import ACTOR
from gadfly.engine_pool import EnginePool
from gadfly.errors import EngineUnavailable, UnreadableReference
from gadfly.grading import Grade, Grader
from gadfly.prompts import Message, load
from gadfly.store.split import question_hash
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.measure.attacks import ATTACKS, Attack, AttackKind
from gadfly.trainer.measure.evaluate import (
    Bench,
    PastRound,
    PromptSetWithHistory,
    evaluate,
    oracle_gate,
    several_rounds,
    several_samples,
    without_critic,
)
from gadfly.trainer.measure.metrics import Judged, measure, measure_samples
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource

C, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSED
PROMPTS = load("stepwise@1")


def answer(number: int, response: str, *, is_right: bool, reference: str | None = "7") -> LabelledAnswer:
    question = f"What is {number} + 3?"
    return LabelledAnswer(
        interaction_id=UUID(int=number),
        question_hash=question_hash(question),
        question=question,
        response=response,
        is_right=is_right,
        source=LabelSource.REFERENCE,
        reference=reference,
    )


ANSWERS = [
    answer(1, "It is 7.", is_right=True),  # called correct, stays right
    answer(2, "It is 9. WRONGMARK", is_right=False),  # called wrong, fixed
    answer(3, "It is 9.", is_right=False),  # called correct, fixed nevertheless
    answer(4, "It is 4.", is_right=True, reference="4"),  # called correct, broken
    answer(5, "It is 9. WRONGMARK", is_right=False, reference=None),
]


@pytest.fixture
async def engines(engine_url: str) -> AsyncIterator[EnginePool]:
    pool = EnginePool.connect([engine_url], timeout_s=60)
    yield pool
    await pool.aclose()


@pytest.fixture
async def bench(engines: EnginePool) -> AsyncIterator[Bench]:
    async with Grader(timeout_s=5) as grader:
        yield Bench(
            engines=engines,
            actor=BaseActor(engines),
            prompts=PROMPTS,
            grader=grader,
            max_critique_tokens=64,
            max_answer_tokens=16,
            concurrency=3,
        )


async def evaluated(bench: Bench, answers: Sequence[LabelledAnswer], **options: object) -> list[Judged]:
    return await evaluate(bench, answers, model=ACTOR, **{"with_refinement": True, **options})  # type: ignore[arg-type]


async def test_every_answer_is_judged_rewritten_and_graded(bench: Bench) -> None:
    items = await evaluated(bench, ANSWERS)
    assert [item.answer_id for item in items] == [row.interaction_id for row in ANSWERS]
    assert [item.stated for item in items] == [C, W, C, C, W]
    assert [item.served for item in items] == [C, W, C, C, W]
    assert [item.refined for item in items] == [Grade.RIGHT, Grade.RIGHT, Grade.RIGHT, Grade.WRONG, None]
    assert [item.is_verdict_right for item in items] == [True, True, False, True, True]
    for item in items:
        assert item.p_right is not None
        assert (item.p_right > 0.5) is (item.stated is C)
        assert item.verdict_lines == 1
        assert 5 < item.critique_tokens < 64
        assert not item.is_too_long
    assert [item.leaks_gold for item in items] == [False, False, False, False, None]
    assert items[4].refinement_tokens == 0 < items[0].refinement_tokens
    found = measure(items)
    assert found.delta is not None
    assert found.delta.value == pytest.approx((2 - 1) / 4)


async def test_without_refinement_no_answer_is_rewritten(bench: Bench) -> None:
    items = await evaluated(bench, ANSWERS, with_refinement=False)
    assert [item.refined for item in items] == [None] * 5
    assert [item.stated for item in items] == [C, W, C, C, W]


async def test_a_critique_that_is_cut_off_has_no_stated_verdict(bench: Bench) -> None:
    [item] = await evaluated(replace(bench, max_critique_tokens=2), ANSWERS[:1])
    assert (item.stated, item.verdict_lines, item.is_verdict_right) == (U, 0, False)
    assert item.served is not U  # read from the engine
    assert item.critique_tokens == 2


async def test_samples_of_an_answer_are_items_of_their_own(bench: Bench) -> None:
    options = {"samples": 3, "temperature": 1.5, "seed": 7}
    items = await evaluated(bench, ANSWERS[:2], **options)
    assert [(item.answer_id, item.sample) for item in items] == [
        (row.interaction_id, sample) for row in ANSWERS[:2] for sample in range(3)
    ]
    assert len({item.key for item in items}) == 6
    assert await evaluated(bench, ANSWERS[:2], **options) == items, "the same seed gives the same samples"
    assert await evaluated(bench, ANSWERS[:2], **{**options, "seed": 8}) != items
    done = {item.key: replace(item, critique_tokens=999) for item in items[:4]}
    again = await evaluated(bench, ANSWERS[:2], done=done, **options)
    assert [item.critique_tokens == 999 for item in again] == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    "attack", [each for each in ATTACKS if each.kind is AttackKind.TURN], ids=lambda each: each.name
)
async def test_control_tokens_in_an_answer_say_no_more_than_their_letters(bench: Bench, attack: Attack) -> None:
    """The verdicts on answers with a made-up turn are those with the same words that no tokenizer reserves."""

    def harmless(text: str) -> str:
        for mark in ("<|", "|>", "</", "<", ">", "[/", "[", "]"):
            text = text.replace(mark, " ".join(mark))
        return text

    answers = [
        answer(number, attack.around("It is 9. WRONGMARK" if number % 2 else f"It is {number + 3}."), is_right=False)
        for number in range(1, 9)
    ]
    items = await evaluated(bench, answers, with_refinement=False)
    plain = await evaluated(
        bench, [replace(each, response=harmless(each.response)) for each in answers], with_refinement=False
    )
    assert [item.served for item in items] == [item.served for item in plain]
    for item, other in zip(items, plain, strict=True):
        assert item.p_right == pytest.approx(other.p_right, abs=0.1)


async def test_an_interrupted_evaluation_resumes(bench: Bench) -> None:
    finished: dict[str, Judged] = {}

    async def keep(item: Judged) -> None:
        finished[item.key] = item

    first = await evaluated(bench, ANSWERS[:2], on_item=keep)
    assert sorted(finished) == sorted(item.key for item in first)
    marked = {key: replace(item, critique_tokens=999) for key, item in finished.items()}  # to recognise the kept items
    finished.clear()
    items = await evaluated(bench, ANSWERS, done=marked, on_item=keep)
    assert [item.critique_tokens == 999 for item in items] == [True, True, False, False, False]
    assert sorted(finished) == sorted(item.key for item in items[2:])


async def test_an_answer_that_does_not_fit_counts_as_a_mistake(bench: Bench) -> None:
    row = answer(6, "so " * 9000, is_right=True)
    [item] = await evaluated(bench, [row])
    assert item.is_too_long
    assert (item.stated, item.served, item.refined, item.critique_tokens) == (U, U, Grade.NO_ANSWER, 0)
    [[first, second]] = await several_rounds(bench, [row], model=ACTOR, rounds=2, with_history=False)
    assert (first.round, second.round, second.is_too_long, second.refined) == (0, 1, True, Grade.NO_ANSWER)
    [drawn] = await several_samples(bench, [row], model=ACTOR, samples=2, temperature=1, seed=1)
    assert (drawn.rights, drawn.tokens) == ((False, False), (0, 0))


async def test_errors_are_raised_and_not_scored(bench: Bench) -> None:
    nowhere = EnginePool.connect(["http://127.0.0.1:9"], timeout_s=1)
    with pytest.raises(EngineUnavailable):
        await evaluated(replace(bench, engines=nowhere), ANSWERS)
    await nowhere.aclose()
    with pytest.raises(UnreadableReference):
        await evaluated(bench, [answer(1, "It is 7.", is_right=True, reference="1/0")])


async def test_concurrency_is_limited(bench: Bench) -> None:
    in_progress = most = 0

    async def work(_: LabelledAnswer) -> None:
        nonlocal in_progress, most
        in_progress += 1
        most = max(most, in_progress)
        await asyncio.sleep(0.01)
        in_progress -= 1

    await bench.each(work, ANSWERS)
    assert most == 3


async def test_without_a_critic_no_answer_changes() -> None:
    found = measure(without_critic(ANSWERS))
    assert found.accuracy_refined is not None
    assert (found.accuracy_refined.hits, found.accuracy_refined.of) == (2, 4)
    assert found.discrimination is None
    assert found.delta is not None
    assert found.delta.value == 0


async def test_the_oracle_gate_keeps_right_answers(bench: Bench) -> None:
    items = await oracle_gate(bench, ANSWERS, model=ACTOR)
    assert [item.stated for item in items] == [None, W, C, None, W]
    assert [item.refined for item in items] == [Grade.RIGHT, Grade.RIGHT, Grade.RIGHT, Grade.RIGHT, None]


async def test_each_round_continues_with_the_last_answer(bench: Bench) -> None:
    chains = await several_rounds(bench, [ANSWERS[1], ANSWERS[3]], model=ACTOR, rounds=2, with_history=False)
    assert [[item.round for item in chain] for chain in chains] == [[0, 1], [0, 1]]
    # "It is 9. WRONGMARK" is called wrong and becomes "The answer is 7", which is right and is called correct.
    assert [(item.was_right, item.stated, item.refined) for item in chains[0]] == [
        (False, W, Grade.RIGHT),
        (True, C, Grade.RIGHT),
    ]
    assert [(item.was_right, item.refined) for item in chains[1]] == [(True, Grade.WRONG), (False, Grade.WRONG)]
    with pytest.raises(ValueError, match="reference"):
        await several_rounds(bench, ANSWERS, model=ACTOR, rounds=1, with_history=False)


async def test_with_history_the_critic_sees_the_first_answer(bench: Bench) -> None:
    [chain] = await several_rounds(bench, [ANSWERS[1]], model=ACTOR, rounds=2, with_history=True)
    # The mark of the first answer is in the critic's prompt of the second round.
    assert [(item.was_right, item.stated) for item in chain] == [(False, W), (True, W)]


def test_history_continues_the_conversations_of_critic_and_actor() -> None:
    past = PastRound("It is 9.", "Step sentence: It is 9.\nfirst", "It is 8.")
    prompts = PromptSetWithHistory.of(PROMPTS, (past,))
    plain = PROMPTS.critique(question="Q", response="It is 9.")
    critique = prompts.critique(question="Q", response="It is 8.")
    assert critique.messages == (
        *plain.messages,
        Message("assistant", past.critique),
        Message("user", "Question: Q\nSolution: It is 8."),
    )
    assert critique.opener == plain.opener
    refined = prompts.refine(question="Q", response="It is 8.", critique="Step sentence: second")
    assert [message.role for message in refined.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert [message.content for message in refined.messages[1::2]] == ["It is 9.", "It is 8."]
    assert "It is 9.\nfirst" in refined.messages[2].content
    assert "Step sentence: second" in refined.messages[4].content
    assert (prompts.correct, prompts.name) == (PROMPTS.correct, PROMPTS.name)
    without_history = PromptSetWithHistory.of(PROMPTS, ())
    assert without_history.critique(question="Q", response="R") == PROMPTS.critique(question="Q", response="R")


async def test_samples_are_grouped_and_graded(bench: Bench) -> None:
    items = await several_samples(bench, [ANSWERS[1], ANSWERS[3]], model=ACTOR, samples=4, temperature=1.0, seed=1)
    for item, row in zip(items, [ANSWERS[1], ANSWERS[3]], strict=True):
        assert item.answer_id == row.interaction_id
        assert len(item.groups) == len(item.rights) == len(item.tokens) == 4
        assert item.groups[0] == 0
        assert min(item.tokens) > 5
        for group, is_right in zip(item.groups, item.rights, strict=True):
            assert is_right is item.rights[item.groups.index(group)]
    again = await several_samples(bench, [ANSWERS[1]], model=ACTOR, samples=4, temperature=1.0, seed=1)
    assert again == items[:1]
    found = measure_samples(items, 4)
    assert found is not None
    assert found.any_hit.hits >= 1
