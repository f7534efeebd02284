"""The benchmark's stand-in for an engine answers as the client expects, and passes the proof of sampling."""

import httpx
import pytest

from bench import instant_engine
from gadfly import prompts
from gadfly.critique import critique
from gadfly.engine_client import ACTOR, Engine, LabelWords, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.sampling_proof import prove_sampling
from gadfly.verdict import Verdict, VerdictSource


def answer(request: httpx.Request) -> httpx.Response:
    paths.append(request.url.path)
    status, content = instant_engine.answer(request.url.path, request.content)
    return httpx.Response(status, content=content)


paths: list[str] = []


async def test_a_critique_takes_one_request() -> None:
    engine = Engine("http://engine", timeout_s=5, transport=httpx.MockTransport(answer))
    pool, prompt_set = EnginePool([engine]), prompts.load("stepwise@1")
    await engine.label_tokens(LabelWords(":", prompt_set.correct, prompt_set.incorrect))  # asked for once
    paths.clear()
    [found] = await critique(
        pool, prompt_set, model=ACTOR, question="q", response="r", sampling=Sampling(max_tokens=200)
    )
    assert paths == ["/v1/chat/completions"]
    assert (found.verdict, found.verdict_source) == (Verdict.CORRECT, VerdictSource.STATED)
    assert found.p_correct == pytest.approx(1 / instant_engine.VOCABULARY)
    assert found.usage.completion_tokens == len(instant_engine.PIECES)


async def test_it_samples_as_it_reports() -> None:
    engine = Engine("http://engine", timeout_s=5, transport=httpx.MockTransport(answer))
    assert (await prove_sampling(engine, temperature=0.7)).p_value > 0.01
