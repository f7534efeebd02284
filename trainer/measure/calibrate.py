"""Fits a critic's calibration on held-out judgements, and measures it on judgements that the fit did not see.

Letters of axes: N judgements, Q questions, B bins of probability, R resamplings, Y classes (wrong, right).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gadfly.calibration import (
    BINS,
    Calibration,
    CalibrationReport,
    ClassCounts,
    Reliability,
    bin_of,
    bins_of,
    expected_error,
    log_odds,
)
from gadfly.rates import proportion
from gadfly.trainer.measure.metrics import Judged

LEAST_QUESTIONS = 20  # of each class: with fewer, the fit is as likely to harm as to help
FOLDS = 10

_RESAMPLINGS = 1000
_CONFIDENCE = 0.95
_STEPS = 100  # of Newton's method, which takes about six

Floats = NDArray[np.float64]


def calibrate(
    items: Sequence[Judged], traffic: ClassCounts, *, seed: int
) -> tuple[Calibration, CalibrationReport] | None:
    """The calibration of the critic that judged these held-out items, and how well it does; None with too few items.

    The calibration is fitted on all items. The report's `after` is cross-fitted over folds of whole questions, so no
    probability in it comes from a fit that saw its question.
    """
    data = Judgements.of(items)
    if min(data.questions_with(is_right) for is_right in (True, False)) < LEAST_QUESTIONS:
        return None
    p_N = np.empty(len(data.odds_N))
    for fold in range(FOLDS):
        is_tested_N = data.question_N % FOLDS == fold
        p_N[is_tested_N] = data.only(is_tested_N).calibrated(fit(data.only(~is_tested_N), traffic))
    share = proportion(traffic.right, traffic.right + traffic.wrong, confidence=_CONFIDENCE)
    report = CalibrationReport(
        items=len(data.odds_N),
        questions=int(data.question_N.max()) + 1,
        folds=FOLDS,
        share_low=0.0 if share is None else share.low,
        share_high=1.0 if share is None else share.high,
        before=_reliability(data, _logistic(data.odds_N), traffic, seed=seed),
        after=_reliability(data, p_N, traffic, seed=seed),
    )
    return fit(data, traffic), report


@dataclass(frozen=True, slots=True)
class Judgements:
    """Judgements whose verdict words were read; questions are numbered in the order of their hashes."""

    odds_N: Floats  # log-odds of the verdict words
    was_right_N: NDArray[np.bool_]
    question_N: NDArray[np.int64]

    @classmethod
    def of(cls, items: Sequence[Judged]) -> "Judgements":
        read = [(item, odds) for item in items if (odds := log_odds(item.p_correct, item.p_incorrect)) is not None]
        numbers = {hash_: number for number, hash_ in enumerate(sorted({item.question_hash for item, _ in read}))}
        return cls(
            odds_N=np.array([odds for _, odds in read], dtype=np.float64),
            was_right_N=np.array([item.was_right for item, _ in read], dtype=np.bool_),
            question_N=np.array([numbers[item.question_hash] for item, _ in read], dtype=np.int64),
        )

    def only(self, which_N: NDArray[np.bool_]) -> "Judgements":
        return Judgements(self.odds_N[which_N], self.was_right_N[which_N], self.question_N[which_N])

    def questions_with(self, is_right: bool) -> int:
        return len(np.unique(self.question_N[self.was_right_N == is_right]))

    def calibrated(self, calibration: Calibration) -> Floats:
        """The calibrated probability that each answer is right."""
        return np.array([calibration.p_right_at(odds) for odds in self.odds_N.tolist()])

    def weights(self, right_share: float) -> Floats:
        """Weights under which this share of the judgements is about right answers. They sum to 1."""
        of_right = max(int(self.was_right_N.sum()), 1)
        of_wrong = max(len(self.was_right_N) - int(self.was_right_N.sum()), 1)
        return np.where(self.was_right_N, right_share / of_right, (1 - right_share) / of_wrong)


def fit(data: Judgements, traffic: ClassCounts) -> Calibration:
    """Platt's fit with both classes weighted equally; the traffic's class share enters where it is applied.

    The targets are Platt's: a share of (n + 1) / (n + 2) and not 1, so that classes which the critic separates without
    an error give a finite slope. n counts questions, since the samples of one question are no independent evidence. A
    critic whose probabilities point the wrong way gets a slope of 0: every answer is then right with the class share.
    """
    questions = data.questions_with(True), data.questions_with(False)
    weights_N = data.weights(0.5) * len(np.unique(data.question_N))
    targets_N = np.where(data.was_right_N, 1 - 1 / (questions[0] + 2), 1 / (questions[1] + 2))
    slope, intercept = _minimised(data.odds_N, targets_N, weights_N)
    if slope < 0:
        share = float((weights_N * targets_N).sum() / weights_N.sum())
        slope, intercept = 0.0, float(np.log(share / (1 - share)))
    return Calibration(slope=slope, intercept=intercept, traffic=traffic)


def _minimised(odds_N: Floats, targets_N: Floats, weights_N: Floats) -> tuple[float, float]:
    """Slope and intercept with the least weighted cross-entropy, by Newton's method with halved steps."""

    def loss(parameters: Floats) -> float:
        z_N = parameters[0] * odds_N + parameters[1]
        return float((weights_N * (np.logaddexp(0, z_N) - targets_N * z_N)).sum())

    parameters = np.array([1.0, 0.0])
    for _ in range(_STEPS):
        p_N = _logistic(parameters[0] * odds_N + parameters[1])
        error_N, curvature_N = weights_N * (p_N - targets_N), weights_N * p_N * (1 - p_N)
        gradient = np.array([(error_N * odds_N).sum(), error_N.sum()])
        mixed = (curvature_N * odds_N).sum()
        hessian = np.array([[(curvature_N * odds_N**2).sum(), mixed], [mixed, curvature_N.sum()]])
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        while loss(parameters - step) > loss(parameters) + 1e-12:
            step /= 2
        parameters = parameters - step
        if np.abs(step).max() < 1e-9:
            break
    return float(parameters[0]), float(parameters[1])


