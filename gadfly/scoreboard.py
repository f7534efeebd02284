"""How a critic does on the deployment's own labelled answers, and the verdict threshold that would suit them.

A version that no gate has measured gets its only measurement here. An item is the newest answer of one class (right or
wrong) to one question: items of a class are independent, which the intervals assume. The threshold is a suggestion:
verdicts are not changed by it. Its accuracy is cross-fitted, so no answer is judged by a threshold that was fitted to
it. Simulated in `bench/scoreboard.py`; why: docs/decisions/scoreboard.md.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gadfly.calibration import bin_of, log_odds
from gadfly.rates import Estimate, Proportion, auroc, balanced, proportion
from gadfly.verdict import Verdict

LEAST_FOR_THRESHOLD = 20  # items of each class
LEAST_FOR_CALIBRATION = 20  # items
FOLDS = 10

_RESAMPLINGS = 300
_CONFIDENCE = 0.95
_THRESHOLD_CONFIDENCE = 0.99  # a cross-fitted accuracy varies more than its counts say: these bounds hold in about 95 %
_BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredAnswer:
    """A labelled answer with the verdict that its caller got."""

    question_hash: bytes
    was_right: bool
    verdict: Verdict
    p_correct: float | None
    p_incorrect: float | None
    calibrated_p_right: float | None

    @property
    def odds(self) -> float | None:
        return log_odds(self.p_correct, self.p_incorrect)

    @property
    def is_verdict_right(self) -> bool:
        return self.verdict is (Verdict.CORRECT if self.was_right else Verdict.INCORRECT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """A verdict threshold: `correct` from `p_correct` on, the probability of that word among the two verdict words."""

    p_correct: float
    balanced: Estimate  # cross-fitted


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoreboard:
    """How a critic does on labelled answers. None: too few of them."""

    right: Proportion | None  # right answers that the critic calls correct
    wrong: Proportion | None  # wrong answers that it calls incorrect
    balanced: Estimate | None  # the mean of the two
    auroc: Estimate | None  # chance that a right answer has a higher probability than a wrong one
    ece: Estimate | None  # expected calibration error of the verdict words
    calibrated_ece: Estimate | None  # the same of the calibrated probability
    threshold: Threshold | None

    @property
    def answers(self) -> int:
        """The number of answers that count."""
        return sum(part.of for part in (self.right, self.wrong) if part is not None)


def scoreboard(answers: Sequence[ScoredAnswer], *, seed: int = 0) -> Scoreboard:
    """The scoreboard of these answers, the newest first; of a question's answers in one class the newest counts."""
    items = _one_each(answers)
    read = [(odds, item) for item in items if (odds := item.odds) is not None]
    right, wrong = (_verdicts(items, was_right) for was_right in (True, False))
    calibrated = [(item.calibrated_p_right, item.was_right) for item in items if item.calibrated_p_right is not None]
    return Scoreboard(
        right=right,
        wrong=wrong,
        balanced=balanced(right, wrong),
        auroc=auroc([odds for odds, _ in read], [item.was_right for _, item in read]),
        ece=calibration_error([(_probability(odds), item.was_right) for odds, item in read], seed=seed),
        calibrated_ece=calibration_error(calibrated, seed=seed),
        threshold=fitted_threshold([(item.question_hash, odds, item.was_right) for odds, item in read]),
    )


def _one_each(answers: Sequence[ScoredAnswer]) -> list[ScoredAnswer]:
    kept: dict[tuple[bytes, bool], ScoredAnswer] = {}
    for answer in answers:
        kept.setdefault((answer.question_hash, answer.was_right), answer)
    return list(kept.values())


def _verdicts(items: Sequence[ScoredAnswer], was_right: bool) -> Proportion | None:
    same = [item.is_verdict_right for item in items if item.was_right is was_right]
    return proportion(sum(same), len(same))


# ------------------------------------------------------------------------------------------------------- the threshold


