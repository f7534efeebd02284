"""Services for the tests of the HTTP API: a real one, with the session's engine and the test's own database."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gadfly.settings import Settings
from tests.support.services import serving

QUESTION = "A box holds 3 pens. How many pens are in 2 boxes and 1 loose pen?"
RIGHT = {"question": QUESTION, "response": "2 * 3 + 1 = 7. The answer is 7."}
WRONG = {"question": QUESTION, "response": "2 * 3 = 6. WRONGMARK The answer is 6."}


@pytest.fixture
def settings(tmp_path: Path, database_url: str, engine_url: str) -> Settings:
    return make_settings(tmp_path, database_url, engine_url)


def make_settings(home: Path, database_url: str, *engine_urls: str, **changes: Any) -> Settings:
    return Settings(
        **{
            "home": home,
            "database_url": database_url,
            "engine_urls": ",".join(engine_urls),
            "model": "tiny",
            "max_tokens": 120,
            "temperature": 0.0,
            "log_level": "error",
            **changes,
        }
    )


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as client:
        yield client


@pytest.fixture
def engineless(tmp_path: Path, database_url: str) -> Settings:
    """Settings of a service whose engine does not exist: for routes that need only Postgres."""
    return make_settings(tmp_path, database_url, "http://127.0.0.1:9")


@asynccontextmanager
async def serving_without_engine(settings: Settings, **given: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The service as soon as it has read the database; it is never ready."""
    async with serving(settings, ready=False, **given) as client:
        deadline = time.monotonic() + 30
        while (await client.get("/state")).json()["status"] != "running":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        yield client
