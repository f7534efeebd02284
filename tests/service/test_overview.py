"""The overview: verdict accuracy by version and time, and what waits for a person."""

from datetime import UTC, datetime, timedelta

from gadfly import store
from gadfly.records import SwapKind, SwapStatus
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.training import EventKind, GateOutcome, TrainConfig, Trigger
from tests.service.conftest import serving_without_engine
from tests.service.test_label_queue import judged, keep
from tests.support.records import make_feedback


async def test_accuracy_by_class_and_day(engineless: Settings, database: Database) -> None:
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=2)
    day = timedelta(days=1)
    rows = [  # the time, P(correct), the label
        (noon, 0.9, True),
        (noon, 0.9, False),
        (noon + timedelta(minutes=5), 0.2, False),
        (noon + day, 0.8, True),
        (noon - 40 * day, 0.8, True),  # before the window
    ]
    answers = [judged(number, p, created_at=at) for number, (at, p, _) in enumerate(rows)]
    # The same question again, and right again: the newer one counts.
    answers.append(judged(0, 0.1, created_at=noon + timedelta(hours=1), response="Another text, 5"))
    labels = [label for _, _, label in rows] + [True]
    said = [make_feedback(answer.id, correct=label) for answer, label in zip(answers, labels, strict=True)]
    await keep(database, *answers, *said)
    async with serving_without_engine(engineless) as client:
        found = (await client.get("/admin/overview/accuracy")).json()
        [series] = found["series"]
        first, second = series["points"]
        assert (first["at"], second["at"]) == tuple(
            (noon + days * day).replace(hour=0).isoformat().replace("+00:00", "Z") for days in (0, 1)
        )
        assert (first["right"]["value"], first["right"]["answers"]) == (0.0, 1)
        assert (first["wrong"]["value"], first["wrong"]["answers"]) == (0.5, 2)
        assert first["balanced"]["value"] == 0.25
        assert first["wrong"]["low"] < 0.5 < first["wrong"]["high"]
        assert (second["right"]["value"], second["wrong"], second["balanced"]) == (1.0, None, None)
        assert (series["total"]["right"]["value"], series["total"]["right"]["answers"]) == (0.5, 2)
        hours = (await client.get("/admin/overview/accuracy", params={"bucket": "hour"})).json()
        assert len(hours["series"][0]["points"]) == 3
        for query in (
            {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
            {"since": "2020-01-02T00:00:00Z", "bucket": "hour"},
            {"bucket": "minute"},
            {"until": "0001-01-02T00:00:00Z"},
        ):
            assert (await client.get("/admin/overview/accuracy", params=query)).status_code == 422, query


async def test_a_trained_version_counts_only_what_it_cannot_have_learned(
    engineless: Settings, database: Database
) -> None:
    await keep(database, judged(1, 0.9))
    async with database.session() as session:
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        await store.critics.insert_critic(
            session, run_id=run.id, parent=0, base_model="tiny", prompt_set="stepwise@1", adapter_path="/none",
            adapter_sha256="ab",
        )  # fmt: skip
    old, new = judged(1, 0.9, critic_version=1), judged(2, 0.9, critic_version=1)
    await keep(database, old, new, *(make_feedback(each.id, correct=True) for each in (old, new)))
    async with serving_without_engine(engineless) as client:
        base, trained = (await client.get("/admin/overview/accuracy")).json()["series"]
        assert (base["version"], base["total"]["right"]["answers"]) == (0, 1)
        assert (trained["version"], trained["total"]["right"]["answers"]) == (1, 1)


async def test_what_runs_and_what_waits(engineless: Settings, database: Database) -> None:
    await keep(database, judged(1, 0.5))
    async with database.session() as session:
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        critic = await store.critics.insert_critic(
            session, run_id=run.id, parent=0, base_model="tiny", prompt_set="stepwise@1", adapter_path="/none",
            adapter_sha256="ab",
        )  # fmt: skip
        await store.runs.save_gate(session, run.id, GateOutcome.NOT_ENOUGH_EVIDENCE, {})
        await store.runs.append_event(session, run.id, EventKind.ALARM, {"message": "KL", "evidence": {}})
        swap = await store.swaps.request_swap(session, version=1, kind=SwapKind.PROMOTE, reason="I like it")
        await store.swaps.finish_swap(session, swap.id, SwapStatus.REFUSED, "no engine")
    async with serving_without_engine(engineless) as client:
        found = (await client.get("/admin/overview")).json()
        assert (found["live"], found["candidate"], found["run"]["id"]) == (0, None, str(run.id))
        waiting = found["waiting"]
        assert [item["version"] for item in waiting["undecided"]] == [critic.version]
        assert [item["message"] for item in waiting["alarms"]] == ["KL"]
        assert waiting["refused_swap"]["reason"] == "no engine"
        assert found["last_24h"] == {"interactions": 1, "labels": 0}
        [act] = (await client.get("/admin/acts")).json()["items"]
        assert (act["action"], act["reason"], act["subject"], act["details"]) == (
            "promote",
            "I like it",
            str(swap.id),
            {"version": 1, "from_version": 0},
        )
        [event] = (await client.get("/admin/overview/accuracy")).json()["events"]
        assert (event["kind"], event["status"], event["version"]) == ("promote", "refused", 1)