def _logistic(x_N: Floats) -> Floats:
    values: Floats = 1 / (1 + np.exp(-x_N))
    return values


def _reliability(data: Judgements, p_N: Floats, traffic: ClassCounts, *, seed: int) -> Reliability:
    """Bins and ECE. The interval is ECE +- (97.5 % quantile over resampled questions - ECE).

    Resampling adds chance to a number that chance makes larger, so its quantiles lie too high; this distance on both
    sides holds the true error about as often as it says (bench/calibration.py). The class share is drawn too, since it
    is known from a limited number of labels.
    """
    bins = bins_of(p_N.tolist(), data.was_right_N.tolist(), data.weights(traffic.share).tolist())
    ece = expected_error(bins)
    upper = float(np.quantile(_resampled_errors(data, p_N, traffic, seed=seed), (1 + _CONFIDENCE) / 2))
    half = max(0.0, upper - ece)
    return Reliability(ece=ece, low=max(0.0, ece - half), high=min(1.0, ece + half), bins=bins)


def _resampled_errors(data: Judgements, p_N: Floats, traffic: ClassCounts, *, seed: int) -> Floats:
    """The ECE of samples of the questions, drawn with replacement, each at a class share drawn from its posterior."""
    random = np.random.default_rng(seed)
    bin_N = np.array([bin_of(p) for p in p_N.tolist()])
    questions = int(data.question_N.max()) + 1
    gap_YQB, count_YQ = np.zeros((2, questions, BINS)), np.zeros((2, questions))
    class_N = data.was_right_N.astype(int)
    np.add.at(gap_YQB, (class_N, data.question_N, bin_N), p_N - data.was_right_N)
    np.add.at(count_YQ, (class_N, data.question_N), 1.0)
    drawn_RQ = random.multinomial(questions, np.full(questions, 1 / questions), _RESAMPLINGS)
    gap_YRB = drawn_RQ.astype(float) @ gap_YQB
    count_YR = np.maximum(drawn_RQ @ count_YQ.T, 1e-9).T
    wrong_RB, right_RB = gap_YRB / count_YR[:, :, None]
    share_R1 = random.beta(traffic.right + 0.5, traffic.wrong + 0.5, (_RESAMPLINGS, 1))
    errors: Floats = np.abs(share_R1 * right_RB + (1 - share_R1) * wrong_RB).sum(axis=1)
    return errors
