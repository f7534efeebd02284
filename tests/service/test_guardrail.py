"""LiteLLM's generic guardrail API: the contract as LiteLLM 1.108 sends and reads it, on a real engine and database."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.records import Tier
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.service.conftest import QUESTION, RIGHT, WRONG
from tests.support.services import serving, until

PATH = "/beta/litellm_basic_guardrail_api"
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]


def announced(call: str = "call-1", **changes: Any) -> dict[str, Any]:
    """What LiteLLM sends before it calls a model."""
    return {
        "input_type": "request",
        "litellm_call_id": call,
        "litellm_trace_id": "trace",
        "structured_messages": TURNS,
        "texts": [QUESTION],
        "images": None,
        "tools": None,
        "tool_calls": None,
        "request_data": {"user_api_key_alias": "someone"},
        "request_headers": {"host": "[present]"},
        "litellm_version": "1.108.7",
        "additional_provider_specific_params": {},
        "model": "gpt",
        **changes,
    }


def answered(text: str, mode: str, call: str = "call-1", **options: Any) -> dict[str, Any]:
    """What LiteLLM sends after a model has answered: no conversation."""
    return announced(
        call,
        input_type="response",
        structured_messages=None,
        texts=[text],
        additional_provider_specific_params={"mode": mode, **options},
    )


async def decide(client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
    decision = await client.post(PATH, json=body)
    assert decision.status_code == 200, decision.text
    return decision.json()


async def test_a_wrong_answer_is_blocked_and_a_right_one_passes(client: httpx.AsyncClient) -> None:
    assert (await decide(client, announced()))["action"] == "NONE"
    refused = await decide(client, answered(WRONG["response"], "block"))
    assert refused["action"] == "BLOCKED"
    [id] = refused["gadfly"]["interaction_ids"]
    assert id in refused["blocked_reason"]
    assert refused["blocked_reason"].startswith("The critic (critic@0) judges the answer incorrect")
    stored = (await client.get(f"/interactions/{id}")).json()
    assert (stored["question"], stored["response"], stored["verdict"]) == (QUESTION, WRONG["response"], "incorrect")
    assert stored["metadata"]["litellm_call_id"] == "call-1"
    assert stored["conversation"]["messages"] == TURNS
    passed = await decide(client, answered(RIGHT["response"], "block"))
    assert (passed["action"], passed["texts"], passed["blocked_reason"]) == ("NONE", None, None)
    unsure = await decide(client, answered(WRONG["response"], "block", threshold=1.0))
    assert unsure["action"] == "NONE", "the critic is not as sure as that"


async def test_a_wrong_answer_is_replaced_by_a_rewrite(client: httpx.AsyncClient) -> None:
    await decide(client, announced())
    decision = await decide(client, answered(WRONG["response"], "rewrite"))
    assert decision["action"] == "GUARDRAIL_INTERVENED"
    [text] = decision["texts"]
    [id] = decision["gadfly"]["interaction_ids"]
    stored = (await client.get(f"/interactions/{id}")).json()
    assert stored["result"]["refined_response"] == text != WRONG["response"]
    kept = await decide(client, answered(RIGHT["response"], "rewrite"))
    assert (kept["action"], kept["texts"]) == ("NONE", None)
    several = answered(RIGHT["response"], "rewrite")
    several["texts"] = [RIGHT["response"], " ", WRONG["response"]]
    mixed = await decide(client, several)
    assert mixed["texts"] == [RIGHT["response"], " ", text], "as many texts as were sent, in their order"


async def test_a_logged_answer_passes_at_once_and_is_judged_in_the_background(client: httpx.AsyncClient) -> None:
    await decide(client, announced())
    decision = await decide(client, answered(WRONG["response"], "log"))
    assert decision["action"] == "NONE"
    [id] = decision["gadfly"]["interaction_ids"]
    stored = (await client.get(f"/interactions/{id}")).json()
    assert (stored["kind"], stored["question"], stored["response"]) == ("chat", QUESTION, WRONG["response"])
    judged = await until(client, f"/interactions/{id}", lambda each: each["verdict"] is not None, limit_s=60)
    assert judged["verdict"] == "incorrect"
    assert (await client.post("/feedback", json={"interaction_id": id, "correct": False})).status_code == 200


async def test_without_the_question_nothing_can_be_judged(client: httpx.AsyncClient) -> None:
    unknown = await client.post(PATH, json=answered(WRONG["response"], "block", call="never-announced"))
    assert unknown.status_code == 422
    assert "[pre_call, post_call]" in unknown.json()["detail"]
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    await decide(client, announced(structured_messages=picture))
    assert (await decide(client, answered(WRONG["response"], "block")))["action"] == "NONE"
    long = [{"role": "user", "content": "word " * 5000}]
    await decide(client, announced(structured_messages=long))
    assert (await decide(client, answered(WRONG["response"], "block")))["action"] == "NONE", "it fits no context"
    whole = answered(WRONG["response"], "block", call="not-announced") | {"structured_messages": TURNS}
    assert (await decide(client, whole))["action"] == "BLOCKED", "a release of LiteLLM that sends it later too"


async def test_litellms_key_header_and_keys_of_their_own(settings: Settings, database: Database) -> None:
    async with database.session() as session:
        secrets = [(await issue_key(session, name=name, tier=Tier.CALLER))[1] for name in ("proxy", "other")]
    async with serving(settings) as client:
        body = announced()
        assert (await client.post(PATH, json=body)).status_code == 401
        sent = await client.post(PATH, json=body, headers={"x-api-key": secrets[0]})
        assert sent.status_code == 200, sent.text
        stranger = {"Authorization": f"Bearer {secrets[1]}"}
        foreign = await client.post(PATH, json=answered("2", "block"), headers=stranger)
        assert foreign.status_code == 422, "another key's conversation is not read"


async def test_a_conversation_is_kept_for_a_while_only(database: Database) -> None:
    async with database.session() as session:
        for call in ("a", "b"):
            await store.guarded.keep(session, call, TURNS, key_id=None, keep_for=timedelta(minutes=15))
        assert await store.guarded.read(session, "a", key_id=None) == TURNS
    async with database.session() as session:
        await store.guarded.keep(session, "b", TURNS[1:], key_id=None, keep_for=timedelta(0))
        assert await store.guarded.read(session, "a", key_id=None) is None
        assert await store.guarded.read(session, "b", key_id=None) == TURNS[1:], "the newest of one call counts"


@pytest.mark.parametrize("body", [{}, {"input_type": "other"}, answered("x", "eat")])
async def test_other_bodies_are_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post(PATH, json=body)).status_code == 422
