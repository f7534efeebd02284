"""A stated verdict's probability from the sampling itself is that of a separate read, on a real engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gadfly import prompts
from gadfly.critique import critique
from gadfly.engine_client import Engine, LabelWords, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.prompts import PromptSet
from gadfly.records import Critique
from gadfly.verdict import Verdict, VerdictSource, parse_critique
from tests.support.engines import RunningEngine
from tests.support.tiny_models import random_adapter

TOLERANCE = 1e-3
PROMPTS = prompts.load("stepwise@1")
RESPONSES = ["Tom has 2 + 3 = 5. The answer is 5.", "Tom has 2 + 3 = 6. The answer is 6."]
MODELS = ("base", "one", "two")


@pytest.fixture(scope="module")
def running(
    critic_engine: RunningEngine, critic_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunningEngine:
    """An engine whose model states verdicts, with two adapters that change its probabilities."""
    home = tmp_path_factory.mktemp("verdicts")
    for seed, name in enumerate(MODELS[1:], start=1):
        critic_engine.load_adapter(name, random_adapter(home / name, model=critic_model, seed=seed, size=0.05))
    return critic_engine


@pytest.fixture
async def pool(running: RunningEngine) -> AsyncIterator[EnginePool]:
    pool = EnginePool([Engine(running.url, timeout_s=120)])
    yield pool
    await pool.aclose()


async def judged(pool: EnginePool, model: str, *, seed: int) -> tuple[str, tuple[Critique, ...]]:
    response = RESPONSES[seed % 2]
    sampling = Sampling(n=4, temperature=0.7, max_tokens=120, seed=seed)
    question = f"{seed}: Tom has 2 pens and buys 3. How many pens has he?"
    found = await critique(pool, PROMPTS, model=model, question=question, response=response, sampling=sampling)
    return question, found


async def read(
    pool: EnginePool, prompts: PromptSet, question: str, response: str, text: str, model: str
) -> list[float]:
    prompt = prompts.critique(question=question, response=response)
    end = parse_critique(text).verdict_end
    words = LabelWords(":", prompts.correct, prompts.incorrect)
    return list(await pool.read_labels(prompt.continued(text[:end]), model=model, labels=words))


async def test_it_equals_a_read_under_every_model_in_one_batch(pool: EnginePool) -> None:
    tasks = [judged(pool, model, seed=seed) for seed in range(4) for model in MODELS]
    answers = await asyncio.gather(*tasks)
    compared = dict.fromkeys(MODELS, 0)
    seen: list[float] = []
    for (question, critiques), (seed, model) in zip(
        answers, [(seed, model) for seed in range(4) for model in MODELS], strict=True
    ):
        for item in critiques:
            if item.stated is Verdict.UNPARSED:
                continue
            assert item.verdict_source is VerdictSource.STATED
            expected = await read(pool, PROMPTS, question, RESPONSES[seed % 2], item.text, model)
            assert [item.p_correct, item.p_incorrect] == pytest.approx(expected, abs=TOLERANCE)
            compared[model] += 1
            seen.append(expected[0])
    assert min(compared.values()) >= 4, compared
    assert max(seen) - min(seen) > 5 * TOLERANCE, "the probabilities differ among models and texts"


async def test_stated_verdicts_need_no_second_request(pool: EnginePool, running: RunningEngine) -> None:
    before = running.metric("vllm:request_success_total")
    _, critiques = await judged(pool, "base", seed=11)
    unstated = sum(item.stated is Verdict.UNPARSED for item in critiques)
    assert unstated < len(critiques)
    # The engine counts each sample of a request.
    assert running.metric("vllm:request_success_total") - before == len(critiques) + unstated


async def test_a_stream_has_the_same_probabilities(pool: EnginePool) -> None:
    async def ignore(sample: int, text: str) -> None:
        pass

    question, response = "Tom has 2 pens and buys 3. How many pens has he?", RESPONSES[0]
    whole, streamed = [
        await critique(
            pool, PROMPTS, model="one", question=question, response=response,
            sampling=Sampling(max_tokens=120), on_text=on_text,
        )
        for on_text in (None, ignore)
    ]  # fmt: skip
    assert [item.text for item in streamed] == [item.text for item in whole]
    for one, two in zip(whole, streamed, strict=True):
        assert (one.p_correct, one.p_incorrect) == pytest.approx((two.p_correct, two.p_incorrect), abs=TOLERANCE)
        assert one.stated is not Verdict.UNPARSED
        assert one.usage == two.usage


async def test_top_logprobs_beside_it_spoil_nothing(pool: EnginePool, running: RunningEngine) -> None:
    """In one batch: critiques, a request for the likeliest tokens, and one for the sampled tokens."""
    async with running.async_client() as client:

        async def ask(top: int) -> list[tuple[float, list[tuple[str, float]]]]:
            body = {
                "model": "base",
                "messages": [{"role": "user", "content": "Tom has 2 pens."}],
                "max_tokens": 60, "temperature": 0, "logprobs": True, "top_logprobs": top,
            }  # fmt: skip
            answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            content = answer.json()["choices"][0]["logprobs"]["content"]
            return [
                (
                    round(item["logprob"], 3),
                    [(each["token"], round(each["logprob"], 3)) for each in item["top_logprobs"]],
                )
                for item in content
            ]

        alone = [await ask(top) for top in (0, 2)]
        _, expected = await judged(pool, "base", seed=5)
        (_, found), *together = await asyncio.gather(judged(pool, "base", seed=5), ask(0), ask(2))
    assert [item.text for item in found] == [item.text for item in expected]
    for one, two in zip(found, expected, strict=True):
        assert (one.p_correct, one.p_incorrect) == pytest.approx((two.p_correct, two.p_incorrect), abs=TOLERANCE)
    assert {len(top) for _, top in alone[0]} == {0}
    assert {len(top) for _, top in alone[1]} == {2}
    assert together == alone
