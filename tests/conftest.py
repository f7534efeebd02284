"""Shared fixtures: a real Postgres and real engines for the session, and a fresh database for each test."""

import atexit
import gc
import itertools
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from gadfly import tracing
from gadfly.store.database import Database, migrate
from tests.support.collectors import Collector, collector
from tests.support.engines import RunningEngine, SpareEngine, start_engine
from tests.support.postgres import SPLIT_SECRET, PostgresServer

# torch and numpy read this when they are first imported. Two threads that wait for each other on a busy core take ten
# times as long as one, and two workers of the tests keep both cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# By default structlog renders an exception with the local variables of every frame, which takes seconds.
_PLAIN = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _PLAIN])

_NEEDS = {  # marker -> the fixtures that start it; the slowest first
    "engine": {
        "engine_url",
        "critic_engine",
        "spare_engine",
        "make_up",
        "tiny_engine",
        "bare_engine",
        "running_up",
        "foreign",
        "plain",
    },
    "model": {"critic_model", "tiny", "model", "default_model"},
    "database": {"postgres", "own_postgres"},
}
# The engines of a session, and the arguments that tests of theirs have; `client` and `settings` are those of
# tests/service. All files with such tests run in one worker, because a second worker would start another engine.
_ARGUMENTS = {
    "critic_engine": re.compile(r"\b(critic_engine|spare_engine|engine_url): "),
    "tiny_engine": re.compile(r"\b(tiny_engine|bare_engine): "),
}
_OF_SERVICE = re.compile(r"\b(client: httpx\.AsyncClient|settings: Settings)\b")
_COMPILER = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|cpp|nvcc)(-[\d.]+)?")
_TEMPLATE = "template_gadfly"
_STARTED = pytest.StashKey[RunningEngine]()  # `critic_engine`, once a test has used it
_numbers = itertools.count()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collecting garbage, which takes a third of the time, and leave them out of it later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # libraries report as leaks what is not freed at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the processes that it starts, so that `-m fast` selects those without any, and order the files.

    The tests of engines come first and short files last, so that workers which take whole files finish together.
    """
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker, starting in _NEEDS.items():
            if fixtures & starting:
                item.add_marker(marker)
        if not any(item.get_closest_marker(marker) for marker in (*_NEEDS, "slow")):
            item.add_marker("fast")
    tests_of = Counter(item.path for item in items)
    needs_of = {marker: {item.path for item in items if item.get_closest_marker(marker)} for marker in _NEEDS}
    engines = list(_ARGUMENTS)

    def place(item: pytest.Item) -> tuple[object, ...]:
        engine = _shared_engine(_file(item.nodeid))
        needless = [item.path not in needing for needing in needs_of.values()]
        return (engines.index(engine) if engine else len(engines), *needless, -tests_of[item.path], item.path)

    items.sort(key=place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """Hand out whole files in their order, and all that share an engine to one worker."""
    return _Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


class _Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = _file(nodeid)
        return _shared_engine(file) or file


def _file(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


@cache
def _shared_engine(file: str) -> str | None:
    """The session's engine that the tests of a file share. The scheduler knows their names and not their fixtures."""
    text = (Path(__file__).parent.parent / file).read_text()
    if file.startswith("tests/service/") and _OF_SERVICE.search(text):
        return "critic_engine"
    return next((engine for engine, arguments in _ARGUMENTS.items() if arguments.search(text)), None)


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
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that gets the traces of this process, as the service `gadfly-test`, and of those it starts."""
    with collector() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        tracing.start("test", running.environment)
        yield running
        tracing.stop()


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
def path_without_compilers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of links to every command on PATH except compilers."""
    folder = tmp_path_factory.mktemp("bin")
    for place in map(Path, os.environ["PATH"].split(os.pathsep)):
        for command in place.iterdir() if place.is_dir() else ():
            link = folder / command.name
            if not _COMPILER.fullmatch(command.name) and not link.is_symlink():
                link.symlink_to(command)
    for compiler in ("gcc", "g++", "cc", "c++", "clang", "clang++"):
        assert shutil.which(compiler, path=str(folder)) is None
    return str(folder)


@pytest.fixture(scope="session")
def critic_engine(
    request: pytest.FixtureRequest,
    critic_model: Path,
    path_without_compilers: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningEngine]:
    """vLLM serving that model, for all tests, on a machine without a C or C++ compiler.

    It has no adapter at the start of a file. A test whose file has others with critics of the same names calls
    `forget`. A test that kills its engine uses `spare_engine`.
    """
    home = tmp_path_factory.mktemp("engine")
    # An empty cache without anything compiled earlier on this machine, and no compiler named in the environment.
    cache = home / "inductor"
    environ = {"PATH": path_without_compilers, "TORCHINDUCTOR_CACHE_DIR": str(cache), "CXX": "", "CC": ""}
    with start_engine(critic_model, home=home, environ=environ) as engine:
        request.config.stash[_STARTED] = engine
        assert engine.metric("vllm:generation_tokens_total") >= 2, "ready before a generation and a label read"
        yield engine
        assert not any(path.is_file() for path in cache.rglob("*")), "something was compiled"


@pytest.fixture(scope="module", autouse=True)
def engine_without_adapters(request: pytest.FixtureRequest) -> None:
    """Unload the critics of the last file's tests, which take up the engine's slots."""
    if engine := request.config.stash.get(_STARTED, None):
        engine.forget()


@pytest.fixture(scope="session")
def spare_engine(critic_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpareEngine]:
    """A second engine with that model, which a test may kill and must restart."""
    with SpareEngine(critic_model, home=tmp_path_factory.mktemp("spare")) as spare:
        yield spare


@pytest.fixture(scope="session")
def engine_url(request: pytest.FixtureRequest) -> str:
    """The address of `critic_engine`.

    GADFLY_TEST_ENGINE_URL names a running one instead, which saves its start while one writes tests.
    """
    if running := os.environ.get("GADFLY_TEST_ENGINE_URL"):
        return running
    engine: RunningEngine = request.getfixturevalue("critic_engine")
    return engine.url
