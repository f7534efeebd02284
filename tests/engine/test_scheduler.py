"""The foreground-first scheduler in a simulated engine without a model.

Every step checks vLLM's own assertions, which would crash an engine, and that no request is lost or duplicated.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.tiny_models import Adapted

if TYPE_CHECKING:
    from tests.support.simulation import Simulation

MAX_SEQS = 4
BUDGET = 64
STEP_S = 0.1

Simulate = Callable[..., "Simulation"]


@pytest.fixture(scope="module")
def simulate(tiny: Adapted) -> Simulate:
    """Creates simulated engines. The import of vllm is delayed to keep the collection of tests fast."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("tests.support.simulation")

    def make(**options: Any) -> "Simulation":
        simulation: Simulation = module.Simulation(
            tiny.model, max_seqs=MAX_SEQS, max_loras=2, budget=BUDGET, step_s=STEP_S, **options
        )
        return simulation

    return make


@pytest.fixture
def simulation(simulate: Simulate) -> "Simulation":
    return simulate()


def _start_background(simulation: "Simulation", count: int, **options: Any) -> list[str]:
    names = [simulation.add(f"background-{index}", priority=10, **options) for index in range(count)]
    for _ in range(3):
        simulation.step()
    return names


def test_background_pauses_while_the_foreground_runs(simulation: "Simulation") -> None:
    background = _start_background(simulation, 2, answer=30)
    tokens = [list(request.all_token_ids) for request in simulation.scheduler.running]
    simulation.add("foreground", priority=0, answer=8)

    assert [simulation.step() for _ in range(8)] == [{"foreground"}] * 8
    assert [list(request.all_token_ids) for request in simulation.scheduler.running] == tokens
    assert simulation.step() == set(background)
    simulation.run()
    assert [simulation.tokens[name] for name in background] == [30, 30]
    assert simulation.is_idle()


def test_later_background_waits_in_the_queue(simulation: "Simulation") -> None:
    _start_background(simulation, 1, answer=30)
    simulation.add("foreground", priority=0, answer=8)
    simulation.step()
    simulation.add("late", priority=10)

    assert [simulation.step() for _ in range(7)] == [{"foreground"}] * 7
    assert simulation.scheduler.get_request_counts() == (1, 1)  # still counted as waiting
    assert simulation.step() == {"background-0", "late"}


def test_background_keeps_its_share_of_a_busy_engine(simulation: "Simulation") -> None:
    background = _start_background(simulation, 2, answer=1000)
    with_background = []
    for turn in range(300):
        if not any(request.priority == 0 for request in simulation.scheduler.running):
            simulation.add(f"foreground-{turn}", priority=0, answer=25)
        with_background.append(not simulation.step().isdisjoint(background))

    assert 0.08 < sum(with_background) / len(with_background) < 0.12
    longest_wait_s = (
        max(len(wait) for wait in "".join("x" if ran else " " for ran in with_background).split("x")) * STEP_S
    )
    assert longest_wait_s < 1.5


def test_foreground_takes_the_slot_of_the_last_background_request(simulation: "Simulation") -> None:
    background = _start_background(simulation, MAX_SEQS + 2, answer=100)
    assert len(simulation.scheduler.running) == MAX_SEQS
    simulation.add("foreground", priority=0, answer=5)

    assert simulation.run("foreground") <= 8
    assert [name for name in background if simulation.scheduler.requests[name].num_preemptions] == [
        f"background-{MAX_SEQS - 1}"
    ]
    simulation.run()
    assert {simulation.tokens[name] for name in background} == {100}
    assert simulation.is_idle()


def test_foreground_takes_the_kv_cache_of_background_requests(simulate: Simulate) -> None:
    simulation = simulate(kv_blocks=20)
    background = _start_background(simulation, 2, prompt=BUDGET, answer=60)
    for _ in range(50):
        simulation.step()
    assert simulation.scheduler.get_kv_cache_usage() > 0.7
    simulation.add("foreground", priority=0, prompt=120, answer=5)

    assert simulation.run("foreground") <= 12
    assert all(name in simulation.scheduler.requests for name in background)
    simulation.run()
    assert [simulation.tokens[name] for name in background] == [60, 60]
    assert simulation.is_idle()


def test_more_adapters_than_slots_take_turns(simulation: "Simulation") -> None:
    """With all of them in one step, an assertion in vLLM's own scheduler crashes the engine."""
    for lora in (1, 2):
        simulation.add(f"background-{lora}", priority=10, answer=40, lora=lora)
    simulation.step()
    for lora in (3, 4):
        simulation.add(f"foreground-{lora}", priority=0, answer=40, lora=lora)
    simulation.run()
    assert set(simulation.tokens.values()) == {40}
    assert simulation.is_idle()


def test_paused_and_preempted_requests_can_be_aborted(simulation: "Simulation") -> None:
    background = _start_background(simulation, MAX_SEQS + 1, answer=100)
    simulation.add("foreground", priority=0, answer=50)
    for _ in range(4):
        simulation.step()
    assert simulation.scheduler.requests[background[MAX_SEQS - 1]].num_preemptions == 1
    simulation.abort(*background)

    assert simulation.scheduler.get_request_counts() == (1, 0)
    simulation.run()
    assert simulation.tokens["foreground"] == 50
    assert simulation.is_idle()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_every_request_of_a_random_load_is_answered_in_full(simulate: Simulate, seed: int, in_flight: int) -> None:
    simulation = simulate(kv_blocks=40, seed=seed, in_flight=in_flight)
    rng = simulation.random
    answers: dict[str, int] = {}
    for turn in range(150):
        if rng.random() < 0.3:
            name, answer = f"request-{turn}", rng.randint(1, 60)
            answers[name] = answer
            simulation.add(
                name,
                priority=rng.choice([-1, 0, 0, 10, 10, 10, 20]),
                prompt=rng.randint(1, 150),
                answer=answer,
                lora=rng.choice([None, 1, 2, 3, 4]),
            )
        if rng.random() < 0.03 and simulation.scheduler.requests:
            name = rng.choice(sorted(simulation.scheduler.requests))
            simulation.abort(name)
            del answers[name]
        simulation.step()
    simulation.run()
    assert {name: simulation.tokens[name] for name in answers} == answers
    assert simulation.is_idle()
