"""Which answers are drawn for a step, and how files hold them."""

from collections import Counter
from dataclasses import replace
from uuid import UUID

import pytest
from pydantic import TypeAdapter

from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import StoredAnswer, draw, seed_of
from gadfly.votes import LabelSource


def items(right: int, wrong: int) -> list[LabelledAnswer]:
    return [
        LabelledAnswer(
            interaction_id=UUID(int=number),
            question_hash=number.to_bytes(32),
            question=f"{number}?",
            response=str(number),
            is_right=number < right,
            source=LabelSource.PERSON,
            reference=None,
        )
        for number in range(right + wrong)
    ]


def deal(
    found: list[LabelledAnswer], steps: int, count: int, *, seed: str = "0", balance: bool = True
) -> list[list[LabelledAnswer]]:
    return [draw(found, seed=seed, step=step, count=count, balance=balance) for step in range(steps)]


def test_the_items_of_a_step_do_not_depend_on_earlier_steps() -> None:
    found = items(5, 9)
    assert draw(found, seed="0", step=7, count=6, balance=True) == deal(found, 8, 6)[7]
    assert deal(found, 8, 6) != deal(found, 8, 6, seed="1")


@pytest.mark.parametrize("count", [4, 5])
def test_right_and_wrong_answers_come_equally_often(count: int) -> None:
    drawn = [item for step in deal(items(3, 12), 8, count) for item in step]
    assert Counter(item.is_right for item in drawn) == {True: 4 * count, False: 4 * count}


def test_no_item_repeats_before_all_were_drawn() -> None:
    drawn = [item.response for step in deal(items(6, 6), 4, 6) for item in step]
    assert len(set(drawn[:12])) == 12
    assert len(set(drawn[12:])) == 12
    assert drawn[:12] != drawn[12:]


def test_with_one_class_all_items_are_drawn_from_it() -> None:
    drawn = [item.response for step in deal(items(4, 0), 2, 2) for item in step]
    assert sorted(drawn) == ["0", "1", "2", "3"]


def test_without_balance_classes_keep_their_shares() -> None:
    drawn = [item for step in deal(items(2, 8), 2, 5, balance=False) for item in step]
    assert Counter(item.is_right for item in drawn) == {True: 2, False: 8}


def test_an_item_is_drawn_in_proportion_to_the_certainty_of_its_label() -> None:
    found = [replace(item, certainty=0.9 if number < 5 else 0.45) for number, item in enumerate(items(10, 0))]
    drawn = [item for step in deal(found, 60, 10) for item in step]
    counts = Counter(item.certainty for item in drawn)
    assert counts[0.9] / counts[0.45] == pytest.approx(2, rel=0.05)
    each = Counter(item.response for item in drawn[:10])
    assert all(each[str(number)] in (1, 2) for number in range(5)), "shares of 1.33 cards"
    assert deal(found, 8, 3) == deal(found, 8, 3)


def test_equally_certain_items_are_dealt_once_each_as_before() -> None:
    certain, less = items(6, 0), [replace(item, certainty=0.7) for item in items(6, 0)]
    assert [[item.response for item in step] for step in deal(certain, 4, 4)] == [
        [item.response for item in step] for step in deal(less, 4, 4)
    ]


def test_items_without_any_certainty_are_dealt() -> None:
    drawn = [item for step in deal([replace(item, certainty=0.0) for item in items(3, 0)], 2, 3) for item in step]
    assert len(drawn) == 6


STORED = TypeAdapter(StoredAnswer)


def test_an_answer_read_from_a_file_is_the_answer_written() -> None:
    [logged] = items(1, 0)
    for answer in (logged, logged.sampled(2, "other", is_right=False)):
        assert STORED.validate_json(STORED.dump_json(answer)) == answer


@pytest.mark.parametrize(("key", "origin", "sample"), [("", "logged", None), ("/2", "pool", 2)])
def test_answers_in_files_of_the_first_release_are_read(key: str, origin: str, sample: int | None) -> None:
    id = UUID(int=5)
    old = {
        "key": f"{id}{key}",
        "interaction_id": str(id),
        "question_hash": "ff" * 32,
        "question": "1 + 1?",
        "response": "2",
        "is_right": True,
        "reference": None,
        "origin": origin,
    }
    answer = STORED.validate_python(old)
    assert (answer.sample, answer.key, answer.question_hash) == (sample, old["key"], b"\xff" * 32)


def test_a_sampled_answer_has_an_id_of_its_own() -> None:
    [logged] = items(1, 0)
    assert logged.id == logged.interaction_id
    ids = {logged.id, *(logged.sampled(number, "other", is_right=False).id for number in (0, 1))}
    assert len(ids) == 3


def test_a_seed_depends_on_every_part() -> None:
    assert len({seed_of(0, "pool", "a"), seed_of(0, "pool", "b"), seed_of(1, "pool", "a")}) == 3
    assert 0 <= seed_of("x") < 2**31
