"""What admins send and get about training runs: the shapes of /admin/retrain and /admin/runs."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field, JsonValue, StrictBool

from gadfly.service.wire.common import RequestId, Wire
from gadfly.training import GateOutcome, RunStatus, Stage, TrainConfig, Trigger


class RetrainRequest(Wire):
    config: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="The training options (see `TrainConfig`) that differ from the deployment's own.",
    )
    dry_run: StrictBool = Field(False, description="Say what the run would do, and store nothing.")
    request_id: RequestId | None = Field(
        None, description="Idempotency key of the caller: a repeat returns the run it asked for first."
    )


class ProgressView(Wire):
    """How far a run is. `steps` counts rollout steps over all stages and cycles; `eta_s` is in seconds."""

    stage: Stage | None
    step: int
    steps: int
    eta_s: float | None


class RunSummary(Wire):
    """One line of GET /admin/runs."""

    id: UUID
    status: RunStatus
    trigger: Trigger
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    request_id: str | None
    reproduces: UUID | None = Field(description="The run that this one does again.")
    attempt: int = Field(description="How often the work was begun: an interrupted run goes on where it was.")
    cancel_requested_at: datetime | None
    progress: ProgressView
    outcome: GateOutcome | None = Field(description="What the gate said of the new critic.")
    version: int | None = Field(description="The critic it published.")
    error: str | None


class RunView(RunSummary):
    """Everything kept about one run."""

    config: TrainConfig
    gate: dict[str, Any] | None = Field(description="The gate's report: both critics on the same held-out answers.")
    manifest: dict[str, Any] | None = Field(description="Row ids, seeds, hashes, versions: what doing it again takes.")


class RunQuery(Wire):
    """Which runs GET /admin/runs shows."""

    cursor: UUID | None = Field(None, description="`next_cursor` of the page before.")
    limit: int = Field(50, ge=1, le=200)


class RunPage(Wire):
    items: list[RunSummary]
    next_cursor: UUID | None = Field(description="Pass as `cursor` for the next page; null on the last.")
