"""A real engine end to end: foreground before background, disconnects, adapters, shutdown."""

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
    """The tokens of an answer with their log-probabilities, which two equal runs share to the last bit."""
    reply = await client.post("/inference/v1/generate", json=body)
    reply.raise_for_status()
    [choice] = reply.json()["choices"]
    return [(entry["token_id"], entry["logprob"]) for entry in choice["logprobs"]["content"]]


@asynccontextmanager
async def _background(
    client: httpx.AsyncClient, count: int, *, tokens: int, models: tuple[str, ...] = ("base",)
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Background requests, all of them admitted or waiting; those that still run at the end are dropped."""
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
        assert time.monotonic() < deadline, f"the engine is still at work: {values}"
        await asyncio.sleep(0.1)


@pytest.fixture
async def client(tiny_engine: RunningEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with tiny_engine.async_client() as client:
        yield client
    await _wait_until_idle(tiny_engine, timeout_s=10)


async def test_background_answers_are_the_same_with_and_without_interruption(client: httpx.AsyncClient) -> None:
    models = ("base", "one", "two")
    async with _background(client, 4, tokens=300, models=models) as tasks:
        undisturbed = await asyncio.gather(*tasks)

    async with _background(client, 4, tokens=300, models=models) as tasks:
        for seed in range(6):
            assert len(await _generate(client, _body(tokens=25, seed=seed))) == 25
        assert not any(task.done() for task in tasks)
        interrupted = await asyncio.gather(*tasks)

    assert interrupted == undisturbed


async def test_foreground_gets_through_a_full_engine(client: httpx.AsyncClient, tiny_engine: RunningEngine) -> None:
    """Six run at a time; the seventh takes a slot, and who lost it is answered all the same."""
    preemptions = tiny_engine.metric("vllm:num_preemptions_total")
    async with _background(client, 9, tokens=250) as tasks:
        await _generate(client, _body(tokens=20))
        assert not any(task.done() for task in tasks)
        answers = await asyncio.gather(*tasks)
    assert [len(answer) for answer in answers] == [250] * 9
    assert tiny_engine.metric("vllm:num_preemptions_total") > preemptions


async def test_background_goes_on_while_the_foreground_never_ends(client: httpx.AsyncClient) -> None:
    async def keep_asking() -> None:
        while True:
            await _generate(client, _body(tokens=100))

    async with _background(client, 2, tokens=20) as tasks:
        foreground = asyncio.create_task(keep_asking())
        await asyncio.wait_for(asyncio.gather(*tasks), timeout=60)
        assert not foreground.done()
        foreground.cancel()
        with suppress(asyncio.CancelledError):
            await foreground


async def test_requests_dropped_while_they_sit_out_leave_nothing(
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
async def test_a_caller_who_leaves_frees_the_engine(
    client: httpx.AsyncClient, tiny_engine: RunningEngine, stream: bool
) -> None:
    task = asyncio.create_task(_generate(client, _body(tokens=3000, stream=stream)))
    await asyncio.sleep(0.5)
    assert tiny_engine.metric("vllm:num_requests_running") == 1
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await _wait_until_idle(tiny_engine, timeout_s=5)


async def test_adapters_come_and_go_while_requests_run(
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
    """Two slots: held background requests on both, and a foreground request on a third adapter."""
    tiny_engine.load_adapter("three", tiny.adapters["one"])
    async with _background(client, 4, tokens=200, models=("one", "two")) as tasks:
        await _generate(client, _body("three", tokens=20))
        answers = await asyncio.gather(*tasks)
    tiny_engine.unload_adapter("three")
    assert [len(answer) for answer in answers] == [200] * 4


async def test_prompt_logprobs_of_any_model(client: httpx.AsyncClient) -> None:
    """Once a request for these ended the engine: vLLM had wrapped lm_head for adapters."""
    for model in ("base", "one"):
        body = _body(model, tokens=1)
        body["sampling_params"]["prompt_logprobs"] = 0
        reply = await client.post("/inference/v1/generate", json=body)
        assert len(reply.json()["prompt_logprobs"]) == len(body["token_ids"])


async def test_it_ends_on_request_after_the_last_answer(tiny: Adapted, tmp_path: Path) -> None:
    with start_engine(tiny.model, home=tmp_path, environ={"GADFLY_ENGINE_MAX_QUEUED": "2"}) as engine:
        async with engine.async_client() as client:
            answers = [asyncio.create_task(_generate(client, _body(tokens=500, seed=seed))) for seed in (1, 2)]
            # One that is still on its way to vLLM's core when it is told to end is aborted, not answered.
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
