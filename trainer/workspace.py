"""A run's folder: what a killed run finds again.

    GADFLY_HOME/runs/RUN/
        selection.json              which answers are learned from, with the actor's; written once
        rollouts/00012.jsonl        one step's rollouts, each line a group that is complete
        adapters/00012/             the adapter that step 12 was sampled with, for the engine
        checkpoints/00012/          learner and loop after step 12; written beside and renamed, the last two are kept
        final/                      the adapter that the stages ended with
        evaluation/                 what both critics said about held-out answers
        tensorboard/

Steps count from 0 over the whole run. What is in a file was computed once: whoever finds it does not compute it again.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar
from uuid import UUID

from pydantic import TypeAdapter

from gadfly.adapters import sync, write_durably

_KEPT_CHECKPOINTS = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one run."""

    path: Path

    @classmethod
    def of(cls, home: Path, run_id: UUID) -> "Workspace":
        path = home / "runs" / str(run_id)
        for name in ("rollouts", "adapters", "checkpoints", "evaluation"):
            (path / name).mkdir(parents=True, exist_ok=True)
        return cls(path)

    @staticmethod
    def all(home: Path) -> list[UUID]:
        """The runs that have a folder here."""
        found: list[UUID] = []
        for path in (home / "runs").glob("*"):
            with suppress(ValueError):
                found.append(UUID(path.name))
        return found

    @property
    def log(self) -> Path:
        """What the run's processes say. It holds numbers and no texts."""
        return self.path / "run.log"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only process that works in this folder; another one is waited for. The kernel frees the lock."""
        with (self.path / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def warm_start(self) -> Path:
        """The critiques that a warm start chooses from."""
        return self.path / "rollouts" / "warm_start.jsonl"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def rollouts(self, step: int) -> Path:
        return self.path / "rollouts" / f"{step:05}.jsonl"

    def evaluation(self, name: str) -> Path:
        return self.path / "evaluation" / f"{name}.jsonl"

    def adapter(self, step: int) -> Path:
        return self.path / "adapters" / f"{step:05}"

    def read(self, name: str, kind: type[T]) -> T | None:
        """A JSON document of the run, None before it is written."""
        try:
            content = (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        return TypeAdapter(kind).validate_json(content)

    def write(self, name: str, document: object) -> None:
        """Write a dataclass as a JSON document of the run."""
        write_durably(self.path / name, TypeAdapter(type(document)).dump_json(document))

    def newest_checkpoint(self) -> Path | None:
        """The last checkpoint that was finished: how many steps are done is its name."""
        done = sorted(item for item in (self.path / "checkpoints").iterdir() if item.name.isdigit())
        return done[-1] if done else None

    def begin_checkpoint(self, steps_done: int) -> Path:
        """A folder to write a checkpoint into."""
        folder = self.path / "checkpoints" / f"{steps_done:05}.new"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def finish_checkpoint(self, folder: Path) -> None:
        """Make a written checkpoint the newest, in one step, and forget what no resumption needs any more."""
        publish_folder(folder, folder.with_suffix(""))
        kept = sorted(item for item in (self.path / "checkpoints").iterdir() if item.name.isdigit())[
            -_KEPT_CHECKPOINTS:
        ]
        for item in (self.path / "checkpoints").iterdir():
            if item not in kept:
                shutil.rmtree(item)
        oldest = int(kept[0].name)
        for item in [*(self.path / "rollouts").iterdir(), *(self.path / "adapters").iterdir()]:
            if (
                item.stem.isdigit() and int(item.stem) < oldest - 1
            ):  # the adapter sampled last may still be loaded somewhere
                shutil.rmtree(item) if item.is_dir() else item.unlink()

    def forget_texts(self) -> None:
        """Remove what holds people's texts once the run is over: the database alone decides what is remembered."""
        for name in ("rollouts", "adapters", "checkpoints", "evaluation"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "selection.json").unlink(missing_ok=True)


class Lines(Generic[T]):
    """A growing file of JSON lines, one item each. A line that a crash cut off is dropped."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self._path = path
        self._adapter = TypeAdapter(kind)

    def read(self) -> Iterator[T]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        whole, newline, cut = content.rpartition(b"\n")
        if cut:
            os.truncate(self._path, len(whole) + len(newline))
        for line in whole.split(b"\n") if whole else ():
            yield self._adapter.validate_json(line)

    def append(self, item: T) -> None:
        """Add a line. It is on disk when this returns."""
        with self._path.open("ab") as file:
            file.write(self._adapter.dump_json(item) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def publish_folder(unfinished: Path, folder: Path) -> None:
    """Give a complete folder its name: files first, then the name, both on disk when this returns."""
    for item in unfinished.iterdir():
        sync(item)
    sync(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    sync(folder.parent)
