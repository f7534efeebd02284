"""Shapes of /admin/retrain and /admin/runs."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ConfigDict, Field, JsonValue, StrictBool

from gadfly.grading import Grade
from gadfly.service.wire.common import RequestId, TaskName, Wire
from gadfly.service.wire.critics import ThresholdView
from gadfly.task_names import DEFAULT_TASK
from gadfly.training import GateOutcome, OptionSource, RunStatus, Stage, TrainConfig, Trigger
from gadfly.verdict import Verdict


class RetrainRequest(Wire):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dry_run": True, "config": {"steps_stage_1": 50, "steps_stage_2": 50}}]}
    )

    config: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Training options (see `TrainConfig`) that differ from the config of deployment and task.",
    )
    task: TaskName | None = Field(None, description="The task to train a critic for; null: the default task.")
    dry_run: StrictBool = Field(False, description="Return the plan of the run and store nothing.")
    ids: StrictBool = Field(False, description="With `dry_run`: also list the ids of the answers.")
    request_id: RequestId | None = Field(
        None, description="The caller's idempotency key: a repeat returns the first run."
    )


class PortionView(Wire):
    """Counts over a set of answers."""

    answers: int
    questions: int
    right: int
    wrong: int
    by_source: dict[str, int]


class GuessingView(Wire):
    """Answers that are right by chance. Shares are between 0 and 1."""

    rate: float = Field(description="Share of right answers that guessing alone gives.")
    right: float = Field(description="Share of right answers.")
    known: float = Field(description="The same, corrected for guessing.")
    lucky: float = Field(description="Expected number of right answers that were guessed.")


class ChosenOptionView(Wire):
    """A training option of a run, and the place that sets it."""

    name: str = Field(description="Those of a group as `group.name`.")
    value: JsonValue
    source: OptionSource = Field(
        description="Each overrides those before it: `served` (how the service answers), `file` (the deployment's "
        "training config), `task` (its table [training]), `request`."
    )


class PlanView(Wire):
    """The plan of a run: the answers that it learns from and is measured on.

    Detectable differences are shares; null: too few answers. `seconds` estimates sampling and learning in both stages
    and the evaluation; null without an earlier run as a basis.
    """

    train_ids: list[UUID] | None = Field(description="Learned from; null, as the next two, unless `ids` was set.")
    validation_ids: list[UUID] | None = Field(description="Of the train side, never learned from.")
    heldout_ids: list[UUID] | None = Field(description="Judged by both critics.")
    ids_sha256: str = Field(description="Of the three lists: plans with the same hash are about the same answers.")
    stage_1: PortionView = Field(description="All labelled answers to learn from.")
    stage_2: PortionView = Field(description="Those with a reference.")
    pool_answers: int = Field(description="First answers that the actor samples in addition.")
    validation: PortionView
    heldout: PortionView
    heldout_with_reference: PortionView
    steps: int
    detectable_discriminability: float | None
    detectable_helpfulness: float | None
    questions_for_margin: int | None = Field(
        description="Needed to rule out a loss beyond the margin on an axis that did not change."
    )
    assumed_discordance: float
    power: float
    seconds: float | None
    expected_mislabelled: dict[str, float] = Field(
        description="Of `stage_1`, by label: answers whose label is probably false."
    )
    beyond_key_share: int = Field(description="Labelled answers left out because of the setting max_key_share.")
    contradicting_keys: list[UUID | None] = Field(description="Keys whose labels contradict those of the others.")
    warnings: list[str]
    notes: list[str]
    actor_answers: int = Field(description="The most answers that the actor is asked for.")
    threshold_alone: ThresholdView | None = Field(
        description="What a verdict threshold of the live critic would give without training, on the labelled answers "
        "that it judged; null below 20 of either class."
    )
    guessing: GuessingView | None = Field(
        None, description="What guessing does to `stage_1`; null where the number of possible answers is not known."
    )
    next_step: str = Field("", description="What to do next, in a sentence.")
    options: list[ChosenOptionView] = Field(
        default_factory=list, description="The options of the run that are not left at their defaults."
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
    task: str = Field(DEFAULT_TASK, description="The task that it trains a critic for.")
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
    task: TaskName | None = Field(None, description="Only runs of this task.")


class RunPage(Wire):
    items: list[RunSummary]
    next_cursor: UUID | None = Field(description="Pass as `cursor` for the next page; null on the last page.")


class StepQuery(Wire):
    """The query of GET /admin/runs/{id}/steps."""

    after: int = Field(0, ge=0, lt=2**63, description="`next_after` of the previous page.")
    limit: int = Field(1000, ge=1, le=5000)


class StepMetrics(Wire):
    """The metrics of one rollout step, as its event has them."""

    step: int = Field(description="Counts from 1 over the whole run.")
    stage: Stage | None
    at: datetime
    seconds: float
    metrics: dict[str, float | None]


class ValidationMetrics(Wire):
    """One validation, after `step` steps."""

    step: int
    at: datetime
    metrics: dict[str, float | None]


class StepPage(Wire):
    """Steps and validations in order. A resumed run may repeat steps: the last one of a number counts."""

    items: list[StepMetrics]
    validations: list[ValidationMetrics]
    next_after: int | None = Field(description="Pass as `after` for the next page; null at the end so far.")


class SampleQuery(Wire):
    """The query of GET /admin/runs/{id}/samples."""

    steps: int = Field(20, ge=1, le=100, description="The newest steps of which there are samples.")


class CritiqueSample(Wire):
    """A critique that was sampled and scored in a run."""

    step: int
    stage: Stage
    at: datetime
    interaction_id: UUID
    was_right: bool = Field(description="The label of the answer that it is about.")
    verdict: Verdict
    score: float
    refined: Grade | None = Field(description="The grade of the rewrite with it; null in stage I.")
    critique: str = Field(description="Its first 2,000 characters.")


class SamplePage(Wire):
    """The best and the worst critique of a few answers, of the first step of a stage and of every tenth step."""

    items: list[CritiqueSample]


class CompareQuery(Wire):
    """The query of GET /admin/runs/compare."""

    a: UUID
    b: UUID


class OptionDifference(Wire):
    option: str
    a: JsonValue
    b: JsonValue


class AnswerOverlap(Wire):
    """Answers to learn from, by the runs that selected them."""

    both: int
    only_a: int
    only_b: int


class RunComparison(Wire):
    """Two runs side by side."""

    a: RunSummary
    b: RunSummary
    options: list[OptionDifference] = Field(description="Training options that differ.")
    answers: AnswerOverlap | None = Field(description="Null as long as one of them has not selected its answers.")
    gate_a: dict[str, Any] | None
    gate_b: dict[str, Any] | None
