"""Whether the critics learn: their verdicts on labelled traffic over time, and what waits for a person."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, case, func, literal, or_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import Swap, SwapStatus
from gadfly.store.critics import is_base
from gadfly.store.labels import Label
from gadfly.store.mapping import record_of
from gadfly.store.scores import is_unlearned
from gadfly.store.shadow import is_first_critique
from gadfly.store.tables import (
    AnswerRow,
    CriticVersionRow,
    CritiqueRow,
    InteractionRow,
    QuestionRow,
    RunEventRow,
    SwapRow,
    TrainingRunRow,
)
from gadfly.training import EventKind, GateOutcome
from gadfly.verdict import Verdict
from gadfly.votes import VoteAgreement


class Bucket(StrEnum):
    """How long one point of a curve is."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictCounts:
    """Verdicts of one version on labelled answers of one class in one bucket of time."""

    version: int
    at: datetime | None  # the beginning of the bucket, UTC; None: the whole time
    was_right: bool
    hits: int  # right verdicts
    of: int


async def judgements(
    session: AsyncSession, *, since: datetime, until: datetime, bucket: Bucket | None
) -> list[VerdictCounts]:
    """Counts by version, bucket and class, of traffic from `since` to before `until`.

    The rule is that of a critic's scoreboard: the newest right and the newest wrong answer to each question count, by
    the verdict that callers got first, and of a trained critic only answers that it cannot have learned from.
    """
    at: Any = (
        literal(None, InteractionRow.created_at.type)
        if bucket is None
        else func.date_trunc(bucket.value, InteractionRow.created_at, "UTC")
    )
    chosen: Select[Any] = (
        Label.joined(
            select(
                InteractionRow.critic_version.label("version"),
                at.label("at"),
                Label.is_right.label("was_right"),
                case(
                    (Label.is_right, CritiqueRow.verdict == Verdict.CORRECT),
                    else_=CritiqueRow.verdict == Verdict.INCORRECT,
                ).label("is_hit"),
            ).select_from(InteractionRow)
        )
        .ext(distinct_on(InteractionRow.critic_version, at, Label.is_right, InteractionRow.question_hash))
        .join(CritiqueRow, is_first_critique())
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .join(CriticVersionRow, CriticVersionRow.version == InteractionRow.critic_version)
        .where(
            Label.exists,
            Label.is_sampled,
            InteractionRow.created_at >= since,
            InteractionRow.created_at < until,
            or_(is_base(), is_unlearned(CriticVersionRow.created_at)),
        )
        .order_by(
            InteractionRow.critic_version,
            at,
            Label.is_right,
            InteractionRow.question_hash,
            InteractionRow.created_at.desc(),
            InteractionRow.id.desc(),
        )
    )
    each = chosen.subquery()
    rows = await session.execute(
        select(each.c.version, each.c.at, each.c.was_right, func.count().filter(each.c.is_hit), func.count())
        .group_by(each.c.version, each.c.at, each.c.was_right)
        .order_by(each.c.version, each.c.at, each.c.was_right)
    )
    return [
        VerdictCounts(version=version, at=at, was_right=was_right, hits=hits, of=of)
        for version, at, was_right, hits, of in rows
    ]


async def swaps_between(session: AsyncSession, *, since: datetime, until: datetime, limit: int = 500) -> list[Swap]:
    """Swaps that were requested in that time, the oldest first."""
    rows = await session.scalars(
        select(SwapRow)
        .where(SwapRow.requested_at >= since, SwapRow.requested_at < until)
        .order_by(SwapRow.requested_at, SwapRow.id)
        .limit(limit)
    )
    return [record_of(Swap, row) for row in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Undecided:
    """A critic about which its gate could not decide."""

    version: int
    run_id: UUID
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAlarm:
    """An alarm of a training run."""

    run_id: UUID
    at: datetime
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingForPerson:
    """What waits for a person."""

    conflicts: int  # answers without a label because their votes differ
    disputed: int  # answers with a label that some votes contradict
    undecided: Sequence[Undecided]
    alarms: Sequence[RunAlarm]
    refused_swap: Swap | None


async def waiting(session: AsyncSession, *, live: int, task: str) -> WaitingForPerson:
    """What waits for a person now: alarms of the last 30 days, and undecided critics newer than the live one."""
    is_open = AnswerRow.ruling.is_(None)
    conflicts = await session.scalar(
        select(func.count()).where(is_open, AnswerRow.standing == VoteAgreement.CONFLICT, AnswerRow.is_right.is_(None))
    )
    disputed = await session.scalar(select(func.count()).where(is_open, AnswerRow.standing == VoteAgreement.DISPUTED))
    undecided = await session.execute(
        select(CriticVersionRow.version, TrainingRunRow.id, CriticVersionRow.created_at)
        .join(TrainingRunRow, TrainingRunRow.id == CriticVersionRow.run_id)
        .where(
            TrainingRunRow.outcome == GateOutcome.NOT_ENOUGH_EVIDENCE,
            CriticVersionRow.version > live,
            CriticVersionRow.task == task,
        )
        .order_by(CriticVersionRow.version.desc())
        .limit(20)
    )
    alarms = await session.execute(
        select(RunEventRow.run_id, RunEventRow.created_at, RunEventRow.data)
        .join(TrainingRunRow, TrainingRunRow.id == RunEventRow.run_id)
        .where(
            RunEventRow.kind == EventKind.ALARM,
            TrainingRunRow.task == task,
            TrainingRunRow.created_at > func.now() - timedelta(days=30),
        )
        .order_by(RunEventRow.id.desc())
        .limit(10)
    )
    last = await session.scalar(
        select(SwapRow)
        .where(SwapRow.status != SwapStatus.PENDING, SwapRow.task == task)
        .order_by(SwapRow.finished_at.desc(), SwapRow.id.desc())
        .limit(1)
    )
    is_refused = last is not None and last.status is SwapStatus.REFUSED
    return WaitingForPerson(
        conflicts=conflicts or 0,
        disputed=disputed or 0,
        undecided=[Undecided(version=version, run_id=run_id, at=at) for version, run_id, at in undecided],
        alarms=[RunAlarm(run_id=run_id, at=at, message=data.get("message", "")) for run_id, at, data in alarms],
        refused_swap=record_of(Swap, last) if is_refused else None,
    )


async def rows_of_today(session: AsyncSession) -> tuple[int, int]:
    """Interactions, and labels that changed, in the last 24 hours."""
    day = func.now() - timedelta(hours=24)
    interactions = await session.scalar(select(func.count()).where(InteractionRow.created_at > day))
    labels = await session.scalar(
        select(func.count()).where(and_(AnswerRow.changed_at > day, AnswerRow.is_right.is_not(None)))
    )
    return interactions or 0, labels or 0
