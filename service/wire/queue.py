"""Shapes of /labels."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, Field, StrictInt

from gadfly.fields import FilledText
from gadfly.records import QueueReason
from gadfly.service.wire.answers import StepView
from gadfly.service.wire.common import CriticView, TaskName, Wire
from gadfly.service.wire.labels import VoteView
from gadfly.verdict import Verdict
from gadfly.votes import VoteAgreement

Labeller = Annotated[
    FilledText,
    Field(
        max_length=100,
        description="Who judges: any text that stays the same for one person or one browser tab. Two labellers of one "
        "key are never given the same answer at the same time.",
    ),
]


class TakeRequest(Wire):
    model_config = ConfigDict(json_schema_extra={"examples": [{"labeller": "ada", "limit": 5}]})

    labeller: Labeller
    limit: Annotated[StrictInt, Field(ge=1, le=20)] = Field(1, description="How many answers.")
    reserve_s: Annotated[StrictInt, Field(ge=30, le=900)] = Field(
        300, description="How long they are kept from others, in seconds."
    )
    reasons: list[QueueReason] = Field(
        default_factory=list, max_length=5, description="Only answers that wait for one of these reasons; empty: all."
    )


class LabellerRequest(Wire):
    model_config = ConfigDict(json_schema_extra={"examples": [{"labeller": "ada"}]})

    labeller: Labeller


class QueueItem(Wire):
    """An answer to label: `POST /feedback` with its `interaction_id`."""

    interaction_id: UUID
    created_at: datetime
    task: str
    question: str
    response: str
    has_reference: bool
    critic: CriticView | None
    verdict: Verdict | None
    confidence: float | None = Field(description="The critic's own probability of its verdict.")
    p_right: float | None = Field(
        description="The probability that the answer is right, calibrated where the critic has a calibration."
    )
    critique: str | None
    steps: list[StepView]
    reason: QueueReason = Field(
        description="`conflict`: the votes differ, so there is no label; `disagreement`: another critic gave the other "
        "verdict; `contradicted`: the only vote contradicts a critic that is sure; `uncertain`: there is no label yet; "
        "`new`: neither a label nor a verdict. Every second answer is from a random sample, whatever its reason."
    )
    why: str = Field(description="The reason as a sentence.")
    other_verdict: Verdict | None
    other_critic: int | None
    standing: VoteAgreement
    votes: list[VoteView] = Field(description="Shown to admins only.")
    reserved_until: datetime


class QueueView(Wire):
    items: list[QueueItem]
    waiting: int = Field(
        description="Answers that wait for a label among the newest ones that were looked at, without those that "
        "others have reserved."
    )


class LabelledByClass(Wire):
    right: int
    wrong: int


class ProgressQuery(Wire):
    target_points: float = Field(
        5.0, ge=0.5, le=20, allow_inf_nan=False, description="The gain that the gate should see, in points."
    )
    task: TaskName | None = Field(
        None, description="Only labels of this task, and its gate; null: the labels of all tasks and the default gate."
    )


class LabelProgressView(Wire):
    """How far the labels are from what the gate needs. Counts are questions with such an answer, without ratings."""

    train: LabelledByClass
    heldout: LabelledByClass
    target_points: float
    detectable_points: float | None = Field(
        description="The smallest gain that the gate sees now in 80 % of cases, in points; null: too few labels."
    )
    needed: LabelledByClass = Field(description="Held-out questions that are missing for the target.")
    expected_labels: LabelledByClass = Field(
        description="Labels to give until those are there: the queue asks about a held-out answer every fourth time."
    )
    beyond_gate: bool = Field(
        description="The target needs more questions than a gate judges (option `evaluation_items`)."
    )
    sentence: str
    labelled_today: int = Field(description="Labels of the last 24 hours.")
    by_you_today: int = Field(description="Those of them with a vote of this key.")


class WithdrawnView(Wire):
    """Feedback that was withdrawn, and the label of its answer now."""

    id: UUID
    interaction_id: UUID
    correct: bool | None = Field(description="The label of the answer; null: there is none.")
    standing: VoteAgreement
    still_frozen: bool = Field(
        description="The label of the held-out answer stays as it was: the feedback is older than 15 minutes, or did "
        "not decide it."
    )
