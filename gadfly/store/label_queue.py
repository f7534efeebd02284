"""The label queue: which unlabelled answers people label next, and who has which one now.

Every second answer is the one whose label teaches most by what critics said about it. The others are a random sample,
with which the gate and the rollback watch measure: all held-out answers, and about as many of the others. An answer is
one text to one question, as in `gadfly/store/labels.py`. A reservation keeps it from others for some minutes. The
newest interactions are looked at, more of them if too few of those wait. Why: docs/decisions/the-label-queue.md.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Select,
    Subquery,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.selectable import LateralFromClause

from gadfly.records import QueueReason, Split, now
from gadfly.store.interactions import Scope
from gadfly.store.labels import AnswerKey, is_about, stored_text_sha256
from gadfly.store.tables import (
    AnswerRow,
    ChosenAnswerRow,
    CritiqueRow,
    InteractionRow,
    LabelReservationRow,
    LabelSkipRow,
    QuestionRow,
    ShadowVerdictRow,
    SplitSecretRow,
)
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource, VoteAgreement

_LOCK = 0x6761_6471_7565  # "gadque"
_WINDOWS = (2_000, 20_000)  # newest interactions that are looked at
_SPARE = 20  # candidates read for each one wanted: several people ask at once
_SKIPPED_FOR = timedelta(days=7)
HELDOUT_LABELS = 0.25  # of the labels, where answers of both kinds wait: half of every second one
_SURE = 0.8  # a critic's confidence from which on a single vote against it is worth a second opinion


_WORTH = {
    QueueReason.CONFLICT: 4,
    QueueReason.DISAGREEMENT: 3,
    QueueReason.CONTRADICTED: 2,
    QueueReason.UNCERTAIN: 1,
    QueueReason.NEW: 0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingAnswer:
    """An answer that waits for a label."""

    interaction_id: UUID  # the newest about it in the window
    answer: AnswerKey
    reason: QueueReason
    other_verdict: Verdict | None  # of another critic that disagrees
    other_critic: int | None
    is_by_worth: bool  # chosen for what critics said about it


async def waiting_answers(
    session: AsyncSession,
    *,
    scope: Scope,
    voter: UUID | None,
    labeller: str,
    limit: int,
    heldout_share: float,
    reasons: Collection[QueueReason] = (),
) -> tuple[list[WaitingAnswer], int]:
    """Answers that a labeller may be given, in order, and how many wait in all that was looked at.

    Left out are those that others have reserved, that the labeller has skipped, and that the key `voter` has voted on.
    `heldout_share` is that of new questions. With `reasons`, only answers outside of the sample, and conflicts.
    """
    answers: list[WaitingAnswer] = []
    waiting_in_all = 0
    for window in _WINDOWS:
        found = await session.execute(
            _candidates(
                scope=scope,
                voter=voter,
                labeller=labeller,
                window=window,
                heldout_share=heldout_share,
                reasons=reasons,
            ).limit(limit * _SPARE)
        )
        rows = found.all()
        waiting_in_all = rows[0].waiting if rows else 0
        answers = [
            WaitingAnswer(
                interaction_id=row.id,
                answer=(row.question_hash, row.text),
                reason=QueueReason(row.reason),
                other_verdict=None if row.other is None else Verdict(row.other.split(" ")[1]),
                other_critic=None if row.other is None else int(row.other.split(" ")[0]),
                is_by_worth=not row.is_in_sample and row.reason != QueueReason.CONFLICT,
            )
            for row in rows
        ]
        if len(answers) >= limit:
            break
    return answers, waiting_in_all


def _candidates(
    *,
    scope: Scope,
    voter: UUID | None,
    labeller: str,
    window: int,
    heldout_share: float,
    reasons: Collection[QueueReason],
) -> Select[Any]:
    seen = _seen(scope, window)
    judgement = _Judgement.of(seen)
    reason = _reason(judgement)
    found = (
        select(
            seen.c.id,
            seen.c.question_hash,
            seen.c.text,
            seen.c.created_at,
            reason.label("reason"),
            case((reason == QueueReason.DISAGREEMENT.value, judgement.other), else_=None).label("other"),
            judgement.p_right.label("p_right"),
            _is_in_sample(seen.c.question_hash, heldout_share).label("is_in_sample"),
            _draw(seen.c.question_hash.op("||")(seen.c.text)).label("draw"),
        )
        .select_from(seen)
        .join(SplitSecretRow, literal(True))
        .outerjoin(QuestionRow, QuestionRow.hash == seen.c.question_hash)
        .outerjoin(
            AnswerRow, and_(AnswerRow.question_hash == seen.c.question_hash, AnswerRow.text_sha256 == seen.c.text)
        )
        .outerjoin(judgement.first, literal(True))
        .outerjoin(judgement.disagreeing, literal(True))
        .where(AnswerRow.ruling.is_(None), *_may_be_given(seen, voter=voter, labeller=labeller))
        .subquery()
    )
    return _in_turn(_each_once(found, reasons))


def _seen(scope: Scope, window: int) -> Subquery:
    """The newest interactions in a scope, and those whose labels are in conflict, however old they are."""
    in_scope = () if scope is None else (InteractionRow.key_id == scope,)
    columns = (
        InteractionRow.id,
        InteractionRow.question_hash,
        stored_text_sha256().label("text"),
        InteractionRow.created_at,
    )
    newest = (
        select(*columns)
        .where(InteractionRow.response.is_not(None), *in_scope)
        .order_by(InteractionRow.created_at.desc(), InteractionRow.id.desc())
        .limit(window)
        .subquery()
    )
    conflicting = (
        select(*columns)
        .join(AnswerRow, is_about(AnswerRow, InteractionRow))
        .where(AnswerRow.standing == VoteAgreement.CONFLICT, AnswerRow.is_right.is_(None), *in_scope)
        .limit(window)
    )
    return select(newest).union(conflicting).subquery()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judgement:
    """What critics said about an interaction: its first critique, and the newest critic that disagrees with it."""

    first: LateralFromClause
    p_right: ColumnElement[float | None]
    disagreeing: LateralFromClause
    other: ColumnElement[str | None]  # version and verdict of the critic that disagrees

    @classmethod
    def of(cls, seen: Subquery) -> "_Judgement":
        first = (
            select(CritiqueRow)
            .where(
                CritiqueRow.interaction_id == seen.c.id,
                CritiqueRow.round == 0,
                CritiqueRow.sample == 0,
                CritiqueRow.supplied.is_(False),
            )
            .limit(1)
            .lateral("judged")
        )
        total = first.c.p_correct + first.c.p_incorrect
        disagreeing = (
            select(func.concat(ShadowVerdictRow.critic_version, " ", ShadowVerdictRow.stated).label("said"))
            .where(
                ShadowVerdictRow.interaction_id == seen.c.id,
                ShadowVerdictRow.stated != first.c.stated,
                ShadowVerdictRow.stated != Verdict.UNPARSED,
                first.c.stated != Verdict.UNPARSED.value,
            )
            .order_by(ShadowVerdictRow.critic_version.desc())
            .limit(1)
            .lateral("disagreeing")
        )
        return cls(
            first=first,
            p_right=func.coalesce(first.c.calibrated_p_right, case((total > 0, first.c.p_correct / total), else_=None)),
            disagreeing=disagreeing,
            other=disagreeing.c.said,
        )


def _reason(judgement: _Judgement) -> ColumnElement[str | None]:
    """The reason why an answer's label would teach something; NULL where it would not."""
    verdict, p_right = judgement.first.c.verdict, judgement.p_right
    is_open = AnswerRow.is_right.is_(None)
    is_against = or_(
        and_(AnswerRow.is_right.is_(True), verdict == Verdict.INCORRECT.value, p_right <= 1 - _SURE),
        and_(AnswerRow.is_right.is_(False), verdict == Verdict.CORRECT.value, p_right >= _SURE),
    )
    is_contradicted = and_(
        AnswerRow.source == LabelSource.PERSON, func.jsonb_array_length(AnswerRow.votes) == 1, is_against
    )
    return case(
        (and_(is_open, AnswerRow.standing == VoteAgreement.CONFLICT), QueueReason.CONFLICT.value),
        (and_(is_open, judgement.other.is_not(None)), QueueReason.DISAGREEMENT.value),
        (is_contradicted, QueueReason.CONTRADICTED.value),
        (and_(is_open, p_right.is_not(None)), QueueReason.UNCERTAIN.value),
        (is_open, QueueReason.NEW.value),
        else_=None,
    )


