"""Rates and their intervals against values worked out by hand."""

import pytest

from gadfly.rates import Proportion, auroc, balanced, proportion


def test_wilson() -> None:
    half = proportion(5, 10)
    assert half == Proportion(5, 10, 0.5, pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    none = proportion(0, 10)
    assert none is not None
    assert (none.low, none.high) == (0, pytest.approx(0.2775, abs=1e-4))  # z^2 / (n + z^2)
    assert proportion(0, 0) is None


def test_balanced_is_the_mean_and_its_interval_adds_squares() -> None:
    found = balanced(Proportion(8, 10, 0.8, 0.5, 0.9), Proportion(2, 10, 0.2, 0.16, 0.44))
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - (0.3**2 + 0.04**2) ** 0.5 / 2)
    assert found.high == pytest.approx(0.5 + (0.1**2 + 0.24**2) ** 0.5 / 2)


def test_auroc_counts_ties_half() -> None:
    found = auroc([0.9, 0.8, 0.4, 0.7, 0.4], [True, True, True, False, False])
    assert found is not None
    assert found.value == pytest.approx(4.5 / 6)
    assert auroc([0.1, 0.2], [True, True]) is None


def test_the_bounds_of_an_auroc_are_as_far_as_their_own_standard_error_allows() -> None:
    found = auroc([0.9, 0.8, 0.4, 0.7, 0.4], [True, True, True, False, False])
    assert found is not None
    for bound in (found.low, found.high):
        # Hanley and McNeil's variance at the bound, with (3 + 2) / 2 - 1 in place of both class sizes less one.
        q1, q2 = bound / (2 - bound), 2 * bound**2 / (1 + bound)
        variance = (bound * (1 - bound) + 1.5 * (q1 - bound**2) + 1.5 * (q2 - bound**2)) / 6
        assert abs(bound - 0.75) == pytest.approx(1.959964 * variance**0.5, abs=1e-6)


def test_classes_that_are_separated_without_an_error_leave_a_doubt() -> None:
    few, many = (auroc([1.0] * size + [0.0] * size, [True] * size + [False] * size) for size in (5, 500))
    assert few is not None
    assert many is not None
    assert (few.value, few.high, many.value, many.high) == pytest.approx((1, 1, 1, 1), abs=1e-9)
    assert few.low < 0.75
    assert 0.99 < many.low < 1
