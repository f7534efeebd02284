"""Shapes of /admin/keys, /admin/settings and /admin/tasks/{task}/grade."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import ConfigDict, Field, JsonValue, StrictInt

from gadfly.fields import FilledText
from gadfly.grading import Grade
from gadfly.records import Key, Scope, Tier
from gadfly.service.wire.common import Reason, Wire

Limit = Annotated[StrictInt, Field(ge=1, lt=2**31)]


class KeyLimitsView(Wire):
    """How much a key may use; null: without limit. What is over a limit is answered 429."""

    requests_per_minute: Limit | None = Field(None, description="Requests of any kind, counted in each worker.")
    engine_calls_per_minute: Limit | None = Field(
        None,
        description="Calls of engine and actor, counted in each worker by the most that a request can need: 2 for a "
        "critique, 3 for each round of each sample of a refinement.",
    )
    tokens_per_day: Annotated[StrictInt, Field(ge=1, lt=2**53)] | None = Field(
        None, description="Prompt and completion tokens since midnight (UTC), counted over the deployment."
    )
    max_in_flight: Limit | None = Field(None, description="Requests that generate at once, counted in each worker.")


class KeyView(KeyLimitsView):
    """An API key, without its secret."""

    id: UUID
    name: str
    tier: Tier
    scopes: list[Scope] = Field(description="What it may do; an admin key may do everything.")
    hint: str = Field(description="The first characters of the secret, for recognition.")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    distrusted_at: datetime | None = Field(description="Since then its labels count for nothing.")

    @classmethod
    def of(cls, record: object, **given: Any) -> Self:
        if isinstance(record, Key):
            given = {"scopes": record.granted, **given}
        return super().of(record, **given)


class KeyRequest(KeyLimitsView):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "checkout", "expires_in_days": 90}]})

    name: FilledText = Field(max_length=200)
    tier: Tier = Field(Tier.CALLER, description="caller: what `scopes` say. admin: everything.")
    scopes: set[Scope] | None = Field(
        None,
        min_length=1,
        description="What a caller's key may do. `use`: have answers judged and rewritten, and read, label and "
        "delete its own. `label`: take answers of all callers from the label queue and vote on them. `read`: read the "
        "traffic of all callers, labels, runs and critics. `train`: plan, request, follow, cancel and reproduce "
        "training runs. null: `use`.",
    )
    expires_in_days: Annotated[StrictInt, Field(ge=1, le=3650)] | None = Field(
        None, description="null: it never expires."
    )


class NewKey(KeyView):
    secret: str = Field(description="The key to send. It is not shown again.")


class KeyChange(KeyLimitsView):
    """New limits of a key. A field that is left out stays as it is; null removes its limit."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests_per_minute": 120, "tokens_per_day": None, "reason": "agreed"}]}
    )

    reason: Reason | None = Field(None, description="The reason, stored with the act.")


class ReasonRequest(Wire):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "left the team"}]})

    reason: Reason | None = Field(None, description="The reason, stored with the act.")


class TaughtView(Wire):
    """A critic that learned from labels of a key; 0 answers: only a version that it continues did."""

    version: int
    answers: int


class TrustView(Wire):
    key: KeyView
    critics: list[TaughtView] = Field(description="Critics that learned from labels of this key.")


class SettingView(Wire):
    name: str = Field(description="The environment variable is this in capitals, with the prefix GADFLY_.")
    value: JsonValue = Field(description="Secrets are masked.")
    is_default: bool
    description: str


class GradeRequest(Wire):
    """A row to try the grader on."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"response": "3/4 of 60 is 45. The answer is 45.", "reference": "45"}]}
    )

    response: FilledText = Field(max_length=50_000)
    reference: FilledText = Field(max_length=50_000)
    question: FilledText | None = Field(None, max_length=50_000)


class GradeView(Wire):
    grade: Grade | None = Field(description="Null: the reference cannot be read.")
    problem: str | None = Field(description="Why there is no grade.")
    stated_answer: str | None = Field(description="The answer that the response states, if it can be read.")


def masked(value: Any) -> JsonValue:
    """A setting's value as JSON."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return [str(item) for item in value] if isinstance(value, tuple) else str(value)