def _may_be_given(seen: Subquery, *, voter: UUID | None, labeller: str) -> tuple[ColumnElement[bool], ...]:
    """The voter has not voted on it, others have not reserved it, and the labeller has not skipped it lately."""
    has_voted = AnswerRow.votes.bool_op("@>")(
        func.jsonb_build_array(func.jsonb_build_object("key", None if voter is None else str(voter)))
    )
    key = tuple_(seen.c.question_hash, seen.c.text)
    reserved = exists().where(
        tuple_(LabelReservationRow.question_hash, LabelReservationRow.text_sha256) == key,
        LabelReservationRow.labeller != labeller,
        LabelReservationRow.expires_at > func.now(),
    )
    skipped = exists().where(
        tuple_(LabelSkipRow.question_hash, LabelSkipRow.text_sha256) == key,
        LabelSkipRow.labeller == labeller,
        LabelSkipRow.skipped_at > func.now() - _SKIPPED_FOR,
    )
    return func.coalesce(has_voted, False).is_(False), ~reserved, ~skipped


def _each_once(found: Subquery, reasons: Collection[QueueReason]) -> Subquery:
    """Of the interactions about one answer the one that is worth most, without those that are not wanted."""
    wanted = [each.value for each in (reasons or QueueReason)]
    worth = case(*((found.c.reason == each.value, worth) for each, worth in _WORTH.items()), else_=None)
    closeness = 1 - 2 * func.abs(func.coalesce(found.c.p_right, 0.5) - 0.5)
    by_worth = (worth.desc(), closeness.desc(), found.c.created_at.desc(), found.c.id.desc())
    is_conflict = found.c.reason == QueueReason.CONFLICT.value
    # A second opinion on labels of the sample would be asked for only where a critic is against the first.
    is_wanted = and_(
        found.c.reason.in_(wanted),
        or_(~found.c.is_in_sample, found.c.reason != QueueReason.CONTRADICTED.value),
    )
    return (
        select(found, worth.label("worth"), closeness.label("closeness"))
        .where(and_(is_wanted, or_(~found.c.is_in_sample, is_conflict)) if reasons else is_wanted)
        .ext(distinct_on(found.c.question_hash, found.c.text))
        .order_by(found.c.question_hash, found.c.text, *by_worth)
        .subquery()
    )


