"""Shapes of /admin/labels and /admin/acts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from gadfly.records import AdminAction, Ruling, Split
from gadfly.service.wire.common import Reason, Wire
from gadfly.votes import LabelSource, Vote, VoteAgreement


class LabelRequest(Wire):
    label: Ruling = Field(
        description="The label of the answer: `right`, `wrong`, `none` (it cannot be judged), or `votes`, which ends "
        "an earlier decision and lets the votes decide again."
    )
    reason: Reason | None = Field(None, description="The reason, stored with the act.")


class VoteView(Wire):
    """One key's opinion about the answer."""

    key_id: UUID | None = Field(description="The key that gave it; null for the operator: imports, and no keys.")
    key_name: str | None
    source: LabelSource
    correct: bool


class LabelView(Wire):
    """An answer with the votes about it and its label. All interactions with the same text share it."""

    interaction_id: UUID = Field(description="The newest interaction about the answer.")
    question: str
    response: str
    split: Split
    correct: bool | None = Field(description="The label; null: there is none.")
    source: LabelSource | None = Field(description="The source of the label.")
    votes: list[VoteView]
    voted: bool | None = Field(description="What the votes say now. The label of a held-out answer is frozen before.")
    standing: VoteAgreement = Field(description="How far the votes agree.")
    frozen_at: datetime | None = Field(description="When the label of a held-out answer was frozen.")
    decided: Ruling | None = Field(description="An admin's decision, which counts more than the votes.")


class DisputeQuery(Wire):
    """The query of GET /admin/labels/conflicts."""

    disputed: bool = Field(
        False, description="Also answers with a label that some votes, or the votes since it was frozen, contradict."
    )
    cursor: str | None = Field(None, pattern="^[0-9a-f]{128}$", description="`next_cursor` of the previous page.")
    limit: int = Field(50, ge=1, le=200)


class DisputePage(Wire):
    items: list[LabelView]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last page.")


class ActQuery(Wire):
    """The query of GET /admin/acts."""

    cursor: UUID | None = Field(None, description="`next_cursor` of the previous page.")
    limit: int = Field(50, ge=1, le=200)


class ActView(Wire):
    """One act of an admin."""

    id: UUID
    at: datetime
    key_id: UUID | None = Field(description="The admin's key; null: the command line on the database, or no keys.")
    action: AdminAction
    subject: str = Field(description="The id of what the act is about: a key, an interaction, feedback, or a swap.")
    reason: str | None
    details: dict[str, Any]


class ActPage(Wire):
    items: list[ActView]
    next_cursor: UUID | None = Field(description="Pass as `cursor` for the next page; null on the last page.")


def vote_views(votes: tuple[Vote, ...], names: Mapping[UUID, str]) -> list[VoteView]:
    """The votes about an answer with the names of their keys."""
    return [
        VoteView(
            key_id=vote.key_id,
            key_name=None if vote.key_id is None else names.get(vote.key_id),
            source=vote.source,
            correct=vote.is_right,
        )
        for vote in votes
    ]
