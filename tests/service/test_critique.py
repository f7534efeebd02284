"""POST /critique as a caller sees it, on a real engine and a real database."""

import json
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.service.conftest import QUESTION, RIGHT, WRONG
from tests.support.engines import MAX_MODEL_LEN
from tests.support.services import read_events


async def test_judges_steps_and_the_final_answer(client: httpx.AsyncClient) -> None:
    right = (await client.post("/critique", json=RIGHT)).json()
    wrong = (await client.post("/critique", json=WRONG)).json()
    assert (right["verdict"], wrong["verdict"]) == ("correct", "incorrect")
    for result in (right, wrong):
        assert result["verdict_source"] == "stated"
        assert result["confidence"] > 0.5
        assert result["steps"]
        assert all(step["text"] in result["critique"] for step in result["steps"])
        assert result["critic"] == {"version": 0, "adapter_sha256": None, "status": "untrained"}
        assert result["usage"]["completion_tokens"] >= 10
        assert result["latency_ms"] > 0
        assert UUID(result["id"]).version == 7


async def test_names_the_critic_in_a_header(client: httpx.AsyncClient) -> None:
    answer = await client.post("/critique", json=RIGHT)
    assert answer.headers["x-gadfly-critic"] == "critic@0"
    assert answer.headers["x-request-id"]
    async with client.stream("POST", "/critique", json={**RIGHT, "stream": True}) as streamed:
        assert streamed.headers["x-gadfly-critic"] == "critic@0"


async def test_a_critique_cut_short_still_has_a_verdict(client: httpx.AsyncClient) -> None:
    cut = (await client.post("/critique", json={**WRONG, "max_tokens": 3})).json()
    [critique] = cut["critiques"]
    assert critique["stated_verdict"] == "unparsed"
    assert cut["verdict"] in ("correct", "incorrect")
    assert cut["verdict_source"] == "read"
    assert cut["confidence"] >= 0.5  # it is the likelier of the two
    assert critique["finish_reason"] == "length"
    assert critique["probabilities"]["correct"] + critique["probabilities"]["incorrect"] <= 1.000001


async def test_a_critique_that_fills_the_context_still_has_a_verdict(client: httpx.AsyncClient) -> None:
    async def ask(words: int) -> dict[str, Any]:
        answer = await client.post("/critique", json={**RIGHT, "response": "6" + " 7" * words, "max_tokens": 3})
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    room = MAX_MODEL_LEN - 3 - (await ask(100))["usage"]["prompt_tokens"]
    full = await ask(100 + room)
    assert full["usage"]["prompt_tokens"] == MAX_MODEL_LEN - 3
    assert full["critiques"][0]["finish_reason"] == "length"
    assert full["verdict"] == "unparsed" or full["confidence"] >= 0.5
    over = await client.post("/critique", json={**RIGHT, "response": "6" + " 7" * (110 + room), "max_tokens": 3})
    assert over.status_code == 422


async def test_samples_several_and_takes_the_majority(client: httpx.AsyncClient) -> None:
    body = {**RIGHT, "n": 5, "temperature": 1.0, "seed": 3}
    first, again = [(await client.post("/critique", json=body)).json() for _ in range(2)]
    texts = [critique["text"] for critique in first["critiques"]]
    assert len(texts) == 5
    assert texts == [critique["text"] for critique in again["critiques"]]
    assert [critique["sample"] for critique in first["critiques"]] == list(range(5))
    verdicts = [critique["verdict"] for critique in first["critiques"]]
    assert verdicts.count(first["verdict"]) > 2
    spent = sum(critique["usage"]["completion_tokens"] for critique in first["critiques"])
    assert spent == first["usage"]["completion_tokens"]


async def test_streams_the_text_and_then_the_result(client: httpx.AsyncClient) -> None:
    body = {**WRONG, "n": 2, "temperature": 0.7, "seed": 5}
    events = await read_events(client, "/critique", body)
    assert [name for name, _ in events[:-1]] == ["text"] * (len(events) - 1)
    name, result = events[-1]
    assert name == "result"
    for critique in result["critiques"]:
        pieces = [data["text"] for _, data in events[:-1] if data["sample"] == critique["sample"]]
        assert len(pieces) > 3
        assert "".join(pieces) == critique["text"]
    plain = (await client.post("/critique", json=body)).json()
    assert [c["text"] for c in plain["critiques"]] == [c["text"] for c in result["critiques"]]
    assert plain["usage"] == result["usage"]


async def test_grades_against_a_reference_and_does_not_show_it_to_the_model(client: httpx.AsyncClient) -> None:
    graded = (await client.post("/critique", json={**WRONG, "reference": "7"})).json()
    plain = (await client.post("/critique", json=WRONG)).json()
    assert graded["grade"] == "wrong"
    assert plain["grade"] is None
    assert graded["critique"] == plain["critique"]
    assert graded["usage"] == plain["usage"]


async def test_stays_on_its_episode(client: httpx.AsyncClient) -> None:
    first = (await client.post("/critique", json=RIGHT)).json()
    second = (await client.post("/critique", json={**WRONG, "episode_id": first["episode_id"]})).json()
    assert second["episode_id"] == first["episode_id"]
    other = await client.post(
        "/critique", json={**RIGHT, "question": "Another question?", "episode_id": first["episode_id"]}
    )
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "episode_id"


