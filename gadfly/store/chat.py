"""Answers of /v1/chat/completions that wait for the live critic, and its critiques of them."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import CriticVersion, Critique, now
from gadfly.store.mapping import values_of
from gadfly.store.tables import CritiqueDueRow, CritiqueRow, EpisodeRow, InteractionRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """An answer to judge in the background."""

    interaction_id: UUID
    question: str
    response: str
    task: str


_JUDGED_AT = "judged_at"


def judged_in_background_at() -> ColumnElement[datetime | None]:
    """The time of a critique that was due, of `InteractionRow`; NULL for answers that were judged when they arrived."""
    return sql_cast(InteractionRow.parameters[_JUDGED_AT].astext, TIMESTAMP(timezone=True))


def was_judged_in_background_after(moment: datetime) -> ColumnElement[bool]:
    """Whether `InteractionRow` is about an answer whose critique was due, and was stored after this time, in UTC."""
    judged_at = InteractionRow.parameters[_JUDGED_AT].astext
    return and_(judged_at.is_not(None), judged_at > moment.astimezone(UTC).isoformat())


async def due_answers(
    session: AsyncSession, *, since: datetime, limit: int, tasks: Collection[str] | None = None
) -> list[Due]:
    """Answers of these tasks, or of all, to judge, the oldest first. Those from before `since` are given up."""
    await session.execute(delete(CritiqueDueRow).where(CritiqueDueRow.created_at < since))
    statement = (
        select(InteractionRow.id, InteractionRow.question, InteractionRow.response, InteractionRow.task)
        .join(CritiqueDueRow, CritiqueDueRow.interaction_id == InteractionRow.id)
        .order_by(CritiqueDueRow.created_at, CritiqueDueRow.interaction_id)
        .limit(limit)
    )
    if tasks is not None:
        statement = statement.where(InteractionRow.task.in_(tasks))
    rows = await session.execute(statement)
    return [Due(interaction_id=row.id, question=row.question, response=row.response, task=row.task) for row in rows]


async def store_critique(
    session: AsyncSession,
    interaction_id: UUID,
    critique: Critique,
    *,
    critic: CriticVersion,
    prompt_set: str,
    parameters: dict[str, Any],
) -> bool:
    """Store a critic's critique of an answer that was due; False if it was deleted or judged in the meantime.

    `parameters` are those of the critique, and are added to those of the answer.
    """
    await give_up(session, interaction_id)
    row = await session.scalar(
        select(InteractionRow)
        .where(InteractionRow.id == interaction_id, InteractionRow.critic_version.is_(None))
        .with_for_update()
    )
    if row is None:
        return False
    await session.execute(
        insert(CritiqueRow).values(values_of(CritiqueRow, critique, interaction_id=interaction_id, position=0))
    )
    await session.execute(
        update(InteractionRow)
        .where(InteractionRow.id == interaction_id)
        .values(
            critic_version=critic.version,
            adapter_sha256=critic.adapter_sha256,
            verdict=critique.verdict,
            prompt_set=prompt_set,
            parameters=row.parameters | parameters | {_JUDGED_AT: now().isoformat()},
        )
        .execution_options(synchronize_session=False)
    )
    await session.execute(
        update(EpisodeRow)
        .where(EpisodeRow.id == row.episode_id, EpisodeRow.critic_version.is_(None))
        .values(critic_version=critic.version)
        .execution_options(synchronize_session=False)
    )
    return True


async def give_up(session: AsyncSession, interaction_id: UUID) -> None:
    """Do not judge an answer."""
    await session.execute(delete(CritiqueDueRow).where(CritiqueDueRow.interaction_id == interaction_id))
