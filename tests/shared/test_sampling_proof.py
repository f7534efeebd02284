"""The test behind the proof of sampling: hand-computed numbers, its false alarms, and its power."""

import math
import random
from collections.abc import Sequence

import httpx
import pytest

from gadfly.engine_client import Engine
from gadfly.errors import EngineUnavailable, WrongSampling
from gadfly.sampling_proof import DRAWS, LEVEL, Ladder, chi_square_tail, explain, p_value_of, prove_sampling
from tests.support.sampling import FakeEngine

LADDER = Ladder(tuple(range(1000, 1100)))
P = [math.exp(logprob) for logprob in LADDER.logprobs]


def samples(probabilities: Sequence[float], seed: int) -> list[list[int | None]]:
    draw = random.Random(seed)
    return [list(draw.choices(range(len(probabilities)), probabilities, k=DRAWS)) for _ in range(2)]


def test_the_ladder() -> None:
    assert math.fsum(P) == pytest.approx(1)
    assert P[0] / P[99] == pytest.approx(60)
    assert P[1] / P[0] == pytest.approx(P[99] / P[98])
    ranks = sorted(rank for cell in LADDER.cells for rank in cell)
    assert ranks == list(range(100)), "each rank is in one cell"
    assert all(len({rank % 2 for rank in cell}) == 1 for cell in LADDER.cells), "of the prompt, or not"


def test_chi_square() -> None:
    assert chi_square_tail(0.0, 30) == 1.0
    assert chi_square_tail(2 * math.log(20), 2) == pytest.approx(0.05)
    assert chi_square_tail(18.307, 10) == pytest.approx(0.05, abs=1e-4)  # from a table
    assert chi_square_tail(59.703, 30) == pytest.approx(0.001, abs=1e-5)


def test_false_alarms_are_as_rare_as_stated() -> None:
    runs = 1000
    alarms = sum(p_value_of(LADDER, samples(P, seed)) < LEVEL for seed in range(runs))
    assert alarms <= 20, "1 % of 1,000; more than 20 have a chance of 1 in 600"


FAULTS: list[tuple[str, list[float], str]] = [
    ("top_k 1", [1.0, *[0.0] * 99], "the same token"),
    ("top_k 50", [*P[:50], *[0.0] * 50], "the least likely 1. % were never drawn"),
    ("top_p 0.95", [*P[:75], *[0.0] * 25], "the least likely . % were never drawn"),
    ("min_p 0.1", [p if p >= 0.1 * P[0] else 0.0 for p in P], "were never drawn"),
    ("penalty", [p * (0.5 if rank % 2 == 0 else 1) for rank, p in enumerate(P)], "tokens of the prompt"),
    ("temperature 0.6", [p ** (1 / 0.6) for p in P], "another temperature"),
]


@pytest.mark.parametrize(("name", "probabilities", "reason"), FAULTS, ids=[name for name, _, _ in FAULTS])
def test_faults_are_seen(name: str, probabilities: list[float], reason: str) -> None:
    found = [p_value_of(LADDER, samples(probabilities, seed)) < LEVEL for seed in range(50)]
    assert sum(found) >= 45
    explained = [explain(LADDER, samples(probabilities, seed)) for seed in range(20)]
    assert sum(_matches(reason, each) for each in explained) >= 15, explained


def _matches(pattern: str, text: str) -> bool:
    words = pattern.split(".")
    return all(word.strip() in text for word in words)


def test_a_token_outside_the_ladder_is_a_fault() -> None:
    assert p_value_of(LADDER, [[0, 1, None]]) == 0.0
    assert "nearly no probability" in explain(LADDER, [[0, 1, None]])


async def prove(fake: FakeEngine, temperature: float = 0.7) -> int:
    engine = Engine("http://engine", timeout_s=5, transport=httpx.MockTransport(fake))
    try:
        return (await prove_sampling(engine, temperature=temperature)).draws
    finally:
        await engine.aclose()


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.7, 1.0, 1.5])
async def test_an_honest_engine_proves_it(temperature: float) -> None:
    assert await prove(FakeEngine(), temperature) == 2 * DRAWS


async def test_a_bent_engine_fails_twice() -> None:
    fake = FakeEngine(sharpen=2.0)
    with pytest.raises(WrongSampling, match="does not sample the distribution that it reports"):
        await prove(fake)
    assert fake.draws == 4 * DRAWS, "tested again with other seeds"


async def test_an_unlucky_first_test_is_no_fault() -> None:
    assert await prove(FakeEngine(sharpen=2.0, flips=2 * DRAWS)) == 4 * DRAWS


async def test_an_engine_that_is_busy_is_not_at_fault() -> None:
    with pytest.raises(EngineUnavailable):
        await prove(FakeEngine(failures=1))
