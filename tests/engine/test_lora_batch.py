"""In a mixed batch, base rows and rows of two adapters get their own weights, within 1e-4 in float32.

The reference is transformers with peft. `test_without_plugin.py` shows that the comparison fails without the plugin.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from tests.support.engines import RunningEngine
from tests.support.tiny_models import Adapted

TOLERANCE = 1e-4
MODELS = ("base", "one", "two")
PROMPT_LENGTHS = (3, 40, 130)  # within one KV block of 32 tokens, over one, and over several
ANSWER_LENGTH = 24


@dataclass(frozen=True)
class Row:
    model: str
    prompt: list[int]
    answer: list[int]
    prompt_logprobs: list[float]  # of every token except the first
    answer_logprobs: list[float]


def _prompts() -> list[tuple[str, list[int]]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (model, torch.randint(3, 700, (length,), generator=generator).tolist())
        for length in PROMPT_LENGTHS
        for model in MODELS
    ]


async def answer_together(engine: RunningEngine) -> tuple[list[Row], float]:
    """The answers to all prompts, requested concurrently, and the engine's mean number of tokens per step."""
    async with engine.async_client() as client:

        async def ask(model: str, prompt: list[int]) -> Row:
            sampling: dict[str, Any] = {"max_tokens": ANSWER_LENGTH, "min_tokens": ANSWER_LENGTH}
            sampling |= {"temperature": 0, "logprobs": 0, "prompt_logprobs": 0}
            reply = await client.post(
                "/inference/v1/generate", json={"model": model, "token_ids": prompt, "sampling_params": sampling}
            )
            reply.raise_for_status()
            result = reply.json()
            [choice] = result["choices"]
            return Row(
                model=model,
                prompt=prompt,
                answer=choice["token_ids"],
                prompt_logprobs=[
                    entry[str(token)]["logprob"]
                    for token, entry in zip(prompt[1:], result["prompt_logprobs"][1:], strict=True)
                ],
                answer_logprobs=[entry["logprob"] for entry in choice["logprobs"]["content"]],
            )

        steps, tokens = _iterations(engine)
        rows = await asyncio.gather(*(ask(model, prompt) for model, prompt in _prompts()))
    later_steps, later_tokens = _iterations(engine)
    return list(rows), (later_tokens - tokens) / (later_steps - steps)


def _iterations(engine: RunningEngine) -> tuple[float, float]:
    """The engine's total numbers of steps and of tokens."""
    name = "vllm:iteration_tokens_total"
    return engine.metric(f"{name}_count"), engine.metric(f"{name}_sum")


def largest_error(tiny: Adapted, rows: list[Row]) -> dict[str, float]:
    """For each model, the largest difference between its log-probabilities and those of peft."""
    peft: Any = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tiny.model, dtype=torch.float32), tiny.adapters["one"], adapter_name="one"
    )
    peft.load_adapter(tiny.adapters["two"], adapter_name="two")
    errors = dict.fromkeys(MODELS, 0.0)
    for row in rows:
        if row.model != "base":
            peft.set_adapter(row.model)
            expected = _logprobs(peft, row)
        else:
            with peft.disable_adapter():
                expected = _logprobs(peft, row)
        measured = torch.tensor(row.prompt_logprobs + row.answer_logprobs)
        errors[row.model] = max(errors[row.model], (measured - expected).abs().max().item())
    return errors


@torch.no_grad()
def _logprobs(model: Any, row: Row) -> torch.Tensor:
    ids_T = torch.tensor(row.prompt + row.answer)
    logits_TV = model(input_ids=ids_T[None]).logits[0, :-1]
    logprobs_T: torch.Tensor = logits_TV.log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]
    return logprobs_T


async def test_every_row_of_a_mixed_batch_gets_its_own_weights(tiny: Adapted, tiny_engine: RunningEngine) -> None:
    rows, tokens_per_step = await answer_together(tiny_engine)

    assert tokens_per_step > len(MODELS)  # the requests shared steps
    errors = largest_error(tiny, rows)
    assert max(errors.values()) < TOLERANCE, errors
    # The adapters change the answers.
    answers = {(row.model, tuple(row.prompt)): row.answer for row in rows}
    for (model, prompt), answer in answers.items():
        assert all(
            answer != other
            for (name, other_prompt), other in answers.items()
            if other_prompt == prompt and name != model
        )
