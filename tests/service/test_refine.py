"""POST /refine as a caller sees it."""

from uuid import uuid4

import httpx
import pytest

from tests.service.conftest import RIGHT, WRONG
from tests.support.services import read_events


async def test_rewrites_with_the_critics_critique(client: httpx.AsyncClient) -> None:
    result = (await client.post("/refine", json={**WRONG, "reference": "7"})).json()
    [round] = result["rounds"]
    assert round["critique"]["verdict"] == "incorrect"
    assert round["refinement"]["critique_id"] == round["critique"]["id"]
    assert result["refined_response"] == round["refinement"]["text"]
    assert "answer is 7" in result["refined_response"]
    assert (result["grade"], result["refined_grade"]) == ("wrong", "right")
    assert result["stop_reason"] == "rounds"
    assert result["votes"] == 1


async def test_does_not_rewrite_an_answer_judged_correct(client: httpx.AsyncClient) -> None:
    body = {**RIGHT, "when": "if_incorrect", "rounds": 3}
    result = (await client.post("/refine", json=body)).json()
    assert result["refined_response"] == RIGHT["response"]
    assert result["stop_reason"] == "judged_correct"
    assert [round["refinement"] for round in result["rounds"]] == [None]


async def test_stops_once_the_rewrite_is_judged_correct(client: httpx.AsyncClient) -> None:
    result = (await client.post("/refine", json={**WRONG, "when": "if_incorrect", "rounds": 4})).json()
    verdicts = [round["critique"]["verdict"] for round in result["rounds"]]
    assert verdicts == ["incorrect", "correct"]
    assert result["stop_reason"] == "judged_correct"
    assert result["verdict"] == "correct"


async def test_runs_every_requested_round(client: httpx.AsyncClient) -> None:
    result = (await client.post("/refine", json={**WRONG, "rounds": 3})).json()
    assert [round["critique"]["round"] for round in result["rounds"]] == [0, 1, 2]
    assert all(round["refinement"] is not None for round in result["rounds"])
    assert {round["critique"]["id"] for round in result["rounds"]} == {
        round["refinement"]["critique_id"] for round in result["rounds"]
    }


async def test_uses_the_callers_critique(client: httpx.AsyncClient) -> None:
    critique = "Step sentence: all of it\nCorrectness of the final answer: Wrong\nExplanation: add the loose pen"
    result = (await client.post("/refine", json={**WRONG, "critique": critique})).json()
    [round] = result["rounds"]
    assert round["critique"]["text"] == critique
    assert round["critique"]["supplied"]
    assert round["critique"]["verdict"] == "incorrect"
    assert round["critique"]["confidence"] is None


async def test_uses_an_earlier_critique(client: httpx.AsyncClient) -> None:
    earlier = (await client.post("/critique", json=WRONG)).json()
    body = {**WRONG, "critique_id": earlier["critiques"][0]["id"], "episode_id": earlier["episode_id"]}
    result = (await client.post("/refine", json=body)).json()
    assert result["rounds"][0]["critique"]["text"] == earlier["critique"]
    assert result["episode_id"] == earlier["episode_id"]
    missing = await client.post("/refine", json={**WRONG, "critique_id": str(uuid4())})
    assert missing.status_code == 404


async def test_an_earlier_critique_keeps_its_verdict(client: httpx.AsyncClient) -> None:
    cut = (await client.post("/critique", json={**RIGHT, "max_tokens": 3})).json()  # too short to state a verdict
    assert cut["verdict_source"] == "read"
    body = {**RIGHT, "critique_id": cut["critiques"][0]["id"], "when": "if_incorrect"}
    result = (await client.post("/refine", json=body)).json()
    assert result["stop_reason"] == ("judged_correct" if cut["verdict"] == "correct" else "rounds")
    [round] = result["rounds"]
    for name in ("text", "verdict", "verdict_source", "confidence"):
        assert round["critique"][name] == cut["critiques"][0][name]
    assert round["critique"]["supplied"]
    assert round["critique"]["id"] != cut["critiques"][0]["id"]
    other = await client.post("/refine", json={**body, "question": "What is 1 + 1?"})
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "critique_id"


async def test_votes_over_samples(client: httpx.AsyncClient) -> None:
    body = {**WRONG, "samples": 4, "temperature": 1.0, "refine_temperature": 1.0, "seed": 11}
    result = (await client.post("/refine", json=body)).json()
    assert [sample["sample"] for sample in result["samples"]] == [0, 1, 2, 3]
    assert 1 <= result["votes"] <= 4
    chosen = result["samples"][result["chosen_sample"]]
    assert chosen["refined_response"] == result["refined_response"]
    ending = result["refined_response"].rsplit(" ", 1)[-1]
    same = [sample for sample in result["samples"] if sample["refined_response"].rsplit(" ", 1)[-1] == ending]
    assert len(same) == result["votes"]
    again = (await client.post("/refine", json=body)).json()
    assert [s["refined_response"] for s in again["samples"]] == [s["refined_response"] for s in result["samples"]]


async def test_streams_both_roles(client: httpx.AsyncClient) -> None:
    events = await read_events(client, "/refine", {**WRONG, "rounds": 2})
    name, result = events[-1]
    assert name == "result"
    roles = {(data["role"], data["round"]) for _, data in events[:-1]}
    assert roles == {("critique", 0), ("refinement", 0), ("critique", 1), ("refinement", 1)}
    for round in result["rounds"]:
        pieces = [
            d["text"] for _, d in events[:-1] if (d["role"], d["round"]) == ("critique", round["critique"]["round"])
        ]
        assert "".join(pieces) == round["critique"]["text"]


async def test_a_refined_answer_can_be_read_back(client: httpx.AsyncClient) -> None:
    result = (await client.post("/refine", json={**WRONG, "reference": "7", "rounds": 2})).json()
    kept = (await client.get(f"/interactions/{result['id']}")).json()
    assert kept["result"] == result


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rounds": 0}, "rounds"),
        ({"rounds": 99}, "rounds"),
        ({"samples": 99}, "samples"),
        ({"samples": 2}, "samples"),
        ({"samples": 2, "temperature": 1.0, "critique": "c"}, "samples"),
        ({"when": "sometimes"}, "when"),
        ({"critique": "c", "critique_id": str(uuid4())}, "body"),
        ({"n": 2}, "n"),
    ],
)
async def test_refuses(client: httpx.AsyncClient, change: dict[str, object], field: str) -> None:
    answer = await client.post("/refine", json={**WRONG, **change})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
