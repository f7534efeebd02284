"""The data of the rollback watch: a critic's verdicts on labelled live traffic."""

import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import CompoundSelect, and_, func, or_, select, union
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.store.chat import judged_in_background_at, was_judged_in_background_after
from gadfly.store.labels import Label, is_about
from gadfly.store.shadow import is_first_critique
from gadfly.store.tables import AnswerRow, CriticPointerRow, CritiqueRow, InteractionRow, ShadowVerdictRow
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


LIMIT = 10_000
"""The most outcomes of a critic that are compared: its first ones."""

_LABEL_OVERLAP = timedelta(seconds=330)  # longer than a transaction that changes labels may take
_ROW_OVERLAP = timedelta(seconds=60)  # the same, for interactions and critiques


async def verdict_outcomes(
    session: AsyncSession, version: int, *, since: datetime | None = None, limit: int = LIMIT
) -> list[Outcome]:
    """A critic's verdicts on labelled live traffic, in the order in which verdict and label were both there.

    An interaction counts once, by the verdict stated in the critic's first critique of its response; a critique without
    a stated verdict counts as wrong. The label is that of `gadfly.store.labels`; a rating is none here, nor is the
    label of an answer that the label queue chose for what critics said about it. A later call returns the earlier
    outcomes in the same positions, except those whose label changed.
    """
    found = OutcomeLog(version, since=since, limit=limit)
    await found.refresh(session)
    return found.outcomes


class OutcomeLog:
    """`verdict_outcomes`, kept up to date: a later `refresh` reads only the labels and verdicts that are new.

    Outcomes of interactions that were deleted in the meantime, or that follow the first `limit`, are not noticed before
    a new log is read: take one before a decision.
    """

    def __init__(self, version: int, *, since: datetime | None = None, limit: int = LIMIT) -> None:
        self.version = version
        self.since = since
        self._limit = limit
        self._known: dict[UUID, tuple[datetime, Outcome]] = {}  # by interaction, with the time of its arrival
        self._read_at: datetime | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        return [self._known[id][1] for id in self._in_order()]

    def _in_order(self) -> list[UUID]:
        return sorted(self._known, key=lambda id: (self._known[id][0], id))

    async def refresh(self, session: AsyncSession) -> None:
        """Read what is new since the last time: all outcomes at first, in the time limit that the session has."""
        read_at = await session.scalar(select(func.clock_timestamp()))
        assert read_at is not None
        label = Label()
        arrived_at = func.greatest(label.arrived_at, judged_in_background_at()).label("arrived_at")
        statement = (
            label.joined(
                select(
                    InteractionRow.id,
                    CritiqueRow.stated,
                    label.is_right.label("is_right"),
                    label.key_id.label("key_id"),
                    arrived_at,
                    label.measures.label("measures"),
                ).select_from(InteractionRow)
            )
            .join(CritiqueRow, is_first_critique())
            .where(InteractionRow.critic_version == self.version)
        )
        if self.since is not None:
            statement = statement.where(InteractionRow.created_at >= self.since)
        if self._read_at is None:
            statement = statement.where(label.measures).order_by(arrived_at, InteractionRow.id).limit(self._limit)
        else:
            statement = statement.where(InteractionRow.id.in_(self._changed_since(self._read_at)))
        for row in await session.execute(statement):
            if row.measures:
                self._known[row.id] = row.arrived_at, _outcome(row.stated, row.is_right, row.key_id)
            else:
                self._known.pop(row.id, None)
        for id in self._in_order()[self._limit :]:
            del self._known[id]
        self._read_at = read_at

    def _changed_since(self, moment: datetime) -> CompoundSelect[UUID]:
        """The interactions that may have become outcomes, or other ones, since this time by the database's clock."""
        own = select(InteractionRow.id).where(InteractionRow.critic_version == self.version)
        relabelled = own.join(AnswerRow, is_about(AnswerRow, InteractionRow)).where(
            AnswerRow.updated_at > moment - _LABEL_OVERLAP
        )
        stored = own.where(InteractionRow.stored_at > moment - _ROW_OVERLAP)
        judged = own.where(was_judged_in_background_after(moment - _ROW_OVERLAP))
        return union(relabelled, stored, judged)


async def paired_outcomes(
    session: AsyncSession, version: int, *, before: int, since: datetime | None = None, limit: int = LIMIT
) -> list[tuple[Outcome, Outcome]]:
    """The verdicts of the critic before and of this one on the same labelled answers, in the order of shadow verdicts.

    Answers that either of them gave to callers and the other judged in the shadow: both do while a canary runs.
    """
    label = Label()
    statement = (
        label.joined(
            select(
                ShadowVerdictRow.stated.label("stated_in_shadow"),
                CritiqueRow.stated,
                label.is_right.label("is_right"),
                label.key_id.label("key_id"),
                InteractionRow.critic_version,
            ).select_from(InteractionRow)
        )
        .join(CritiqueRow, is_first_critique())
        .join(ShadowVerdictRow, ShadowVerdictRow.interaction_id == InteractionRow.id)
        .where(
            or_(
                and_(InteractionRow.critic_version == version, ShadowVerdictRow.critic_version == before),
                and_(InteractionRow.critic_version == before, ShadowVerdictRow.critic_version == version),
            ),
            label.measures,
        )
        .order_by(ShadowVerdictRow.created_at, InteractionRow.id)
        .limit(limit)
    )
    if since is not None:
        statement = statement.where(InteractionRow.created_at >= since)
    pairs = []
    for row in await session.execute(statement):
        answered, shadow = (_outcome(stated, row.is_right, row.key_id) for stated in (row.stated, row.stated_in_shadow))
        pairs.append((shadow, answered) if row.critic_version == version else (answered, shadow))
    return pairs


def _outcome(stated: Verdict, is_right: bool, key_id: UUID | None) -> Outcome:
    agreeing = Verdict.CORRECT if is_right else Verdict.INCORRECT
    return Outcome(was_right=is_right, is_verdict_right=stated is agreeing, key_id=key_id)
