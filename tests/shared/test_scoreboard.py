"""The scoreboard of a critic against numbers worked out by hand."""

import math
import random
from typing import Any

import pytest

from gadfly.scoreboard import LEAST_FOR_THRESHOLD, ScoredAnswer, best_cut, calibration_error, scoreboard
from gadfly.verdict import Verdict

C, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSED


def answer(question: int, was_right: bool, verdict: Verdict, p: float | None = 0.9, **fields: Any) -> ScoredAnswer:
    return ScoredAnswer(
        question_hash=question.to_bytes(4, "big"),
        was_right=was_right,
        verdict=verdict,
        p_correct=p,
        p_incorrect=None if p is None else 1 - p,
        **{"calibrated_p_right": None} | fields,
    )


def test_nothing_is_known_without_labels() -> None:
    found = scoreboard([])
    assert found.answers == 0
    assert (found.right, found.wrong, found.balanced, found.auroc, found.ece, found.threshold) == (None,) * 6


def test_one_class_has_no_auroc() -> None:
    found = scoreboard([answer(1, True, C)])
    assert found.answers == 1
    assert found.right is not None
    assert (found.right.hits, found.right.of) == (1, 1)
    assert (found.wrong, found.balanced, found.auroc) == (None, None, None)


def test_each_question_counts_once_in_a_class_by_its_newest_answer() -> None:
    found = scoreboard(
        [
            answer(1, True, C),  # the newest right answer to question 1
            answer(1, True, W),
            answer(1, False, W, 0.2),  # its wrong answer counts too
            answer(2, False, C),
            answer(3, False, U),  # no verdict is a wrong one
        ]
    )
    assert found.right is not None
    assert found.wrong is not None
    assert ((found.right.hits, found.right.of), (found.wrong.hits, found.wrong.of)) == ((1, 1), (1, 3))
    assert found.balanced is not None
    assert found.balanced.value == pytest.approx((1 + 1 / 3) / 2)
    assert found.auroc is not None
    assert found.auroc.value == pytest.approx((1 + 0.5 + 0.5) / 3), "above one wrong answer, tied with two"


def test_an_answer_without_probabilities_counts_for_the_verdict_alone() -> None:
    found = scoreboard([answer(1, True, C, None), answer(2, False, W, None)])
    assert found.answers == 2
    assert (found.auroc, found.ece) == (None, None)


CUTS = [  # log-odds of right answers, of wrong ones, best threshold, why this row exists
    ([2, 3], [0, 1], 1.5, "between the classes"),
    ([1, 3], [0, 2], 2.5, "0.5 gives 3/4 as well: of two the higher one"),
    ([1], [1], 1.0, "no threshold separates equal values"),
    ([0, 1], [2, 3], 3.0, "a critic that points the wrong way: one verdict for all is best"),
]


@pytest.mark.parametrize(("right", "wrong", "cut", "why"), CUTS)
def test_the_best_threshold(right: list[float], wrong: list[float], cut: float, why: str) -> None:
    judged = [*((odds, True) for odds in right), *((odds, False) for odds in wrong)]
    assert best_cut(judged) == pytest.approx(cut, abs=1e-6), why


def test_a_threshold_is_fitted_from_twenty_answers_of_each_class_on() -> None:
    """A critic that calls all correct, with 0.95 for right answers and 0.8 for wrong ones, needs another threshold."""
    right = [answer(number, True, C, 0.95) for number in range(LEAST_FOR_THRESHOLD)]
    wrong = [answer(1000 + number, False, C, 0.8) for number in range(LEAST_FOR_THRESHOLD)]
    assert scoreboard(right + wrong[1:]).threshold is None
    found = scoreboard(right + wrong)
    assert found.balanced is not None
    assert found.balanced.value == 0.5
    assert found.threshold is not None
    assert 0.8 < found.threshold.p_correct < 0.95
    middle = (math.log(0.95 / 0.05) + math.log(0.8 / 0.2)) / 2
    assert found.threshold.p_correct == pytest.approx(1 / (1 + math.exp(-middle)))
    assert found.threshold.balanced.value == 1.0
    assert found.threshold.balanced.low < 0.9


def test_a_threshold_fitted_to_chance_does_not_look_good() -> None:
    """Probabilities that say nothing: a threshold looks good only on the answers that it was fitted to."""
    draw = random.Random(4)
    looks = []
    for _ in range(20):
        answers = [answer(number, number % 2 == 0, C, draw.uniform(0.1, 0.9)) for number in range(50)]
        found = scoreboard(answers).threshold
        assert found is not None
        on_its_own = [((item.p_correct or 0) >= found.p_correct) is item.was_right for item in answers]
        looks.append((found.balanced.value, sum(on_its_own) / 50))
    cross_fitted, naive = (sum(column) / len(looks) for column in zip(*looks, strict=True))
    assert abs(cross_fitted - 0.5) < 0.05
    assert naive > cross_fitted + 0.05


def test_the_calibration_error_by_hand() -> None:
    judged = [(0.95, True)] * 15 + [(0.95, False)] * 5 + [(0.15, False)] * 20
    found = calibration_error(judged, seed=1)
    assert found is not None
    assert found.value == pytest.approx((20 * (0.95 - 0.75) + 20 * 0.15) / 40)
    assert 0 < found.low < found.value < found.high < 1
    assert found == calibration_error(judged, seed=1), "the same answers give the same interval"
    assert calibration_error(judged[:19], seed=1) is None


def test_the_calibrated_probability_has_its_own_error() -> None:
    answers = [answer(number, True, C, 0.55, calibrated_p_right=0.95) for number in range(20)]
    found = scoreboard(answers)
    assert found.ece is not None
    assert found.calibrated_ece is not None
    assert (found.ece.value, found.calibrated_ece.value) == (pytest.approx(0.45), pytest.approx(0.05))
