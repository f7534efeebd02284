"""Rates with their intervals, from counts and scores."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Proportion:
    """`hits` of `of`, with Wilson's interval."""

    hits: int
    of: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number from `of` items that is not a proportion. Each function that returns one names its interval's method."""

    value: float
    of: int
    low: float
    high: float


def z_score(confidence: float) -> float:
    """The two-sided quantile of the normal distribution: 1.96 at 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def proportion(hits: int, of: int, *, confidence: float = 0.95) -> Proportion | None:
    """`hits` of `of` with the score interval of Wilson (1927); None if `of` is 0."""
    if of == 0:
        return None
    z2 = z_score(confidence) ** 2
    value = hits / of
    middle = (value + z2 / (2 * of)) / (1 + z2 / of)
    half = math.sqrt(z2 * (value * (1 - value) / of + z2 / (4 * of**2))) / (1 + z2 / of)
    return Proportion(hits, of, value, max(0.0, middle - half), min(1.0, middle + half))


def balanced(right: Proportion | None, wrong: Proportion | None) -> Estimate | None:
    """The mean of two independent proportions; None if either class is empty.

    The interval adds the squares of both proportions' distances to their bounds (Newcombe 1998, method 10).
    """
    if right is None or wrong is None:
        return None
    value = (right.value + wrong.value) / 2
    down = math.hypot(right.value - right.low, wrong.value - wrong.low) / 2
    up = math.hypot(right.high - right.value, wrong.high - wrong.value) / 2
    return Estimate(value, right.of + wrong.of, max(0.0, value - down), min(1.0, value + up))


def auroc(scores: Sequence[float], labels: Sequence[bool], *, confidence: float = 0.95) -> Estimate | None:
    """The chance that a positive scores higher than a negative; ties count half. None if a class is empty.

    The interval is the score interval of Newcombe (2006, method 5): every area whose standard error puts the estimate
    within it. It stays within [0, 1] and has a width where the classes are separated without an error.
    """
    positives = [score for score, label in zip(scores, labels, strict=True) if label]
    negatives = sorted(score for score, label in zip(scores, labels, strict=True) if not label)
    m, n = len(positives), len(negatives)
    if m == 0 or n == 0:
        return None
    pairs = sum(bisect_left(negatives, score) + bisect_right(negatives, score) for score in positives)
    area = pairs / (2 * m * n)
    z2, others = z_score(confidence) ** 2, (m + n) / 2 - 1

    def is_within(truth: float) -> bool:
        spread = 1 + others * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        return (truth - area) ** 2 <= z2 * truth * (1 - truth) * spread / (m * n)

    return Estimate(area, m + n, _bound(is_within, area, 0.0), _bound(is_within, area, 1.0))


def _bound(is_within: Callable[[float], bool], inside: float, outside: float) -> float:
    """The end of the interval between a point inside and 0 or 1, by bisection."""
    for _ in range(50):
        middle = (inside + outside) / 2
        if is_within(middle):
            inside = middle
        else:
            outside = middle
    return inside
