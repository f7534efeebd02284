"""POST /feedback, and reading, listing and deleting interactions."""

from uuid import uuid4

import httpx
import pytest

from gadfly.records import Kind
from gadfly.store.database import Database
from gadfly.store.interactions import insert_records
from tests.service.conftest import RIGHT, WRONG
from tests.support.records import make_interaction


async def test_feedback_is_stored_in_order_and_grades_again(client: httpx.AsyncClient) -> None:
    result = (await client.post("/refine", json={**WRONG, "reference": "6"})).json()
    assert (result["grade"], result["refined_grade"]) == ("right", "wrong")  # the first reference is wrong
    first = await client.post("/feedback", json={"interaction_id": result["id"], "correct": False, "comment": "no"})
    assert first.status_code == 200
    second = (await client.post("/feedback", json={"interaction_id": result["id"], "reference": "7"})).json()
    assert second["grade"] == "wrong"
    kept = (await client.get(f"/interactions/{result['id']}")).json()
    assert [item["id"] for item in kept["feedback"]] == [first.json()["id"], second["id"]]
    assert kept["grade"] == "wrong"
    assert kept["result"]["refined_grade"] == "right"
    assert kept["reference"] == "6"  # the request's own reference stays


async def test_feedback_by_the_callers_own_request_id(client: httpx.AsyncClient) -> None:
    result = (await client.post("/critique", json={**RIGHT, "request_id": "mine"})).json()
    feedback = (await client.post("/feedback", json={"request_id": "mine", "correct": True, "rating": 5})).json()
    assert feedback["interaction_id"] == result["id"]


async def test_repeating_feedback_changes_nothing(client: httpx.AsyncClient) -> None:
    result = (await client.post("/critique", json=RIGHT)).json()
    body = {"interaction_id": result["id"], "correct": True, "metadata": {"by": "a test"}}
    first, again = [(await client.post("/feedback", json=body)).json() for _ in range(2)]
    assert again["id"] == first["id"]
    changed = (await client.post("/feedback", json={**body, "correct": False})).json()
    back = (await client.post("/feedback", json=body)).json()  # not a repeat of the newest feedback
    assert len({first["id"], changed["id"], back["id"]}) == 3


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({"correct": True}, 422, "names no interaction"),
        ({"interaction_id": str(uuid4()), "request_id": "x", "correct": True}, 422, "names two"),
        ({"interaction_id": str(uuid4())}, 422, "empty"),
        ({"interaction_id": str(uuid4()), "correct": "yes"}, 422, "not a boolean"),
        ({"interaction_id": str(uuid4()), "rating": 6}, 422, "over the range"),
        ({"interaction_id": str(uuid4()), "helpful": True}, 422, "helpful is about a critique or a refinement"),
        (
            {"interaction_id": str(uuid4()), "critique_id": str(uuid4()), "refinement_id": str(uuid4()), "rating": 1},
            422,
            "about two things",
        ),
        ({"interaction_id": str(uuid4()), "correct": True}, 404, "unknown interaction"),
        ({"request_id": "never", "correct": True}, 404, "unknown request id"),
    ],
)
async def test_refuses_feedback(client: httpx.AsyncClient, body: dict[str, object], status: int, why: str) -> None:
    answer = await client.post("/feedback", json=body)
    assert answer.status_code == status, (why, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_an_unreadable_reference_gives_no_grade_and_loses_no_label(client: httpx.AsyncClient) -> None:
    result = (await client.post("/critique", json={**RIGHT, "reference": "1/0"})).json()
    assert result["grade"] is None
    assert "divides by zero" in result["grade_problem"]
    body = {"interaction_id": result["id"], "reference": "???", "correct": False}
    feedback = (await client.post("/feedback", json=body)).json()
    assert (feedback["grade"], feedback["correct"]) == (None, False)
    assert "no letter or digit" in feedback["grade_problem"]
    kept = (await client.get(f"/interactions/{result['id']}")).json()
    assert kept["feedback"] == [feedback]
    assert kept["result"]["grade_problem"] == result["grade_problem"]
    readable = await client.post("/feedback", json={"interaction_id": result["id"], "reference": "7"})
    assert (readable.json()["grade"], readable.json()["grade_problem"]) == ("right", None)
    kept = (await client.get(f"/interactions/{result['id']}")).json()
    assert (kept["grade"], kept["result"]["grade_problem"]) == ("right", None)


async def test_a_question_without_a_response_takes_a_reference_and_no_label(
    client: httpx.AsyncClient, database: Database
) -> None:
    question = make_interaction(kind=Kind.IMPORT, response=None, reference="4", samples=0)
    async with database.session() as session:
        await insert_records(session, [question], heldout_share=0.2)
    refused = await client.post("/feedback", json={"interaction_id": str(question.id), "correct": True})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "correct")
    kept = await client.post("/feedback", json={"interaction_id": str(question.id), "reference": "4.0"})
    assert (kept.status_code, kept.json()["grade"]) == (200, None)
    read = (await client.get(f"/interactions/{question.id}")).json()
    assert (read["response"], read["grade"], read["result"]) == (None, None, None)
    assert (await client.get("/interactions")).json()["items"][0]["response"] is None
    assert (await client.delete(f"/interactions/{question.id}")).status_code == 204


