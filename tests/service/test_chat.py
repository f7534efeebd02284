"""/v1 as OpenAI's unmodified clients see it, on a real engine and a real database."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.records import Kind, Split, Tier
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.service.conftest import QUESTION, WRONG
from tests.support.services import serving

ASK: Any = [{"role": "user", "content": QUESTION}]
JUDGE: Any = [*ASK, {"role": "assistant", "content": WRONG["response"]}]


def client_of(service: httpx.AsyncClient, key: str = "any") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key=key, max_retries=0)


@pytest.fixture
async def ai(client: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(client) as ai:
        yield ai


def result_of(answer: Any) -> dict[str, Any]:
    result: dict[str, Any] = answer.model_extra["gadfly"]
    return result


async def kept(client: httpx.AsyncClient, answer: Any) -> dict[str, Any]:
    found = await client.get(f"/interactions/{result_of(answer)['interaction_id']}")
    assert found.status_code == 200, found.text
    interaction: dict[str, Any] = found.json()
    return interaction


async def until_judged(client: httpx.AsyncClient, answers: list[Any], *, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not all([(await kept(client, answer))["verdict"] for answer in answers]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def test_lists_the_models(ai: AsyncOpenAI) -> None:
    assert [model.id async for model in ai.models.list()] == ["actor", "refined", "critic", "critic@0"]
    assert (await ai.models.retrieve("critic@0")).id == "critic@0"
    for unknown in ("critic@7", "gpt-5"):
        with pytest.raises(openai.NotFoundError) as refused:
            await ai.models.retrieve(unknown)
        assert refused.value.code == "model_not_found"


async def test_the_actor_answers_and_its_answer_is_an_interaction(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    messages: Any = [{"role": "system", "content": "Answer briefly."}, *ASK]
    raw = await ai.chat.completions.with_raw_response.create(
        model="actor", messages=messages, max_completion_tokens=20, temperature=0, metadata={"app": "test"}
    )
    answer = raw.parse()
    [choice] = answer.choices
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 20
    assert raw.headers["x-gadfly-interaction-id"] == result_of(answer)["interaction_id"]
    interaction = await kept(client, answer)
    assert interaction["kind"] == "chat"
    assert interaction["question"] == QUESTION, "a system turn is no part of the question"
    assert interaction["response"] == choice.message.content
    assert interaction["conversation"]["messages"][:2] == messages
    assert interaction["conversation"]["messages"][2]["content"] == choice.message.content
    assert interaction["metadata"] == {"app": "test"}
    assert interaction["critic"] is interaction["result"] is interaction["verdict"] is None
    listed = (await client.get("/interactions", params={"kind": "chat"})).json()["items"]
    assert [item["id"] for item in listed] == [interaction["id"]]


async def test_the_synchronous_client_gets_the_same(ai: AsyncOpenAI) -> None:
    def ask() -> str | None:
        with OpenAI(base_url=ai.base_url, api_key="any", max_retries=0) as sync:
            answer = sync.chat.completions.create(model="actor", messages=ASK, max_tokens=12, temperature=0)
            streamed = sync.chat.completions.create(
                model="actor",
                messages=ASK,
                max_tokens=12,
                temperature=0,
                stream=True,
            )
            assert (
                "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == answer.choices[0].message.content
            )
            return answer.choices[0].message.content

    assert await asyncio.to_thread(ask)


async def test_streams_the_actor_token_by_token(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    plain = await ai.chat.completions.create(model="actor", messages=ASK, max_tokens=16, temperature=0)
    stream = await ai.chat.completions.with_raw_response.create(
        model="actor",
        messages=ASK,
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream.parse()]
    assert stream.headers["content-type"].startswith("text/event-stream")
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert len(texts) > 5
    assert "".join(texts) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    result = result_of(chunks[-2])
    assert stream.headers["x-gadfly-interaction-id"] == result["interaction_id"]
    assert (await kept(client, chunks[-2]))["response"] == plain.choices[0].message.content


async def test_several_choices_are_several_interactions(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    options: dict[str, Any] = {
        "model": "actor",
        "messages": ASK,
        "max_tokens": 10,
        "n": 3,
        "temperature": 1.0,
        "seed": 5,
    }
    first, again = [await ai.chat.completions.create(**options) for _ in range(2)]
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices], "seeded"
    ids = result_of(first)["interaction_ids"]
    assert len(set(ids)) == 3
    stored = [(await client.get(f"/interactions/{id}")).json() for id in ids]
    assert [each["response"] for each in stored] == texts
    assert len({each["episode_id"] for each in stored}) == 1
    streamed: dict[int, str] = {}
    async for chunk in await ai.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert [streamed[index] for index in range(3)] == texts


async def test_options_reach_the_engine(ai: AsyncOpenAI) -> None:
    options: dict[str, Any] = {"model": "actor", "messages": ASK, "temperature": 0}
    whole = (await ai.chat.completions.create(**options, max_tokens=16)).choices[0].message.content
    word = whole.split()[2]
    cut = await ai.chat.completions.create(**options, max_tokens=16, stop=[word])
    assert cut.choices[0].message.content == whole.partition(word)[0]
    assert cut.choices[0].finish_reason == "stop"
    scored = await ai.chat.completions.create(**options, max_tokens=4, logprobs=True)
    assert len(scored.choices[0].logprobs.content) == 4
    assert all(token.logprob <= 0 for token in scored.choices[0].logprobs.content)


async def test_earlier_turns_reach_the_actor_and_the_question(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    short = await ai.chat.completions.create(model="actor", messages=ASK, max_tokens=5)
    turns = [*JUDGE, {"role": "user", "content": "Is that right?"}]
    longer = await ai.chat.completions.create(model="actor", messages=turns, max_tokens=5)
    assert longer.usage is not None
    assert short.usage is not None
    assert longer.usage.prompt_tokens > short.usage.prompt_tokens + 10
    question = (await kept(client, longer))["question"]
    assert question.endswith("Question:\n\nIs that right?")
    assert f"User: {QUESTION}" in question
    assert f"Assistant: {WRONG['response']}" in question
    alone = await ai.chat.completions.create(
        model="actor",
        messages=turns,
        max_tokens=5,
        extra_body={"gadfly": {"context": "none"}},
    )
    assert (await kept(client, alone))["question"] == "Is that right?"


async def test_a_message_of_the_client_can_be_sent_back(ai: AsyncOpenAI) -> None:
    first = await ai.chat.completions.create(model="actor", messages=ASK, max_tokens=5)
    turns: Any = [*ASK, first.choices[0].message, {"role": "developer", "content": "Be brief."}, *ASK]
    assert (await ai.chat.completions.create(model="actor", messages=turns, max_tokens=5)).choices[0].message.content


async def test_a_refined_answer_keeps_both_answers(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    answer = await ai.chat.completions.create(
        model="refined", messages=ASK, max_tokens=60, temperature=0,
        extra_body={"gadfly": {"rounds": 2, "critic_temperature": 0, "reference": "7"}},
    )  # fmt: skip
    result = result_of(answer)
    shown = await kept(client, answer)
    inner = (await client.get(f"/interactions/{result['refinement_id']}")).json()
    assert (shown["kind"], inner["kind"]) == ("chat", "refine")
    assert shown["episode_id"] == inner["episode_id"]
    assert shown["response"] == answer.choices[0].message.content == inner["result"]["refined_response"]
    assert inner["question"] == shown["question"] == QUESTION
    assert len(inner["result"]["rounds"]) == 2
    assert inner["grade"] is not None, "the first answer is graded"
    assert shown["grade"] == inner["result"]["refined_grade"], "and so is the one that the caller got"
    assert result["verdict"] == inner["result"]["verdict"]
    assert result["critic"] == {"version": 0, "adapter_sha256": None, "status": "untrained"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens > inner["result"]["usage"]["completion_tokens"]


async def test_streams_the_last_rewrite(ai: AsyncOpenAI) -> None:
    options: dict[str, Any] = {
        "model": "refined", "messages": ASK, "max_tokens": 40, "temperature": 0, "top_p": 1, "presence_penalty": 0,
        "extra_body": {"gadfly": {"critic_temperature": 0}},
    }  # fmt: skip
    plain = await ai.chat.completions.create(**options)
    chunks = [chunk async for chunk in await ai.chat.completions.create(**options, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 1, "piece by piece"
    assert result_of(chunks[-1])["critic"]["version"] == 0


async def test_a_critic_judges_the_last_assistant_turn(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    options: dict[str, Any] = {"messages": JUDGE, "temperature": 0, "max_tokens": 120}
    raw = await ai.chat.completions.with_raw_response.create(model="critic", **options)
    answer = raw.parse()
    direct = (await client.post("/critique", json={**WRONG, "temperature": 0, "max_tokens": 120})).json()
    assert answer.choices[0].message.content == direct["critique"], "the critique of /critique"
    result = result_of(answer)
    assert result["verdict"] == direct["verdict"] == "incorrect"
    assert result["confidence"] == pytest.approx(direct["confidence"], abs=0.01)
    assert raw.headers["x-gadfly-critic"] == "critic@0"
    interaction = await kept(client, answer)
    assert (interaction["kind"], interaction["question"], interaction["response"]) == ("critique", *WRONG.values())
    assert interaction["conversation"]["messages"] == JUDGE
    numbered = await ai.chat.completions.create(model="critic@0", **options)
    assert numbered.choices[0].message.content == direct["critique"]
    later = await ai.chat.completions.create(model="critic", **options | {"messages": [*JUDGE, *ASK]})
    assert later.choices[0].message.content == direct["critique"], "later turns are not judged"
    several = await ai.chat.completions.create(model="critic", **options | {"n": 2, "temperature": 1.0, "stream": True})
    texts = {0: "", 1: ""}
    async for chunk in several:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(texts.values())


async def test_feedback_labels_the_answer_that_the_caller_got(
    ai: AsyncOpenAI, client: httpx.AsyncClient, database: Database
) -> None:
    answer = await ai.chat.completions.create(model="refined", messages=ASK, max_tokens=40)
    body = {"interaction_id": result_of(answer)["interaction_id"], "correct": True}
    assert (await client.post("/feedback", json=body)).status_code == 200
    async with database.session() as session:
        rows = [row for split in Split for row in await store.training_data.labelled_answers(session, split, limit=10)]
    assert [(row.response, row.is_right) for row in rows] == [(answer.choices[0].message.content, True)]


async def test_a_late_reference_grades_the_first_answer_too(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    answer = await ai.chat.completions.create(model="refined", messages=ASK, max_tokens=40)
    body = {"interaction_id": result_of(answer)["interaction_id"], "reference": "7"}
    assert (await client.post("/feedback", json=body)).status_code == 200
    shown = await kept(client, answer)
    inner = (await client.get(f"/interactions/{result_of(answer)['refinement_id']}")).json()
    assert shown["grade"] == inner["result"]["refined_grade"] is not None
    assert inner["grade"] is not None


async def test_a_deleted_refined_answer_leaves_no_text(ai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    answer = await ai.chat.completions.create(model="refined", messages=ASK, max_tokens=40)
    assert len((await client.get("/interactions")).json()["items"]) == 2
    assert (await client.delete(f"/interactions/{result_of(answer)['interaction_id']}")).status_code == 204
    assert (await client.get("/interactions")).json()["items"] == []


async def test_a_repeated_request_id_returns_the_first_answer(ai: AsyncOpenAI) -> None:
    for model, messages in (("actor", ASK), ("refined", ASK), ("critic", JUDGE)):
        options: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 20, "temperature": 1.0}
        if model != "refined":
            options["n"] = 2
        key = {"Idempotency-Key": f"the-{model}"}
        first = await ai.chat.completions.create(**options, extra_headers=key)
        again = await ai.chat.completions.create(**options, extra_headers=key)
        assert again.model_dump() == first.model_dump(), model
        text = ""
        async for chunk in await ai.chat.completions.create(**options, extra_headers=key, stream=True):
            assert chunk.id == first.id
            text += "".join(choice.delta.content or "" for choice in chunk.choices if choice.index == 0)
        assert text == first.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="another request"):
            await ai.chat.completions.create(**options | {"max_tokens": 21}, extra_headers=key)


REFUSED: list[tuple[dict[str, Any], type[openai.APIStatusError], str | None, str | None, str]] = [
    # change, error, param, code, the reason for this row
    ({"model": "gpt-5"}, openai.NotFoundError, None, "model_not_found", "no such model"),
    ({"model": "critic@7", "messages": JUDGE}, openai.NotFoundError, None, "model_not_found", "no such critic"),
    ({"messages": []}, openai.BadRequestError, "messages", None, "no messages"),
    ({"messages": [{"role": "system", "content": "s"}]}, openai.BadRequestError, "messages", None, "no user turn"),
    ({"messages": [{"role": "user", "content": " "}]}, openai.BadRequestError, "messages", None, "a blank user turn"),
    ({"model": "critic"}, openai.BadRequestError, "messages", None, "nothing to judge"),
    ({"temperature": 3}, openai.BadRequestError, "temperature", None, "above the range"),
    ({"n": 17}, openai.BadRequestError, "n", None, "over the deployment's limit"),
    ({"model": "refined", "n": 2}, openai.BadRequestError, "n", None, "refined gives one answer"),
    ({"model": "critic", "messages": JUDGE, "stop": "a"}, openai.BadRequestError, "stop", None, "an actor's option"),
    ({"top_logprobs": 2, "logprobs": True}, openai.BadRequestError, "top_logprobs", None, "not on these engines"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        openai.BadRequestError, "tools", None, "the base model calls no tools",
    ),
    ({"extra_body": {"tempreature": 1}}, openai.BadRequestError, "tempreature", None, "a typo must not be ignored"),
    ({"extra_body": {"gadfly": {"rounds": 2}}}, openai.BadRequestError, "gadfly.rounds", None, "an option of refined"),
    ({"messages": [{"role": "user", "content": "a\x00b"}]}, openai.BadRequestError, None, None, "NUL"),
    ({"messages": [{"role": "user", "content": "x" * 60_000}]}, openai.BadRequestError, "messages", None, "too long"),
    (
        {"messages": [{"role": "user", "content": "word " * 5000}]},
        openai.BadRequestError, None, "context_length_exceeded", "longer than the model's context",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        openai.BadRequestError, "messages.0.content", None, "an image",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "param", "code", "why"), REFUSED, ids=[row[4] for row in REFUSED])
async def test_refuses_in_openais_shape(
    ai: AsyncOpenAI,
    client: httpx.AsyncClient,
    change: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str | None,
    code: str | None,
    why: str,
) -> None:
    request: dict[str, Any] = {"model": "actor", "messages": ASK, "max_tokens": 5, **change}
    for stream in (False, True):
        with pytest.raises(error) as refused:
            await ai.chat.completions.create(**request, stream=stream)
        body = refused.value.response.json()
        assert set(body) == {"error"}, why
        assert body["error"]["message"]
        assert body["error"]["type"] in ("invalid_request_error", "not_found_error")
        assert body["error"]["param"] == param, (why, body)
        if code is not None:
            assert refused.value.code == code, body
    assert (await client.get("/interactions")).json()["items"] == [], "refused requests are not stored"


async def test_every_error_under_v1_has_openais_shape(client: httpx.AsyncClient, settings: Settings) -> None:
    too_large = b'{"model": "' + b"x" * settings.max_body_bytes + b'"}'
    json_header = {"content-type": "application/json"}
    for answer, status in [
        (await client.get("/v1/nothing"), 404),
        (await client.get("/v1/chat/completions"), 405),
        (await client.post("/v1/chat/completions", content=b"{", headers=json_header), 400),
        (await client.post("/v1/chat/completions", content=too_large, headers=json_header), 413),
    ]:
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_without_keys_any_key_is_accepted_from_programs_on_this_machine(client: httpx.AsyncClient) -> None:
    sent = {"authorization": "Bearer sk-invented"}
    assert (await client.get("/v1/models", headers=sent)).status_code == 200
    assert (await client.get("/v1/models")).status_code == 200
    assert (await client.get("/interactions", headers=sent)).status_code == 401, "under /v1 alone"
    assert (await client.get("/v1/models", headers={**sent, "host": "evil.example"})).status_code == 401
    assert (await client.get("/v1/models", headers={**sent, "x-forwarded-for": "192.0.2.1"})).status_code == 401
    foreign = {**sent, "origin": "https://evil.example"}
    answer = await client.post("/v1/chat/completions", headers=foreign, json={"model": "actor", "messages": ASK})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_with_keys_the_bearer_token_is_the_key(settings: Settings, database: Database) -> None:
    async with database.session() as session:
        key, secret = await issue_key(session, name="a", tier=Tier.CALLER)
    async with serving(settings) as client:
        async with client_of(client, "sk-invented") as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
        async with client_of(client, secret) as caller:
            answer = await caller.chat.completions.create(model="actor", messages=ASK, max_tokens=3)
        async with database.session() as session:
            stored = await store.interactions.read_interaction(
                session, UUID(result_of(answer)["interaction_id"]), scope=key.id
            )
        assert (stored.kind, stored.key_id) == (Kind.CHAT, key.id)


async def test_a_share_of_answers_is_judged_in_the_background(settings: Settings, database: Database) -> None:
    async with serving(settings.model_copy(update={"chat_critique_share": 1.0})) as client, client_of(client) as ai:
        answers = [
            await ai.chat.completions.create(model="actor", messages=ASK, max_tokens=20, seed=seed) for seed in range(3)
        ]
        await until_judged(client, answers)
        interaction = await kept(client, answers[0])
        assert interaction["critic"] == {"version": 0, "adapter_sha256": None, "status": "untrained"}
        assert interaction["result"]["critique"]
        assert interaction["parameters"]["temperature"] == settings.temperature
        body = {"interaction_id": interaction["id"], "correct": False}
        assert (await client.post("/feedback", json=body)).status_code == 200
        async with database.session() as session:
            outcomes = await store.watch.verdict_outcomes(session, 0)
            texts = [answer.choices[0].message.content for answer in answers]
            assert len(outcomes) == texts.count(texts[0]), "the watch has a verdict on each answer with this text"
        for answer in answers:
            assert (await client.delete(f"/interactions/{result_of(answer)['interaction_id']}")).status_code == 204
