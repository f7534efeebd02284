"""Manifests, the reselection of their answers, and the validation split."""

from dataclasses import replace
from uuid import UUID

import pytest

from gadfly.errors import Conflict
from gadfly.store.training_data import LabelledAnswer, OpenQuestion
from gadfly.trainer.learn import schedule
from gadfly.trainer.manifest import (
    describe,
    describe_question,
    same_answers,
    same_questions,
    split_for_validation,
    with_new_label,
)
from gadfly.training import Stage, TrainConfig
from gadfly.votes import LabelSource


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


def test_a_reselected_answer_is_as_certain_as_it_was() -> None:
    recorded = describe(replace(ANSWERS[0], certainty=0.75))
    assert same_answers(ANSWERS, [recorded]) == [replace(ANSWERS[0], certainty=0.75)]
    del recorded["certainty"]  # as in manifests of release 0.1.0
    assert same_answers([replace(ANSWERS[0], certainty=0.5)], [recorded]) == [ANSWERS[0]]


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


QUESTIONS = [
    OpenQuestion(interaction_id=UUID(int=n), question_hash=n.to_bytes(32), question=f"secret {n}?", reference="1")
    for n in range(3)
]


def test_questions_without_a_response_are_reselected_and_old_manifests_name_none() -> None:
    recorded = [describe_question(QUESTIONS[number]) for number in (2, 0)]
    assert "secret" not in str(recorded)
    assert same_questions(QUESTIONS, recorded) == [QUESTIONS[2], QUESTIONS[0]]
    assert same_questions(QUESTIONS, []) == []
    with pytest.raises(Conflict, match="of 2 questions without a response 1 are gone or changed"):
        same_questions([replace(QUESTIONS[0], reference="2"), *QUESTIONS[1:]], recorded)


def test_a_label_is_new_if_the_earlier_run_had_another_or_none() -> None:
    recorded = {"answers": [describe(answer) for answer in ANSWERS[:4]]}
    now = [
        ANSWERS[0],
        replace(ANSWERS[1], is_right=True),  # the label changed
        replace(ANSWERS[2], reference="7"),  # so did its reference
        replace(ANSWERS[3], source=LabelSource.REFERENCE),  # the same label from another source
        ANSWERS[9],
    ]
    new = [ANSWERS[number].key for number in (1, 2, 9)]
    assert with_new_label(now, [], recorded) == new
    asked = recorded | {"questions": [describe_question(QUESTIONS[0])]}
    assert with_new_label(now, QUESTIONS[:2], asked) == [*new, str(QUESTIONS[1].interaction_id)]


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