def fitted_threshold(judged: Sequence[tuple[bytes, float, bool]]) -> Threshold | None:
    """The threshold fitted to (question, log-odds, whether the answer is right), and how well a fitted one does.

    The accuracy is over folds of whole questions: each fold is judged by the threshold that the others give. None with
    fewer than `LEAST_FOR_THRESHOLD` items of either class.
    """
    classes = [[odds for _, odds, was_right in judged if was_right is kind] for kind in (True, False)]
    if min(map(len, classes)) < LEAST_FOR_THRESHOLD:
        return None
    hits = {True: 0, False: 0}
    fold_of = _folds([question for question, _, _ in judged])
    for fold in range(FOLDS):
        cut = best_cut([(odds, right) for question, odds, right in judged if fold_of[question] != fold])
        for question, odds, was_right in judged:
            if fold_of[question] == fold:
                hits[was_right] += (odds >= cut) is was_right
    estimate = balanced(
        proportion(hits[True], len(classes[0]), confidence=_THRESHOLD_CONFIDENCE),
        proportion(hits[False], len(classes[1]), confidence=_THRESHOLD_CONFIDENCE),
    )
    assert estimate is not None
    cut = best_cut([(odds, was_right) for _, odds, was_right in judged])
    return Threshold(p_correct=_probability(cut), balanced=estimate)


def best_cut(judged: Sequence[tuple[float, bool]]) -> float:
    """The log-odds from which on `correct` gives the best balanced accuracy.

    Every cut between two neighbouring values is tried. Of equally good ones the middle one is taken, which is the least
    likely to be best by chance.
    """
    right = sorted(odds for odds, was_right in judged if was_right)
    wrong = sorted(odds for odds, was_right in judged if not was_right)
    values = sorted({odds for odds, _ in judged})
    cuts = [values[0], *((low + high) / 2 for low, high in pairwise(values)), values[-1] + 1e-9]
    scores = [_accuracy(right, wrong, cut) for cut in cuts]
    best = max(scores)
    equal = [cut for cut, score in zip(cuts, scores, strict=True) if score >= best - 1e-12]
    return equal[len(equal) // 2]


def _accuracy(right: Sequence[float], wrong: Sequence[float], cut: float) -> float:
    called_correct = len(right) - bisect_left(right, cut)
    called_incorrect = bisect_left(wrong, cut)
    return (called_correct / max(len(right), 1) + called_incorrect / max(len(wrong), 1)) / 2


def _folds(questions: Sequence[bytes]) -> Mapping[bytes, int]:
    """The fold of each question, by the order of the hashes, which has nothing to do with the answers."""
    return {question: number % FOLDS for number, question in enumerate(sorted(set(questions)))}


# ----------------------------------------------------------------------------------------------------- the calibration


def calibration_error(judged: Sequence[tuple[float, bool]], *, seed: int) -> Estimate | None:
    """The expected calibration error of (probability, whether the answer is right), over ten bins; None with too few.

    The interval is the error +- the distance to the 97.5 % quantile over resampled items, as in a critic's calibration
    report: resampling adds chance to a number that chance makes larger, so its quantiles lie too high.
    """
    if len(judged) < LEAST_FOR_CALIBRATION:
        return None
    gaps = [(bin_of(p), p - was_right) for p, was_right in judged]
    error = _error(gaps)
    draw = random.Random(seed)  # noqa: S311  # a fixed order, no secret
    resampled = sorted(_error(draw.choices(gaps, k=len(gaps))) for _ in range(_RESAMPLINGS))
    upper = resampled[min(_RESAMPLINGS - 1, round(_RESAMPLINGS * (1 + _CONFIDENCE) / 2))]
    half = max(0.0, upper - error)
    return Estimate(error, len(judged), max(0.0, error - half), min(1.0, error + half))


def _error(gaps: Sequence[tuple[int, float]]) -> float:
    sums = [0.0] * _BINS
    for number, gap in gaps:
        sums[number] += gap
    return sum(map(abs, sums)) / len(gaps)


def _probability(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))  # log-odds are within +-10
