"""A run's folder after crashes: complete files are found, and incomplete ones are ignored."""

import contextlib
from pathlib import Path
from uuid import UUID

import pytest

from gadfly.trainer.workspace import Lines, Workspace

RUN = UUID(int=7)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.of(tmp_path, RUN)


def test_an_incomplete_line_is_dropped(workspace: Workspace) -> None:
    lines = Lines(workspace.rollouts(3), dict)
    assert list(lines.read()) == []
    lines.append({"a": 1})
    lines.append({"b": 2})
    with workspace.rollouts(3).open("ab") as file:
        file.write(b'{"c": ')
    assert list(lines.read()) == [{"a": 1}, {"b": 2}]
    lines.append({"d": 4})  # on a line of its own
    assert list(lines.read()) == [{"a": 1}, {"b": 2}, {"d": 4}]


def _checkpoint(workspace: Workspace, steps_done: int) -> None:
    with workspace.new_checkpoint(steps_done) as folder:
        (folder / "weights").write_text(str(steps_done))


def test_an_incomplete_checkpoint_is_ignored_and_overwritten(workspace: Workspace) -> None:
    assert workspace.newest_checkpoint() is None
    _checkpoint(workspace, 2)
    with contextlib.suppress(KeyboardInterrupt), workspace.new_checkpoint(4) as folder:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt
    newest = workspace.newest_checkpoint()
    assert newest is not None
    assert (newest / "weights").read_text() == "2"
    _checkpoint(workspace, 4)
    newest = workspace.newest_checkpoint()
    assert newest is not None
    assert newest.name == "00004"


def test_old_checkpoints_and_the_files_that_only_they_need_are_removed(workspace: Workspace) -> None:
    for step in range(8):
        workspace.rollouts(step).touch()
        workspace.adapter(step).mkdir()
    for steps_done in (2, 4, 6, 8):
        _checkpoint(workspace, steps_done)
    assert sorted(item.name for item in (workspace.path / "checkpoints").iterdir()) == ["00006", "00008"]
    # A run that resumes from step 6 needs the rollouts of step 6.
    assert sorted(item.name for item in (workspace.path / "rollouts").iterdir()) == [
        f"{step:05}.jsonl" for step in (5, 6, 7)
    ]


def test_the_texts_are_removed_and_the_result_is_kept(workspace: Workspace) -> None:
    for path in (workspace.rollouts(0), workspace.evaluation("live"), workspace.path / "selection.json"):
        path.write_text("private")
    workspace.final.mkdir()
    (workspace.final / "adapter").write_text("weights")
    workspace.forget_texts()
    assert [path.name for path in workspace.path.rglob("*") if path.is_file()] == ["adapter"]