LONG = "word " * 3000
REFUSED = [  # change to a good body, status, field named, the reason for this row
    ({"question": ""}, 422, "question", "empty question"),
    ({"question": "   "}, 422, "question", "only spaces"),
    ({"response": None}, 422, "response", "null is not text"),
    ({"response": 7}, 422, "response", "a number is not text"),
    ({"response": "a\x00b"}, 422, "response", "Postgres cannot store NUL"),
    ({"metadata": {"a": {"b": ["\x00"]}}}, 422, "metadata", "NUL inside metadata"),
    ({"metadata": {"\x00": 1}}, 422, "metadata", "NUL in a key of metadata"),
    ({"metadata": "text"}, 422, "metadata", "metadata must be an object"),
    ({"metadata": {"a": "x" * 20_000}}, 422, "metadata", "metadata over its limit"),
    ({"n": 0}, 422, "n", "at least one"),
    ({"n": "3"}, 422, "n", "a string is not an integer"),
    ({"n": True}, 422, "n", "true is not an integer"),
    ({"n": 2.0}, 422, "n", "a float is not an integer"),
    ({"n": 17, "temperature": 1.0}, 422, "n", "over the deployment's limit"),
    ({"n": 2, "temperature": 0}, 422, "n", "greedy samples are all the same"),
    ({"temperature": -1}, 422, "temperature", "below the range"),
    ({"temperature": "hot"}, 422, "temperature", "not a number"),
    ({"max_tokens": 0}, 422, "max_tokens", "no tokens"),
    ({"max_tokens": 10**6}, 422, "max_tokens", "over the context"),
    ({"seed": -1}, 422, "seed", "below the range"),
    ({"seed": 2**70}, 422, "seed", "over 64 bits"),
    ({"stream": "yes"}, 422, "stream", "not a boolean"),
    ({"episode_id": "x"}, 422, "episode_id", "not a UUID"),
    ({"request_id": ""}, 422, "request_id", "empty"),
    ({"request_id": "x" * 201}, 422, "request_id", "too long"),
    ({"response": "x" * 60_000}, 422, "response", "over the deployment's limit"),
    ({"response": LONG}, 422, None, "longer than the model's context"),
    ({"tempreature": 1.0}, 422, "tempreature", "a typo must not be ignored"),
    ({"critic": "newest"}, 422, "critic", "no such pointer"),
    ({"critic": -1}, 422, "critic", "a negative version"),
    ({"critic": 41}, 404, None, "an unknown version"),
    ({"critic": "candidate"}, 409, None, "there is no candidate"),
]


@pytest.mark.parametrize(("change", "status", "field", "why"), REFUSED, ids=[row[3] for row in REFUSED])
async def test_refuses_with_a_problem_document(
    client: httpx.AsyncClient, change: dict[str, Any], status: int, field: str | None, why: str
) -> None:
    answer = await client.post("/critique", json={**RIGHT, **change})
    assert answer.status_code == status, (why, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["detail"]
    if field is not None:
        assert any(error["field"].split(".")[0] == field for error in problem["errors"]), problem
    if "stream" not in change:  # refused before a stream begins
        assert (await client.post("/critique", json={**RIGHT, **change, "stream": True})).status_code == status
    listed = (await client.get("/interactions")).json()
    assert listed["items"] == []  # refused requests are not stored


BROKEN = [  # body, the reason for this row
    (b"", "no body"),
    (b"{", "cut short"),
    (b"[]", "not an object"),
    (b'"text"', "a string, not an object"),
    (b'{"question": "q", "response": "\\ud800"}', "a lone surrogate"),
    (b'{"question": "q", "response": "r", "temperature": NaN}', "NaN is not JSON"),
    (b'{"question": "q", "response": "r", "metadata": {"a": Infinity}}', "Infinity is not JSON"),
    (b'\xff\xfe{"question": 1}', "not UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("body", "why"), BROKEN, ids=[row[1] for row in BROKEN])
async def test_refuses_bodies_that_are_not_json(client: httpx.AsyncClient, body: bytes, why: str) -> None:
    answer = await client.post("/critique", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, (why, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_names_the_header_that_a_body_lacks(client: httpx.AsyncClient) -> None:
    """The default content type of `curl -d`."""
    answer = await client.post(
        "/critique", content=json.dumps(RIGHT), headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code == 422
    assert answer.json()["detail"] == "body: send the header content-type: application/json"


async def test_refuses_ten_megabytes(client: httpx.AsyncClient) -> None:
    body = b'{"question": "' + b"x" * 10_000_000 + b'"}'
    declared = await client.post("/critique", content=body, headers={"content-type": "application/json"})
    assert declared.status_code == 413

    async def pieces() -> Any:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    chunked = await client.post("/critique", content=pieces(), headers={"content-type": "application/json"})
    assert chunked.status_code == 413
    assert (await client.post("/critique", json=RIGHT)).status_code == 200


async def test_text_is_returned_unchanged(client: httpx.AsyncClient) -> None:
    unusual = {
        "question": f"{QUESTION} é 漢字 🙂 {{response}} {{0}} %s",
        "response": "tab\tand\r\nlines  The answer is 7.",
    }
    answer = (await client.post("/critique", json={**unusual, "metadata": {"Käse": ["🙂", None, 1.5]}})).json()
    kept = (await client.get(f"/interactions/{answer['id']}")).json()
    assert {name: kept[name] for name in unusual} == unusual
    assert kept["metadata"] == {"Käse": ["🙂", None, 1.5]}
    assert kept["result"] == answer