async def test_feedback_about_a_critique_or_a_refinement(client: httpx.AsyncClient) -> None:
    result = (await client.post("/refine", json=WRONG)).json()
    [turn] = result["rounds"]
    critique, refinement = turn["critique"]["id"], turn["refinement"]["id"]
    for body in ({"critique_id": critique, "helpful": True}, {"refinement_id": refinement, "correct": True}):
        answer = await client.post("/feedback", json={"interaction_id": result["id"], **body})
        assert answer.status_code == 200, answer.text
        assert answer.json().items() >= body.items()
    other = (await client.post("/critique", json=RIGHT)).json()
    refused = await client.post("/feedback", json={"interaction_id": other["id"], "critique_id": critique, "rating": 1})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "critique_id"


async def test_an_edited_response_grades_by_the_answer_it_states(client: httpx.AsyncClient) -> None:
    result = (await client.post("/refine", json=WRONG)).json()

    async def edited(text: str, **more: object) -> tuple[str | None, str | None]:
        body = {"interaction_id": result["id"], "edited_response": text, **more}
        given = (await client.post("/feedback", json=body)).json()
        return given["edited_reference"], given["grade"]

    assert await edited("2 * 3 = 6. 6 + 1 = 7. The answer is 7.") == ("7", "wrong")
    kept = (await client.get(f"/interactions/{result['id']}")).json()
    assert (kept["grade"], kept["result"]["refined_grade"]) == ("wrong", "right")
    assert await edited("Two boxes hold 6 pens. The answer is 6.") == ("6", "right"), "the edit kept the answer"
    assert await edited("The answer is 7.", reference="6") == ("7", "right"), "a reference counts more"
    assert await edited("Please write whole sentences.") == (None, None)


async def test_pages_newest_first(client: httpx.AsyncClient) -> None:
    ids = [(await client.post("/critique", json={**RIGHT, "max_tokens": 1})).json()["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        page = (await client.get("/interactions", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert (await client.get("/interactions", params={"cursor": "garbage"})).status_code == 422
    assert (await client.get("/interactions", params={"limit": 0})).status_code == 422


async def test_filters(client: httpx.AsyncClient) -> None:
    right = (await client.post("/critique", json={**RIGHT, "reference": "7"})).json()
    wrong = (await client.post("/critique", json={**WRONG, "reference": "7"})).json()

    async def listed(**parameters: str) -> list[str]:
        return [item["id"] for item in (await client.get("/interactions", params=parameters)).json()["items"]]

    assert await listed(grade="right") == [right["id"]]
    assert await listed(verdict="incorrect") == [wrong["id"]]
    assert await listed(kind="refine") == []
    assert await listed(episode_id=right["episode_id"]) == [right["id"]]
    assert await listed(since=wrong["created_at"]) == [wrong["id"]]
    assert await listed(until=wrong["created_at"]) == [right["id"]]


async def test_deletes(client: httpx.AsyncClient) -> None:
    result = (await client.post("/critique", json=RIGHT)).json()
    await client.post("/feedback", json={"interaction_id": result["id"], "correct": True})
    assert (await client.delete(f"/interactions/{result['id']}")).status_code == 204
    assert (await client.get(f"/interactions/{result['id']}")).status_code == 404
    assert (await client.delete(f"/interactions/{result['id']}")).status_code == 404


async def test_lists_critics(client: httpx.AsyncClient) -> None:
    [zero] = (await client.get("/critics")).json()
    assert zero["version"] == 0
    assert zero["pointers"] == ["live"]
    detail = (await client.get("/critics/0")).json()
    assert {name: detail[name] for name in zero} == zero
    assert (detail["run_id"], detail["gate"], detail["swaps"], detail["receipts"]) == (None, None, [], [])
    assert (await client.get("/critics/9")).status_code == 404


async def test_a_filter_that_does_not_exist_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.get("/interactions", params={"verdcit": "correct"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].endswith("verdcit")
