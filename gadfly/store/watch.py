"""The data of the rollback watch: a critic's verdicts on labelled live traffic."""

import zlib
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.store.chat import judged_in_background_at
from gadfly.store.labels import Label
from gadfly.store.shadow import is_first_critique
from gadfly.store.tables import CriticPointerRow, CritiqueRow, InteractionRow, ShadowVerdictRow
from gadfly.task_names import DEFAULT_TASK
from gadfly.verdict import Verdict

WATCH_LOCK = 0x6761_6477_6174  # "gadwat": one replica at a time checks live traffic


async def lock_watch(session: AsyncSession, task: str = DEFAULT_TASK) -> bool:
    """Take the watch of a task for this transaction. False when another replica holds it."""
    lock = WATCH_LOCK if task == DEFAULT_TASK else WATCH_LOCK ^ zlib.crc32(task.encode())
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(lock))))


async def live_since(session: AsyncSession, task: str = DEFAULT_TASK) -> datetime | None:
    """The time of the last move of a task's live pointer."""
    return await session.scalar(
        select(CriticPointerRow.moved_at).where(CriticPointerRow.name == "live", CriticPointerRow.task == task)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One verdict on a labelled answer."""

    was_right: bool  # the label
    is_verdict_right: bool  # the stated verdict agrees with it
    key_id: UUID | None = None  # of the only caller whose label it is; None: several callers, or the operator


async def verdict_outcomes(
    session: AsyncSession, version: int, *, since: datetime | None = None, limit: int = 10_000
) -> list[Outcome]:
    """A critic's verdicts on labelled live traffic, in the order in which verdict and label were both there.

    An interaction counts once, by the verdict stated in the critic's first critique of its response; a critique without
    a stated verdict counts as wrong. The label is that of `gadfly.store.labels`; a rating is none here. A later call
    returns the earlier outcomes in the same positions, except those whose label changed.
    """
    label = Label()
    statement = (
        label.joined(
            select(CritiqueRow.stated, label.is_right.label("is_right"), label.key_id.label("key_id")).select_from(
                InteractionRow
            )
        )
        .join(CritiqueRow, is_first_critique())
        .where(InteractionRow.critic_version == version, label.is_firm)
        .order_by(func.greatest(label.arrived_at, judged_in_background_at()), InteractionRow.id)
        .limit(limit)
    )
    if since is not None:
        statement = statement.where(InteractionRow.created_at >= since)
    return [_outcome(row.stated, row.is_right, row.key_id) for row in await session.execute(statement)]


async def paired_outcomes(
    session: AsyncSession, version: int, *, before: int, since: datetime | None = None, limit: int = 10_000
) -> list[tuple[Outcome, Outcome]]:
    """The verdicts of the critic before and of this one on the same labelled answers, in the order of the former."""
    label = Label()
    statement = (
        label.joined(
            select(
                ShadowVerdictRow.stated.label("stated_before"),
                CritiqueRow.stated,
                label.is_right.label("is_right"),
                label.key_id.label("key_id"),
            ).select_from(InteractionRow)
        )
        .join(CritiqueRow, is_first_critique())
        .join(ShadowVerdictRow, ShadowVerdictRow.interaction_id == InteractionRow.id)
        .where(
            InteractionRow.critic_version == version,
            ShadowVerdictRow.critic_version == before,
            label.is_firm,
        )
        .order_by(ShadowVerdictRow.created_at, InteractionRow.id)
        .limit(limit)
    )
    if since is not None:
        statement = statement.where(InteractionRow.created_at >= since)
    return [
        (_outcome(row.stated_before, row.is_right, row.key_id), _outcome(row.stated, row.is_right, row.key_id))
        for row in await session.execute(statement)
    ]


def _outcome(stated: Verdict, is_right: bool, key_id: UUID | None) -> Outcome:
    agreeing = Verdict.CORRECT if is_right else Verdict.INCORRECT
    return Outcome(was_right=is_right, is_verdict_right=stated is agreeing, key_id=key_id)
