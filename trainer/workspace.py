"""A run's folder, from which a killed run resumes.

    GADFLY_HOME/runs/RUN/
        selection.json              the answers to learn from, logged and sampled; written once
        examples.json               the labelled answers for the critic's prompt, with critiques of them
        rollouts/00012.jsonl        the rollouts of step 12, a complete group per line
        adapters/00012/             the adapter that step 12 was sampled with, for the engine
        checkpoints/00012/          learner and loop after 12 steps; the last two are kept
        validated/00010/            the adapter after 10 steps, which was validated and may be published
        final/                      the adapter at the end of the stages
        evaluation/                 the judgements of both critics on held-out answers
        tensorboard/

Steps count from 0 over the whole run. A result that is in a file is not computed again. Folders are written under
another name and renamed when they are complete.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar
from uuid import UUID

from pydantic import TypeAdapter

from gadfly.adapters import sync, write_durably

EXAMPLES = "examples.json"
_KEPT_CHECKPOINTS = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one run."""

    path: Path

    @classmethod
    def of(cls, home: Path, run_id: UUID) -> "Workspace":
        path = home / "runs" / str(run_id)
        for name in ("rollouts", "adapters", "checkpoints", "evaluation", "validated"):
            (path / name).mkdir(parents=True, exist_ok=True)
        return cls(path)

    @staticmethod
    def all(home: Path) -> list[UUID]:
        """The runs that have a folder under `home`."""
        ids: list[UUID] = []
        for path in (home / "runs").glob("*"):
            with suppress(ValueError):
                ids.append(UUID(path.name))
        return ids

    @property
    def log(self) -> Path:
        """The log of the run's processes. It holds numbers and no texts."""
        return self.path / "run.log"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock of this folder, after waiting for it. The kernel frees the lock of a process that dies."""
        with (self.path / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def warm_start(self) -> Path:
        """The critiques from which a warm start chooses its examples."""
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

    def validated(self, step: int) -> Path:
        return self.path / "validated" / f"{step:05}"

    def keep_validated(self, step: int, steps: Sequence[int]) -> None:
        """Keep the adapter after `step` steps beside those after `steps`; the other validated ones go."""
        with new_folder(self.validated(step)) as unfinished:
            shutil.copytree(self.adapter(step), unfinished, dirs_exist_ok=True)
        kept = {self.validated(each) for each in (step, *steps)}
        for folder in (self.path / "validated").iterdir():
            if folder not in kept:
                shutil.rmtree(folder)

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
        """The newest complete checkpoint. Its name is the number of steps done."""
        checkpoints = self._checkpoints()
        return checkpoints[-1] if checkpoints else None

    @contextmanager
    def new_checkpoint(self, steps_done: int) -> Iterator[Path]:
        """A folder to write a checkpoint into, which becomes the newest. Older files that no resumption needs go."""
        with new_folder(self.path / "checkpoints" / f"{steps_done:05}") as unfinished:
            yield unfinished
        kept = self._checkpoints()[-_KEPT_CHECKPOINTS:]
        for item in (self.path / "checkpoints").iterdir():
            if item not in kept:
                shutil.rmtree(item)
        first = int(kept[0].name) - 1  # the engine may still serve the adapter of the step before the checkpoint
        for item in [*(self.path / "rollouts").iterdir(), *(self.path / "adapters").iterdir()]:
            if item.stem.isdigit() and int(item.stem) < first:
                shutil.rmtree(item) if item.is_dir() else item.unlink()

    def _checkpoints(self) -> list[Path]:
        return sorted(item for item in (self.path / "checkpoints").iterdir() if item.name.isdigit())

    def forget_texts(self) -> None:
        """Remove the files of an ended run that hold texts, so that a deletion in the database deletes every copy."""
        for name in ("rollouts", "adapters", "checkpoints", "evaluation", "validated"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("selection.json", EXAMPLES):
            (self.path / name).unlink(missing_ok=True)


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


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into. It replaces `folder` when the block ends, and is on disk then."""
    unfinished = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    publish_folder(unfinished, folder)


def publish_folder(unfinished: Path, folder: Path) -> None:
    """Rename a complete folder to `folder`. First its files, then its name are synced to disk."""
    for item in unfinished.iterdir():
        sync(item)
    sync(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    sync(folder.parent)
