"""The service while Postgres does not answer: nothing waits for it, and acknowledged records are stored afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from gadfly.api_keys import issue_key
from gadfly.records import Tier
from gadfly.store.database import Database
from tests.service.conftest import RIGHT, make_settings
from tests.support.broken_engines import Fault, StandIn, standing_in
from tests.support.postgres import PostgresServer
from tests.support.services import free_port, service_process, serving, until_ready

pytestmark = pytest.mark.database


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    engine = StandIn()
    async with standing_in(engine):
        yield engine


async def timed(client: httpx.AsyncClient, requests: int, *, callers: int) -> list[float]:
    """The seconds of each of `requests` critiques, sorted; all must succeed."""
    seconds: list[float] = []
    numbers = iter(range(requests))

    async def call() -> None:
        for _ in numbers:
            started = time.perf_counter()
            (await client.post("/critique", json=RIGHT)).raise_for_status()
            seconds.append(time.perf_counter() - started)

    await asyncio.gather(*(call() for _ in range(callers)))
    return sorted(seconds)


async def test_a_frozen_postgres_costs_requests_next_to_nothing(
    tmp_path: Path, own_postgres: PostgresServer, stand_in: StandIn
) -> None:
    async with Database(own_postgres.url) as database, database.session() as session:
        _, secret = await issue_key(session, name="caller", tier=Tier.CALLER)
    settings = make_settings(tmp_path, own_postgres.url, stand_in.url)
    async with serving(settings) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        usual = await timed(client, 100, callers=4)
        own_postgres.freeze()
        try:
            started = time.monotonic()
            await timed(client, 8, callers=8)
            assert time.monotonic() - started < 8, "the requests that notice"
            frozen = await timed(client, 100, callers=4)
            unknown = await client.post("/critique", json=RIGHT, headers={"authorization": "Bearer gadfly_unknown"})
        finally:
            own_postgres.thaw()
        assert frozen[98] < usual[98] + 0.5
        assert unknown.status_code == 503, "a key that was never seen cannot be checked"
        assert "retry-after" in unknown.headers
        await until_replayed(client)
    async with Database(own_postgres.url) as database, database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM interactions")) == 208


async def test_an_engine_that_fails_is_ejected_and_readiness_says_so(
    tmp_path: Path, database_url: str, stand_in: StandIn
) -> None:
    broken = StandIn()
    async with (
        standing_in(broken),
        serving(make_settings(tmp_path, database_url, stand_in.url, broken.url)) as client,
    ):
        stand_in.seconds, broken.fault = 0.2, Fault.CHAT_500
        for _ in range(3):
            answers = await asyncio.gather(*(client.post("/critique", json=RIGHT) for _ in range(8)))
            assert [answer.status_code for answer in answers] == [200] * 8
        state = (await client.get("/state")).json()
        assert {item["url"]: item["health"] for item in state["engines"]} == {
            stand_in.url: "sound",
            broken.url: "ejected",
        }
        stand_in.fault = Fault.HALF_JSON
        malformed = [await client.post("/critique", json=RIGHT) for _ in range(6)]
        assert {answer.status_code for answer in malformed} <= {502, 503}
        assert 502 in {answer.status_code for answer in malformed}
        await asyncio.sleep(1.1)  # a positive result is valid for a second
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert not ready.json()["engine"]["ok"]


async def test_in_an_outage_a_repeat_gets_its_result_or_is_refused(
    tmp_path: Path, own_postgres: PostgresServer, stand_in: StandIn
) -> None:
    settings = make_settings(tmp_path, own_postgres.url, stand_in.url, database_timeout_s=1.0)
    named = {**RIGHT, "request_id": "one"}
    async with serving(settings) as client:
        first = (await client.post("/critique", json=named)).json()
        await asyncio.to_thread(own_postgres.stop)
        asked = stand_in.asked
        assert (await client.post("/critique", json=named)).json() == first
        assert stand_in.asked == asked
        other = await client.post("/critique", json={**RIGHT, "request_id": "one", "response": "8"})
        assert other.status_code == 422, "another request with this id"
        unknown = await client.post("/critique", json={**RIGHT, "request_id": "answered before this process?"})
        assert unknown.status_code == 503
        assert "may have been answered before" in unknown.json()["detail"]
        assert (await client.post("/critique", json=RIGHT)).status_code == 200, "without an id nothing is checked"
        await asyncio.to_thread(own_postgres.start)
        await until_replayed(client)
        assert len((await client.get("/interactions")).json()["items"]) == 2


async def test_after_kill_9_a_request_id_is_answered_at_once(
    tmp_path: Path, own_postgres: PostgresServer, stand_in: StandIn
) -> None:
    settings = make_settings(tmp_path, own_postgres.url, stand_in.url, port=free_port())
    named = {**RIGHT, "request_id": "one"}
    async with httpx.AsyncClient(base_url=settings.service_url, timeout=60) as client:
        with service_process(settings, tmp_path / "log"):
            await until_ready(client)
            stand_in.seconds = 60
            claimed = asyncio.create_task(client.post("/critique", json=named))
            asked = stand_in.asked
            while stand_in.asked == asked:  # noqa: ASYNC110  # the stand-in is a counter
                await asyncio.sleep(0.05)
        with pytest.raises(httpx.TransportError):
            await claimed
        stand_in.seconds = 0
        with service_process(settings, tmp_path / "log"):
            await until_ready(client)
            started = time.monotonic()
            assert (await client.post("/critique", json=named)).status_code == 200
            assert time.monotonic() - started < 3, "the claim of the dead process would last for 15 s"


async def test_a_late_repeat_of_feedback_with_an_id_is_stored_once(
    tmp_path: Path, database_url: str, stand_in: StandIn
) -> None:
    async with serving(make_settings(tmp_path, database_url, stand_in.url)) as client:
        result = (await client.post("/critique", json=RIGHT)).json()
        about = {"interaction_id": result["id"]}
        ids = [str(uuid4()), str(uuid4())]
        wrong, right = [
            about | {"feedback_id": id, "correct": correct} for id, correct in zip(ids, (False, True), strict=True)
        ]
        answers = [(await client.post("/feedback", json=body)).json()["id"] for body in (wrong, right, wrong)]
        assert answers == [*ids, ids[0]]
        stored = (await client.get(f"/interactions/{result['id']}")).json()["feedback"]
        assert [item["correct"] for item in stored] == [False, True]
        changed = await client.post("/feedback", json=wrong | {"correct": True})
        assert changed.status_code == 409


async def until_replayed(client: httpx.AsyncClient, *, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while (await client.get("/state")).json()["spool"]["records"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
