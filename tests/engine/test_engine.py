"""A real engine end to end: foreground first, disconnects, adapters, shutdown."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.engines import EngineDidNotStart, RunningEngine, start_engine
from tests.support.tiny_models import Adapted

BACKGROUND = 10


def _body(model: str = "base", *, priority: int = 0, tokens: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    sampling = {"max_tokens": tokens, "min_tokens": tokens, "temperature": 1.0, "seed": seed, "logprobs": 0}
    prompt = [3 + (7 * seed + place) % 600 for place in range(20)]
    return {"model": model, "token_ids": prompt, "priority": priority, "sampling_params": sampling, **more}


async def _generate(client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
    """The tokens of an answer with their log-probabilities, bitwise equal in two equal runs."""
    reply = await client.post("/inference/v1/generate", json=body)
    reply.raise_for_status()
    [choice] = reply.json()["choices"]
    return [(entry["token_id"], entry["logprob"]) for entry in choice["logprobs"]["content"]]


@asynccontextmanager
async def _background(
    client: httpx.AsyncClient, count: int, *, tokens: int, models: tuple[str, ...] = ("base",)
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Background requests, all admitted or waiting on entry; unfinished ones are cancelled on exit."""
    tasks = [
        asyncio.create_task(
            _generate(client, _body(models[index % len(models)], priority=BACKGROUND, tokens=tokens, seed=100 + index))
        )
        for index in range(count)
    ]
    await asyncio.sleep(0.3)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_until_idle(engine: RunningEngine, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    while any(values := {name: engine.metric(name) for name in names if engine.metric(name)}):
        assert time.monotonic() < deadline, f"the engine is still busy: {values}"
        await asyncio.sleep(0.1)


@pytest.fixture
async def client(tiny_engine: RunningEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with tiny_engine.async_client() as client:
        yield client
    await _wait_until_idle(tiny_engine, timeout_s=10)


async def test_background_answers_are_the_same_with_and_without_interruption(client: httpx.AsyncClient) -> None:
    models = ("base", "one", "two")
    async with _background(client, 4, tokens=300, models=models) as tasks:
        uninterrupted = await asyncio.gather(*tasks)

    async with _background(client, 4, tokens=300, models=models) as tasks:
        for seed in range(6):
            assert len(await _generate(client, _body(tokens=25, seed=seed))) == 25
        assert not any(task.done() for task in tasks)
        interrupted = await asyncio.gather(*tasks)

    assert interrupted == uninterrupted


async def test_foreground_gets_through_a_full_engine(client: httpx.AsyncClient, tiny_engine: RunningEngine) -> None:
    """Six requests run at a time; a foreground request takes a slot, and the preempted request is still answered."""
    preemptions = tiny_engine.metric("vllm:num_preemptions_total")
    async with _background(client, 9, tokens=250) as tasks:
        await _generate(client, _body(tokens=20))
        assert not any(task.done() for task in tasks)
        answers = await asyncio.gather(*tasks)
    assert [len(answer) for answer in answers] == [250] * 9
    assert tiny_engine.metric("vllm:num_preemptions_total") > preemptions


async def test_background_progresses_under_constant_foreground(client: httpx.AsyncClient) -> None:
    async def send_without_pause() -> None:
        while True:
            await _generate(client, _body(tokens=100))

    async with _background(client, 2, tokens=20) as tasks:
        foreground = asyncio.create_task(send_without_pause())
        await asyncio.wait_for(asyncio.gather(*tasks), timeout=60)
        assert not foreground.done()
        foreground.cancel()
        with suppress(asyncio.CancelledError):
            await foreground


async def test_requests_cancelled_during_a_pause_are_removed(
    client: httpx.AsyncClient, tiny_engine: RunningEngine
) -> None:
    async with _background(client, 8, tokens=3000) as tasks:
        foreground = asyncio.create_task(_generate(client, _body(tokens=400)))
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        assert len(await foreground) == 400
    await _wait_until_idle(tiny_engine, timeout_s=5)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_frees_the_engine(
    client: httpx.AsyncClient, tiny_engine: RunningEngine, stream: bool
) -> None:
    task = asyncio.create_task(_generate(client, _body(tokens=3000, stream=stream)))
    await asyncio.sleep(0.5)
    assert tiny_engine.metric("vllm:num_requests_running") == 1
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await _wait_until_idle(tiny_engine, timeout_s=5)


async def test_adapters_are_loaded_and_unloaded_while_requests_run(
    client: httpx.AsyncClient, tiny_engine: RunningEngine, tiny: Adapted
) -> None:
    expected = await _generate(client, _body("one", tokens=200))
    running = asyncio.create_task(_generate(client, _body("one", tokens=200)))
    await asyncio.sleep(0.1)
    tiny_engine.load_adapter("one@2", tiny.adapters["two"])
    second = await _generate(client, _body("one@2", tokens=20))
    tiny_engine.unload_adapter("one@2")

    assert await running == expected
    assert second == (await _generate(client, _body("two", tokens=20)))
    refused = await client.post("/inference/v1/generate", json=_body("one@2", tokens=1))
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "NotFoundError")


async def test_more_adapters_than_slots_are_all_answered(
    client: httpx.AsyncClient, tiny_engine: RunningEngine, tiny: Adapted
) -> None:
    """Two slots with paused background requests, and a foreground request for a third adapter."""
    tiny_engine.load_adapter("three", tiny.adapters["one"])
    async with _background(client, 4, tokens=200, models=("one", "two")) as tasks:
        await _generate(client, _body("three", tokens=20))
        answers = await asyncio.gather(*tasks)
    tiny_engine.unload_adapter("three")
    assert [len(answer) for answer in answers] == [200] * 4


async def test_prompt_logprobs_of_any_model(client: httpx.AsyncClient) -> None:
    """Regression: such a request crashed the engine, because vLLM wrapped lm_head for adapters."""
    for model in ("base", "one"):
        body = _body(model, tokens=1)
        body["sampling_params"]["prompt_logprobs"] = 0
        reply = await client.post("/inference/v1/generate", json=body)
        assert len(reply.json()["prompt_logprobs"]) == len(body["token_ids"])


@pytest.mark.engine
async def test_sigterm_drains_requests_in_flight(tiny: Adapted, tmp_path: Path) -> None:
    with start_engine(tiny.model, home=tmp_path, environ={"GADFLY_ENGINE_MAX_QUEUED": "2"}) as engine:
        async with engine.async_client() as client:
            answers = [asyncio.create_task(_generate(client, _body(tokens=500, seed=seed))) for seed in (1, 2)]
            # A request that has not reached vLLM's core at SIGTERM is aborted.
            while engine.metric("vllm:num_requests_running") < len(answers):  # noqa: ASYNC110  # no event to wait for
                await asyncio.sleep(0.02)
            refused = await client.post("/inference/v1/generate", json=_body(tokens=1))
            assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
            engine.process.terminate()
            assert [len(await answer) for answer in answers] == [500, 500]
        assert engine.stop() == 0


def test_an_engine_that_fails_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(EngineDidNotStart, match="ended with status 1:\nerror: There is no model folder"):
        start_engine(tmp_path / "nothing", home=tmp_path / "home")
