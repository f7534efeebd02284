"""vLLM's own spans: they continue the trace of a request, and there are none for probes and rollouts."""

import asyncio
import time
from pathlib import Path

import pytest

from gadfly import tracing
from gadfly.engine_client import ACTOR, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.prompts import Message, Prompt
from tests.support.collectors import collector
from tests.support.engines import start_engine

PROMPT = Prompt(messages=(Message("user", "What is 2 + 2?"),), opener="")
SAMPLING = Sampling(max_tokens=4)
WARM_UP = 2  # requests of the engine's own, before it is ready: a critique and its verdict


@pytest.mark.engine
async def test_vllm_continues_the_trace(critic_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        engine = start_engine(critic_model, home=tmp_path)
        try:
            running.until(lambda _: len(running.named("llm_request")) == WARM_UP)
            running.spans.clear()
            tracing.start("service", running.environment)
            pool = EnginePool.connect([engine.url], timeout_s=60)
            with tracing.root("request"):
                await pool.chat(PROMPT, model=ACTOR, sampling=SAMPLING)
            with tracing.root("step"), tracing.unrecorded():
                await pool.chat(PROMPT, model=ACTOR, sampling=SAMPLING)
            await pool.probe(pool.members[0])
            await pool.aclose()
            tracing.stop()
            spans = running.until(lambda _: running.named("llm_request") != [])
            await asyncio.sleep(0.5)  # for a span of one of the others
            [chat] = running.named("chat base")
            [inside] = running.named("llm_request")
            assert (inside.parent_id, inside.trace_id, inside.service) == (chat.span_id, chat.trace_id, "gadfly-engine")
            assert inside.attributes["gen_ai.usage.completion_tokens"] == 4
            assert "gen_ai.latency.time_to_first_token" in inside.attributes
            assert not any(PROMPT.messages[0].content in str(span.attributes) for span in spans)
        finally:
            tracing.stop()
            engine.process.terminate()
            began = time.monotonic()
            engine.stop()
            assert time.monotonic() - began < 20
