"""Which labelled answers become examples, and how the gate's report compares a candidate with them."""

from uuid import UUID

import pytest

from gadfly.grading import Grade
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.examples import ChosenExample, in_order, of_several_keys
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
