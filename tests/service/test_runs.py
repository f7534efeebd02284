"""Training runs over HTTP: requested, read, cancelled, reproduced, followed. The tests write the rows of a trainer."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.grading import Grade
from gadfly.records import Tier, new_id
from gadfly.service import runs
from gadfly.service.answering import streaming
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.training import EventKind, GateOutcome, Progress, RunStatus, Stage
from tests.service.conftest import make_settings
from tests.support.postgres import PostgresServer
from tests.support.records import make_feedback, make_interaction
from tests.support.services import serving

ALL_TRAIN = 1e-9  # share of questions held out


async def add_label(database: Database, *, question: str = "What is 2 + 2?", **fields: Any) -> None:
    interaction = make_interaction(question=question, **{"reference": "4", "grade": Grade.WRONG, **fields})
    async with database.session() as session:
        await store.interactions.insert_records(session, [interaction], heldout_share=ALL_TRAIN)


async def write(database: Database, run_id: UUID | str, kind: EventKind, **data: Any) -> None:
    async with database.session() as session:
        await store.runs.append_event(session, UUID(str(run_id)), kind, data)


async def finish(database: Database, run_id: UUID | str, status: RunStatus, error: str | None = None) -> None:
    async with database.session() as session:
        assert await store.runs.finish_run(session, UUID(str(run_id)), status, error=error)


async def begin(database: Database, run_id: UUID | str) -> None:
    async with database.session() as session:
        await store.runs.begin_run(session, UUID(str(run_id)))


async def count(database: Database, table: str) -> int:
    async with database.session() as session:
        rows = await session.scalar(text(f"SELECT count(*) FROM {table}"))
    assert isinstance(rows, int)
    return rows


@pytest.fixture
async def api(settings: Settings, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A service with one labelled answer to learn from."""
    async with serving(settings) as client:
        await add_label(database)
        yield client


