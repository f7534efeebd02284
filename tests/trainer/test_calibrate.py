"""The fit of a calibration against known answers, and how honest its report is."""

import math
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from gadfly.calibration import ClassCounts
from gadfly.trainer.measure.calibrate import LEAST_QUESTIONS, Judgements, calibrate, fit
from gadfly.trainer.measure.metrics import Judged

EVEN = ClassCounts(right=5_000, wrong=5_000)


def judgements(
    questions: int, *, seed: int, sharpness: float = 1.0, bias: float = 0.0, separation: float = 2.0, samples: int = 1
) -> list[Judged]:
    """Every second answer is right. Evidence t is normal with mean +-d^2/2 and variance d^2, where the log-odds of a
    right answer are t; the critic says sharpness * t + bias.
    """
    random = np.random.default_rng(seed)
    items = []
    for number in range(questions):
        was_right = number % 2 == 0
        mean = separation**2 / 2 * (1 if was_right else -1)
        evidence = random.normal(mean, separation)
        for sample in range(samples):
            p = 1 / (1 + math.exp(-(sharpness * evidence + bias)))
            items.append(
                Judged(
                    answer_id=UUID(int=number),
                    question_hash=number.to_bytes(4, "big"),
                    was_right=was_right,
                    p_correct=p,
                    p_incorrect=1 - p,
                    sample=sample,
                )
            )
    return items


def test_the_fit_finds_the_line() -> None:
    found = fit(Judgements.of(judgements(20_000, seed=1, sharpness=3.0, bias=1.5, separation=1.0)), EVEN)
    assert found.slope == pytest.approx(1 / 3, rel=0.1)
    assert found.intercept == pytest.approx(-0.5, abs=0.08)


def test_samples_of_an_answer_are_no_further_evidence() -> None:
    one = calibrate(judgements(60, seed=2), EVEN, seed=0)
    four = calibrate(judgements(60, seed=2, samples=4), EVEN, seed=0)
    assert one is not None
    assert four is not None
    assert four[0].slope == pytest.approx(one[0].slope)
    assert (four[1].items, four[1].questions) == (240, 60)
    assert four[1].before.high == pytest.approx(one[1].before.high)


def test_a_critic_without_errors_gets_a_finite_slope() -> None:
    found = calibrate(judgements(60, seed=3, separation=9.0), EVEN, seed=0)
    assert found is not None
    assert 0 < found[0].slope < 5
    # Platt's targets: 31/32 for 30 questions without an error
    assert found[0].p_right(1.0, 0.0) == pytest.approx(31 / 32, abs=0.02)


def test_a_critic_that_points_the_wrong_way_gets_the_class_share() -> None:
    found = calibrate(judgements(400, seed=4, sharpness=-1.0), ClassCounts(right=900_000, wrong=100_000), seed=0)
    assert found is not None
    assert found[0].slope == 0.0
    assert found[0].p_right(0.9, 0.1) == pytest.approx(0.9, abs=1e-3)


def test_too_few_questions_of_a_class_give_no_calibration() -> None:
    assert calibrate(judgements(2 * LEAST_QUESTIONS, seed=5), EVEN, seed=0) is not None
    assert calibrate(judgements(2 * LEAST_QUESTIONS - 1, seed=5), EVEN, seed=0) is None
    assert calibrate([], EVEN, seed=0) is None
    unread = [replace(item, p_correct=None, p_incorrect=None) for item in judgements(60, seed=5)]
    assert calibrate(unread, EVEN, seed=0) is None


def test_the_report_is_about_the_traffic_and_not_the_balanced_items() -> None:
    # A critic whose probabilities are right where half of the answers are. Where 95 % are, its "wrong" means little.
    items = judgements(2_000, seed=6)
    balanced = calibrate(items, EVEN, seed=0)
    shifted = calibrate(items, ClassCounts(right=9_500, wrong=500), seed=0)
    assert balanced is not None
    assert shifted is not None
    assert balanced[1].before.ece < 0.03
    assert shifted[1].before.ece > 0.07
    assert shifted[1].after.ece < 0.03
    assert shifted[1].share_low < 0.95 < shifted[1].share_high
    assert sum(each.traffic_share for each in shifted[1].after.bins) == pytest.approx(1)
    assert sum(each.items for each in shifted[1].after.bins) == 2_000


def test_the_error_of_judgements_that_the_fit_saw_would_flatter() -> None:
    """A critic of two scores: answers of the fit look better than fresh ones; the cross-fitted error does not."""
    seen, reported, fresh = [], [], []
    big = judgements(2_000, seed=99)
    for seed in range(40):
        random = np.random.default_rng(seed)

        def with_scores(items: list[Judged], random: np.random.Generator = random) -> list[Judged]:
            scored = []
            for item in items:
                hit = random.random() < (0.85 if item.was_right else 0.75)
                p = 0.999 if hit is item.was_right else 0.001
                scored.append(replace(item, p_correct=p, p_incorrect=1 - p))
            return scored

        items = with_scores(judgements(50, seed=seed))
        found = calibrate(items, EVEN, seed=0)
        assert found is not None
        calibration, report = found
        reported.append(report.after.ece)
        for errors, judged in ((seen, items), (fresh, with_scores(big))):
            gaps: dict[bool, list[float]] = {True: [], False: []}
            for item in judged:
                p_right = calibration.p_right(item.p_correct, item.p_incorrect)
                assert p_right is not None
                gaps[item.p_correct > 0.5].append(p_right - item.was_right)  # type: ignore[operator]
            errors.append(math.fsum(abs(math.fsum(each)) for each in gaps.values()) / len(judged))
    assert np.mean(seen) < 0.6 * np.mean(fresh), "the flattering error"
    assert np.mean(reported) > 0.8 * np.mean(fresh), "the reported one"


def test_the_interval_holds_the_true_error() -> None:
    # With sharpness 2 the log-odds of a right answer are half of the critic's.
    evidence = np.random.default_rng(7).normal(1.2**2 / 2, 1.2, 200_000)
    evidence = np.concatenate([evidence, -evidence])  # of right answers, of wrong ones
    said, true = 1 / (1 + np.exp(-2 * evidence)), 1 / (1 + np.exp(-evidence))
    gaps = np.bincount(np.minimum((said * 10).astype(int), 9), said - true)
    true_error = np.abs(gaps).sum() / len(evidence)
    runs, misses = 60, 0
    for seed in range(runs):
        found = calibrate(judgements(120, seed=1_000 + seed, sharpness=2.0, separation=1.2), EVEN, seed=seed)
        assert found is not None
        misses += not found[1].before.low <= true_error <= found[1].before.high
    assert misses <= 7, "at most 5 % of the intervals miss; 8 of 60 would have a chance of 1 in 70"
