"""Real faults: the database stopped, the engine killed, the service killed, callers disconnected, disks full."""

import asyncio
import contextlib
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from gadfly.service import health
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.service.conftest import RIGHT, WRONG, make_settings
from tests.support.engines import SpareEngine
from tests.support.postgres import PostgresServer
from tests.support.services import free_port, iter_events, service_process, serving, until_ready

SHORT = {**RIGHT, "max_tokens": 4}


async def test_postgres_stops_and_starts_under_load(
    tmp_path: Path, own_postgres: PostgresServer, engine_url: str
) -> None:
    settings = make_settings(tmp_path, own_postgres.url, engine_url, database_timeout_s=1.0)
    acknowledged: dict[str, str] = {}
    failures: list[str] = []
    done = asyncio.Event()

    async with serving(settings) as client:

        async def call(caller: int) -> None:
            number = 0
            while not done.is_set():
                number += 1
                answer = await client.post(
                    "/critique", json={**SHORT, "metadata": {"caller": caller, "number": number}}
                )
                if answer.status_code != 200:
                    failures.append(answer.text)
                    continue
                result = answer.json()
                acknowledged[result["id"]] = result["critique"]
                feedback = await client.post("/feedback", json={"interaction_id": result["id"], "correct": True})
                if feedback.status_code == 200:
                    acknowledged[feedback.json()["id"]] = "feedback"

        callers = [asyncio.create_task(call(caller)) for caller in range(6)]
        await asyncio.sleep(1.5)
        await asyncio.to_thread(own_postgres.stop)
        before = len(acknowledged)
        await asyncio.sleep(4)
        state = (await client.get("/state")).json()
        assert len(acknowledged) > before, "requests are answered while Postgres is unavailable"
        assert state["spool"]["records"] > 0
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert not ready.json()["database"]["ok"]
        listed = await client.get("/interactions")
        assert listed.status_code == 503
        assert int(listed.headers["retry-after"]) >= 1
        spooled = (await client.post("/critique", json=SHORT)).json()
        await client.post("/feedback", json={"interaction_id": spooled["id"], "comment": "kept on disk"})
        read = (await client.get(f"/interactions/{spooled['id']}")).json()
        assert read["result"] == spooled
        assert [item["comment"] for item in read["feedback"]] == ["kept on disk"]
        await asyncio.to_thread(own_postgres.start)
        await asyncio.sleep(2)
        done.set()
        await asyncio.gather(*callers)
        await until_ready(client)
        await _until_replayed(client)
    assert not failures
    async with Database(own_postgres.url) as database, database.session() as session:
        rows = await session.scalars(text("SELECT id::text FROM interactions UNION ALL SELECT id::text FROM feedback"))
        stored = list(rows)
    assert set(stored) >= set(acknowledged), "no acknowledged record is lost"
    assert len(stored) == len(set(stored))


