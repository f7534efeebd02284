"""The two phases of a run, each a process that can be killed and restarted, and the stored reason of a failed phase."""

from enum import StrEnum

from gadfly.trainer.workspace import Workspace

_REASON = "reason.txt"


class Phase(StrEnum):
    LEARN = "learn"  # changes weights; cannot read held-out rows
    EVALUATE = "evaluate"  # reads held-out rows; changes no weights


def leave_reason(workspace: Workspace, reason: str) -> None:
    """Store why a phase failed, where a restart would fail again."""
    (workspace.path / _REASON).write_text(reason)


def take_reason(workspace: Workspace) -> str | None:
    """The stored reason, which is removed; None after a crash or an error that a restart may get past."""
    path = workspace.path / _REASON
    reason = path.read_text() if path.exists() else None
    path.unlink(missing_ok=True)
    return reason
