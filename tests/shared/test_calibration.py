"""From verdict words to the probability that an answer is right, with numbers worked out by hand."""

import math

import pytest

from gadfly.calibration import (
    Bin,
    Calibration,
    CalibrationReport,
    ClassCounts,
    Reliability,
    bins_of,
    expected_error,
    log_odds,
)

ODDS = [  # p_correct, p_incorrect, log-odds, why this row exists
    (0.6, 0.2, math.log(3), "the rest of the vocabulary does not count"),
    (0.0, 0.0, None, "neither word was possible"),
    (None, None, None, "not read"),
    (0.5, 0.0, 10.0, "underflow"),
    (0.0, 0.5, -10.0, "underflow"),
    (1.0, 1e-30, 10.0, "beyond the limit"),
]


@pytest.mark.parametrize(("p_correct", "p_incorrect", "odds", "why"), ODDS)
def test_the_log_odds_of_the_words(
    p_correct: float | None, p_incorrect: float | None, odds: float | None, why: str
) -> None:
    found = log_odds(p_correct, p_incorrect)
    assert found == (None if odds is None else pytest.approx(odds)), why


def calibration(right: int, wrong: int, *, slope: float = 1.0, intercept: float = 0.0) -> Calibration:
    return Calibration(slope=slope, intercept=intercept, traffic=ClassCounts(right=right, wrong=wrong))


def test_the_class_share_is_the_prior() -> None:
    # Equal words say nothing: the answer is right as often as the traffic's answers are.
    assert calibration(95_000, 5_000).p_right(0.3, 0.3) == pytest.approx(0.95, abs=1e-3)
    # Odds of the words 1 to 4 against the answer, prior odds 19 to 1 for it: 19 / 4 to 1.
    assert calibration(95_000, 5_000).p_right(0.1, 0.4) == pytest.approx(4.75 / 5.75, abs=1e-3)
    # Slope and intercept act on the log-odds: 0.5 ln 9 + ln 2 = ln 6.
    balanced = calibration(10_000, 10_000, slope=0.5, intercept=math.log(2))
    assert balanced.p_right(0.9, 0.1) == pytest.approx(6 / 7, abs=1e-3)
    assert balanced.p_right(None, None) is None


def test_few_labels_say_little_about_the_class_share() -> None:
    shares = [calibration(19 * many, many).p_right(0.3, 0.3) for many in (0, 1, 10, 1000)]
    assert shares == sorted(shares)
    assert shares[0] == 0.5, "no label at all"
    assert shares[-1] == pytest.approx(0.95, abs=1e-3)
    # 19 right and 1 wrong: log-odds ln(19.5 / 1.5), variance 1/19.5 + 1/1.5
    mean, variance = math.log(13), 1 / 19.5 + 1 / 1.5
    assert shares[1] == pytest.approx(1 / (1 + math.exp(-mean / math.sqrt(1 + math.pi * variance / 8))))


def test_bins_and_their_error() -> None:
    bins = bins_of([0.95, 0.91, 0.55, 1.0], [True, False, True, True], [1.0, 1.0, 1.0, 1.0])
    assert [(each.low, each.high, each.items) for each in bins] == [(0.5, 0.6, 1), (0.9, 1.0, 3)]
    assert bins[1].mean_p == pytest.approx((0.95 + 0.91 + 1.0) / 3)
    assert bins[1].right == pytest.approx(2 / 3)
    # 1/4 |0.55 - 1| + 3/4 |2.86/3 - 2/3|
    assert expected_error(bins) == pytest.approx(0.25 * 0.45 + 0.75 * 0.86 / 3)
    weighted = bins_of([0.9, 0.9], [True, False], [3.0, 1.0])
    assert (weighted[0].right, weighted[0].items) == (0.75, 2)


def test_a_report_survives_its_way_through_json() -> None:
    part = Reliability(
        ece=0.1,
        low=0.0,
        high=0.2,
        bins=(Bin(low=0.9, high=1.0, items=3, traffic_share=1.0, mean_p=0.95, right=0.85),),
    )
    report = CalibrationReport(items=3, questions=2, folds=10, share_low=0.4, share_high=0.6, before=part, after=part)
    assert CalibrationReport.from_json(report.to_json()) == report
