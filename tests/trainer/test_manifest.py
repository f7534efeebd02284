"""Manifests, the reselection of their answers, and the validation split."""

from dataclasses import replace
from uuid import UUID

import pytest

from gadfly.errors import Conflict
from gadfly.store.labels import LabelSource
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.learn import schedule
from gadfly.trainer.manifest import describe, same_answers, split_for_validation, with_new_label
from gadfly.training import Stage, TrainConfig


def answer(number: int, *, is_right: bool = True) -> LabelledAnswer:
    return LabelledAnswer(
        interaction_id=UUID(int=number),
        question_hash=(number * 7919 % 2**16).to_bytes(2) * 16,
        question=f"{number}?",
        response=str(number),
        is_right=is_right,
        source=LabelSource.PERSON,
        reference=None,
    )


ANSWERS = [answer(number, is_right=number % 2 == 0) for number in range(100)]


def test_a_manifest_holds_no_text() -> None:
    entry = describe(replace(ANSWERS[0], question="a secret", response="another"))
    assert "secret" not in str(entry)
    assert entry["id"] == str(UUID(int=0))


def test_answers_are_reselected_in_the_order_of_the_manifest() -> None:
    recorded = [describe(ANSWERS[number]) for number in (5, 3, 9)]
    assert same_answers(ANSWERS, recorded) == [ANSWERS[5], ANSWERS[3], ANSWERS[9]]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (ANSWERS[1:], "1 are gone and 0 changed"),
        ([replace(ANSWERS[0], is_right=False), *ANSWERS[1:]], "0 are gone and 1 changed"),
        ([replace(ANSWERS[0], response="edited"), *ANSWERS[1:]], "0 are gone and 1 changed"),
    ],
)
def test_missing_and_changed_answers_are_counted(found: list[LabelledAnswer], message: str) -> None:
    with pytest.raises(Conflict, match=message):
        same_answers(found, [describe(item) for item in ANSWERS[:4]])


def test_a_label_is_new_if_the_earlier_run_had_another_or_none() -> None:
    recorded = [describe(answer) for answer in ANSWERS[:4]]
    now = [
        ANSWERS[0],
        replace(ANSWERS[1], is_right=True),  # the label changed
        replace(ANSWERS[2], reference="7"),  # so did what it is graded against
        replace(ANSWERS[3], source=LabelSource.REFERENCE),  # the same label from another source
        ANSWERS[9],
    ]
    assert with_new_label(now, recorded) == [ANSWERS[number].key for number in (1, 2, 9)]


def test_validation_takes_equally_many_of_both_classes_and_whole_questions() -> None:
    learn, validate = split_for_validation(ANSWERS, TrainConfig(validation_share=0.3, validation_items=10))
    assert sum(item.is_right for item in validate) == sum(not item.is_right for item in validate) == 5
    assert not {item.question_hash for item in learn} & {item.question_hash for item in validate}


def test_without_validation_all_answers_are_learned_from() -> None:
    assert split_for_validation(ANSWERS, TrainConfig(validate_every=0)) == (ANSWERS, [])


def test_a_schedule_runs_both_stages_in_each_cycle() -> None:
    config = TrainConfig(steps_stage_1=2, steps_stage_2=1, cycles=2)
    planned = schedule(config, has_references=True)
    one, two = Stage.STAGE_1, Stage.STAGE_2
    assert [(item.step, item.cycle, item.stage, item.is_first) for item in planned] == [
        (0, 0, one, True),
        (1, 0, one, False),
        (2, 0, two, True),
        (3, 1, one, True),
        (4, 1, one, False),
        (5, 1, two, True),
    ]
    assert {item.stage for item in schedule(config, has_references=False)} == {one}
