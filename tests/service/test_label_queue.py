"""The label queue: its order, several people at once, skipping, undoing, and the progress towards the gate."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select, update

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.grading import Grade
from gadfly.records import Interaction, Tier, new_id, now
from gadfly.settings import Settings, SplitBlocks
from gadfly.store.database import Database
from gadfly.store.split import question_hash
from gadfly.store.tables import ChosenAnswerRow, FeedbackRow
from gadfly.verdict import Verdict
from tests.service.conftest import serving_without_engine
from tests.support.records import make_critique, make_feedback, make_interaction, make_key, unrelated_question

TRAIN, HELDOUT = 1e-9, 1 - 1e-9


async def keep(database: Database, *records: Any, heldout_share: float = TRAIN) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        await store.interactions.insert_records(
            session, records, heldout_share=heldout_share, split_blocks=SplitBlocks.EXACT
        )


def judged(number: int, p_correct: float, **fields: Any) -> Interaction:
    """An answer that a critic calls correct with this probability."""
    verdict = Verdict.CORRECT if p_correct >= 0.5 else Verdict.INCORRECT
    critique = make_critique(p_correct=p_correct, p_incorrect=1 - p_correct, verdict=verdict, stated=verdict)
    return make_interaction(question=unrelated_question(number), critiques=(critique,), verdict=verdict, **fields)


async def admin(database: Database) -> str:
    async with database.session() as session:
        _, secret = await issue_key(session, name="root", tier=Tier.ADMIN)
    return secret


async def take(client: httpx.AsyncClient, labeller: str = "a", **body: Any) -> list[dict[str, Any]]:
    answer = await client.post("/labels/queue", json={"labeller": labeller, **body})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


@pytest.fixture
def without_sample(engineless: Settings) -> Settings:
    """Nearly no questions are held out, and as few others are in the random sample."""
    return engineless.model_copy(update={"heldout_share": TRAIN})


async def test_what_teaches_most_comes_first(without_sample: Settings, database: Database) -> None:
    ann, bob = new_id(), new_id()
    async with database.session() as session:
        for id, name in ((ann, "ann"), (bob, "bob")):
            await store.keys.insert_key(session, make_key(id=id, name=name), name.encode())
    sure, unsure, new = (
        judged(1, 0.99),
        judged(2, 0.55),
        make_interaction(question=unrelated_question(3), critiques=(), verdict=None, critic_version=None),
    )
    fought, against, other = judged(4, 0.9), judged(5, 0.95), judged(6, 0.9)
    await keep(database, sure, unsure, new, fought, against, other)
    await keep(
        database,
        make_feedback(fought.id, key_id=ann, reference="4", grade=Grade.RIGHT),
        make_feedback(fought.id, key_id=bob, reference="5", grade=Grade.WRONG),
        make_feedback(against.id, key_id=ann, correct=False),
    )
    async with database.session() as session:
        await store.shadow.insert_verdicts(session, 0, [(other.id, Verdict.INCORRECT)])
    async with serving_without_engine(without_sample) as client:
        secret = await admin(database)
        client.headers["authorization"] = f"Bearer {secret}"
        items = await take(client, limit=6)
    assert [(item["interaction_id"], item["reason"]) for item in items] == [
        (str(fought.id), "conflict"),
        (str(other.id), "disagreement"),
        (str(against.id), "contradicted"),
        (str(unsure.id), "uncertain"),
        (str(sure.id), "uncertain"),
        (str(new.id), "new"),
    ]
    assert items[1]["other_verdict"] == "incorrect"
    assert items[2]["votes"] == [{"key_id": str(ann), "key_name": "ann", "source": "person", "correct": False}]
    assert items[3]["p_right"] == pytest.approx(0.55)


async def test_every_second_answer_is_from_a_random_sample(engineless: Settings, database: Database) -> None:
    """Held-out answers are all in it, and an order by what critics said would make the live critic look worse."""
    train = [judged(number, 0.5 + number / 1000) for number in range(1, 121)]
    heldout = [judged(number, 0.5 + number / 1000) for number in range(121, 151)]
    await keep(database, *train)
    await keep(database, *heldout, heldout_share=HELDOUT)
    sides = {str(each.id): "heldout" if each in heldout else "train" for each in [*train, *heldout]}
    async with serving_without_engine(engineless) as client:
        taken: list[str] = []
        while items := await take(client, f"tab {len(taken)}", limit=20):
            taken += [item["interaction_id"] for item in items]
    assert len(set(taken)) == len(taken) == 150, "all are handed out in the end"
    first = taken[:40]
    by_worth, sample = first[::2], first[1::2]
    p = {str(each.id): each.critiques[0].p_correct for each in [*train, *heldout]}
    assert [sides[id] for id in by_worth] == ["train"] * 20
    assert [p[id] for id in by_worth] == sorted(p[id] or 0 for id in by_worth)
    assert 4 <= sum(sides[id] == "heldout" for id in sample) <= 16, "about half of the sample"
    assert [p[id] for id in sample] != sorted(p[id] or 0 for id in sample)
    async with database.session() as session:
        chosen = set(await session.scalars(select(ChosenAnswerRow.question_hash)))
    assert {question_hash(each.question) for each in heldout} & chosen == set()
    assert {question_hash(each.question) for each in train if str(each.id) in by_worth} <= chosen
    assert 60 <= len(chosen) <= 110, "three quarters of 120"


async def test_a_vote_about_a_held_out_answer_gets_no_second_opinion(engineless: Settings, database: Database) -> None:
    """It would get one only where the live critic is against it, and the critic would look better than it is."""
    ann = new_id()
    async with database.session() as session:
        await store.keys.insert_key(session, make_key(id=ann, name="ann"), b"ann")
    answers = [judged(number, 0.95) for number in range(4)]
    await keep(database, *answers, heldout_share=HELDOUT)
    await keep(database, *(make_feedback(each.id, key_id=ann, correct=False) for each in answers))
    async with serving_without_engine(engineless) as client:
        client.headers["authorization"] = f"Bearer {await admin(database)}"
        assert await take(client, limit=20) == []


async def test_a_chosen_reason_is_asked_about_no_held_out_answer(engineless: Settings, database: Database) -> None:
    heldout = [judged(number, 0.6) for number in range(1000, 1010)]
    await keep(database, *heldout, heldout_share=HELDOUT)
    async with serving_without_engine(engineless) as client:
        assert await take(client, limit=20, reasons=["uncertain"]) == []
        assert len(await take(client, limit=20)) == 10


async def test_several_people_never_get_the_same_answer(engineless: Settings, database: Database) -> None:
    await keep(database, *(judged(number, 0.5 + number / 100) for number in range(12)))
    async with serving_without_engine(engineless) as client:
        taken = await asyncio.gather(*(take(client, f"tab {number}", limit=2) for number in range(6)))
        ids = [item["interaction_id"] for items in taken for item in items]
        assert len(ids) == len(set(ids)) == 12
        assert await take(client, "late") == []
        again = await take(client, "tab 0", limit=2)
        assert {item["interaction_id"] for item in again} == {item["interaction_id"] for item in taken[0]}
        assert (await client.post("/labels/queue/release", json={"labeller": "tab 0"})).status_code == 204
        assert len(await take(client, "late", limit=5)) == 2


async def test_two_people_label_side_by_side(engineless: Settings, database: Database) -> None:
    """Each takes several answers at once, in an order of worth that changes while both label."""
    await keep(database, *(judged(number, 0.5 + (number % 7) / 20) for number in range(60)))
    labelled: dict[str, list[str]] = {"ann": [], "bob": []}

    async def label(client: httpx.AsyncClient, name: str) -> None:
        for _ in range(10):
            items = await take(client, name, limit=3)
            for item in items[:2]:
                given = {"interaction_id": item["interaction_id"], "correct": True}
                assert (await client.post("/feedback", json=given)).status_code == 200
                labelled[name].append(item["interaction_id"])

    async with serving_without_engine(engineless) as client:
        await asyncio.gather(*(label(client, name) for name in labelled))
    assert [len(each) for each in labelled.values()] == [20, 20]
    assert not set(labelled["ann"]) & set(labelled["bob"])


async def test_a_label_leaves_the_queue_and_undo_brings_it_back(engineless: Settings, database: Database) -> None:
    first, second = judged(1, 0.5), judged(2, 0.6)
    await keep(database, first, second, heldout_share=HELDOUT)
    async with serving_without_engine(engineless) as client:
        [item] = await take(client)
        if item["interaction_id"] == str(second.id):  # held-out answers come in random order
            first, second = second, first
        given = str(uuid4())
        label = {"feedback_id": given, "interaction_id": str(first.id), "correct": False}
        assert (await client.post("/feedback", json=label)).status_code == 200
        assert [item["interaction_id"] for item in await take(client)] == [str(second.id)]
        progress = (await client.get("/labels/progress")).json()
        assert (progress["heldout"], progress["labelled_today"], progress["by_you_today"]) == (
            {"right": 0, "wrong": 1},
            1,
            1,
        )
        undone = await client.delete(f"/feedback/{given}")
        assert undone.json() == {
            "id": given,
            "interaction_id": str(first.id),
            "correct": None,
            "standing": "none",
            "still_frozen": False,
        }
        assert (await client.delete(f"/feedback/{given}")).status_code == 404
        assert (await client.get(f"/interactions/{first.id}")).json()["feedback"] == []
        items = await take(client, "b", limit=2)
        assert str(first.id) in {item["interaction_id"] for item in items}
        again = label | {"feedback_id": str(uuid4()), "correct": True}
        assert (await client.post("/feedback", json=again)).status_code == 200
        assert (await client.get(f"/admin/labels/{first.id}")).json()["correct"] is True, "not frozen by the mistake"


async def test_an_old_label_of_a_held_out_answer_stays_frozen(engineless: Settings, database: Database) -> None:
    answer = judged(1, 0.5)
    feedback = make_feedback(answer.id, correct=True)
    await keep(database, answer, feedback, heldout_share=HELDOUT)
    async with database.session() as session:
        await session.execute(update(FeedbackRow).values(stored_at=now() - timedelta(minutes=20)))
    async with serving_without_engine(engineless) as client:
        undone = (await client.delete(f"/feedback/{feedback.id}")).json()
        assert (undone["correct"], undone["still_frozen"]) == (True, True)


async def test_withdrawn_references_take_their_grades_along(engineless: Settings, database: Database) -> None:
    answer = judged(1, 0.5)
    await keep(database, answer)
    async with serving_without_engine(engineless) as client:
        given = {"interaction_id": str(answer.id), "reference": "5"}
        told = (await client.post("/feedback", json=given)).json()
        assert (await client.get(f"/interactions/{answer.id}")).json()["grade"] == "right"
        assert (await client.delete(f"/feedback/{told['id']}")).json()["correct"] is None
        assert (await client.get(f"/interactions/{answer.id}")).json()["grade"] is None


async def test_only_an_admin_withdraws_feedback_of_others_and_it_is_recorded(
    engineless: Settings, database: Database
) -> None:
    async with database.session() as session:
        ann, ann_secret = await issue_key(session, name="ann", tier=Tier.CALLER)
        _, bob_secret = await issue_key(session, name="bob", tier=Tier.CALLER)
    root = await admin(database)
    answer = judged(1, 0.5, key_id=ann.id)
    mine, second = make_feedback(answer.id, key_id=ann.id, correct=True), judged(2, 0.5, key_id=ann.id)
    await keep(database, answer, mine, second)
    async with serving_without_engine(engineless) as client:
        bob, ann_headers, root_headers = (
            {"authorization": f"Bearer {secret}"} for secret in (bob_secret, ann_secret, root)
        )
        assert (await client.delete(f"/feedback/{mine.id}", headers=bob)).status_code == 404
        assert (await client.post("/labels/queue", json={"labeller": "x"}, headers=bob)).json()["items"] == []
        own = (await client.post("/labels/queue", json={"labeller": "x"}, headers=ann_headers)).json()["items"]
        assert [item["interaction_id"] for item in own] == [str(second.id)]
        assert (await client.delete(f"/feedback/{mine.id}", headers=root_headers)).status_code == 200
        [act] = (await client.get("/admin/acts", headers=root_headers)).json()["items"]
        assert (act["action"], act["subject"], act["details"]) == (
            "withdraw_feedback",
            str(mine.id),
            {"of_key": str(ann.id)},
        )


async def test_a_skipped_answer_is_for_others(engineless: Settings, database: Database) -> None:
    answer = judged(1, 0.5)
    await keep(database, answer)
    async with serving_without_engine(engineless) as client:
        await take(client, "a")
        path = f"/labels/queue/{answer.id}/skip"
        assert (await client.post(path, json={"labeller": "a"})).status_code == 204
        assert await take(client, "a") == []
        assert len(await take(client, "b")) == 1
        assert (await client.post(f"/labels/queue/{new_id()}/skip", json={"labeller": "a"})).status_code == 404


async def test_the_progress_names_what_the_gate_needs(engineless: Settings, database: Database) -> None:
    await keep(database, judged(1, 0.5))
    async with serving_without_engine(engineless) as client:
        far = (await client.get("/labels/progress")).json()
        near = (await client.get("/labels/progress", params={"target_points": 15})).json()
        assert far["detectable_points"] is None
        assert far["needed"]["right"] == far["needed"]["wrong"] > near["needed"]["wrong"] >= 20
        assert far["expected_labels"]["wrong"] == 4 * far["needed"]["wrong"]
        assert f"{far['needed']['wrong']} more wrong and" in far["sentence"]
        assert (await client.get("/labels/progress", params={"target_points": 0})).status_code == 422
