"""Validations of a run's checkpoints, and the choice of the checkpoint that is published.

All checkpoints judge the same answers, so two of them are compared answer by answer. The best of several noisy
measurements is often only the luckiest. So the choice is the latest checkpoint that is not worse than the best one by
more than a standard error of their difference (the one-standard-error rule: Hastie, Tibshirani and Friedman, *The
Elements of Statistical Learning*, section 7.10); docs/decisions/the-best-checkpoint.md has its error rates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gadfly.grading import Grade
from gadfly.trainer.measure.metrics import Judged

_EQUAL = 1.01  # standard errors within which a later checkpoint is as good; above 1: one answer is no difference
_WORSE = 2.0  # standard errors by which all that was learned must be worse than the start to be given up


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The merits, in [0, 1], of one checkpoint on every validation answer, in order, right answers and wrong ones."""

    step: int  # steps done
    right: list[float]
    wrong: list[float]

    @property
    def merit(self) -> float:
        """The mean merit, in which both classes count equally; 0 without answers."""
        means = [math.fsum(merits) / len(merits) for merits in (self.right, self.wrong) if merits]
        return math.fsum(means) / len(means) if means else 0.0


def validation(step: int, judged: Sequence[Judged]) -> Validation:
    """The merits of the judged answers: whether the verdict is right, and with a refinement the mean of both."""
    return Validation(
        step=step,
        right=[_merit(item) for item in judged if item.was_right],
        wrong=[_merit(item) for item in judged if not item.was_right],
    )


def _merit(item: Judged) -> float:
    if item.refined is None:
        return float(item.is_verdict_right)
    return (item.is_verdict_right + (item.refined is Grade.RIGHT)) / 2


def best(validations: Sequence[Validation]) -> Validation:
    """The checkpoint to publish: the start (step 0) only if it is surely better than all that came after it."""
    start = [each for each in validations if each.step == 0]
    later = [each for each in validations if each.step > 0]
    if not later:
        return validations[0]
    highest = max(later, key=lambda each: each.merit)
    chosen = next(each for each in reversed(later) if not _is_worse(each, highest, by=_EQUAL))
    return start[0] if start and _is_worse(highest, start[0], by=_WORSE) else chosen


def _is_worse(one: Validation, other: Validation, *, by: float) -> bool:
    """Whether `one` has less merit than `other` by more than `by` standard errors of the paired difference."""
    difference, variance = 0.0, 0.0
    pairs = [(one.right, other.right), (one.wrong, other.wrong)]
    classes = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs if ours]
    for changes in classes:
        mean = math.fsum(changes) / len(changes)
        difference += mean / len(classes)
        if len(changes) > 1:
            squares = math.fsum((change - mean) ** 2 for change in changes)
            variance += squares / (len(changes) - 1) / len(changes) / len(classes) ** 2
    return difference < -by * math.sqrt(variance)