async def _until_replayed(client: httpx.AsyncClient, *, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while (await client.get("/state")).json()["spool"]["records"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_kill_dash_nine_of_the_service_while_postgres_is_unavailable(
    tmp_path: Path, own_postgres: PostgresServer, engine_url: str
) -> None:
    settings = make_settings(tmp_path, own_postgres.url, engine_url, database_timeout_s=1.0, port=free_port())
    async with httpx.AsyncClient(base_url=settings.service_url, timeout=60) as client:
        with service_process(settings, tmp_path / "log"):
            await until_ready(client)
            stored = (await client.post("/critique", json=SHORT)).json()
            await asyncio.to_thread(own_postgres.stop)
            spooled = (await client.post("/critique", json={**WRONG, "max_tokens": 4})).json()
        await asyncio.to_thread(own_postgres.start)
        with service_process(settings, tmp_path / "log"):
            await until_ready(client)
            await _until_replayed(client)
            for result in (stored, spooled):
                assert (await client.get(f"/interactions/{result['id']}")).json()["result"] == result


async def test_starts_before_its_database(tmp_path: Path, own_postgres: PostgresServer, engine_url: str) -> None:
    settings = make_settings(tmp_path, own_postgres.url, engine_url, database_timeout_s=1.0)
    await asyncio.to_thread(own_postgres.stop)
    async with serving(settings, ready=False) as client:
        assert (await client.get("/healthz")).status_code == 200
        refused = await client.post("/critique", json=SHORT)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        await asyncio.to_thread(own_postgres.start)
        await until_ready(client)
        assert (await client.post("/critique", json=SHORT)).status_code == 200


async def test_an_engine_killed_during_a_stream(
    tmp_path: Path, database_url: str, spare_engine: SpareEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_READY_VALID_S", 0.0)  # a positive result is valid for a second
    engine = spare_engine.running
    settings = make_settings(tmp_path, database_url, engine.url)
    async with serving(settings) as client:
        # Sixteen calls of the engine, one after the other: on a busy machine, a single one may end before it is killed.
        body = {**RIGHT, "rounds": 8, "when": "always", "temperature": 1.0, "stream": True}
        async with client.stream("POST", "/refine", json=body) as response:
            events = iter_events(response)
            await anext(events)
            engine.kill()
            rest = [event async for event in events]
        name, problem = rest[-1]
        assert name == "error"
        assert problem["status"] == 503
        assert (await client.get("/interactions")).json()["items"] == []
        for stream in (False, True):
            down = await client.post("/critique", json={**RIGHT, "stream": stream})
            assert down.status_code == 503
            assert int(down.headers["retry-after"]) >= 1
        assert (await client.get("/readyz")).status_code == 503
        assert spare_engine.running.url == engine.url, "started again"
        await until_ready(client)
        assert (await client.post("/critique", json=RIGHT)).json()["verdict"] == "correct"


async def test_two_hundred_callers_on_five_connections(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(client.post("/critique", json={**SHORT, "request_id": f"r{number}"}) for number in range(200))
    )
    assert [answer.status_code for answer in answers] == [200] * 200
    kept = await asyncio.gather(*(client.get(f"/interactions/{answer.json()['id']}") for answer in answers))
    assert [item.json()["result"] for item in kept] == [answer.json() for answer in answers]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_caller_that_disconnects_frees_the_engine(settings: Settings, engine_url: str, *, stream: bool) -> None:
    # Over a hundred generations, many of which depend on an earlier one: they take much longer than 0.7 s.
    long = {**WRONG, "rounds": 8, "samples": 16, "temperature": 1.0, "stream": stream}
    transport = httpx.AsyncHTTPTransport(uds=engine_url.removeprefix("unix://"))
    async with serving(settings) as client, httpx.AsyncClient(transport=transport, base_url="http://e") as engine:

        async def running() -> float:
            lines = (await engine.get("/metrics")).text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))

        with contextlib.suppress(httpx.ReadTimeout, TimeoutError):
            async with asyncio.timeout(0.7):
                await client.post("/refine", json=long)
        deadline = time.monotonic() + 5
        while await running():
            assert time.monotonic() < deadline, "the engine still generates although the caller has disconnected"
            await asyncio.sleep(0.1)
        assert (await client.get("/state")).json()["in_flight"] == {}
        assert (await client.get("/interactions")).json()["items"] == []


async def test_a_full_spool_refuses_requests(tmp_path: Path, own_postgres: PostgresServer, engine_url: str) -> None:
    settings = make_settings(tmp_path, own_postgres.url, engine_url, database_timeout_s=1.0, spool_max_bytes=8192)
    async with serving(settings) as client:
        await asyncio.to_thread(own_postgres.stop)
        answers = [await client.post("/critique", json=SHORT) for _ in range(20)]
        statuses = [answer.status_code for answer in answers]
        kept = [answer.json()["id"] for answer in answers if answer.status_code == 200]
        assert statuses[0] == 200
        assert statuses[-1] == 507
        assert answers[-1].headers["retry-after"]
        await asyncio.to_thread(own_postgres.start)
        await until_ready(client)
        await _until_replayed(client)
        listed = (await client.get("/interactions")).json()["items"]
        assert {item["id"] for item in listed} == set(kept)


async def test_another_model_is_refused_while_replicas_serve_the_first(settings: Settings, tmp_path: Path) -> None:
    other = settings.model_copy(update={"model": "another", "home": tmp_path / "other", "port": free_port()})
    log = tmp_path / "log"
    async with serving(settings):
        with service_process(other, log) as process:
            assert await asyncio.to_thread(process.wait, 60) != 0
    assert "stop all replicas before another is served from this database" in log.read_text()


async def test_requests_over_the_limit_get_429_with_retry_after(settings: Settings) -> None:
    settings = settings.model_copy(update={"max_in_flight": 2})
    async with serving(settings) as client:
        answers = await asyncio.gather(*(client.post("/critique", json=RIGHT) for _ in range(12)))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}
        assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
