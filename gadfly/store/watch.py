"""The data of the rollback watch: a critic's verdicts on labelled live traffic."""

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

WATCH_LOCK = 0x6761_6477_6174  # "gadwat": one replica at a time checks live traffic
_PER_KEY = 3  # one key's labels decide at most one in this many outcomes, plus one


async def lock_watch(session: AsyncSession) -> bool:
    """Take the watch for this transaction. False when another replica holds it."""
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(WATCH_LOCK))))


async def live_since(session: AsyncSession) -> datetime | None:
    """The time of the live pointer's last move."""
    return await session.scalar(select(CriticPointerRow.moved_at).where(CriticPointerRow.name == "live"))


async def verdict_outcomes(
    session: AsyncSession, version: int, *, since: datetime | None = None, limit: int = 10_000
) -> list[bool]:
    """Whether a critic's verdicts on labelled live traffic were right, in the order in which their labels arrived.

    An interaction counts once, by the verdict stated in the critic's first critique of its response; a critique without
    a stated verdict counts as wrong. `gadfly.store.labels` defines the label. A later call returns the earlier outcomes
    in the same positions, except those whose label changed.

    No single caller's labels decide: an outcome whose label came with a key is left out if more than a third of the
    outcomes before it already come from that key. So many outcomes require the labels of three keys, or labels without
    a key (of a service without keys).
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