def _in_turn(each: Subquery) -> Select[Any]:
    """Conflicts first; then one that is worth most and one of the sample, which is in random order, by turns."""
    is_conflict = each.c.reason == QueueReason.CONFLICT.value
    draw = case((and_(each.c.is_in_sample, ~is_conflict), each.c.draw), else_=None)
    order = (draw, each.c.worth.desc(), each.c.closeness.desc(), each.c.created_at.desc(), each.c.id.desc())
    place = func.row_number().over(partition_by=(is_conflict, each.c.is_in_sample), order_by=order)
    return select(
        each.c.id, each.c.question_hash, each.c.text, each.c.reason, each.c.other, each.c.is_in_sample,
        func.count().over().label("waiting"),
    ).order_by(is_conflict.desc(), place, each.c.is_in_sample)  # fmt: skip


def _is_in_sample(question: ColumnElement[bytes], heldout_share: float) -> ColumnElement[bool]:
    """Whether an answer is in the random sample: a held-out one, or one of about as many others.

    The deployment's secret decides, as for the split, so that a caller can tell neither.
    """
    others = min(1.0, heldout_share / (1 - heldout_share))
    return or_(
        func.coalesce(QuestionRow.split == Split.HELDOUT, False),
        func.get_byte(_draw(question), 0) < round(256 * others),
    )


def _draw(value: ColumnElement[bytes]) -> ColumnElement[bytes]:
    drawn: ColumnElement[bytes] = func.sha256(SplitSecretRow.secret.op("||")(value), type_=LargeBinary)
    return drawn


async def lock(session: AsyncSession) -> None:
    """Let this transaction alone change reservations until it ends: several rows in any order would deadlock."""
    await session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


