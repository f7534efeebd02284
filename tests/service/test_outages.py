"""The service while Postgres does not answer: nothing waits for it, and what was acknowledged is stored afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from gadfly.api_keys import issue_key
from gadfly.records import Tier
from gadfly.store.database import Database
from tests.service.conftest import RIGHT, make_settings
from tests.support.broken_engines import StandIn, standing_in
from tests.support.postgres import PostgresServer
from tests.support.services import serving

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


async def until_replayed(client: httpx.AsyncClient, *, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while (await client.get("/state")).json()["spool"]["records"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
