"""A run's metrics and critiques as lists, and two runs side by side."""

from gadfly import store
from gadfly.records import new_id
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.training import EventKind, TrainConfig, Trigger
from tests.service.conftest import serving_without_engine
from tests.service.test_label_queue import keep


async def test_steps_samples_and_a_comparison(engineless: Settings, database: Database) -> None:
    await keep(database)
    sample = {
        "interaction_id": str(new_id()), "was_right": False, "verdict": "incorrect", "score": 1.0, "refined": "right",
        "critique": "Step 2 is wrong.",
    }  # fmt: skip
    events = [
        (EventKind.STAGE, {"stage": "stage_1", "step": 0}),
        (EventKind.STEP, {"step": 1, "seconds": 2.0, "metrics": {"mean_score": 0.5, "kl": "nan"}}),
        (EventKind.SAMPLES, {"stage": "stage_1", "step": 1, "samples": [sample]}),
        (EventKind.VALIDATION, {"step": 1, "metrics": {"merit": 0.6}}),
        (EventKind.STEP, {"step": 2, "seconds": 2.0, "metrics": {"mean_score": 0.6}}),
        (EventKind.STEP, {"step": 2, "seconds": 3.0, "metrics": {"mean_score": 0.7}}),  # resumed
    ]
    async with database.session() as session:
        a = (await store.runs.request_run(session, config=TrainConfig(seed=1), trigger=Trigger.ADMIN)).run
        b = (await store.runs.request_run(session, config=TrainConfig(seed=1, cycles=2), trigger=Trigger.ADMIN)).run
        for kind, data in events:
            await store.runs.append_event(session, a.id, kind, data)
        for run, ids in ((a, "xy"), (b, "yz")):
            await store.runs.save_manifest(session, run.id, {"answers": [{"id": id} for id in ids]})
    async with serving_without_engine(engineless) as client:
        page = (await client.get(f"/admin/runs/{a.id}/steps")).json()
        assert [(item["step"], item["stage"], item["metrics"]) for item in page["items"]] == [
            (1, "stage_1", {"mean_score": 0.5, "kl": None}),
            (2, "stage_1", {"mean_score": 0.7}),
        ]
        assert [(item["step"], item["metrics"]) for item in page["validations"]] == [(1, {"merit": 0.6})]
        assert page["next_after"] is None
        cut = (await client.get(f"/admin/runs/{a.id}/steps", params={"limit": 2})).json()
        rest = (await client.get(f"/admin/runs/{a.id}/steps", params={"after": cut["next_after"]})).json()
        assert [item["step"] for item in cut["items"] + rest["items"]] == [1, 2]
        [item] = (await client.get(f"/admin/runs/{a.id}/samples")).json()["items"]
        assert (item["critique"], item["step"], item["refined"]) == ("Step 2 is wrong.", 1, "right")
        both = (await client.get("/admin/runs/compare", params={"a": str(a.id), "b": str(b.id)})).json()
        assert both["options"] == [{"option": "cycles", "a": 1, "b": 2}]
        assert both["answers"] == {"both": 1, "only_a": 1, "only_b": 1}
        for path in (f"/admin/runs/{new_id()}/steps", f"/admin/runs/{new_id()}/samples"):
            assert (await client.get(path)).status_code == 404
