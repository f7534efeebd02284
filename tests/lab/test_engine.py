"""The lab's engine gives the results of transformers and peft, through the client for vLLM."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gadfly import prompts
from gadfly.concurrency import gather
from gadfly.engine_client import ACTOR, LabelWords, Reply, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import AdapterRefused, EngineUnavailable, PromptTooLong
from gadfly.lab.engine import Generation, Generator, connect
from gadfly.prompts import Message, Prompt
from tests.support import tiny_models

PROMPTS = prompts.load("bare@1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.random_model(tmp_path_factory.mktemp("lab") / "model")


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    return tiny_models.random_adapter(model.parent / "adapter", model=model, seed=1)


@pytest.fixture
async def pool(model: Path) -> AsyncIterator[EnginePool]:
    pool = EnginePool([connect(Generator(str(model), device="cpu"))])
    yield pool
    await pool.aclose()


def prompt_of(number: int) -> Prompt:
    return PROMPTS.critique(question=f"What is {number} + {number}? " * (1 + number % 3), response=f"{2 * number}.")


def expected_logprobs(model: torch.nn.Module, reply: Reply) -> list[float]:
    ids = torch.tensor([[*reply.prompt_tokens, *reply.tokens]])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(reply.prompt_tokens)
    return [float(logprobs[start + place - 1, token]) for place, token in enumerate(reply.tokens)]


async def test_a_batch_has_the_log_probabilities_of_each_request_alone(
    pool: EnginePool, model: Path, adapter: Path
) -> None:
    await pool.members[0].load_adapter("critic@1", adapter)
    sampling = Sampling(n=3, temperature=0.7, max_tokens=24, seed=5, with_tokens=True)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    # peft changes its model in place, so each has its own.
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), str(adapter))
    for name, reference in ((ACTOR, base), ("critic@1", adapted)):
        found = await gather(*(pool.chat(prompt_of(number), model=name, sampling=sampling) for number in range(6)))
        for replies in found:
            assert len({reply.tokens for reply in replies}) > 1, "samples differ"
            for reply in replies:
                assert reply.logprobs == pytest.approx(expected_logprobs(reference, reply), abs=1e-4)


async def test_a_sample_depends_on_its_seed_and_not_on_its_batch(pool: EnginePool) -> None:
    sampling = Sampling(n=2, temperature=1.0, max_tokens=16, seed=9)
    alone = await pool.chat(prompt_of(1), model=ACTOR, sampling=sampling)
    crowd = await gather(*(pool.chat(prompt_of(number), model=ACTOR, sampling=sampling) for number in (1, 2, 3, 4)))
    assert [reply.text for reply in crowd[0]] == [reply.text for reply in alone]


async def test_finished_samples_are_taken_out_and_the_others_stay_the_same(model: Path) -> None:
    generator = Generator(str(model), device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    prompts = [tuple(range(10, 12 + 3 * number)) for number in range(8)]
    requests = [
        Generation(ACTOR, prompt, 1 + number % 2, limit, 0.8, seed=number, labels=())
        for number, (prompt, limit) in enumerate(zip(prompts, (1, 2, 90, 3, 100, 4, 5, 6), strict=True))
    ]
    together = generator.generate(requests)
    for request, replies in zip(requests, together, strict=True):
        [alone] = generator.generate([request])
        assert [reply.tokens for reply in replies] == [reply.tokens for reply in alone]
        for reply in replies:
            assert len(reply.tokens) == request.max_tokens or reply.is_stopped
            ids = torch.tensor([[*request.prompt, *reply.tokens]])
            with torch.no_grad():
                logprobs = reference(input_ids=ids).logits[0].log_softmax(-1)
            start = len(request.prompt) - 1
            expected = [float(logprobs[start + place, token]) for place, token in enumerate(reply.tokens)]
            assert reply.logprobs == pytest.approx(expected, abs=1e-4)
    assert max(len(reply.tokens) for replies in together for reply in replies) > 64, "the cache grows once"


async def test_probabilities_of_verdict_words_are_over_the_whole_vocabulary(pool: EnginePool, model: Path) -> None:
    prompt = prompt_of(3).continued("Step sentence: 6.\nCorrectness of the final answer:")
    words = LabelWords(":", "Correct", "Wrong")
    p_correct, p_wrong = await pool.read_labels(prompt, model=ACTOR, labels=words)
    [reply] = await pool.chat(prompt, model=ACTOR, sampling=Sampling(max_tokens=1, with_tokens=True))
    labels = await pool.members[0].label_tokens(words)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logprobs = reference(input_ids=torch.tensor([reply.prompt_tokens])).logits[0, -1].log_softmax(-1)
    assert math.log(p_correct) == pytest.approx(float(logprobs[labels.first]), abs=1e-4)
    assert math.log(p_wrong) == pytest.approx(float(logprobs[labels.second]), abs=1e-4)


async def test_errors_are_those_of_vllm(pool: EnginePool, adapter: Path, tmp_path: Path) -> None:
    engine = pool.members[0]
    assert await engine.load_adapter("critic@1", adapter)
    assert not await engine.load_adapter("critic@1", adapter), "it is served already"
    assert await engine.models() == {ACTOR, "critic@1"}
    with pytest.raises(AdapterRefused):
        await engine.load_adapter("critic@2", tmp_path)
    with pytest.raises(EngineUnavailable):
        await engine.chat(prompt_of(1), model="critic@2", sampling=Sampling())
    with pytest.raises(PromptTooLong):
        await engine.chat(Prompt((Message("user", "word " * 20_000),)), model=ACTOR, sampling=Sampling())
    await engine.unload_adapter("critic@1")
    assert await engine.models() == {ACTOR}
    assert await engine.probe() > 0
