import math
from itertools import accumulate

import numpy as np
import pytest

from gadfly.evidence import MeanTest, interval, lower_bound


def test_wealth_is_the_mean_of_the_bets() -> None:
    test = MeanTest.of([1.0, -0.5, 0.0])
    bets = [0.15 * 6 ** (number / 7) for number in range(8)]  # 0.15 to 0.9
    expected = math.fsum((1 + bet) * (1 - bet / 2) for bet in bets) / 8
    assert test.wealth == pytest.approx(expected, rel=1e-12)
    assert test.count == 3


def test_observations_at_the_null_move_nothing() -> None:
    assert MeanTest.of([0.25] * 50, null=0.25).wealth == pytest.approx(1.0)


@pytest.mark.parametrize("null", [-0.99, -0.5, 0.0, 0.9])
def test_no_observation_takes_all_wealth(null: float) -> None:
    assert MeanTest.of([-1.0], null=null).wealth > 0


@pytest.mark.parametrize("value", [1.01, -1.5, math.nan])
def test_observations_outside_the_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        MeanTest().add(value)


def test_an_equal_mean_is_rejected_less_often_than_allowed_over_all_looks() -> None:
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(400):
        test = MeanTest()
        for value in rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=600):
            test.add(float(value))
            if test.rejects(0.05):
                rejected += 1
                break
    assert rejected / 400 <= 0.05


def test_a_higher_mean_is_found() -> None:
    rng = np.random.default_rng(4)
    values = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.75, 0.2], size=600).tolist()
    assert MeanTest.of(values).rejects(0.05)
    assert not MeanTest.of([-value for value in values]).rejects(0.05)


def test_the_interval_covers_at_every_look() -> None:
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(60):
        values = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=200).tolist()
        looks = (interval(values[:count], alpha=0.1) for count in (25, 50, 100, 200))
        missed += any(not low <= 0.2 <= high for low, high in looks)
    assert missed / 60 <= 0.1


def test_the_bound_is_where_rejection_ends() -> None:
    values = [0.5, 1.0, 0.0, 0.5] * 20
    bound = lower_bound(values, alpha=0.05)
    assert MeanTest.of(values, null=bound).rejects(0.05)
    assert not MeanTest.of(values, null=bound + 2e-3).rejects(0.05)
    assert lower_bound([], alpha=0.05) == -1.0


def test_bounds_rise_with_evidence() -> None:
    bounds = [lower_bound([0.5] * count, alpha=0.05) for count in (5, 20, 80)]
    assert bounds == sorted(bounds)
    assert list(accumulate(bounds, max)) == bounds
