"""What tests share: a real Postgres and a real engine for the session, a fresh database for each test that asks."""

import itertools
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gadfly.store.database import Database, migrate
from tests.support.engines import start_engine
from tests.support.postgres import SPLIT_SECRET, PostgresServer

# torch and numpy read this when they are first imported. Two threads that wait for each other on a busy core take ten
# times as long as one, and two workers of the tests keep both cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
    "model": {"critic_model", "tiny", "model", "default_model"},
}
_TEMPLATE = "template_gadfly"
_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it starts, so that `-m fast` selects the tests that start nothing, and order the files.

    Long files come before short ones, so that workers which take whole files finish together.
    """
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker, starting in _NEEDS.items():
            if fixtures & starting:
                item.add_marker(marker)
        if not any(item.get_closest_marker(marker) for marker in (*_NEEDS, "slow")):
            item.add_marker("fast")
    tests_of = Counter(item.path for item in items)
    items.sort(key=lambda item: (not _needs(item, "model"), not _needs(item, "database"), -tests_of[item.path]))


def _needs(item: pytest.Item, marker: str) -> bool:
    return item.get_closest_marker(marker) is not None


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


class _Databases:
    """Copies of the template. The next one is made while a test uses the one before."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._thread = ThreadPoolExecutor(1)
        self._next = self._thread.submit(self._create)

    def take(self) -> str:
        name = self._next.result()
        self._next = self._thread.submit(self._create)
        return name

    def drop(self, name: str) -> None:
        self._thread.submit(self._server.execute, f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        self._thread.shutdown()

    def _create(self) -> str:
        name = f"test_{next(_numbers)}"
        self._server.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return name


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Iterator[_Databases]:
    databases = _Databases(postgres)
    yield databases
    databases.close()


@pytest.fixture
def database_url(postgres: PostgresServer, databases: _Databases) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    name = databases.take()
    yield postgres.url_of(name)
    databases.drop(name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as database:
        yield database


@pytest.fixture(scope="session")
def stopped_postgres() -> Iterator[Path]:
    """The home of a migrated server that was stopped, to be copied."""
    with TemporaryDirectory(prefix="gadfly-") as folder:
        with PostgresServer(Path(folder)) as server:
            migrate(server.url)
        yield Path(folder)


@pytest.fixture
def own_postgres(stopped_postgres: Path) -> Iterator[PostgresServer]:
    """A migrated server that the test may stop, kill and freeze."""
    with TemporaryDirectory(prefix="gadfly-") as folder:
        subprocess.run(["cp", "-a", f"{stopped_postgres}/.", folder], check=True)  # with the owner of each file
        with PostgresServer(Path(folder)) as server:
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
