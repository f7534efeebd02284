"""Shapes of /critics, /admin/promote and /admin/rollback."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    StrictInt,
)

from gadfly.records import (
    CanaryOutcome,
    CriticCalibration,
    CriticHistory,
    CriticStatus,
    CriticVersion,
    Pointer,
    SwapKind,
    SwapStatus,
)
from gadfly.scoreboard import Scoreboard
from gadfly.service.wire.common import Reason, TaskName, Wire
from gadfly.task_names import DEFAULT_TASK
from gadfly.training import GateOutcome


class CanaryRequest(Wire):
    """How a promotion begins; a field that is null has the value of the setting."""

    share: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] | None = Field(
        None, description="Share of the requests that the critic answers first. 0: all of them at once."
    )
    for_s: Annotated[StrictInt, Field(ge=1, lt=2**31)] | None = Field(
        None, description="Seconds after which it answers all requests."
    )
    for_requests: Annotated[StrictInt, Field(ge=1, lt=2**31)] | None = Field(
        None, description="Stored answers of its own after which it answers all requests."
    )


class PromoteRequest(Wire):
    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1, "reason": "better on our own examples"}]})

    version: StrictInt = Field(
        ge=0,
        lt=2**31,
        description="The version to make live for its task; 0 with `task`: that task's untrained critic.",
    )
    task: TaskName | None = Field(None, description="The task; null: that of the version.")
    canary: CanaryRequest | None = Field(
        None, description="Let the version answer a share of the requests first. Null: as `GADFLY_CANARY_SHARE` says."
    )
    reason: Reason | None = Field(None, description="The reason, stored with the swap.")


class WidenRequest(Wire):
    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1, "reason": "no complaints in an hour"}]})

    task: TaskName | None = Field(None, description="The task; null: the default task.")
    version: StrictInt | None = Field(
        None, ge=0, lt=2**31, description="The version that must be the canary, else 409."
    )
    reason: Reason | None = Field(None, description="The reason, stored with the canary.")


class CanaryView(Wire):
    """A promotion whose critic first answers a share of the requests."""

    task: str
    swap_id: UUID
    version: int
    from_version: int = Field(description="The version that answers the other requests.")
    share: float
    for_s: int | None
    for_requests: int | None
    started_at: datetime
    ended_at: datetime | None = Field(description="Null while it runs.")
    outcome: CanaryOutcome | None = Field(
        description="`widened`: it answers all requests. `rolled_back`: the version before does again. `replaced`: "
        "another version or base model took its place."
    )
    reason: str | None
    answers: int = Field(description="Stored answers of its critic until its end; at most 100,000 are counted.")
    answers_before: int = Field(description="The same of the version before.")
    held: str | None = Field(description="Why it goes on although it is due. Known to one replica only.")


class RollbackRequest(Wire):
    model_config = ConfigDict(json_schema_extra={"examples": [{"from_version": 1, "reason": "too many false alarms"}]})

    task: TaskName | None = Field(None, description="The task; null: the default task.")
    from_version: StrictInt | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="The version that must be live, else 409: a repeated request then does not roll back twice.",
    )
    reason: Reason | None = Field(None, description="The reason, stored with the swap.")


class CriticVersionView(Wire):
    version: int
    parent: int | None
    base_model: str
    adapter_sha256: str | None
    status: CriticStatus = Field(
        description="`untrained`: version 0, the base model under the critic's prompt, which no gate has measured. "
        "`examples`: the base model with labelled examples in the critic's prompt."
    )
    examples: int = Field(0, description="Labelled examples in its prompt.")
    examples_sha256: str | None = Field(None, description="Of the examples' texts.")
    created_at: datetime
    verdict_only: bool = Field(
        description="Whether it was trained without references. If it is live, /refine is answered by the newest "
        "version that was not."
    )
    archived: bool = Field(description="Whether it is based on another model than the one that is served.")
    pointers: list[Pointer] = Field(description="The pointers of its task that name it.")
    task: str = Field(DEFAULT_TASK, description="The task whose answers it judges.")
    run_id: UUID | None = Field(None, description="The training run that made it.")


class SwapView(Wire):
    """One move of the live pointer: pending, done or refused."""

    id: UUID
    version: int
    from_version: int
    kind: SwapKind
    status: SwapStatus
    requested_at: datetime
    finished_at: datetime | None
    task: str = Field(DEFAULT_TASK, description="The task whose live critic it changes.")
    reason: str | None = Field(description="The reason of the request, or of the refusal. Shown to admins only.")


class ReceiptView(Wire):
    """A swap receipt: the proofs and the times of one replica that began to answer with this version."""

    swap_id: UUID
    replica_id: UUID
    created_at: datetime
    details: dict[str, Any] = Field(
        description="Hashes, each engine's proof, requests in flight at the move, lost requests, and times."
    )


class ClassSharesView(Wire):
    """The deployment's own labelled traffic when the critic was measured, and its share of right answers."""

    right: int
    wrong: int
    share: float = Field(description="Of right answers, with half an answer added to each class.")
    low: float = Field(description="Lower bound of the share: Wilson's interval, 95 %.")
    high: float


class BinView(Wire):
    """The judgements whose probability that the answer is right is in one range."""

    low: float
    high: float
    items: int
    traffic_share: float = Field(description="The bin's share of all judgements, at the class shares of the traffic.")
    mean_p: float
    right: float = Field(description="Share of right answers, at the class shares of the traffic.")


class ReliabilityView(Wire):
    """How the probability that an answer is right agrees with whether it is."""

    ece: float = Field(
        description="Expected calibration error: mean of |mean probability - share of right answers| over the bins."
    )
    low: float = Field(description="Lower bound of the error, 95 %, over resampled questions.")
    high: float
    bins: list[BinView] = Field(description="The non-empty bins of ten.")


