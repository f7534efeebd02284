"""Which answers are drawn for a step, and how files hold them."""

from collections import Counter
from dataclasses import replace
from uuid import UUID

import pytest
from pydantic import TypeAdapter

from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import Dealer, DealerState, Known, StoredAnswer, seed_of
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
    dealer = Dealer(found, seed=seed, balance=balance)
    return [dealer.deal(count) for _ in range(steps)]


def test_the_seed_decides() -> None:
    found = items(5, 9)
    assert deal(found, 8, 6) == deal(found, 8, 6)
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


FRESH = [  # new right, new wrong, draws, share, new draws by class, why
    (25, 25, 320, 0.5, (80, 80), "half of each class"),
    (25, 25, 320, 0.25, (40, 40), "a quarter of each class"),
    (25, 0, 320, 0.5, (80, 0), "a class without new answers draws old ones, and the other does not draw more"),
    (2, 2, 320, 0.5, (16, 16), "no new answer is drawn more than eight times"),
    (0, 0, 320, 0.5, (0, 0), "nothing is new"),
    (100, 100, 320, 0.5, (160, 160), "everything is new"),
]


@pytest.mark.parametrize(("right", "wrong", "total", "share", "expected", "why"), FRESH)
def test_new_answers_get_their_share_of_the_draws(
    right: int, wrong: int, total: int, share: float, expected: tuple[int, int], why: str
) -> None:
    found = items(100, 100)
    fresh = {item.key for item in [*found[:right], *found[100 : 100 + wrong]]}
    known = Known(fresh=fresh)
    dealer = Dealer(
        found, seed="0", balance=True, total=total, fresh_share=share, fresh_repeats=8, known=known
    )  # fmt: skip
    drawn = [item for step in range(total // 16) for item in dealer.deal(16)]
    counts = Counter((item.is_right, known.is_fresh(item)) for item in drawn)
    assert (counts[True, True], counts[False, True]) == expected, why
    assert counts[True, True] + counts[True, False] == total / 2, "the classes stay balanced"


def test_the_actors_own_answers_are_as_new_as_their_reference() -> None:
    [logged] = items(1, 0)
    assert Known(fresh={logged.key}).is_fresh(logged.sampled(0, "other", is_right=False))


def test_uncertain_answers_come_first() -> None:
    found = items(200, 0)
    confidences = {item.id: 0.5 if number < 50 else 0.99 for number, item in enumerate(found)}
    dealer = Dealer(found, seed="0", balance=True, known=Known(confidences=confidences))
    first = dealer.deal(50)
    assert sum(confidences[item.id] == 0.5 for item in first) > 24, "of 12 without the weights"
    assert len({item.key for item in [*first, *dealer.deal(150)]}) == 200, "each is dealt nevertheless"


def test_on_request_all_answers_are_drawn_alike() -> None:
    found = items(200, 0)
    known = Known(confidences={item.id: 0.5 if number < 50 else 0.99 for number, item in enumerate(found)})
    alike = Dealer(found, seed="0", balance=True, known=known, uncertain_first=False)
    assert alike.deal(200) == Dealer(found, seed="0", balance=True).deal(200), "as without a confidence"


def test_answers_whose_critiques_disagree_come_first_the_next_time() -> None:
    found = items(200, 0)
    dealer = Dealer(found, seed="0", balance=True)
    for item in dealer.deal(200):
        dealer.observe(item, [1.0, 0.0, 1.0, 0.0] if int(item.response) < 50 else [1.0] * 4)
    assert sum(int(item.response) < 50 for item in dealer.deal(50)) > 24


def test_a_resumed_dealer_deals_as_an_unbroken_one() -> None:
    def dealer() -> Dealer:
        known = Known(fresh={item.key for item in found[:3]})
        return Dealer(found, seed="0", balance=True, total=60, fresh_share=0.5, fresh_repeats=9, known=known)

    def step(of: Dealer) -> list[str]:
        drawn = of.deal(6)
        for item in drawn:
            of.observe(item, [1.0, float(item.response) % 2])
        return [item.key for item in drawn]

    found = items(5, 9)
    unbroken = dealer()
    expected = [step(unbroken) for _ in range(10)]
    killed = dealer()
    assert [step(killed) for _ in range(4)] == expected[:4]
    states = TypeAdapter(DealerState)
    state = states.validate_json(states.dump_json(killed.state))
    step(killed)  # lost with the process
    resumed = dealer().resumed(state)
    assert [step(resumed) for _ in range(6)] == expected[4:]


def test_an_item_is_drawn_in_proportion_to_the_certainty_of_its_label() -> None:
    found = [replace(item, certainty=0.9 if number < 5 else 0.45) for number, item in enumerate(items(10, 0))]
    drawn = Dealer(found, seed="0", balance=True).deal(6000)
    counts = Counter(item.certainty for item in drawn)
    assert counts[0.9] / counts[0.45] == pytest.approx(2, rel=0.05)
    each = Counter(item.response for item in drawn[:10])
    assert all(each[str(number)] in (1, 2) for number in range(5)), "shares of 1.33 cards"
    assert Dealer(found, seed="0", balance=True).deal(24) == Dealer(found, seed="0", balance=True).deal(24)


def test_equally_certain_items_are_dealt_once_each() -> None:
    certain, less = items(6, 0), [replace(item, certainty=0.7) for item in items(6, 0)]
    responses = [
        [item.response for item in Dealer(found, seed="0", balance=True).deal(12)] for found in (certain, less)
    ]
    assert responses[0] == responses[1]
    assert len(set(responses[0][:6])) == 6


def test_items_without_any_certainty_are_dealt() -> None:
    found = [replace(item, certainty=0.0) for item in items(3, 0)]
    assert len(Dealer(found, seed="0", balance=True).deal(6)) == 6


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


def test_without_confidences_a_first_deck_has_the_order_of_chance() -> None:
    """Uncertainty that is not known yet changes nothing: only a second deck, or a second stage, follows it."""
    found = items(100, 100)
    first, alike = (Dealer(found, seed="0", balance=True, uncertain_first=kind) for kind in (True, False))
    for _ in range(200 // 8):
        dealt = first.deal(8)
        assert dealt == alike.deal(8)
        for item in dealt:
            first.observe(item, [1.0, float(item.response) % 2, 1.0, float(item.response) % 2])
    assert first.deal(8) != alike.deal(8)
