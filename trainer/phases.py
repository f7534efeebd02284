"""The two phases of a run, each a process that can be killed and begun again, and how one says why it failed."""

from enum import StrEnum

from gadfly.trainer.workspace import Workspace

_REASON = "reason.txt"


class Phase(StrEnum):
    LEARN = "learn"  # changes weights; cannot read held-out rows
    EVALUATE = "evaluate"  # reads held-out rows; changes no weights


def leave_reason(workspace: Workspace, reason: str) -> None:
    """Say why a phase failed in a way that trying again would not mend."""
    (workspace.path / _REASON).write_text(reason)


def take_reason(workspace: Workspace) -> str | None:
    """What a phase said when it failed; None when it said nothing, as after a crash. It is said once."""
    path = workspace.path / _REASON
    reason = path.read_text() if path.exists() else None
    path.unlink(missing_ok=True)
    return reason
