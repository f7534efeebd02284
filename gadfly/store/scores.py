"""The labelled answers that a critic's scoreboard counts."""

from typing import Any

from sqlalchemy import ColumnElement, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import CriticVersion, Split
from gadfly.scoreboard import ScoredAnswer
from gadfly.store.labels import Label
from gadfly.store.shadow import is_first_critique
from gadfly.store.tables import CritiqueRow, InteractionRow, QuestionRow


def is_unlearned(made_at: Any) -> ColumnElement[bool]:
    """Whether a critic that was made then cannot have learned from a question: it is held out, or arrived later."""
    return or_(QuestionRow.split == Split.HELDOUT, QuestionRow.created_at >= made_at)


async def scored_answers(session: AsyncSession, critic: CriticVersion, *, limit: int = 2000) -> list[ScoredAnswer]:
    """Labelled answers that a critic judged for callers, the newest first, with the verdict of its first critique.

    Of a later version than the base model, only answers to held-out questions and to questions that arrived after it
    was made: it cannot have learned from them.
    """
    statement = (
        Label.joined(
            select(
                InteractionRow.question_hash,
                Label.is_right.label("was_right"),
                CritiqueRow.verdict,
                CritiqueRow.p_correct,
                CritiqueRow.p_incorrect,
                CritiqueRow.calibrated_p_right,
            ).select_from(InteractionRow)
        )
        .join(CritiqueRow, is_first_critique())
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .where(
            InteractionRow.critic_version == critic.version,
            Label.exists,
            Label.is_sampled,
            true() if critic.is_base else is_unlearned(critic.created_at),
        )
        .order_by(InteractionRow.created_at.desc(), InteractionRow.id.desc())
        .limit(limit)
    )
    return [ScoredAnswer(**row._mapping) for row in await session.execute(statement)]
