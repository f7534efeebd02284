"""Which labelled answers become examples, and how the gate's report compares a candidate with them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from gadfly import prompts
from gadfly.critique import VERDICT_PREFIX
from gadfly.engine_client import Reply, Sampling
from gadfly.grading import Grade
from gadfly.prompts import Prompt
from gadfly.records import Usage
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.examples import ChosenExample, _chosen, in_order, of_several_keys
from gadfly.trainer.measure.examples_alone import ExamplesAlone
from gadfly.trainer.measure.metrics import Judged
from gadfly.training import TrainConfig
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource


def answer(number: int, *, question: int = 0, certainty: float = 0.9, key: int | None = None) -> LabelledAnswer:
    return LabelledAnswer(
        interaction_id=UUID(int=number),
        question_hash=(question or number).to_bytes(16, "big"),
        question=f"question {question or number}",
        response="a",
        is_right=True,
        source=LabelSource.REFERENCE,
        reference="7",
        certainty=certainty,
        key_id=None if key is None else UUID(int=key),
    )


def test_the_most_certain_labels_come_first_and_a_question_once() -> None:
    items = [answer(1, certainty=0.6), answer(2), answer(3, certainty=0.95), answer(4, question=3, certainty=0.99)]
    numbers = [each.interaction_id.int for each in in_order(items, seed=0)]
    assert numbers == [4, 2, 1]


def test_the_seed_decides_between_equally_certain_labels() -> None:
    items = [answer(number) for number in range(1, 30)]
    first = in_order(items, seed=1)
    assert first == in_order(items[::-1], seed=1), "the order of the rows does not count"
    assert first != in_order(items, seed=2)


@pytest.mark.parametrize(
    ("keys", "chosen", "why"),
    [
        ([1, 1, 1, 1], [0, 1], "one key labelled all"),
        ([1, 1, 2, 2], [0, 2], "half of two examples is one for each key"),
        ([1, 1, None, 2], [0, 2], "the operator's labels belong to no key"),
        ([1, 1, 1, 2], [0, 3], "the next key's only one"),
    ],
)
def test_no_key_has_more_than_its_share_of_the_examples(keys: list[int | None], chosen: list[int], why: str) -> None:
    found = [
        (
            answer(place + 1, key=key),
            ChosenExample(
                interaction_id=UUID(int=place),
                question="q",
                response="r",
                critique="c",
                is_right=True,
                is_written=True,
            ),
        )
        for place, key in enumerate(keys)
    ]
    assert [each.interaction_id.int for each in of_several_keys(found, 2, max_key_share=0.5)] == chosen, why


class Pool:
    """An engine that counts words as tokens, and whose critiques are the same for every answer."""

    def __init__(self, *critiques: tuple[str, str]) -> None:
        self.critiques = critiques
        self.asked = 0

    async def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        return (0,) * sum(len(message.content.split()) for message in prompt.messages)

    async def chat(self, prompt: Prompt, *, model: str, sampling: Sampling) -> tuple[Reply, ...]:
        assert (model, sampling.n) == ("base", 3)
        self.asked += 1
        return tuple(Reply(text=text, finish_reason=reason, usage=Usage()) for text, reason in self.critiques)


def context_of(pool: Pool, *, max_model_len: int, examples: int) -> Any:
    async def patiently(work: Any) -> Any:
        return await work()

    return SimpleNamespace(
        run=SimpleNamespace(
            config=TrainConfig(examples=examples, max_critique_tokens=20, samples_per_prompt=3, seed=0)
        ),
        settings=SimpleNamespace(engine_max_model_len=max_model_len, max_key_share=0.5),
        engines=SimpleNamespace(pool=pool, patiently=patiently, at_once=lambda samples: 4),
        prompts=prompts.load("bare@1"),
    )


OF_BOTH = [answer(number) for number in range(1, 9)] + [
    replace(answer(number), is_right=False, response="a wrong answer") for number in range(11, 19)
]


async def test_a_critique_that_states_the_label_comes_with_the_example() -> None:
    pool = Pool(
        (f"{VERDICT_PREFIX} Wrong\n{VERDICT_PREFIX} Correct", "stop"),  # two verdicts
        (f"Cut. {VERDICT_PREFIX} Correct", "length"),
        (f"It adds up.\n{VERDICT_PREFIX} Correct", "stop"),
    )
    found = (await _chosen(context_of(pool, max_model_len=220, examples=4), OF_BOTH, 4)).items
    assert [each.is_right for each in found] == [False, True, False, True], "wrong and right ones in turn"
    assert {each.critique for each in found if each.is_right} == {f"It adds up.\n{VERDICT_PREFIX} Correct"}
    assert {each.critique for each in found if not each.is_right} == {f"{VERDICT_PREFIX} Wrong"}, "none was written"
    assert [each.is_written for each in found] == [False, True, False, True]
    assert pool.asked == 16, "four answers for each example"
    assert len({each.interaction_id for each in found}) == 4


async def test_examples_fit_in_half_of_the_room() -> None:
    pool = Pool((f"{'word ' * 10}\n{VERDICT_PREFIX} Correct", "stop"))
    # An example with the verdict alone has 12 words or 14, the written critique 10 more.
    roomy = (await _chosen(context_of(pool, max_model_len=20 + 2 * 4 * 30, examples=4), OF_BOTH, 4)).items
    assert [each.is_written for each in roomy] == [False, True, False, True]
    tight = (await _chosen(context_of(pool, max_model_len=20 + 2 * 4 * 16, examples=4), OF_BOTH, 4)).items
    assert [each.is_written for each in tight] == [False] * 4, "the written critique is too long"
    asked = pool.asked
    none = await _chosen(context_of(pool, max_model_len=20 + 2 * 4 * 5, examples=4), OF_BOTH, 4)
    assert (none.items, pool.asked) == ([], asked), "no answer fits, and the engine writes nothing"
    fewer = (await _chosen(context_of(pool, max_model_len=20 + 2 * 2 * 16, examples=4), OF_BOTH, 2)).items
    assert len(fewer) == 2, "of fewer examples each may be longer"


async def test_one_class_alone_gives_no_examples() -> None:
    pool = Pool((f"{VERDICT_PREFIX} Correct", "stop"))
    one_class = [each for each in OF_BOTH if each.is_right]
    assert (await _chosen(context_of(pool, max_model_len=400, examples=4), one_class, 4)).items == []


def judged(number: int, *, was_right: bool, served: bool, refined: Grade = Grade.WRONG, sample: int = 0) -> Judged:
    verdict = Verdict.CORRECT if served else Verdict.INCORRECT
    return Judged(
        answer_id=UUID(int=number),
        question_hash=number.to_bytes(16, "big"),
        was_right=was_right,
        stated=verdict,
        served=verdict,
        refined=refined,
        sample=sample,
    )


def night(share: float, *, samples: int = 1) -> list[Judged]:
    """The judgements of a critic that judges this share of 20 answers of each class rightly, in every sample."""
    return [
        judged(number, was_right=number % 2 == 0, served=(number % 2 == 0) == (number // 2 < 20 * share), sample=sample)
        for number in range(40)
        for sample in range(samples)
    ]


def test_the_report_compares_both_critics_with_examples_alone() -> None:
    found = ExamplesAlone.of(night(0.5, samples=4), night(1.0, samples=4), night(0.75), TrainConfig())
    assert found is not None
    [from_live] = [axis for axis in found.from_live if axis.name == "discriminability"]
    [to_candidate] = [axis for axis in found.to_candidate if axis.name == "discriminability"]
    assert from_live.difference == pytest.approx(0.25)
    assert to_candidate.difference == pytest.approx(0.25)
    assert from_live.low < 0.25 < from_live.high
    sentence = found.sentence(4)
    assert (
        "4 labelled examples in the prompt would change the live critic's discriminability by +25.0 points" in sentence
    )
    assert "does not decide" in sentence
    assert found.to_json()["from_live"]["discriminability"]["live"] == pytest.approx(0.5)


def test_without_both_classes_there_is_nothing_to_compare() -> None:
    one_class = [item for item in night(0.5) if item.was_right]
    assert ExamplesAlone.of(one_class, one_class, one_class, TrainConfig()) is None
