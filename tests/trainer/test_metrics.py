"""Every rate against a value worked out by hand."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadfly.grading import Grade
from gadfly.rates import Estimate, Proportion
from gadfly.trainer.measure.metrics import (
    Judged,
    Samples,
    calibration,
    is_majority_right,
    measure,
    measure_samples,
    paired_difference,
    pass_at_k,
)
from gadfly.verdict import Verdict

C, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSED
RIGHT, WRONG, NO_ANSWER = Grade.RIGHT, Grade.WRONG, Grade.NO_ANSWER

ROWS = [  # was right, stated, served, refined
    (True, C, C, RIGHT),
    (True, C, C, RIGHT),
    (True, W, W, WRONG),  # broken
    (True, U, C, RIGHT),  # read from the engine, and right
    (False, W, W, RIGHT),  # fixed
    (False, W, W, RIGHT),  # fixed
    (False, C, C, WRONG),
    (False, U, C, NO_ANSWER),  # read from the engine, and wrong
    (False, W, W, None),  # no reference
    (False, C, C, RIGHT),  # fixed despite its verdict
]


def judged(
    number: int, was_right: bool, stated: Verdict | None, served: Verdict | None, refined: Grade | None
) -> Judged:
    return Judged(
        answer_id=UUID(int=number),
        question_hash=bytes([number // 2]),
        was_right=was_right,
        stated=stated,
        served=served,
        verdict_lines=2 if stated is U else 1,
        refined=refined,
        critique_tokens=10 * number,
        leaks_gold=None if refined is None else number >= 5,
    )


ITEMS = [judged(number, *row) for number, row in enumerate(ROWS)]


def counts(rate: Proportion | None) -> tuple[int, int] | None:
    return None if rate is None else (rate.hits, rate.of)


def test_ten_items_by_hand() -> None:
    found = measure(ITEMS)
    assert (found.items, found.questions, found.too_long) == (10, 5, 0)
    assert counts(found.accuracy) == (4, 10)
    assert counts(found.accuracy_before) == (4, 9)
    assert counts(found.accuracy_refined) == (6, 9)
    assert found.delta is not None
    assert found.delta.value == pytest.approx(2 / 9)
    assert counts(found.fixed_joint) == (3, 9)
    assert counts(found.broken_joint) == (1, 9)
    assert counts(found.fixed_conditional) == (3, 5)
    assert counts(found.broken_conditional) == (1, 4)
    assert counts(found.discrimination) == (5, 10)
    assert counts(found.discrimination_parseable) == (5, 8)
    assert counts(found.discrimination_right) == (2, 4)
    assert counts(found.discrimination_wrong) == (3, 6)
    assert found.discrimination_balanced is not None
    assert found.discrimination_balanced.value == 0.5
    assert counts(found.served_discrimination) == (6, 10)
    assert found.served_balanced is not None
    assert found.served_balanced.value == pytest.approx((3 / 4 + 3 / 6) / 2)
    assert counts(found.coverage) == (8, 10)
    assert counts(found.double_verdicts) == (2, 10)
    assert counts(found.called_correct) == (4, 8)
    assert counts(found.leakage) == (4, 5)  # wrong ones with a reference are 4, 5, 6, 7, 9; those from 5 on leak
    assert found.calibration is None
    assert found.mean_critique_tokens == 45


def test_an_empty_class_has_no_rate() -> None:
    only_right = measure([item for item in ITEMS if item.was_right])
    assert only_right.fixed_conditional is None
    assert only_right.discrimination_wrong is None
    assert only_right.discrimination_balanced is None
    assert only_right.leakage is None
    assert counts(only_right.broken_conditional) == (1, 4)
    nothing = measure([])
    assert nothing.accuracy is nothing.delta is nothing.coverage is nothing.mean_critique_tokens is None
    unasked = measure([judged(0, True, None, None, RIGHT)])
    assert unasked.discrimination is unasked.coverage is None
    assert counts(unasked.accuracy_refined) == (1, 1)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([C, W, U]), st.sampled_from([None, RIGHT, WRONG, NO_ANSWER]))))
def test_the_gain_is_the_fixed_share_minus_the_broken_share(rows: list[tuple[bool, Verdict, Grade | None]]) -> None:
    found = measure(
        [judged(number % 256, was, stated, stated, then) for number, (was, stated, then) in enumerate(rows)]
    )
    if found.delta is None:
        assert all(then is None for _, _, then in rows)
        return
    assert found.fixed_joint is not None
    assert found.broken_joint is not None
    assert found.accuracy_before is not None
    assert found.accuracy_refined is not None
    assert found.delta.value == pytest.approx(found.fixed_joint.value - found.broken_joint.value)
    assert found.delta.value == pytest.approx(found.accuracy_refined.value - found.accuracy_before.value)


def test_paired_difference() -> None:
    found = paired_difference(3, 1, 9)  # 2/11 +- 1.96 * sqrt(5 - 4/11) / 11
    assert found == Estimate(pytest.approx(2 / 9), 9, pytest.approx(-0.2018, abs=1e-4), pytest.approx(0.5655, abs=1e-4))


def test_calibration_by_hand() -> None:
    found = calibration([0.95, 0.85, 0.85, 0.15], [True, True, False, False])
    assert found is not None
    assert [(round(each.mean_p, 6), counts(each.right)) for each in found.bins] == [
        (0.15, (0, 1)),
        (0.85, (1, 2)),
        (0.95, (1, 1)),
    ]
    assert found.ece == pytest.approx(0.15 / 4 + 0.35 * 2 / 4 + 0.05 / 4)
    assert calibration([1.0], [True]) is not None  # the last bin is closed
    assert calibration([], []) is None


def test_the_probability_is_normalised_over_the_two_words() -> None:
    item = Judged(answer_id=UUID(int=1), question_hash=b"", was_right=True, stated=C, p_correct=0.3, p_incorrect=0.1)
    assert item.p_right == pytest.approx(0.75)
    found = measure([item, Judged(answer_id=UUID(int=2), question_hash=b"", was_right=False, stated=C)])
    assert found.calibration is not None
    assert found.calibration.items == 1
    assert found.calibration.ece == pytest.approx(0.25)


def sample(*groups: int, right: int) -> Samples:
    return Samples(
        answer_id=UUID(int=1),
        question_hash=b"",
        groups=groups,
        rights=tuple(group == right for group in groups),
        tokens=(10,) * len(groups),
    )


@pytest.mark.parametrize(("k", "is_right"), [(1, True), (2, True), (3, False), (4, False)])
def test_the_first_of_equally_common_answers_wins(k: int, is_right: bool) -> None:
    assert is_majority_right(sample(0, 1, 1, 2, right=0), k) is is_right


def test_pass_at_k() -> None:
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)  # 1 - C(3,2) / C(4,2)
    assert pass_at_k(4, 0, 4) == 0
    assert pass_at_k(4, 3, 2) == 1
    found = measure_samples([sample(0, 1, 1, 2, right=2), sample(0, 0, 0, 0, right=0)], 2)
    assert found is not None
    assert counts(found.majority) == (1, 2)
    assert counts(found.any_hit) == (1, 2)  # the right one of the first comes fourth
    assert found.pass_unbiased.value == pytest.approx((0.5 + 1) / 2)
    assert found.mean_tokens == 20
    assert measure_samples([], 2) is None
    with pytest.raises(ValueError, match="at least 5"):
        measure_samples([sample(0, 1, 1, 2, right=2)], 5)
