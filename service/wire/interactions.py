"""Shapes of /interactions."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import (
    AwareDatetime,
    Field,
)

from gadfly.grading import Grade
from gadfly.records import Feedback, Interaction, Kind
from gadfly.service.wire.answers import CritiqueResult, RefineResult, result_of
from gadfly.service.wire.common import CriticView, TaskName, Wire, critic_of
from gadfly.service.wire.feedback import FeedbackView
from gadfly.task_names import DEFAULT_TASK
from gadfly.verdict import Verdict


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
    since: AwareDatetime | None = Field(None, description="Created at or after this time.")
    until: AwareDatetime | None = Field(None, description="Created before this time.")


class InteractionPage(Wire):
    items: list[InteractionSummary]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last page.")


def summary_of(interaction: Interaction) -> InteractionSummary:
    return InteractionSummary.of(interaction, critic=critic_of(interaction))


def view_of(interaction: Interaction, feedback: list[Feedback]) -> InteractionView:
    return InteractionView.of(
        interaction,
        critic=critic_of(interaction),
        result=result_of(interaction) if interaction.critiques else None,
        feedback=feedback,
    )
