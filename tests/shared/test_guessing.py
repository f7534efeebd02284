"""What guessing does to labels: against the counts of a made-up class that knows or guesses."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gadfly.guessing import Guessing, corrected_for_guessing
from gadfly.planning import Plan, plan, with_guessing
from gadfly.training import TrainConfig

CASES = [  # share of right answers, chance of a guess, share that was known
    (0.25, 0.25, 0.0, "guessing alone"),
    (1.0, 0.25, 1.0, "all known"),
    (0.625, 0.25, 0.5, "half known, and a quarter of the other half guessed"),
    (0.1, 0.25, -0.2, "worse than guessing"),
]


@pytest.mark.parametrize(("right", "rate", "known", "why"), CASES)
def test_the_share_that_was_known(right: float, rate: float, known: float, why: str) -> None:
    assert corrected_for_guessing(right, rate) == pytest.approx(known), why


def test_known_and_lucky_answers_are_those_of_a_class_that_guesses() -> None:
    rng, answers, knows, rate = random.Random(0), 100_000, 0.6, 0.25
    known = sum(rng.random() < knows for _ in range(answers))
    lucky = sum(rng.random() < rate for _ in range(answers - known))
    found = Guessing.of(right=known + lucky, wrong=answers - known - lucky, rate=rate)
    assert found is not None
    assert found.known == pytest.approx(knows, abs=0.01)
    assert found.lucky == pytest.approx(lucky, rel=0.02)


def test_nothing_is_known_below_chance_and_not_more_are_lucky_than_right() -> None:
    found = Guessing.of(right=1, wrong=9, rate=0.25)
    assert found is not None
    assert (found.known, found.lucky) == (0.0, 1.0)
    assert Guessing.of(right=0, wrong=0, rate=0.25) is None


def test_a_plan_says_it_for_tasks_with_a_known_number_of_answers() -> None:
    empty = plan([], [], TrainConfig(), seconds_per_step_history=None)
    assert with_guessing(empty, 0.25) is empty
    found = cast(Plan, _with_counts(empty, right=62, wrong=38))
    assert with_guessing(found, None) is found
    told = with_guessing(found, 0.25)
    assert told.guessing is not None
    assert told.guessing.known == pytest.approx(0.4933, abs=1e-3)
    assert "62% are right, which is 49% corrected for guessing: about 13 of 62" in told.notes[-1]
    assert "shows as 7.5 points" in told.notes[-1]


def _with_counts(found: Plan, **counts: int) -> Any:
    return replace(found, stage_1=cast(Any, SimpleNamespace(**counts)))
