"""Rollouts go only to engines that have proven that they sample as they report."""

from uuid import uuid4

import httpx
import pytest

from gadfly.engine_client import Engine
from gadfly.engine_fleet import EngineFleet
from gadfly.engine_pool import EnginePool
from gadfly.errors import WrongSampling
from gadfly.sampling_proof import DRAWS
from gadfly.trainer.engines import RunEngines
from tests.support.sampling import FakeEngine


def run_engines(*fakes: FakeEngine, temperature: float | None = 0.7) -> RunEngines:
    members = [
        Engine(f"http://engine-{number}", timeout_s=5, transport=httpx.MockTransport(fake))
        for number, fake in enumerate(fakes)
    ]
    return RunEngines(EnginePool(members), uuid4(), 32, patience_s=5, temperature=temperature)


async def test_an_engine_that_bends_sampling_gets_no_rollouts() -> None:
    engines = run_engines(FakeEngine(sharpen=2.0), FakeEngine())
    await engines.prove_sampling()
    assert [engine.url for engine in engines.pool.members] == ["http://engine-1"]
    assert engines.at_once(samples=4) == 8, "the engines that are left count"


async def test_without_any_other_engine_the_run_ends_with_the_reason() -> None:
    engines = run_engines(FakeEngine(sharpen=2.0))
    with pytest.raises(WrongSampling, match="no engine can be used for rollouts: the engine does not sample"):
        await engines.prove_sampling()


async def test_an_engine_proves_it_again_only_after_a_failed_connection() -> None:
    fake = FakeEngine()
    engines = run_engines(fake)
    await engines.prove_sampling()
    await engines.prove_sampling()
    assert fake.draws == 2 * DRAWS
    engines.pool.members[0].drops += 1
    await engines.prove_sampling()
    assert fake.draws == 4 * DRAWS


async def test_a_busy_engine_is_waited_for() -> None:
    engines = run_engines(FakeEngine(failures=2))
    await engines.prove_sampling()
    assert len(engines.pool.members) == 1


async def test_an_engine_that_comes_back_at_another_address_is_found_and_proven() -> None:
    fakes = {"http://old": FakeEngine(), "http://new": FakeEngine()}
    hosts = ["http://old"]

    async def resolve(name: str) -> frozenset[str]:
        return frozenset(hosts)

    def answer(request: httpx.Request) -> httpx.Response:
        url = f"http://{request.url.host}"
        if url not in hosts:
            raise httpx.ConnectError("gone")
        return fakes[url](request)

    fleet = EngineFleet(
        ["dns+http://engine"],
        lambda url, _: Engine(url, timeout_s=5, transport=httpx.MockTransport(answer)),
        resolve=resolve,
    )
    await fleet.look()
    engines = RunEngines(EnginePool(fleet), uuid4(), 32, patience_s=30, temperature=0.7, fleet=fleet)
    await engines.prove_sampling()
    hosts[:] = ["http://new"]
    assert await engines.patiently(lambda: engines.pool.members[0].token_ids("a rollout"))
    assert [engine.url for engine in engines.pool.members] == ["http://new"]
    assert fakes["http://new"].draws == fakes["http://old"].draws == 2 * DRAWS, (
        "it proves that it samples as it reports"
    )
    await fleet.aclose()


async def test_the_lab_has_no_rollouts_to_prove() -> None:
    fake = FakeEngine()
    await run_engines(fake, temperature=None).prove_sampling()
    assert fake.draws == 0
