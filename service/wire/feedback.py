"""Shapes of /feedback."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)

from gadfly.fields import FilledText, Metadata
from gadfly.grading import Grade
from gadfly.records import FeedbackSource
from gadfly.service.wire.common import RequestId, Wire


class FeedbackRequest(Wire):
    """Feedback about an interaction, which is named by its id or by its request id."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"interaction_id": "019ad3a1-7c40-7000-8000-000000000000", "correct": False, "reference": "7"}]
        }
    )

    feedback_id: UUID | None = Field(
        None,
        description="The feedback's own id, a new UUID for each statement. A repeat with the same id is stored once, "
        "also when other feedback came in between.",
    )
    interaction_id: UUID | None = None
    request_id: RequestId | None = None
    correct: StrictBool | None = Field(None, description="Was the interaction's `response` correct?")
    reference: FilledText | None = Field(None, description="The right answer. The response is graded against it again.")
    edited_response: FilledText | None = Field(None, description="How the answer should have read.")
    rating: Annotated[StrictInt, Field(ge=1, le=5)] | None = Field(None, description="1 (worst) to 5 (best).")
    comment: FilledText | None = None
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _about_one_thing(self) -> Self:
        if (self.interaction_id is None) == (self.request_id is None):
            raise ValueError("give exactly one of interaction_id and request_id")
        values = (self.correct, self.reference, self.edited_response, self.rating, self.comment)
        if all(value is None for value in values):
            raise ValueError("give at least one of correct, reference, edited_response, rating, comment")
        return self


class FeedbackView(Wire):
    id: UUID
    interaction_id: UUID
    created_at: datetime
    source: FeedbackSource
    correct: bool | None
    reference: str | None
    edited_response: str | None
    rating: int | None
    comment: str | None
    metadata: dict[str, Any]
    grade: Grade | None = Field(description="Grade of the interaction's response against this feedback's reference.")
    grade_problem: str | None = Field(None, description="Why the reference cannot be read: there is no grade.")
