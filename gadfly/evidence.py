"""Evidence that accumulates: tests of a mean that stay valid however often they are checked.

A test starts with a wealth of 1 and bets it on the next observation: on x in [-1, 1] it multiplies the wealth by
1 + lambda (x - null). If the mean, given all earlier observations, is at most `null`, no bet gains on average, and by
Ville's inequality the wealth ever reaches 1/alpha with a probability of at most alpha. So a test may be checked after
every observation, over any number of nights, with one error budget. The bet sizes are a fixed grid with equal shares of
the wealth, so none needs to be chosen.

Source: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal
Statistical Society B 86 (2024), arXiv 2010.09686; products of e-values over nights: A. Ramdas, P. Grünwald, V. Vovk and
G. Shafer, "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 38 (2023), arXiv
2210.01948.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Self

_BETS = 8
_SMALLEST_BET = 0.15  # smaller ones need thousands of observations to gain anything
_LARGEST_BET = 0.9  # of the bet at which one observation could take all wealth
_LOG_LIMIT = 700.0  # exp of more is infinite


def bets(null: float) -> list[float]:
    """The bet sizes against a null mean, rising by a constant factor."""
    ratio = (_LARGEST_BET / (1 + null) / _SMALLEST_BET) ** (1 / (_BETS - 1))
    return [_SMALLEST_BET * ratio**number for number in range(_BETS)]


class MeanTest:
    """Evidence that the mean of observations in [-1, 1] lies above `null`.

    Observations may depend on earlier ones: the null hypothesis must imply that each one's mean, given
    those before it, is at most `null`.
    """

    def __init__(self, null: float = 0.0) -> None:
        if not -1 < null < 1:
            raise ValueError("the null mean must lie between -1 and 1")
        self.null = null
        self.count = 0
        self._bets = bets(null)
        self._logs = [0.0] * _BETS

    @classmethod
    def of(cls, observations: Iterable[float], *, null: float = 0.0) -> Self:
        """The test after these observations."""
        test = cls(null)
        for observation in observations:
            test.add(observation)
        return test

    def add(self, observation: float) -> None:
        """Bet on one observation.

        Raises:
            ValueError: it lies outside [-1, 1].
        """
        if not -1 <= observation <= 1:
            raise ValueError(f"an observation must lie in [-1, 1], and this is {observation}")
        self.count += 1
        for number, bet in enumerate(self._bets):
            self._logs[number] += math.log1p(bet * (observation - self.null))

    @property
    def log_wealth(self) -> float:
        """The natural logarithm of the wealth, the e-value of all observations so far."""
        top = max(self._logs)
        return top + math.log(math.fsum(math.exp(log - top) for log in self._logs) / len(self._logs))

    @property
    def wealth(self) -> float:
        return math.exp(min(self.log_wealth, _LOG_LIMIT))

    def rejects(self, alpha: float) -> bool:
        """Whether the mean is shown to lie above `null`, with an error of at most `alpha` over all checks."""
        return self.log_wealth >= -math.log(alpha)


def lower_bound(observations: Sequence[float], *, alpha: float, precision: float = 1e-3) -> float:
    """A lower bound of the mean, valid over all checks together: every mean up to it is rejected.

    Returns -1 where nothing is rejected.
    """
    low, high = -1.0, 1.0  # the wealth against a null falls as the null rises
    while high - low > precision:
        middle = (low + high) / 2
        if MeanTest.of(observations, null=middle).rejects(alpha):
            low = middle
        else:
            high = middle
    return low


def interval(observations: Sequence[float], *, alpha: float) -> tuple[float, float]:
    """A confidence sequence for the mean: over all checks together it misses the mean with probability <= `alpha`."""
    return (
        lower_bound(observations, alpha=alpha / 2),
        -lower_bound([-observation for observation in observations], alpha=alpha / 2),
    )