async def reserve(
    session: AsyncSession, answers: Collection[AnswerKey], *, labeller: str, for_s: int
) -> set[AnswerKey]:
    """Reserve answers for a labeller; those that were free, or the labeller's own already."""
    if not answers:
        return set()
    until = now() + timedelta(seconds=for_s)
    statement = insert(LabelReservationRow).values(
        [
            {"question_hash": question, "text_sha256": text, "labeller": labeller, "expires_at": until}
            for question, text in answers
        ]
    )
    rows = await session.execute(
        statement.on_conflict_do_update(
            index_elements=[LabelReservationRow.question_hash, LabelReservationRow.text_sha256],
            set_={"labeller": statement.excluded.labeller, "expires_at": statement.excluded.expires_at},
            where=(LabelReservationRow.labeller == labeller) | (LabelReservationRow.expires_at <= func.now()),
        ).returning(LabelReservationRow.question_hash, LabelReservationRow.text_sha256)
    )
    return {(question, text) for question, text in rows}


async def note_chosen(session: AsyncSession, answers: Collection[AnswerKey]) -> None:
    """Note that these answers are labelled for what critics said about them, so that the labels measure no critic."""
    if answers:
        rows = [{"question_hash": question, "text_sha256": text, "chosen_at": func.now()} for question, text in answers]
        await session.execute(insert(ChosenAnswerRow).values(rows).on_conflict_do_nothing())


async def reserved_by(session: AsyncSession, labeller: str) -> set[AnswerKey]:
    """The answers that a labeller has reserved. Expired reservations of everybody are removed."""
    await session.execute(delete(LabelReservationRow).where(LabelReservationRow.expires_at <= func.now()))
    rows = await session.execute(
        select(LabelReservationRow.question_hash, LabelReservationRow.text_sha256).where(
            LabelReservationRow.labeller == labeller
        )
    )
    return {(question, text) for question, text in rows}


async def release(session: AsyncSession, labeller: str, answers: Collection[AnswerKey] | None = None) -> None:
    """Let others have what a labeller has reserved: these answers, or all."""
    statement = delete(LabelReservationRow).where(LabelReservationRow.labeller == labeller)
    if answers is not None:
        statement = statement.where(
            tuple_(LabelReservationRow.question_hash, LabelReservationRow.text_sha256).in_(list(answers))
        )
    await session.execute(statement.execution_options(synchronize_session=False))


async def skip(session: AsyncSession, answer: AnswerKey, *, labeller: str) -> None:
    """Not give an answer to a labeller for a week, and let others have it now."""
    statement = insert(LabelSkipRow).values(
        labeller=labeller, question_hash=answer[0], text_sha256=answer[1], skipped_at=now()
    )
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[LabelSkipRow.labeller, LabelSkipRow.question_hash, LabelSkipRow.text_sha256],
            set_={"skipped_at": statement.excluded.skipped_at},
        )
    )
    await session.execute(delete(LabelSkipRow).where(LabelSkipRow.skipped_at < now() - _SKIPPED_FOR))
    await release(session, labeller, [answer])


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledQuestions:
    """Questions with an answer that has a label, by side and class. Ratings do not count."""

    right: dict[Split, int]
    wrong: dict[Split, int]


async def labelled_questions(session: AsyncSession, task: str | None = None) -> LabelledQuestions:
    """Counts over all labels of a task; without one, of all tasks together."""
    rows = await session.execute(
        select(QuestionRow.split, AnswerRow.is_right, func.count(AnswerRow.question_hash.distinct()))
        .join(QuestionRow, QuestionRow.hash == AnswerRow.question_hash)
        .where(AnswerRow.is_right.is_not(None), AnswerRow.source != LabelSource.RATING)
        .where(*(() if task is None else (QuestionRow.task == task,)))
        .group_by(QuestionRow.split, AnswerRow.is_right)
    )
    counts = {(split, is_right): count for split, is_right, count in rows}
    right, wrong = ({split: counts.get((split, kind), 0) for split in Split} for kind in (True, False))
    return LabelledQuestions(right=right, wrong=wrong)


async def labelled_today(session: AsyncSession, *, voter: UUID | None) -> tuple[int, int]:
    """Labels that changed in the last 24 hours: all, and those with a vote of this key."""
    votes = func.jsonb_build_array(func.jsonb_build_object("key", None if voter is None else str(voter)))
    row = (
        await session.execute(
            select(func.count(), func.count().filter(AnswerRow.votes.bool_op("@>")(votes))).where(
                AnswerRow.changed_at > func.now() - timedelta(hours=24), AnswerRow.is_right.is_not(None)
            )
        )
    ).one()
    return row[0], row[1]