async def request_run(api: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await api.post("/admin/retrain", json=body)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


# ------------------------------------------------------------------------------------------------------- requesting


async def test_a_run_waits_with_its_job_and_can_be_read(api: httpx.AsyncClient, database: Database) -> None:
    answer = await api.post("/admin/retrain", json={"config": {"steps_stage_1": 3, "alarms": {"kl": None}}})
    assert answer.status_code == 202
    run = answer.json()
    assert answer.headers["location"] == f"/admin/runs/{run['id']}"
    assert (run["status"], run["trigger"], run["attempt"]) == ("queued", "admin", 0)
    assert run["progress"] == {"stage": None, "step": 0, "steps": 23, "eta_s": None}
    assert (run["config"]["steps_stage_1"], run["config"]["alarms"]["kl"]) == (3, None)
    assert (await api.get(answer.headers["location"])).json() == run
    async with database.session() as session:
        jobs = (await session.execute(text("SELECT args ->> 'run_id', lock, status FROM procrastinate_jobs"))).all()
    assert [tuple(job) for job in jobs] == [(run["id"], "training", "todo")]


async def test_options_come_from_the_file_and_the_request_wins(settings: Settings, database: Database) -> None:
    file = settings.home / "train.json"
    settings = settings.model_copy(update={"train_config": file})
    async with serving(settings) as api:
        await add_label(database)
        missing = await api.post("/admin/retrain", json={})
        assert missing.status_code == 422
        assert f"the training config {file} cannot be read" in missing.json()["detail"]
        file.write_text('{"seed": 5, "steps_stage_1": 7, "alarms": {"kl": 3, "no_gain": 9}}')
        changed = (await request_run(api, config={"seed": 6, "alarms": {"kl": 4}}))["config"]
        assert (changed["seed"], changed["steps_stage_1"], changed["steps_stage_2"]) == (6, 7, 20)
        assert (changed["alarms"]["kl"], changed["alarms"]["no_gain"]) == (4, 9)
        file.write_text('{"sed": 5}')
        refused = await api.post("/admin/retrain", json={})
        assert refused.status_code == 422
        assert f"{file} cannot be used: config.sed" in refused.json()["detail"], "read anew for each request"


BAD = [  # config, field, the reason for this row
    ({"learning_rate": 0}, "config.learning_rate", "out of bounds"),
    ({"learning_rat": 1e-4}, "config.learning_rat", "a typo must not be ignored"),
    ({"learning_rate": "Infinity"}, "config.learning_rate", "a number that JSON cannot represent"),
    ({"alarms": {"kl": -1}}, "config.alarms.kl", "nested"),
    ({"profile": "mine"}, "config.profile", "not one of the choices"),
    ({"steps_stage_1": 0, "steps_stage_2": 0}, "config", "fields that exclude each other"),
    ({"steps_stage_1": 10**10}, "config", "more than the column can hold"),
    ([], "config", "not an object"),
]


@pytest.mark.parametrize(("config", "field", "why"), BAD)
async def test_a_bad_option_is_named(
    api: httpx.AsyncClient, database: Database, config: Any, field: str, why: str
) -> None:
    answer = await api.post("/admin/retrain", json={"config": config})
    assert answer.status_code == 422, why
    assert [item["field"] for item in answer.json()["errors"]] == [field]
    assert await count(database, "training_runs") == 0


async def test_a_request_id_belongs_to_one_run(api: httpx.AsyncClient, database: Database) -> None:
    first = await request_run(api, request_id="nightly", config={"seed": 1})
    again = await api.post("/admin/retrain", json={"request_id": "nightly", "config": {"seed": 1}})
    assert again.status_code == 200
    assert again.json() == first
    assert again.headers["location"] == f"/admin/runs/{first['id']}"
    other = await api.post("/admin/retrain", json={"request_id": "nightly", "config": {"seed": 2}})
    assert other.status_code == 409
    assert "nightly" in other.json()["detail"]
    async with database.session() as session:
        await session.execute(text("DELETE FROM interactions"))
    forgotten = await api.post("/admin/retrain", json={"request_id": "nightly", "config": {"seed": 1}})
    assert forgotten.status_code == 200, "a repeat returns the run, also after its rows were deleted"
    assert await count(database, "procrastinate_jobs") == 1


async def test_ten_equal_requests_at_once_are_one_run(api: httpx.AsyncClient, database: Database) -> None:
    answers = await asyncio.gather(*(api.post("/admin/retrain", json={"request_id": "same"}) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await count(database, "training_runs") == 1
    assert await count(database, "procrastinate_jobs") == 1


async def test_a_run_without_labelled_answers_is_refused_and_stores_nothing(
    client: httpx.AsyncClient, database: Database
) -> None:
    refused = await client.post("/admin/retrain", json={"request_id": "a"})
    assert refused.status_code == 409
    assert "no labelled answer" in refused.json()["detail"]
    heldout = make_interaction(question="Held out?", reference="4", grade=Grade.RIGHT)
    async with database.session() as session:
        await store.interactions.insert_records(session, [heldout], heldout_share=1 - 1e-9)
    assert (await client.post("/admin/retrain", json={})).status_code == 409, "held-out answers are not for learning"
    labelled = make_interaction(question="Labelled?")
    async with database.session() as session:
        await store.interactions.insert_records(
            session, [labelled, make_feedback(labelled.id, correct=True)], heldout_share=ALL_TRAIN
        )
    stage_2 = await client.post("/admin/retrain", json={"config": {"steps_stage_1": 0}})
    assert stage_2.status_code == 409
    assert "no answer with a reference" in stage_2.json()["detail"], "stage II grades refinements"
    for table in ("training_runs", "run_events", "procrastinate_jobs"):
        assert await count(database, table) == 0, "refused in the same transaction"
    assert (await client.post("/admin/retrain", json={"request_id": "a"})).status_code == 202


async def test_a_dry_run_counts_and_stores_nothing(api: httpx.AsyncClient, database: Database) -> None:
    for number in range(3):
        await add_label(database, question=f"What is {number} + 7?", response="The answer is 7", grade=Grade.RIGHT)
    labelled = make_interaction(question="What is 9 + 9?")
    heldout = make_interaction(question="What is the square of 4?", reference="16", grade=Grade.WRONG)
    async with database.session() as session:
        await store.interactions.insert_records(
            session, [labelled, make_feedback(labelled.id, correct=False)], heldout_share=ALL_TRAIN
        )
        await store.interactions.insert_records(session, [heldout], heldout_share=1 - 1e-9)
    config = {"validation_share": 0, "steps_stage_1": 2, "steps_stage_2": 1}
    short = (await api.post("/admin/retrain", json={"dry_run": True, "config": config})).json()
    answer = await api.post("/admin/retrain", json={"dry_run": True, "config": config, "ids": True})
    assert answer.status_code == 200
    plan = answer.json()
    assert {name for name, value in short.items() if value != plan[name]} == {
        "train_ids",
        "validation_ids",
        "heldout_ids",
    }
    assert short["train_ids"] is None
    assert (plan["stage_1"]["answers"], plan["stage_1"]["right"], plan["stage_1"]["wrong"]) == (5, 3, 2)
    assert plan["stage_1"]["by_source"] == {"person": 1, "import": 0, "reference": 4, "rating": 0, "admin": 0}
    assert plan["stage_2"]["answers"] == 4
    assert plan["heldout_ids"] == [str(heldout.id)]
    assert str(heldout.id) not in plan["train_ids"]
    assert (plan["steps"], plan["seconds"], plan["detectable_discriminability"]) == (3, None, None)
    assert any("the gate needs 20" in warning for warning in plan["warnings"])
    for table in ("training_runs", "procrastinate_jobs"):
        assert await count(database, table) == 0
    bad = await api.post("/admin/retrain", json={"dry_run": True, "config": {"seed": -1}})
    assert bad.status_code == 422

    run = await request_run(api, config=config)
    for took in (10.0, 14.0):
        await write(database, run["id"], EventKind.STEP, step=1, seconds=took)
    timed = (await api.post("/admin/retrain", json={"dry_run": True, "config": config})).json()
    # 3 steps of 12 s, and 4 samples of 2 x 1 held-out critiques, of 64 a step
    assert timed["seconds"] == pytest.approx(12 * (3 + 2 * 4 / 64))
    other = {**config, "prompts_per_step": 8}
    untimed = (await api.post("/admin/retrain", json={"dry_run": True, "config": other})).json()
    assert untimed["seconds"] is None, "steps of another size are no basis for an estimate"


async def test_admins_only(settings: Settings, database: Database) -> None:
    async with database.session() as session:
        _, caller = await issue_key(session, name="ann", tier=Tier.CALLER)
        _, admin = await issue_key(session, name="root", tier=Tier.ADMIN)
        _, other = await issue_key(session, name="other", tier=Tier.ADMIN)
    async with serving(settings) as api:
        await add_label(database)
        request = {"request_id": "same"}
        run = (await api.post("/admin/retrain", json=request, headers=bearer(admin))).json()
        calls = [
            ("POST", "/admin/retrain"),
            ("GET", "/admin/runs"),
            ("GET", f"/admin/runs/{run['id']}"),
            ("GET", f"/admin/runs/{run['id']}/events"),
            ("POST", f"/admin/runs/{run['id']}/cancel"),
            ("POST", f"/admin/runs/{run['id']}/reproduce"),
        ]
        for method, path in calls:
            body = request if path.endswith("retrain") else None
            assert (await api.request(method, path, headers=bearer(caller), json=body)).status_code == 403, path
            assert (await api.request(method, path, json=body)).status_code == 401, path
        theirs = await api.post("/admin/retrain", json=request, headers=bearer(other))
        assert theirs.status_code == 202, "request ids are per key"
        listed = (await api.get("/admin/runs", headers=bearer(other))).json()["items"]
        assert [item["id"] for item in listed] == [theirs.json()["id"], run["id"]], "admins see all runs"


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_unknown_runs_are_not_found(client: httpx.AsyncClient) -> None:
    base = f"/admin/runs/{new_id()}"
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/reproduce")):
        assert (await client.request(method, base + path)).status_code == 404, path


# -------------------------------------------------------------------------------------------- reading and cancelling


async def test_runs_are_listed_by_pages_newest_first(api: httpx.AsyncClient) -> None:
    ids = [(await request_run(api, config={"seed": seed}))["id"] for seed in range(5)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for size in (2, 2, 1):
        page = (await api.get("/admin/runs", params={"limit": 2, **cursor})).json()
        assert len(page["items"]) == size
        seen += [item["id"] for item in page["items"]]
        cursor = {"cursor": page["next_cursor"]}
    assert seen == ids[::-1]
    assert cursor == {"cursor": None}
    assert (await api.get("/admin/runs", params={"limit": 0})).status_code == 422


async def test_a_run_shows_the_trainers_records(api: httpx.AsyncClient, database: Database) -> None:
    id = UUID((await request_run(api))["id"])
    await begin(database, id)
    async with database.session() as session:
        await store.runs.save_progress(session, id, Progress(stage=Stage.STAGE_2, step=21, steps=40, eta_s=61.5))
        await store.runs.save_manifest(session, id, {"answers": ["a"]})
        await store.runs.save_gate(session, id, GateOutcome.REJECT, {"items": 40})
    await finish(database, id, RunStatus.FAILED, "out of memory")
    run = (await api.get(f"/admin/runs/{id}")).json()
    assert run["progress"] == {"stage": "stage_2", "step": 21, "steps": 40, "eta_s": None}
    assert (run["status"], run["error"], run["attempt"]) == ("failed", "out of memory", 1)
    assert (run["manifest"], run["gate"], run["outcome"]) == ({"answers": ["a"]}, {"items": 40}, "reject")
    assert run["created_at"] <= run["started_at"] <= run["finished_at"]
    [listed] = (await api.get("/admin/runs")).json()["items"]
    assert listed == {name: run[name] for name in listed}
    assert set(run) - set(listed) == {"config", "gate", "manifest"}


async def test_a_queued_run_is_cancelled_at_once_and_a_running_one_gets_a_request(
    api: httpx.AsyncClient, database: Database
) -> None:
    waiting = (await request_run(api))["id"]
    cancelled = await api.post(f"/admin/runs/{waiting}/cancel")
    assert cancelled.status_code == 202
    assert cancelled.json()["status"] == "cancelled"
    assert cancelled.json()["finished_at"]
    again = await api.post(f"/admin/runs/{waiting}/cancel")
    assert again.status_code == 409
    assert "is over: cancelled" in again.json()["detail"]
    async with database.session() as session:
        assert (await store.runs.begin_run(session, UUID(waiting))).status is RunStatus.CANCELLED, (
            "the job of a cancelled run does nothing"
        )

    working = (await request_run(api))["id"]
    await begin(database, working)
    requested = await api.post(f"/admin/runs/{working}/cancel")
    assert (requested.status_code, requested.json()["status"]) == (202, "running")
    when = requested.json()["cancel_requested_at"]
    assert when
    assert (await api.post(f"/admin/runs/{working}/cancel")).json()["cancel_requested_at"] == when


async def test_a_run_can_be_reproduced_once_it_has_a_manifest(api: httpx.AsyncClient, database: Database) -> None:
    first = await request_run(api, config={"seed": 7})
    early = await api.post(f"/admin/runs/{first['id']}/reproduce")
    assert early.status_code == 409
    assert "no manifest yet" in early.json()["detail"]
    async with database.session() as session:
        await store.runs.save_manifest(session, UUID(first["id"]), {"answers": []})
    answer = await api.post(f"/admin/runs/{first['id']}/reproduce")
    assert answer.status_code == 202
    second = answer.json()
    assert answer.headers["location"] == f"/admin/runs/{second['id']}"
    assert (second["trigger"], second["reproduces"], second["status"]) == ("reproduce", first["id"], "queued")
    assert second["config"] == first["config"]
    assert await count(database, "procrastinate_jobs") == 2


# --------------------------------------------------------------------------------------------------------- following


@asynccontextmanager
async def follow(
    api: httpx.AsyncClient, run_id: str, *, after: int | None = None, **headers: str
) -> AsyncIterator[AsyncIterator[tuple[int, str, dict[str, Any]]]]:
    params = {} if after is None else {"after": after}
    async with api.stream(
        "GET",
        f"/admin/runs/{run_id}/events",
        params=params,
        headers={name.replace("_", "-"): v for name, v in headers.items()},
    ) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield _parsed(response)


async def _parsed(response: httpx.Response) -> AsyncIterator[tuple[int, str, dict[str, Any]]]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line and "data" in fields:
            yield int(fields["id"]), fields["event"], orjson.loads(fields["data"])
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


async def test_a_follower_gets_past_and_new_events_until_the_run_is_over(
    api: httpx.AsyncClient, database: Database
) -> None:
    run_id = (await request_run(api))["id"]
    await begin(database, run_id)
    await write(database, run_id, EventKind.STAGE, stage="stage_1", step=0)
    async with follow(api, run_id) as events:
        seen = [await anext(events) for _ in range(3)]
        assert [(kind, data.get("status") or data.get("stage")) for _, kind, data in seen] == [
            ("status", "queued"),
            ("status", "running"),
            ("stage", "stage_1"),
        ]
        for step in range(1, 4):
            await write(database, run_id, EventKind.STEP, step=step, metrics={"reward": 0.25 * step})
            written = time.monotonic()
            id, kind, data = await anext(events)
            assert time.monotonic() - written < 10
            assert (kind, data["step"], data["metrics"]) == ("step", step, {"reward": 0.25 * step})
            assert data["at"]
            assert id > seen[-1][0]
            seen.append((id, kind, data))
        await finish(database, run_id, RunStatus.SUCCEEDED)
        rest = [event async for event in events]
    assert [(kind, data["status"]) for _, kind, data in rest] == [("status", "succeeded")]


async def test_a_follower_resumes_after_its_last_event(api: httpx.AsyncClient, database: Database) -> None:
    run_id = (await request_run(api))["id"]
    for step in range(1, 5):
        await write(database, run_id, EventKind.STEP, step=step)
    await finish(database, run_id, RunStatus.FAILED, "no more memory")
    async with follow(api, run_id) as events:
        whole = [event async for event in events]
    assert [data.get("step") for _, _, data in whole] == [None, 1, 2, 3, 4, None]
    for seen in range(len(whole) - 1):
        last = whole[seen][0]
        async with follow(api, run_id, after=last) as events:
            assert [event async for event in events] == whole[seen + 1 :]
        async with follow(api, run_id, after=0, last_event_id=str(last)) as events:
            assert [event async for event in events] == whole[seen + 1 :], "Last-Event-ID takes precedence"
    ended = await api.get(f"/admin/runs/{run_id}/events", headers={"last-event-id": str(whole[-1][0])})
    assert ended.status_code == 204, "an EventSource that got all events must stop reconnecting"
    for bad in ("x", "-1", str(2**63)):
        refused = await api.get(f"/admin/runs/{run_id}/events", headers={"last-event-id": bad})
        assert refused.status_code == 422


async def test_more_events_than_one_page(
    api: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_PAGE", 3)
    run_id = (await request_run(api))["id"]
    for step in range(1, 8):
        await write(database, run_id, EventKind.STEP, step=step)
    await finish(database, run_id, RunStatus.SUCCEEDED)  # nine events: the third page is full, so a fourth is read
    async with follow(api, run_id) as events:
        steps = [data.get("step") async for _, _, data in events]
    assert steps == [None, 1, 2, 3, 4, 5, 6, 7, None]


async def test_silence_is_filled_with_comments(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.2)
    run_id = (await request_run(api))["id"]
    comments = 0
    async with api.stream("GET", f"/admin/runs/{run_id}/events") as response, asyncio.timeout(20):
        async for line in response.aiter_lines():
            comments += line.startswith(": in progress")
            if comments == 3:
                break
    assert comments == 3


async def followers(api: httpx.AsyncClient) -> float:
    lines = (await api.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("gadfly_run_followers "))


async def until_followers(api: httpx.AsyncClient, expected: int) -> None:
    deadline = time.monotonic() + 20
    while await followers(api) != expected:
        assert time.monotonic() < deadline, f"{await followers(api)} followers, not {expected}"
        await asyncio.sleep(0.05)


async def test_a_client_that_disconnects_ends_its_stream(api: httpx.AsyncClient) -> None:
    run_id = (await request_run(api))["id"]
    async with follow(api, run_id) as events:
        await anext(events)
        await until_followers(api, 1)
    await until_followers(api, 0)


async def test_a_hundred_followers_share_a_poll_and_do_not_exhaust_the_pool(
    api: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = itertools.count()
    read = store.runs.events_after

    async def counted(*arguments: Any, **options: Any) -> Any:
        next(reads)
        return await read(*arguments, **options)

    run_id = (await request_run(api))["id"]

    async def watch() -> list[str]:
        async with follow(api, run_id) as events:
            return [kind async for _, kind, _ in events]

    async with asyncio.TaskGroup() as group:
        watchers = [group.create_task(watch()) for _ in range(100)]
        await until_followers(api, 100)
        await asyncio.sleep(1.5)
        monkeypatch.setattr(store.runs, "events_after", counted)
        began = time.monotonic()
        await asyncio.sleep(3)
        polls = next(reads)
        assert 1 <= polls <= 2 * (time.monotonic() - began), f"{polls} polls in 3 s for 100 followers of one run"
        async with asyncio.timeout(10):  # the pool has 5 connections; a request that finds none free waits for 20 s
            listed = await asyncio.gather(*(api.get("/admin/runs") for _ in range(20)))
        assert {answer.status_code for answer in listed} == {200}
        await finish(database, run_id, RunStatus.SUCCEEDED)
    assert [watcher.result() for watcher in watchers] == [["status", "status"]] * 100


async def test_no_transaction_stays_open_between_polls(api: httpx.AsyncClient, database: Database) -> None:
    run_id = (await request_run(api))["id"]
    open_transactions = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        " AND pid <> pg_backend_pid()"
    )
    async with follow(api, run_id) as events:
        await anext(events)
        seen = []
        for _ in range(10):
            await asyncio.sleep(0.2)
            async with database.session() as session:
                seen.append(await session.scalar(open_transactions))
    assert seen.count(0) >= 5, f"{seen} transactions at ten moments"


async def test_followers_survive_a_restart_of_postgres(
    tmp_path: Path, own_postgres: PostgresServer, engine_url: str
) -> None:
    settings = make_settings(tmp_path, own_postgres.url, engine_url, database_timeout_s=1.0)
    async with serving(settings) as api, Database(own_postgres.url) as database:
        await add_label(database)
        run_id = (await request_run(api))["id"]
        async with follow(api, run_id) as events:
            assert (await anext(events))[1] == "status"
            await asyncio.to_thread(own_postgres.stop)
            await asyncio.sleep(2.5)
            await asyncio.to_thread(own_postgres.start)
            await write(database, run_id, EventKind.NOTE, message="back")
            async with asyncio.timeout(30):
                _, kind, data = await anext(events)
            assert (kind, data["message"]) == ("note", "back")


async def test_streams_end_when_the_service_stops(settings: Settings, database: Database) -> None:
    async with httpx.AsyncClient(timeout=30) as own:
        async with serving(settings) as api:
            await add_label(database)
            run_id = (await request_run(api))["id"]
            url = f"{api.base_url}/admin/runs/{run_id}/events"

            async def watch() -> float:
                async with own.stream("GET", url) as response:
                    async for _ in response.aiter_lines():
                        pass
                return time.monotonic()

            watcher = asyncio.create_task(watch())
            await until_followers(api, 1)
            stopping = time.monotonic()
        stopped = time.monotonic()
        assert (await watcher) - stopping < 4, "the stream ends by itself, before the 5 s of the graceful shutdown"
        assert stopped - stopping < 4, "the shutdown does not wait for a stream without an end"
