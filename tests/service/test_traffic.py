"""Lists of interactions by label, confidence and words; replay by another critic; what runs learned from them."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.records import Tier, new_id
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.learning import RESPONSE, SAMPLED, Learned
from gadfly.training import EventKind, Stage, TrainConfig, Trigger
from gadfly.verdict import Verdict
from tests.service.conftest import RIGHT, make_settings, serving_without_engine
from tests.service.test_label_queue import judged, keep
from tests.support.instant import instant_engine
from tests.support.records import make_critique, make_feedback, make_interaction
from tests.support.services import read_events, serving


async def listed(client: httpx.AsyncClient, **query: Any) -> set[str]:
    answer = await client.get("/interactions", params=query)
    assert answer.status_code == 200, answer.text
    return {item["id"] for item in answer.json()["items"]}


async def test_filters_by_label_confidence_task_and_words(engineless: Settings, database: Database) -> None:
    right, wrong, open_ = judged(1, 0.9), judged(2, 0.2), judged(3, 0.55, task="law")
    pens = make_interaction(question="How many pens? It's about 50% of O'Neil's.", response="Seven ballpoint pens")
    silent = make_interaction(
        question="Unread", critiques=(make_critique(verdict=Verdict.UNPARSED, stated=Verdict.UNPARSED),)
    )
    said = [make_feedback(right.id, correct=True), make_feedback(wrong.id, correct=False)]
    await keep(database, right, wrong, open_, pens, silent, *said)
    of = {name: str(item.id) for name, item in {"right": right, "wrong": wrong, "open": open_}.items()}
    async with serving_without_engine(engineless) as client:
        for query, found in [
            ({"label": "right"}, {of["right"]}),
            ({"label": "wrong"}, {of["wrong"]}),
            ({"label": "none"}, {of["open"], str(pens.id), str(silent.id)}),
            ({"label": "conflict"}, set()),
            ({"task": "law"}, {of["open"]}),
            ({"confidence_from": 0.5, "confidence_to": 0.6}, {of["open"]}),
            ({"confidence_from": 0.79, "confidence_to": 0.81}, {of["wrong"]}),  # of the verdict, not of `correct`
            ({"confidence_from": 0.87}, {of["right"], str(pens.id)}),  # 0.7 of 0.8
            ({"q": "pens ballpoint"}, {str(pens.id)}),
            ({"q": '"ballpoint pens" -eight'}, {str(pens.id)}),
            ({"q": "pens -ballpoint"}, set()),
            ({"q": "O'Neil's & | ! 50% :*"}, {str(pens.id)}),
            ({"key_id": str(new_id())}, set()),
        ]:
            assert await listed(client, **query) == found, query
        [item] = (await client.get("/interactions", params={"label": "wrong"})).json()["items"]
        assert (item["label"], item["label_source"], item["standing"], item["confidence"]) == (
            "wrong",
            "person",
            "agreed",
            pytest.approx(0.8),
        )
        whole = (await client.get(f"/interactions/{silent.id}")).json()
        assert (whole["confidence"], whole["label"]) == (None, "none")
        assert (await client.get("/interactions", params={"confidence_from": 2})).status_code == 422


async def test_replay_and_trials_store_nothing(tmp_path: Path, database_url: str, database: Database) -> None:
    with instant_engine(tmp_path) as engine:
        async with serving(make_settings(tmp_path, database_url, engine)) as client:
            kept = (await client.post("/critique", json=RIGHT)).json()
            again = await client.post(f"/interactions/{kept['id']}/replay", json={"critic": 0})
            assert again.status_code == 200, again.text
            assert again.json()["verdict"] == kept["verdict"]
            assert again.json()["id"] != kept["id"]
            trial = await client.post("/critique", json={**RIGHT, "store": False})
            assert trial.status_code == 200
            refined = await client.post("/refine", json={**RIGHT, "store": False})
            assert refined.status_code == 200
            events = await read_events(client, "/critique", {**RIGHT, "store": False})
            assert events[-1][0] == "result"
            assert await listed(client) == {kept["id"]}
            assert (await client.get(f"/interactions/{trial.json()['id']}")).status_code == 404
            for named in ({"request_id": "r"}, {"episode_id": kept["episode_id"]}):
                answer = await client.post("/critique", json={**RIGHT, "store": False, **named})
                assert answer.status_code == 422
            missing = await client.post(f"/interactions/{kept['id']}/replay", json={"critic": 9})
            assert missing.status_code == 404


async def test_the_ledger_of_an_interaction(engineless: Settings, database: Database) -> None:
    answer, other = judged(1, 0.5), judged(2, 0.5)
    await keep(database, answer, other)
    refinement = new_id()
    entry = Learned(
        interaction_id=answer.id, answer=RESPONSE, stage="stage_1", draws=0, critiques=0, mean_score=0.0,
        verdicts_right=0, first_step=1, last_step=1,
    )  # fmt: skip
    drawn = entry.with_draw(1, [1.0, 0.0], 1).with_draw(4, [1.0, 1.0], 2)
    async with database.session() as session:
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        old = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        manifest = {"answers": [{"id": str(answer.id)}], "questions": []}
        for each in (run, old):
            await store.runs.save_manifest(session, each.id, manifest)
        await store.learning.save_learned(session, run.id, [entry.with_draw(1, [1.0, 0.0], 1)])
        of_others = [
            Learned(
                interaction_id=answer.id, answer=name, stage="stage_2", draws=1, critiques=4, mean_score=0.25,
                verdicts_right=4, first_step=9, last_step=9,
            )
            for name in (SAMPLED, str(refinement))
        ]  # fmt: skip
        await store.learning.save_learned(session, run.id, [drawn, *of_others])
        samples = {"samples": [{"interaction_id": str(answer.id), "critique": "secret"}]}
        await store.runs.append_event(session, run.id, EventKind.SAMPLES, samples)
    async with serving_without_engine(engineless) as client:
        found = (await client.get(f"/admin/interactions/{answer.id}/learning")).json()
        assert found["selected_by"] == [str(old.id)]
        first, *rest = found["entries"]
        assert {name: first[name] for name in ("stage", "draws", "critiques", "mean_score", "verdict_right")} == {
            "stage": Stage.STAGE_1,
            "draws": 2,
            "critiques": 4,
            "mean_score": 0.75,
            "verdict_right": 0.75,
        }
        assert (first["run_id"], first["first_step"], first["last_step"]) == (str(run.id), 1, 4)
        assert {(item["sampled"], item["refinement_id"]) for item in rest} == {(True, None), (False, str(refinement))}
        assert (await client.get(f"/admin/interactions/{other.id}/learning")).json()["entries"] == []
        assert (await client.get(f"/admin/interactions/{new_id()}/learning")).status_code == 404
        assert (await client.delete(f"/interactions/{answer.id}")).status_code == 204
    async with database.session() as session:
        assert await store.learning.learned_from(session, answer.id) == []
        events = await store.runs.events_after(session, run.id, after=0)
        assert [event for event in events if event.kind is EventKind.SAMPLES] == [], "its critiques are deleted with it"


async def test_callers_cannot_look_at_other_keys(engineless: Settings, database: Database) -> None:
    async with database.session() as session:
        ann, secret = await issue_key(session, name="ann", tier=Tier.CALLER)
        bob, _ = await issue_key(session, name="bob", tier=Tier.CALLER)
    mine, his = judged(1, 0.5, key_id=ann.id), judged(2, 0.5, key_id=bob.id)
    await keep(database, mine, his)
    async with serving_without_engine(engineless) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        assert await listed(client) == {str(mine.id)}
        assert await listed(client, key_id=str(bob.id)) == set()
        assert (await client.post(f"/interactions/{his.id}/replay", json={})).status_code == 404
        assert (await client.get(f"/admin/interactions/{mine.id}/learning")).status_code == 403
