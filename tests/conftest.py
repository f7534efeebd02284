"""What tests share: a real Postgres and a real engine for the session, a fresh database for each test that asks."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gadfly.store.database import Database, migrate
from tests.support.engines import start_engine
from tests.support.postgres import SPLIT_SECRET, PostgresServer

_NEEDS = {  # marker -> the fixtures that start what it names
    "engine": {
        "engine_url",
        "make_up",
        "tiny_engine",
        "bare_engine",
        "bare_engines",
        "engine",
        "both",
        "foreign",
        "plain",
    },
    "database": {"postgres", "own_postgres"},
    "model": {"critic_model", "tiny", "model"},
}
_TEMPLATE = "template_gadfly"
_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it starts, so that `-m fast` selects the tests that start nothing."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        needs = [marker for marker, starting in _NEEDS.items() if fixtures & starting]
        for marker in needs:
            item.add_marker(marker)
        if not needs and item.get_closest_marker("slow") is None:
            item.add_marker("fast")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests. A test that stops or kills it uses `own_postgres`."""
    # Not under pytest's own folder: every start of pytest closes that to other users, and as root Postgres is another.
    with TemporaryDirectory(prefix="gadfly-") as folder:
        server = PostgresServer(Path(folder))
        server.options["fsync"] = "off"  # a database for each test is a lot to write
        server.start()
        server.execute(f"CREATE DATABASE {_TEMPLATE}")
        migrate(server.url_of(_TEMPLATE))
        server.execute(f"UPDATE split_secrets SET secret = '\\x{SPLIT_SECRET.hex()}'", _TEMPLATE)
        yield server
        server.kill()


@pytest.fixture
def database_url(postgres: PostgresServer) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    name = f"test_{next(_numbers)}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
    yield postgres.url_of(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as database:
        yield database


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A migrated server that the test may stop, kill and freeze."""
    with TemporaryDirectory(prefix="gadfly-") as folder, PostgresServer(Path(folder)) as server:
        migrate(server.url)
        yield server
        if server.is_running:
            server.thaw()


@pytest.fixture(scope="session")
def critic_model() -> Path:
    """The folder of a small model that was taught the format of critiques."""
    from tests.support.tiny_models import critic_model  # noqa: PLC0415  # torch takes seconds to import, and few tests need it

    return critic_model()


@pytest.fixture(scope="session")
def engine_url(critic_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM serving that model, for all tests. A test that kills its engine starts one of its own.

    GADFLY_TEST_ENGINE_URL names a running one instead, which saves its start while one writes tests.
    """
    if running := os.environ.get("GADFLY_TEST_ENGINE_URL"):
        yield running
        return
    with start_engine(critic_model, home=tmp_path_factory.mktemp("engine")) as engine:
        yield engine.url