class CalibrationView(Wire):
    """How the critic's probabilities become a calibrated confidence, and how well that does on held-out answers.

    The probability that an answer is right has the log-odds `slope` x (log-odds of the verdict words) + `intercept` +
    (log-odds of the class share), drawn towards 0 where few labels tell that share.
    """

    created_at: datetime
    slope: float
    intercept: float
    class_shares: ClassSharesView
    items: int = Field(description="Held-out judgements.")
    questions: int
    folds: int = Field(description="`after` comes from calibrations that were fitted without the question's fold.")
    before: ReliabilityView = Field(description="Of the two verdict words, as in `confidence`.")
    after: ReliabilityView = Field(description="Of the calibrated probability, as in `calibrated_confidence`.")


class RateView(Wire):
    """A number with its 95 % interval."""

    value: float
    answers: int = Field(validation_alias=AliasChoices("answers", "of"), description="It is measured on so many.")
    low: float
    high: float


class ThresholdView(Wire):
    """A suggested verdict threshold. It changes no verdict."""

    p_correct: float = Field(
        description="Call an answer correct from this probability of that word on, among the two verdict words."
    )
    balanced: RateView = Field(
        description="Balanced accuracy with a threshold that was fitted to other questions (cross-fitted)."
    )


class ScoreboardView(Wire):
    """How the critic does on the deployment's own labelled answers, as callers got its verdicts.

    The newest right and the newest wrong answer to each question count. For a trained critic, only held-out questions
    and those that arrived after it was made.
    """

    answers: int
    right: RateView | None = Field(description="Right answers that it calls correct.")
    wrong: RateView | None = Field(description="Wrong answers that it calls incorrect.")
    balanced: RateView | None = Field(description="The mean of the two.")
    auroc: RateView | None = Field(description="Chance that a right answer has a higher probability than a wrong one.")
    ece: RateView | None = Field(
        description="Expected calibration error of the two verdict words; null below 20 answers."
    )
    calibrated_ece: RateView | None = Field(description="The same of the calibrated probability.")
    threshold: ThresholdView | None = Field(description="Null below 20 answers of either class.")


class LossView(Wire):
    """Answers that a critic learned from and that were deleted since."""

    answers: int = Field(description="0: only a version that it continues learned from deleted answers.")
    first_at: datetime
    last_at: datetime


class CriticHistoryView(CriticVersionView):
    """One critic, its origin, and its swaps."""

    prompt_set: str | None
    task_version: str | None = Field(description="Of the task's files; null for critics of earlier releases.")
    outcome: GateOutcome | None = Field(description="The decision of its run's gate.")
    gate: dict[str, Any] | None = Field(description="The gate's report.")
    calibration: CalibrationView | None = Field(
        description="Null for version 0, for versions of earlier releases, and with fewer than 20 held-out questions "
        "of either class."
    )
    scoreboard: ScoreboardView | None = Field(description="Null as long as none of its answers has a label.")
    forgotten: LossView | None = Field(None, description="What it learned from and was deleted since; null: nothing.")
    origin: dict[str, Any] | None = Field(
        description="Of a pulled critic: its source, its run there, and the report of the gate there."
    )
    swaps: list[SwapView] = Field(description="Newest first, including refused ones.")
    receipts: list[ReceiptView] = Field(description="Newest first.")


def version_view(critic: CriticVersion, pointers: list[Pointer], *, served: str) -> CriticVersionView:
    """A critic with the pointers that name it, where the base model `served` is served."""
    return CriticVersionView.of(critic, archived=critic.base_model != served, pointers=pointers)


def history_view(
    critic: CriticVersion,
    pointers: list[Pointer],
    history: CriticHistory,
    scores: Scoreboard,
    *,
    served: str,
    for_admin: bool,
) -> CriticHistoryView:
    """A critic and its history; only admins see the reasons of swaps and the addresses of engines."""
    swaps, receipts = history.swaps, history.receipts
    if not for_admin:
        swaps = [replace(swap, reason=None) for swap in swaps]
        receipts = [replace(receipt, details=_without_engines(receipt.details)) for receipt in receipts]
    return CriticHistoryView.of(
        critic,
        archived=critic.base_model != served,
        pointers=pointers,
        outcome=history.outcome,
        gate=history.gate and _without_evidence(history.gate),
        calibration=history.calibration and _calibration(history.calibration),
        scoreboard=scores if scores.answers else None,
        forgotten=history.forgotten,
        origin=critic.origin if for_admin else _without_source(critic.origin),
        swaps=swaps,
        receipts=receipts,
    )


def _calibration(stored: CriticCalibration) -> CalibrationView:
    report, traffic = stored.report, stored.calibration.traffic
    return CalibrationView.of(
        report,
        created_at=stored.created_at,
        slope=stored.calibration.slope,
        intercept=stored.calibration.intercept,
        class_shares=ClassSharesView.of(traffic, low=report.share_low, high=report.share_high),
        before=ReliabilityView.of(report.before, bins=list(report.before.bins)),
        after=ReliabilityView.of(report.after, bins=list(report.after.bins)),
    )


def _without_evidence(gate: dict[str, Any]) -> dict[str, Any]:
    """The report without its observations, which later runs read and people do not."""
    numbers = {name: value for name, value in gate["numbers"].items() if name != "evidence"}
    return gate | {"numbers": numbers}


def _without_source(origin: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if origin is None else {name: value for name, value in origin.items() if name != "source"}


def _without_engines(details: dict[str, Any]) -> dict[str, Any]:
    proofs = [{name: value for name, value in proof.items() if name != "engine"} for proof in details["engines"]]
    return details | {"engines": proofs}
