"""Verdicts of the critic before, and of a candidate, on answers of the live critic. Callers never see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import Kind, now
from gadfly.store.labels import Label, is_about
from gadfly.store.tables import AnswerRow, CritiqueRow, InteractionRow, ShadowVerdictRow
from gadfly.verdict import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Unjudged:
    """A labelled answer that the critic before has not judged yet."""

    interaction_id: UUID
    question: str
    response: str
    parameters: dict[str, Any]  # of the live critic's critique: `temperature`, `max_tokens`


def is_first_critique() -> ColumnElement[bool]:
    """Whether `CritiqueRow` is the critic's first critique of the response of `InteractionRow`."""
    return and_(
        CritiqueRow.interaction_id == InteractionRow.id,
        CritiqueRow.round == 0,
        CritiqueRow.sample == 0,
        CritiqueRow.supplied.is_(False),
    )


async def unjudged(
    session: AsyncSession,
    *,
    live: int,
    by: int,
    since: datetime | None,
    share: float,
    limit: int,
    only_labelled: bool = True,
) -> list[Unjudged]:
    """Answers that the version `live` judged since `since` and the version `by` did not, the oldest first.

    Labelled ones, unless `only_labelled` is False. Of all such answers only this share, always the same.
    """
    judged = exists().where(ShadowVerdictRow.interaction_id == InteractionRow.id, ShadowVerdictRow.critic_version == by)
    statement = (
        select(InteractionRow.id, InteractionRow.question, InteractionRow.response, InteractionRow.parameters)
        .join(CritiqueRow, is_first_critique())
        .where(
            InteractionRow.critic_version == live,
            InteractionRow.kind != Kind.IMPORT,
            # The last byte of an id is random, so the same interactions are chosen at every call.
            func.get_byte(func.uuid_send(InteractionRow.id), 15) < round(share * 256),
            ~judged,
        )
        .order_by(InteractionRow.created_at, InteractionRow.id)
        .limit(limit)
    )
    if only_labelled:
        statement = statement.join(AnswerRow, is_about(AnswerRow, InteractionRow)).where(Label.measures)
    if since is not None:
        statement = statement.where(InteractionRow.created_at >= since)
    return [
        Unjudged(interaction_id=row.id, question=row.question, response=row.response, parameters=row.parameters)
        for row in await session.execute(statement)
    ]


async def insert_verdicts(session: AsyncSession, critic_version: int, stated: Sequence[tuple[UUID, Verdict]]) -> None:
    """Store the verdicts that a version states on interactions. One that is already stored stays, and so does the rest.

    Interactions that were deleted in the meantime are left out.
    """
    if not stated:
        return
    there = set(
        await session.scalars(
            select(InteractionRow.id)
            .where(InteractionRow.id.in_([interaction_id for interaction_id, _ in stated]))
            .with_for_update(key_share=True)
        )
    )
    rows = [
        {"interaction_id": interaction_id, "critic_version": critic_version, "stated": verdict, "created_at": now()}
        for interaction_id, verdict in stated
        if interaction_id in there
    ]
    if rows:
        await session.execute(insert(ShadowVerdictRow).values(rows).on_conflict_do_nothing())
