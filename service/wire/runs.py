"""Shapes of /admin/retrain and /admin/runs."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ConfigDict, Field, JsonValue, StrictBool

from gadfly.service.wire.common import RequestId, Wire
from gadfly.training import GateOutcome, RunStatus, Stage, TrainConfig, Trigger


class RetrainRequest(Wire):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dry_run": True, "config": {"steps_stage_1": 50, "steps_stage_2": 50}}]}
    )

    config: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Training options (see `TrainConfig`) that differ from the deployment's config.",
    )
    dry_run: StrictBool = Field(False, description="Return the plan of the run and store nothing.")
    ids: StrictBool = Field(False, description="With `dry_run`: also list the ids of the answers.")
    request_id: RequestId | None = Field(
        None, description="The caller's idempotency key: a repeat returns the first run."
    )


class ProgressView(Wire):
    """The progress of a run. `steps` counts rollout steps over all stages and cycles; `eta_s` is in seconds."""

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
    reproduces: UUID | None = Field(description="The run that this one repeats.")
    attempt: int = Field(description="Number of starts: an interrupted run resumes in a new attempt.")
    cancel_requested_at: datetime | None
    progress: ProgressView
    outcome: GateOutcome | None = Field(description="The gate's decision about the new critic.")
    version: int | None = Field(description="The published critic.")
    error: str | None


class RunView(RunSummary):
    """All stored data of one run."""

    config: TrainConfig
    gate: dict[str, Any] | None = Field(description="The gate's report: both critics on the same held-out answers.")
    manifest: dict[str, Any] | None = Field(description="Row ids, seeds, hashes, versions: all that a repeat needs.")


class RunQuery(Wire):
    """The query of GET /admin/runs."""

    cursor: UUID | None = Field(None, description="`next_cursor` of the previous page.")
    limit: int = Field(50, ge=1, le=200)


class RunPage(Wire):
    items: list[RunSummary]
    next_cursor: UUID | None = Field(description="Pass as `cursor` for the next page; null on the last page.")
