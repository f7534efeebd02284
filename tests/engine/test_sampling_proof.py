"""A real engine proves that it samples as it reports, and one whose requests are bent on their way does not."""

from collections.abc import Mapping
from typing import Any

import httpx
import orjson
import pytest

from gadfly.engine_client import Engine
from gadfly.errors import WrongSampling
from gadfly.sampling_proof import DRAWS, SamplingProof, prove_sampling
from tests.support.engines import RunningEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


class Bending(httpx.AsyncBaseTransport):
    """Changes the options of each request that draws, as defaults of an engine or a proxy would."""

    def __init__(self, url: str, changes: Mapping[str, Any]) -> None:
        self._inner = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix://"))
        self._changes = changes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/chat/completions":
            return await self._inner.handle_async_request(request)
        body = orjson.loads(await request.aread())
        changes = {name: value for name, value in self._changes.items() if name != "temperature" or body[name] > 0}
        content = orjson.dumps(body | changes)
        headers = {"content-type": "application/json", "host": "engine"}
        return await self._inner.handle_async_request(
            httpx.Request("POST", request.url, headers=headers, content=content, extensions=request.extensions)
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


async def prove(running: RunningEngine, changes: Mapping[str, Any], *, temperature: float = 0.7) -> SamplingProof:
    engine = Engine(running.url, timeout_s=60, transport=Bending(running.url, changes))
    try:
        return await prove_sampling(engine, temperature=temperature)
    finally:
        await engine.aclose()


@pytest.mark.parametrize("temperature", [0.7, 0.0, 1.0, 1.5])
async def test_an_engine_proves_that_it_samples_as_it_reports(tiny_engine: RunningEngine, temperature: float) -> None:
    proof = await prove(tiny_engine, {}, temperature=temperature)
    assert proof.draws == 2 * DRAWS
    assert proof.p_value > 0.01


BENT: list[tuple[dict[str, Any], str]] = [
    ({"top_k": 1}, "as with top_k 1"),
    ({"top_k": 20}, "were never drawn, as with top_p, top_k or min_p"),
    ({"top_p": 0.8}, "were never drawn, as with top_p, top_k or min_p"),
    ({"min_p": 0.1}, "were never drawn, as with top_p, top_k or min_p"),
    ({"repetition_penalty": 1.05}, "does not take the likeliest token at temperature 0: it applies a penalty"),
    ({"temperature": 0.5}, "the frequencies of its tokens differ, as with another temperature|were never drawn"),
    ({"top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}, "penalty"),  # as published for Qwen2.5-7B-Instruct
]


@pytest.mark.parametrize(("changes", "reason"), BENT, ids=[str(changes) for changes, _ in BENT])
async def test_bent_sampling_is_seen(tiny_engine: RunningEngine, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(WrongSampling, match=reason):
        await prove(tiny_engine, changes)
