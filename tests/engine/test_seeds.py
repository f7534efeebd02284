"""A seed gives the same answer, whatever chunks the prompt is computed in."""

import httpx
import pytest

from tests.support.engines import RunningEngine

LONG_PROMPT = [3 + place % 600 for place in range(700)]  # three chunks of at most 256 tokens


def ask(engine: RunningEngine, model: str = "base", *, seed: int) -> httpx.Response:
    with engine.client() as client:
        return client.post(
            "/inference/v1/generate",
            json={
                "model": model,
                "token_ids": LONG_PROMPT,
                "sampling_params": {"max_tokens": 20, "temperature": 1.0, "seed": seed},
            },
        )


@pytest.mark.parametrize("model", ["base", "one"])
def test_a_long_prompt_with_a_seed_gives_the_same_answer_twice(tiny_engine: RunningEngine, model: str) -> None:
    in_chunks = ask(tiny_engine, model, seed=5).json()
    from_cache = ask(tiny_engine, model, seed=5).json()  # the prompt is cached now, except for its end
    other = ask(tiny_engine, model, seed=6).json()

    assert from_cache["usage"]["prompt_tokens_details"]["cached_tokens"] > len(LONG_PROMPT) - 256
    assert in_chunks["choices"][0]["token_ids"] == from_cache["choices"][0]["token_ids"]
    assert in_chunks["choices"][0]["token_ids"] != other["choices"][0]["token_ids"]
