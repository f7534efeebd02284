"""On a machine without a C or C++ compiler: critiques with a confidence, and an adapter swapped in and proven."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gadfly.store.database import Database
from tests.service.conftest import RIGHT, make_settings
from tests.support.adapters import insert_version, publish_adapter
from tests.support.engines import RunningEngine, start_engine
from tests.support.services import serving

_COMPILER = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|cpp|nvcc)(-[\d.]+)?")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def engine(
    critic_model: Path, path_without_compilers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEngine]:
    home = tmp_path_factory.mktemp("engine")
    # An empty cache without anything compiled earlier on this machine, and no compiler named in the environment.
    cache = home / "inductor"
    environ = {"PATH": path_without_compilers, "TORCHINDUCTOR_CACHE_DIR": str(cache), "CXX": "", "CC": ""}
    with start_engine(critic_model, home=home, environ=environ) as engine:
        assert engine.metric("vllm:generation_tokens_total") >= 2, "ready before a generation and a label read"
        yield engine
        assert not any(path.is_file() for path in cache.rglob("*")), "something was compiled"


async def test_critiques_have_a_confidence(engine: RunningEngine, tmp_path: Path, database_url: str) -> None:
    async with serving(make_settings(tmp_path, database_url, engine.url)) as client:
        answer = await client.post("/critique", json=RIGHT)
        assert answer.status_code == 200, answer.text
        assert 0.5 <= answer.json()["confidence"] <= 1.0


async def test_an_adapter_is_swapped_in_and_proven(
    engine: RunningEngine, critic_model: Path, tmp_path: Path, database_url: str, database: Database
) -> None:
    adapter = publish_adapter(tmp_path / "adapter", model=critic_model, seed=1)
    async with serving(make_settings(tmp_path, database_url, engine.url)) as client:
        version = (await insert_version(database, adapter)).version
        swap = await client.post("/admin/promote", json={"version": version})
        assert (swap.status_code, swap.json()["status"]) == (200, "done"), swap.text
        answer = (await client.post("/critique", json=RIGHT)).json()
        assert answer["critic"]["version"] == version
        assert answer["confidence"] is not None
