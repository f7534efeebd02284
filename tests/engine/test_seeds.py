"""A seed means the same answer, whatever pieces the prompt is computed in."""

import httpx
import pytest

from tests.support.engines import RunningEngine

LONG_PROMPT = [3 + place % 600 for place in range(700)]  # three pieces of at most 256 tokens


def _ask(engine: RunningEngine, model: str = "base", *, seed: int) -> httpx.Response:
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
def test_a_long_prompt_with_a_seed_is_answered_and_again_the_same(tiny_engine: RunningEngine, model: str) -> None:
    in_pieces = _ask(tiny_engine, model, seed=5).json()
    in_one = _ask(tiny_engine, model, seed=5).json()  # all but the end of the prompt is cached now
    other = _ask(tiny_engine, model, seed=6).json()

    assert in_one["usage"]["prompt_tokens_details"]["cached_tokens"] > len(LONG_PROMPT) - 256
    assert in_pieces["choices"][0]["token_ids"] == in_one["choices"][0]["token_ids"]
    assert in_pieces["choices"][0]["token_ids"] != other["choices"][0]["token_ids"]


def test_without_the_plugin_it_ends_the_engine(bare_engine: RunningEngine) -> None:
    """Once vLLM answers here, `engine/cpu_seeds.py` can go."""
    assert _ask(bare_engine, seed=5).status_code == httpx.codes.INTERNAL_SERVER_ERROR
    bare_engine.process.wait(30)
    assert "CPU Generator does not use offset" in bare_engine.log_tail(200)
