"""Shapes of /admin/forget and /admin/retention."""

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, Field, StrictBool, model_validator

from gadfly.records import Kind
from gadfly.service.wire.common import Reason, Wire


class ForgetRequest(Wire):
    """What to forget: exactly one of an interaction, an episode, the rows of a key, or those of a time."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z", "dry_run": True}]
        }
    )

    interaction_id: UUID | None = None
    episode_id: UUID | None = None
    key_id: UUID | None = Field(None, description="The rows of this key's caller.")
    since: AwareDatetime | None = Field(None, description="Created at or after this time; with `until`.")
    until: AwareDatetime | None = Field(None, description="Created before this time; with `since`.")
    kind: Kind | None = Field(None, description="Only rows of this origin.")
    dry_run: StrictBool = Field(False, description="Delete nothing, and say what would be deleted.")
    reason: Reason | None = Field(None, description="The reason, stored with the act.")

    @model_validator(mode="after")
    def _one_of_four(self) -> Self:
        if (self.since is None) != (self.until is None):
            raise ValueError("give since and until together")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("since must be before until")
        named = (self.interaction_id, self.episode_id, self.key_id, self.since)
        if sum(each is not None for each in named) != 1:
            raise ValueError("give exactly one of interaction_id, episode_id, key_id, or since with until")
        return self


class AffectedCritic(Wire):
    """A critic that learned from what is forgotten."""

    version: int
    answers: int = Field(description="0: only a version that it continues learned from them.")
    run_id: UUID | None


class ForgetView(Wire):
    """What was forgotten, or would be."""

    dry_run: bool
    interactions: int
    feedback: int
    remaining: bool = Field(description="There is more: send the request again.")
    critics: list[AffectedCritic] = Field(description="They are marked, and stay as they are.")
    runs: list[UUID] = Field(
        description="Runs in progress that selected some of it: their files are removed when they end."
    )
    clean_version: int | None = Field(description="The newest critic that learned from nothing that is forgotten.")
    advice: str


class RetentionRule(Wire):
    kind: Kind
    days: int = Field(description="Rows of this origin are deleted after so many days.")
    due: int = Field(description="Rows that are older now.")
    oldest: datetime | None = Field(description="The oldest row of this origin that is due.")


class RetentionView(Wire):
    """What the setting `retention` deletes, once an hour. Reading it deletes nothing."""

    rules: list[RetentionRule]
