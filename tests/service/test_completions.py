"""/v1/completions as OpenAI's unmodified client sees it, on a real engine and a real database."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from gadfly.service.wire.completions import CompletionLogprobs
from tests.service.conftest import QUESTION

ASK: dict[str, Any] = {"model": "actor", "prompt": QUESTION, "max_tokens": 16, "temperature": 0}


@pytest.fixture
async def ai(client: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as ai:
        yield ai


async def test_a_prompt_is_answered_like_a_users_turn(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    answer = await ai.completions.create(**ASK)
    chat = await ai.chat.completions.create(
        model="actor", messages=[{"role": "user", "content": QUESTION}], max_tokens=16, temperature=0
    )
    [choice] = answer.choices
    assert answer.object == "text_completion"
    assert choice.text == chat.choices[0].message.content
    assert choice.finish_reason == chat.choices[0].finish_reason
    assert answer.usage == chat.usage
    id = answer.model_extra["gadfly"]["interaction_id"]
    stored = (await client.get(f"/interactions/{id}")).json()
    assert (stored["kind"], stored["question"], stored["response"]) == ("chat", QUESTION, choice.text)
    assert answer.id == f"cmpl-{id}"


async def test_streams_several_seeded_choices_with_usage(ai: AsyncOpenAI) -> None:
    options = ASK | {"n": 2, "temperature": 1.0, "seed": 7}
    plain = await ai.completions.create(**options)
    texts = {0: "", 1: ""}
    reasons: dict[int, str | None] = {}
    usage = None
    async for chunk in await ai.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in plain.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in plain.choices}
    assert usage == plain.usage


async def test_log_probabilities_are_those_of_the_engine(ai: AsyncOpenAI) -> None:
    answer = await ai.completions.create(**ASK, logprobs=0)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert "".join(found.tokens).startswith(answer.choices[0].text), "and perhaps a token that ends the turn"
    assert found.text_offset == [len("".join(found.tokens[:place])) for place in range(len(found.tokens))]
    assert all(value <= 0 for value in found.token_logprobs or ())
    streamed: list[str] = []
    offsets: list[int] = []
    async for chunk in await ai.completions.create(**ASK, logprobs=0, stream=True):
        for choice in chunk.choices:
            if choice.logprobs is not None:
                streamed += choice.logprobs.tokens or []
                offsets += choice.logprobs.text_offset or []
    assert (streamed, offsets) == (found.tokens, found.text_offset)


async def test_a_refined_answer_and_a_list_with_one_prompt(ai: AsyncOpenAI) -> None:
    answer = await ai.completions.create(model="refined", prompt=[QUESTION], max_tokens=40, temperature=0)
    assert answer.choices[0].text
    assert answer.model_extra["gadfly"]["critic"]["version"] == 0


REFUSED: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
    ({"model": "gpt-5"}, openai.NotFoundError, "no such model"),
    ({"model": "critic"}, openai.BadRequestError, "nothing to judge"),
    ({"prompt": " "}, openai.BadRequestError, "a blank prompt"),
    ({"prompt": ["a", "b"]}, openai.BadRequestError, "two prompts"),
    ({"prompt": [1, 2]}, openai.BadRequestError, "token ids"),
    ({"echo": True}, openai.BadRequestError, "echo"),
    ({"best_of": 3}, openai.BadRequestError, "best_of"),
    ({"extra_body": {"tempreature": 1}}, openai.BadRequestError, "a typo"),
]


@pytest.mark.parametrize(("change", "error", "why"), REFUSED, ids=[row[2] for row in REFUSED])
async def test_refusals_have_openais_shape(
    ai: AsyncOpenAI, change: dict[str, Any], error: type[openai.APIStatusError], why: str
) -> None:
    with pytest.raises(error) as refused:
        await ai.completions.create(**ASK | change)
    assert refused.value.body["message"], why  # type: ignore[index]  # the SDK's body of an error is any object


def test_log_probabilities_in_the_form_of_completions() -> None:
    content = [
        {"token": "The", "logprob": -0.5, "top_logprobs": [{"token": "The", "logprob": -0.5}]},
        {"token": " é", "logprob": -1.0, "top_logprobs": []},
    ]
    found = CompletionLogprobs.of({"content": content}, offset=4)
    assert found == CompletionLogprobs(
        tokens=["The", " é"], token_logprobs=[-0.5, -1.0], top_logprobs=[{"The": -0.5}, {}], text_offset=[4, 7]
    )
    assert CompletionLogprobs.of(None) is None
