"""The data of the rollback watch: a critic's verdicts on labelled live traffic."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.store.labels import Label
from gadfly.store.tables import (
    CriticPointerRow,
    CritiqueRow,
    InteractionRow,
)
from gadfly.verdict import Verdict

WATCH_LOCK = 0x6761_6477_6174  # "gadwat": one replica at a time checks live traffic


async def lock_watch(session: AsyncSession) -> bool:
    """Take the watch for this transaction. False when another replica holds it."""
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(WATCH_LOCK))))


async def live_since(session: AsyncSession) -> datetime | None:
    """The time of the live pointer's last move."""
    return await session.scalar(select(CriticPointerRow.moved_at).where(CriticPointerRow.name == "live"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One verdict on a labelled answer."""

    was_right: bool  # the label
    is_verdict_right: bool  # the stated verdict agrees with it
    key_id: UUID | None = None  # of the caller whose label it is


async def verdict_outcomes(
    session: AsyncSession, version: int, *, since: datetime | None = None, limit: int = 10_000
) -> list[Outcome]:
    """A critic's verdicts on labelled live traffic, in the order in which their labels arrived.

    An interaction counts once, by the verdict stated in the critic's first critique of its response; a critique without
    a stated verdict counts as wrong. `gadfly.store.labels` defines the label. A later call returns the earlier outcomes
    in the same positions, except those whose label changed.
    """
    label = Label()
    statement = (
        label.joined(
            select(CritiqueRow.stated, label.is_right.label("is_right"), label.key_id.label("key_id")).select_from(
                InteractionRow
            )
        )
        .join(
            CritiqueRow,
            and_(
                CritiqueRow.interaction_id == InteractionRow.id,
                CritiqueRow.round == 0,
                CritiqueRow.sample == 0,
                CritiqueRow.supplied.is_(False),
            ),
        )
        .where(InteractionRow.critic_version == version, label.is_firm)
        .order_by(label.changed_at, InteractionRow.id)
        .limit(limit)
    )
    if since is not None:
        statement = statement.where(InteractionRow.created_at >= since)
    rows = await session.execute(statement)
    return [
        Outcome(
            was_right=row.is_right,
            is_verdict_right=row.stated is (Verdict.CORRECT if row.is_right else Verdict.INCORRECT),
            key_id=row.key_id,
        )
        for row in rows
    ]
