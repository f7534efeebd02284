"""The service has its engines prove that they sample as they report, and says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx

from gadfly.engine_client import Engine
from gadfly.service.critics.sampling import SamplingProofs
from tests.support.sampling import FakeEngine


@asynccontextmanager
async def running(*fakes: FakeEngine) -> AsyncIterator[tuple[SamplingProofs, list[Engine]]]:
    engines = [
        Engine(f"http://user:secret@engine-{number}", timeout_s=5, transport=httpx.MockTransport(fake))
        for number, fake in enumerate(fakes)
    ]
    proofs = SamplingProofs(engines, temperature=0.7)
    task = asyncio.create_task(proofs.run())
    try:
        yield proofs, engines
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for engine in engines:
            await engine.aclose()


async def until(proofs: SamplingProofs, *, proven: int, faults: int) -> None:
    async with asyncio.timeout(10):
        while (proofs.proven, len(proofs.faults)) != (proven, faults):  # noqa: ASYNC110  # nothing to wait for
            await asyncio.sleep(0.02)


async def test_a_bent_engine_is_named_with_the_reason() -> None:
    async with running(FakeEngine(), FakeEngine(sharpen=2.0)) as (proofs, _):
        await until(proofs, proven=1, faults=1)
        [fault] = proofs.faults
        assert "engine-1: the engine does not sample the distribution that it reports" in fault
        assert "secret" not in fault


async def test_each_engine_proves_it_once_and_again_after_a_failed_connection() -> None:
    fake = FakeEngine(sharpen=2.0)
    async with running(fake) as (proofs, [engine]):
        await until(proofs, proven=0, faults=1)
        drawn = fake.draws
        await asyncio.sleep(1.2)
        assert fake.draws == drawn, "not again"
        fake.sharpen = 1.0
        engine.drops += 1  # another process may have taken its place
        await until(proofs, proven=1, faults=0)


async def test_an_engine_that_is_busy_is_asked_again() -> None:
    async with running(FakeEngine(failures=1)) as (proofs, _):
        await until(proofs, proven=1, faults=0)


async def test_readyz_says_so(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while True:
            ready = (await client.get("/readyz")).json()
            if ready["sampling"]["detail"].startswith("1 of 1"):
                break
            await asyncio.sleep(0.5)
    assert ready["sampling"]["ok"]
    assert ready["ready"]
