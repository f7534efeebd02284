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
    """Feedback about an interaction, which is named by its id or by its request id.

    It is about the interaction's `response`, or about the one critique or refinement of it that is named. The critic
    learns from `correct`, `reference`, `edited_response` and `rating` as described there. `helpful`, `comment` and
    `metadata` are stored and exported, and teach nothing.
    """

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
    critique_id: UUID | None = Field(None, description="The critique that `correct`, `helpful` and `rating` are about.")
    refinement_id: UUID | None = Field(
        None, description="The refinement that `correct`, `helpful` and `rating` are about: an answer of its own."
    )
    correct: StrictBool | None = Field(
        None,
        description="Was the `response` correct; with `refinement_id`, was that refinement; with `critique_id`, was "
        "that critique's verdict? A label of the answer; from a critique, only where it judged the `response`.",
    )
    helpful: StrictBool | None = Field(
        None, description="Did the critique or the refinement that is named help? Stored; it teaches nothing."
    )
    reference: FilledText | None = Field(
        None, description="The right answer. The response and its refinements are graded against it again."
    )
    edited_response: FilledText | None = Field(
        None,
        description="How the answer should have read. If it states an answer that can be read, such as `The answer is "
        "18` at its end, that is the reference unless `reference` is given; stage II can then use the question. It is "
        "exported as a target for the actor's rewrite, which Gadfly does not train.",
    )
    rating: Annotated[StrictInt, Field(ge=1, le=5)] | None = Field(
        None,
        description="1 (worst) to 5 (best). 1 and 2 say that the answer is wrong, 4 and 5 that it is right, but only "
        "while nothing else is known of it, and never on held-out questions. 3, and a rating of a critique, teach "
        "nothing.",
    )
    comment: FilledText | None = Field(None, description="Stored; it teaches nothing.")
    metadata: Metadata = Field(default_factory=dict, description="Stored; it teaches nothing.")

    @model_validator(mode="after")
    def _about_one_thing(self) -> Self:
        if (self.interaction_id is None) == (self.request_id is None):
            raise ValueError("give exactly one of interaction_id and request_id")
        if self.critique_id is not None and self.refinement_id is not None:
            raise ValueError("give critique_id or refinement_id, not both")
        if self.helpful is not None and self.critique_id is None and self.refinement_id is None:
            raise ValueError("helpful is about a critique or a refinement: give critique_id or refinement_id")
        values = (self.correct, self.helpful, self.reference, self.edited_response, self.rating, self.comment)
        if all(value is None for value in values):
            raise ValueError("give at least one of correct, helpful, reference, edited_response, rating, comment")
        return self


class FeedbackView(Wire):
    id: UUID
    interaction_id: UUID
    created_at: datetime
    source: FeedbackSource
    critique_id: UUID | None = None
    refinement_id: UUID | None = None
    correct: bool | None
    helpful: bool | None = None
    reference: str | None
    edited_response: str | None
    edited_reference: str | None = Field(
        None, description="The answer that `edited_response` states, if it can be read."
    )
    rating: int | None
    comment: str | None
    metadata: dict[str, Any]
    grade: Grade | None = Field(
        description="Grade of the interaction's response against this feedback's reference, or its edited one."
    )
    grade_problem: str | None = Field(None, description="Why the reference cannot be read: there is no grade.")
