"""From the probabilities of the two verdict words to the probability that the answer is right.

The words' probabilities say how sure the critic sounds. A calibration of a critic version (Platt's: a line over their
log-odds, fitted on held-out answers with both classes weighted equally) turns them into evidence about the answer; the
share of right answers in the deployment's own traffic is the prior. Why: docs/decisions/calibration.md.

Source: J. Platt, "Probabilistic outputs for support vector machines" (1999); prior shift: M. Saerens, P. Latinne and
C. Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities" (2002); the mean of a logistic
curve over a normal distribution: D. MacKay, "The evidence framework applied to classification networks" (1992).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import TypeAdapter

BINS = 10  # of equal width over [0, 1]
_LARGEST_LOG_ODDS = 10.0  # beyond it, a word's probability says how sharp the critic is and no longer how right


def log_odds(p_correct: float | None, p_incorrect: float | None) -> float | None:
    """The log-odds of the two verdict words, within +-10; None where they were not read."""
    if p_correct is None or p_incorrect is None or p_correct + p_incorrect <= 0:
        return None
    if p_correct <= 0 or p_incorrect <= 0:
        return math.copysign(_LARGEST_LOG_ODDS, p_correct - p_incorrect)
    return max(-_LARGEST_LOG_ODDS, min(_LARGEST_LOG_ODDS, math.log(p_correct) - math.log(p_incorrect)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCounts:
    """Labelled answers of the deployment's own traffic, by class."""

    right: int
    wrong: int

    @property
    def share(self) -> float:
        """The share of right answers, with half an answer added to each class."""
        return (self.right + 0.5) / (self.right + self.wrong + 1)

    @property
    def log_odds(self) -> float:
        return math.log((self.right + 0.5) / (self.wrong + 0.5))

    @property
    def variance(self) -> float:
        """The variance of `log_odds` (Haldane, Anscombe)."""
        return 1 / (self.right + 0.5) + 1 / (self.wrong + 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How one critic version's probabilities become the probability that an answer is right."""

    slope: float  # of the log-odds of the verdict words
    intercept: float
    traffic: ClassCounts  # when the version was measured

    def p_right(self, p_correct: float | None, p_incorrect: float | None) -> float | None:
        """The probability that the answer is right, in the deployment's own traffic; None where no word was read."""
        odds = log_odds(p_correct, p_incorrect)
        return None if odds is None else self.p_right_at(odds)

    def p_right_at(self, odds: float) -> float:
        """The same from the words' log-odds. The fewer labels tell the traffic's class share, the closer to 0.5."""
        mean = self.slope * odds + self.intercept + self.traffic.log_odds
        return 1 / (1 + math.exp(-mean / math.sqrt(1 + math.pi * self.traffic.variance / 8)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """The judgements whose probability that the answer is right is in one range."""

    low: float
    high: float
    items: int
    traffic_share: float  # of all judgements, at the class shares of the traffic
    mean_p: float
    right: float  # share of right answers, weighted like `mean_p` by the traffic's class shares


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """How the probability that an answer is right agrees with whether it is, at the class shares of the traffic.

    `ece` is the expected calibration error: the mean of |mean probability - share right| over the bins, weighted by
    their share of the traffic. Chance alone makes it larger than 0; the interval (95 %) errs upwards. Bins of the
    confidence in a verdict would hide a wrong class share: too little in "correct" and too much in "incorrect" cancel.
    """

    ece: float
    low: float
    high: float
    bins: tuple[Bin, ...]  # the non-empty ones


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationReport:
    """How well a calibration does on held-out answers.

    `after` is cross-fitted: each question's probabilities come from a calibration that was fitted without it.
    """

    items: int  # judgements
    questions: int
    folds: int
    share_low: float  # of right answers in the traffic: Wilson's interval (95 %)
    share_high: float
    before: Reliability  # of the two verdict words
    after: Reliability

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = _REPORT.dump_python(self, mode="json")
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return _REPORT.validate_python(values)  # type: ignore[return-value]


_REPORT = TypeAdapter(CalibrationReport)


def bins_of(probabilities: Sequence[float], are_right: Sequence[bool], weights: Sequence[float]) -> tuple[Bin, ...]:
    """The non-empty bins of these probabilities that an answer is right; `weights` need not sum to 1."""
    members: dict[int, list[int]] = {}
    for index, p in enumerate(probabilities):
        members.setdefault(bin_of(p), []).append(index)
    total = math.fsum(weights)
    found = []
    for number, indices in sorted(members.items()):
        weight = math.fsum(weights[index] for index in indices)
        found.append(
            Bin(
                low=number / BINS,
                high=(number + 1) / BINS,
                items=len(indices),
                traffic_share=weight / total,
                mean_p=math.fsum(weights[index] * probabilities[index] for index in indices) / weight,
                right=math.fsum(weights[index] * are_right[index] for index in indices) / weight,
            )
        )
    return tuple(found)


def bin_of(p: float) -> int:
    """The number of the bin that a probability is in."""
    return min(int(p * BINS), BINS - 1)


def expected_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error over these bins."""
    return math.fsum(each.traffic_share * abs(each.mean_p - each.right) for each in bins)
