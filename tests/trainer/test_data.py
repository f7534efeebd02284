"""Who is drawn when: the same for a resumed run, both classes alike, nobody twice before everybody once."""

from collections import Counter
from uuid import UUID

import pytest

from gadfly.trainer.data import Item, Origin, draw, seed_of


def items(right: int, wrong: int) -> list[Item]:
    return [
        Item(
            key=str(number),
            interaction_id=UUID(int=number),
            question_hash=number.to_bytes(32),
            question=f"{number}?",
            response=str(number),
            is_right=number < right,
            reference=None,
            origin=Origin.LOGGED,
        )
        for number in range(right + wrong)
    ]


def deal(found: list[Item], steps: int, count: int, *, seed: str = "0", balance: bool = True) -> list[list[Item]]:
    return [draw(found, seed=seed, step=step, count=count, balance=balance) for step in range(steps)]


def test_a_step_depends_on_nothing_but_its_number() -> None:
    found = items(5, 9)
    assert draw(found, seed="0", step=7, count=6, balance=True) == deal(found, 8, 6)[7]
    assert deal(found, 8, 6) != deal(found, 8, 6, seed="1")


@pytest.mark.parametrize("count", [4, 5])
def test_right_and_wrong_answers_come_equally_often(count: int) -> None:
    drawn = [item for step in deal(items(3, 12), 8, count) for item in step]
    assert Counter(item.is_right for item in drawn) == {True: 4 * count, False: 4 * count}


def test_nobody_comes_again_before_everybody_came_once() -> None:
    drawn = [item.key for step in deal(items(6, 6), 4, 6) for item in step]
    assert len(set(drawn[:12])) == 12
    assert len(set(drawn[12:])) == 12
    assert drawn[:12] != drawn[12:]


def test_one_class_alone_is_drawn_as_it_is() -> None:
    drawn = [item.key for step in deal(items(4, 0), 2, 2) for item in step]
    assert sorted(drawn) == ["0", "1", "2", "3"]


def test_without_balance_classes_come_as_often_as_they_are() -> None:
    drawn = [item for step in deal(items(2, 8), 2, 5, balance=False) for item in step]
    assert Counter(item.is_right for item in drawn) == {True: 2, False: 8}


def test_items_survive_the_disk() -> None:
    for item in (items(1, 0)[0], items(1, 0)[0].pooled(2, "other", is_right=False)):
        assert Item.from_json(item.to_json()) == item


def test_seeds_differ_in_any_part() -> None:
    assert len({seed_of(0, "pool", "a"), seed_of(0, "pool", "b"), seed_of(1, "pool", "a")}) == 3
    assert 0 <= seed_of("x") < 2**31
