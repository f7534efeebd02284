"""A run that is killed at any moment ends with the same weights as an unbroken run."""

import subprocess
import time
from pathlib import Path

import pytest

from gadfly.adapters import WEIGHTS, file_sha256
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.trainer.workspace import Workspace
from tests.support import worlds


@pytest.fixture
def settings(tmp_path: Path, database_url: str, engine_url: str, critic_model: Path) -> Settings:
    return worlds.trainer_settings(
        home=tmp_path / "home", database_url=database_url, engine_urls=(engine_url,), model=critic_model
    )


async def _learn(settings: Settings, database: Database, tmp_path: Path, *, kills: list[str]) -> str:
    """The hash of a run's final adapter, where the run is killed when each of these files appears in its folder."""
    run = await worlds.ask_for_run(database)
    workspace = Workspace.of(settings.home, run.id)
    log = tmp_path / f"{run.id}.log"
    for name in kills:
        _kill_when(workspace.path / name, worlds.start_phase(settings, "learn", run.id, log=log), log)
    process = worlds.start_phase(settings, "learn", run.id, log=log)
    assert process.wait(240) == 0, log.read_text()
    return file_sha256(workspace.final / WEIGHTS)


def _kill_when(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    while not path.exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.timeout(600)
async def test_a_killed_run_ends_with_the_same_weights(
    settings: Settings, database: Database, tmp_path: Path, critic_model: Path
) -> None:
    await worlds.fill(database, base_model=str(critic_model))
    unbroken = await _learn(settings, database, tmp_path, kills=[])
    killed = await _learn(
        settings,
        database,
        tmp_path,
        kills=[
            "selection.json",  # before the first step
            "rollouts/00001.jsonl",  # in the middle of sampling, without a checkpoint
            "checkpoints/00002",  # right after a checkpoint
            "rollouts/00005.jsonl",  # between two checkpoints
            "rollouts/00007.jsonl",  # in stage II
        ],
    )
    assert killed == unbroken
