"""Shapes of /interactions."""

from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from pydantic import (
    AwareDatetime,
    ConfigDict,
    Field,
)

from gadfly.fields import FilledText
from gadfly.grading import Grade
from gadfly.records import Feedback, Interaction, Kind, LabelState
from gadfly.service.wire.answers import CritiqueResult, RefineResult, result_of
from gadfly.service.wire.common import CriticChoice, CriticView, TaskName, Temperature, Wire, critic_of
from gadfly.service.wire.feedback import FeedbackView
from gadfly.task_names import DEFAULT_TASK
from gadfly.training import RunStatus, Stage
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource, VoteAgreement


class FactsLike(Protocol):
    """What the store knows about an interaction besides its record."""

    @property
    def confidence(self) -> float | None: ...

    @property
    def label(self) -> bool | None: ...

    @property
    def label_source(self) -> LabelSource | None: ...

    @property
    def standing(self) -> VoteAgreement: ...


class InteractionSummary(Wire):
    """One line of GET /interactions."""

    id: UUID
    kind: Kind
    episode_id: UUID
    request_id: str | None
    created_at: datetime
    question: str
    response: str | None = Field(description="The answer to judge; null for an imported question without one.")
    verdict: Verdict | None
    grade: Grade | None
    critic: CriticView | None
    task: str = Field(DEFAULT_TASK, description="The task that it belongs to.")
    key_id: UUID | None = Field(None, description="The key of its caller; null for imports and without keys.")
    confidence: float | None = Field(
        None, description="The critic's own probability of the verdict of its first critique."
    )
    label: LabelState = Field(
        LabelState.NONE, description="Whether the answer is right by its votes: `GET /admin/labels/{id}`."
    )
    label_source: LabelSource | None = None
    standing: VoteAgreement = Field(VoteAgreement.NONE, description="How far the votes agree.")


class InteractionView(InteractionSummary):
    """All stored data of one interaction: the request, the answer, and the feedback so far."""

    reference: str | None
    metadata: dict[str, Any]
    parameters: dict[str, Any]
    result: CritiqueResult | RefineResult | None = Field(
        description="The answer as it was sent, with grades against the newest reference. Of a chat answer, the "
        "critique that it got in the background; null for one without, and for imported rows."
    )
    conversation: dict[str, Any] | None = Field(
        description="The conversation of an answer of /v1/chat/completions: `messages`, the answer last, and `tools`."
    )
    feedback: list[FeedbackView]


class InteractionQuery(Wire):
    """The query of GET /interactions."""

    cursor: str | None = Field(None, max_length=200, description="`next_cursor` of the previous page.")
    limit: int = Field(50, ge=1, le=200)
    kind: Kind | None = None
    verdict: Verdict | None = None
    grade: Grade | None = None
    episode_id: UUID | None = None
    critic_version: int | None = Field(None, ge=0, lt=2**31)
    task: TaskName | None = None
    has_feedback: bool | None = None
    label: LabelState | None = Field(None, description="Whether the answer has a label, and which.")
    key_id: UUID | None = Field(None, description="Of this key's caller. Admins only: others see their own rows.")
    confidence_from: float | None = Field(None, ge=0, le=1, description="The first critique's confidence, inclusive.")
    confidence_to: float | None = Field(None, ge=0, le=1, description="The first critique's confidence, inclusive.")
    q: FilledText | None = Field(
        None,
        max_length=500,
        description="Words in the question or the response, as in a web search: a phrase in quotes, `or`, and `-` "
        "before a word that must not be there. The first 20,000 characters of a text are searched.",
    )
    since: AwareDatetime | None = Field(None, description="Created at or after this time.")
    until: AwareDatetime | None = Field(None, description="Created before this time.")


class ReplayRequest(Wire):
    model_config = ConfigDict(json_schema_extra={"examples": [{"critic": "candidate"}]})

    critic: CriticChoice = Field("live", description="Which critic judges it now: live, candidate, or a version.")
    temperature: Temperature = Field(0.0, description="Sampling temperature of the critic.")


class LearningView(Wire):
    """What an answer of the interaction earned in one stage of a training run."""

    run_id: UUID
    run_status: RunStatus
    version: int | None = Field(description="The critic that the run published.")
    stage: Stage
    refinement_id: UUID | None = Field(description="The refinement that was learned from; null: the response.")
    sampled: bool = Field(description="Learned from answers that the actor gave to the same question in the run.")
    draws: int = Field(description="How often it was drawn.")
    critiques: int = Field(description="Critiques of it that were sampled and scored.")
    mean_score: float = Field(description="The mean reward of these critiques, before the KL penalty.")
    verdict_right: float = Field(description="The share of these critiques with a right verdict.")
    first_step: int
    last_step: int
    created_at: datetime = Field(description="When the run was requested.")


class LearningLedger(Wire):
    """The training runs that learned from an interaction."""

    entries: list[LearningView] = Field(description="Newest run first.")
    selected_by: list[UUID] = Field(
        description="Runs that selected it and have no entry here: it was not drawn, or they were run by an earlier "
        "release."
    )


class InteractionPage(Wire):
    items: list[InteractionSummary]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last page.")


def summary_of(interaction: Interaction, facts: FactsLike) -> InteractionSummary:
    return InteractionSummary.of(interaction, critic=critic_of(interaction), **_of_facts(facts))


def view_of(interaction: Interaction, feedback: list[Feedback], facts: FactsLike) -> InteractionView:
    return InteractionView.of(
        interaction,
        critic=critic_of(interaction),
        result=result_of(interaction) if interaction.critiques else None,
        feedback=feedback,
        **_of_facts(facts),
    )


def _of_facts(facts: FactsLike) -> dict[str, Any]:
    return {
        "confidence": facts.confidence,
        "label": _LABELS[facts.label]
        if facts.standing is not VoteAgreement.CONFLICT or facts.label is not None
        else LabelState.CONFLICT,
        "label_source": facts.label_source,
        "standing": facts.standing,
    }


_LABELS = {True: LabelState.RIGHT, False: LabelState.WRONG, None: LabelState.NONE}
