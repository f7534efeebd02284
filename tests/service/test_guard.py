"""Connections that send too little, and a disk without room."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gadfly.service.guard import GuardedProtocol
from gadfly.settings import Settings
from tests.service.conftest import RIGHT, make_settings
from tests.support.broken_engines import StandIn, standing_in
from tests.support.services import serving

pytestmark = pytest.mark.database

HEAD = b"POST /critique HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
WHOLE = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    engine = StandIn()
    async with standing_in(engine):
        yield engine


@pytest.fixture
def settings(tmp_path: Path, database_url: str, stand_in: StandIn) -> Settings:
    return make_settings(tmp_path, database_url, stand_in.url)


@asynccontextmanager
async def connected(client: httpx.AsyncClient) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def closes(client: httpx.AsyncClient, *pieces: bytes, pause_s: float = 0.0) -> tuple[float, bytes]:
    """The seconds after which the service closes a connection that sent these pieces, and its answer."""
    async with connected(client) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        started = time.monotonic()
        answered = await asyncio.wait_for(reader.read(), 10)
        return time.monotonic() - started, answered


async def test_half_sent_requests_and_idle_connections_are_closed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedProtocol, "header_limit_s", 0.5)
    monkeypatch.setattr(GuardedProtocol, "silence_limit_s", 0.8)
    async with serving(settings) as client:
        assert (await closes(client, HEAD[:20]))[1] == b"", "half a request line"
        assert (await closes(client, HEAD))[1] == b"", "half of the headers"
        assert (await closes(client, HEAD + b"\r\n{"))[1] == b"", "half of the body"
        seconds, answered = await closes(client, WHOLE, HEAD, pause_s=0.1)
        assert answered.startswith(b"HTTP/1.1 200"), "the first request is answered"
        assert seconds < 2, "half of the second one"
        with pytest.raises(ConnectionError):  # one byte at a time gains no time
            await closes(client, *(HEAD[n : n + 1] for n in range(20)), pause_s=0.1)


async def test_a_body_that_drips_is_closed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "body_limit_s", 0.5)
    async with serving(settings) as client:
        with pytest.raises(ConnectionError):  # never silent, and still never done
            await closes(client, HEAD + b"\r\n{", *(b" " for _ in range(20)), pause_s=0.1)


async def test_connections_that_never_ask_are_closed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = GuardedProtocol.__init__

    def with_short_limit(self: GuardedProtocol, *args: object, **options: object) -> None:
        made(self, *args, **options)  # type: ignore[arg-type]
        self.timeout_keep_alive = 1

    monkeypatch.setattr(GuardedProtocol, "__init__", with_short_limit)
    async with serving(settings) as client:
        assert (await closes(client))[0] > 0.5
        assert (await closes(client, b"\r\n"))[1] == b""


async def test_slow_answers_are_not_cut(settings: Settings, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "header_limit_s", 0.2)
    monkeypatch.setattr(GuardedProtocol, "silence_limit_s", 0.2)
    async with serving(settings) as client:
        stand_in.seconds = 1.0
        assert (await client.post("/critique", json=RIGHT)).status_code == 200


async def test_without_room_on_the_disk_no_engine_works(settings: Settings, stand_in: StandIn) -> None:
    async with serving(settings.model_copy(update={"min_free_bytes": 2**60}), ready=False) as client:
        answer = await client.post("/critique", json=RIGHT)
        while answer.status_code == 503:  # it is starting
            await asyncio.sleep(0.1)
            answer = await client.post("/critique", json=RIGHT)
        assert answer.status_code == 507
        assert "GADFLY_MIN_FREE_BYTES" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "30"
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert not ready.json()["disk"]["ok"]
        assert str(settings.home) not in ready.json()["disk"]["detail"]
        asked = stand_in.asked
        await client.post("/critique", json=RIGHT)
        assert stand_in.asked == asked
