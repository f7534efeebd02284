"""The engine samples from the model's own distribution, whatever its generation_config.json contains."""

import json
import shutil
from pathlib import Path

import httpx
import orjson
import pytest

from gadfly import prompts
from gadfly.engine_client import ACTOR, Engine, Reply, Sampling
from gadfly.errors import WrongSampling
from gadfly.sampling_proof import prove_sampling
from tests.support.engines import RunningEngine, launch_engine, wait_until_ready
from tests.support.tiny_models import Adapted

# As published for Qwen2.5-7B-Instruct, with stronger top_k and penalty, which show in a model of random weights.
PUBLISHED = {"temperature": 0.7, "top_p": 0.8, "top_k": 1, "repetition_penalty": 2.0, "max_new_tokens": 4}
PROMPT = prompts.load("bare@1").solve(question="What is 2 + 2?")
SAMPLED = Sampling(n=16, temperature=1.0, seed=0, max_tokens=12)
GREEDY = Sampling(max_tokens=12)

pytestmark = pytest.mark.timeout(600)


async def ask(running: RunningEngine, sampling: Sampling) -> tuple[Reply, ...]:
    engine = Engine(running.url, timeout_s=60)
    try:
        return await engine.chat(PROMPT, model=ACTOR, sampling=sampling)
    finally:
        await engine.aclose()


class Careless(httpx.AsyncBaseTransport):
    """Sends requests without the neutral values, as other clients do."""

    def __init__(self, url: str) -> None:
        self._inner = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix://"))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        if request.url.path == "/v1/chat/completions":
            body = orjson.loads(content)
            content = orjson.dumps({name: value for name, value in body.items() if name not in PUBLISHED})
        headers = {"content-type": "application/json", "host": "engine"}
        return await self._inner.handle_async_request(
            httpx.Request(request.method, request.url, headers=headers, content=content, extensions=request.extensions)
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


async def prove(engine: Engine) -> None:
    try:
        await prove_sampling(engine, temperature=0.7)
    finally:
        await engine.aclose()


async def texts(running: RunningEngine) -> tuple[list[str], str]:
    """Sixteen samples at temperature 1, and the greedy reply."""
    [greedy] = await ask(running, GREEDY)
    return [reply.text for reply in await ask(running, SAMPLED)], greedy.text


async def test_a_models_sampling_defaults_change_nothing(
    tiny: Adapted, tiny_engine: RunningEngine, tmp_path: Path
) -> None:
    opinionated = tmp_path / "opinionated"
    shutil.copytree(tiny.model, opinionated)
    config = opinionated / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | PUBLISHED))

    environ = {"GADFLY_ENGINE_MAX_NUM_SEQS": "6"}  # as in `tiny_engine`: the same batches give the same rounding
    with (
        launch_engine(opinionated, home=tmp_path / "second", environ=environ) as second,
        # vLLM uses the last of two equal flags: this restores vLLM's default.
        launch_engine(
            opinionated, home=tmp_path / "third", environ=environ, extra_args="--generation-config auto"
        ) as third,
    ):
        wait_until_ready(second, third)
        expected = await texts(tiny_engine)
        assert len(set(expected[0])) > 8, "samples at temperature 1 differ"
        assert await texts(second) == expected, "an engine that Gadfly starts"

        with third.client() as client:
            body = {"model": "base", "messages": [{"role": "user", "content": "2 + 2?"}], "n": 16, "max_tokens": 12}
            choices = client.post("/v1/chat/completions", json=body).json()["choices"]
            assert len({choice["message"]["content"] for choice in choices}) == 1, "there the file applies"
        await prove(Engine(third.url, timeout_s=60))
        with pytest.raises(WrongSampling, match="does not take the likeliest token"):
            await prove(Engine(third.url, timeout_s=60, transport=Careless(third.url)))
        sampled, greedy = await texts(third)
        # The server applies the length limit and no request can lift it, so only the prefixes can be equal.
        assert len(set(sampled)) > 8
        assert expected[1].startswith(greedy)
        for text, whole in zip(sampled, expected[0], strict=True):
            assert whole.startswith(text)
