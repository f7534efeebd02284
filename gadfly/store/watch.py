"""What the rollback watch reads: the verdicts of a critic on labelled live traffic."""

from collections import Counter
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

WATCH_LOCK = 0x6761_6477_6174  # "gadwat": one replica at a time looks at live traffic
_PER_KEY = 3  # the outcomes that one key's labels made are at most one in so many, and one more


async def lock_watch(session: AsyncSession) -> bool:
    """Take the watch for this transaction. False when another replica has it."""
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(WATCH_LOCK))))


async def live_since(session: AsyncSession) -> datetime | None:
    """When the live pointer moved last."""
    return await session.scalar(select(CriticPointerRow.moved_at).where(CriticPointerRow.name == "live"))


async def verdict_outcomes(
    session: AsyncSession, version: int, *, since: datetime | None = None, limit: int = 10_000
) -> list[bool]:
    """Whether a critic's verdicts on labelled live traffic were right, in the order in which their labels came.

    An interaction counts once, by the first critique that the critic wrote of its response: by the verdict that it
    states, and stating none is wrong. `gadfly.store.labels` says which label counts. A later call returns the earlier
    outcomes in the same places, except those whose label changed.

    No one caller's labels decide: an outcome whose label came with a key is left out where more than a third of those
    before it are that key's already. So it takes three keys' labels, or labels without a key (of a service that has
    none), to come to many outcomes.
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
        .where(InteractionRow.critic_version == version, label.exists)
        .order_by(label.changed_at, InteractionRow.id)
        .limit(limit)
    )
    if since is not None:
        statement = statement.where(InteractionRow.created_at >= since)
    rows = await session.execute(statement)
    outcomes: list[bool] = []
    by_key: Counter[UUID] = Counter()
    for row in rows:
        if row.key_id is not None:
            if _PER_KEY * by_key[row.key_id] > len(outcomes):
                continue
            by_key[row.key_id] += 1
        outcomes.append(row.stated is (Verdict.CORRECT if row.is_right else Verdict.INCORRECT))
    return outcomes
