"""Interactions with their critiques, refinements, conversations and feedback: stored, read, listed, deleted."""

import base64
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import Insert, distinct_on, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer, joinedload, selectinload

from gadfly.errors import BadInput, Conflict, NotFound
from gadfly.grading import Grade
from gadfly.records import (
    Critique,
    Feedback,
    FeedbackSource,
    Interaction,
    Kind,
    LabelState,
    Record,
    Refinement,
    Split,
)
from gadfly.settings import SplitBlocks
from gadfly.storable import storable_json
from gadfly.store.claims import end_claims
from gadfly.store.forgetting import forget, forgotten
from gadfly.store.labels import (
    Label,
    count_votes,
    is_about,
    is_among,
    newest_first,
    relabel,
    stored_text_sha256,
    text_sha256,
)
from gadfly.store.mapping import record_of, values_of
from gadfly.store.split import question_hash
from gadfly.store.tables import (
    P_CORRECT,
    SEARCHED_TEXT,
    AnswerRow,
    CritiqueDueRow,
    CritiqueRow,
    EpisodeRow,
    FeedbackRow,
    InteractionRow,
    QuestionRow,
    RefinementRow,
    Table,
)
from gadfly.store.wall import place_questions
from gadfly.store.words import known_reference
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource, VoteAgreement

Scope = UUID | None
"""The rows that a call may see: those of the key with this id, or all (None)."""


NO_SIDES: Mapping[bytes, Split] = {}


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of storing a record.

    `record` is the stored record: for feedback that repeats the same key's last feedback, that earlier feedback.
    """

    record: Record
    is_repeat: bool


async def insert_records(
    session: AsyncSession,
    records: Sequence[Record],
    *,
    heldout_share: float,
    split_blocks: SplitBlocks = SplitBlocks.NEAR,
) -> list[Stored]:
    """Store records, in order; a record that is stored already stays unchanged. Takes a few round trips for any number.

    An interaction that was forgotten is not stored again.

    Raises:
        Conflict: the request id of an interaction belongs to another, or its episode to another question; or the id of
            feedback belongs to other feedback.
        NotFound: feedback about an interaction that is not stored.
    """
    interactions = [record for record in records if isinstance(record, Interaction)]
    feedback = [record for record in records if isinstance(record, Feedback)]
    await _insert_interactions(session, interactions, heldout_share=heldout_share, split_blocks=split_blocks)
    stored = iter(await _insert_feedback(session, feedback))
    await _count_votes(session, interactions, feedback)
    return [next(stored) if isinstance(record, Feedback) else Stored(record, False) for record in records]


async def insert_interactions(
    session: AsyncSession,
    interactions: Sequence[Interaction],
    feedback: Sequence[Feedback] = (),
    *,
    heldout_share: float,
    split_blocks: SplitBlocks = SplitBlocks.NEAR,
    sides: Mapping[bytes, Split] = NO_SIDES,
) -> int:
    """Store interactions with their critiques and refinements, and feedback; return how many interactions were new.

    The share and the blocks are those of `gadfly.store.wall.place_questions`, for questions that are new.

    `sides` puts new questions, named by their hash, on a side that their hash does not choose.

    Raises:
        Conflict: as `insert_records`.
        NotFound: as `insert_records`.
    """
    added = await _insert_interactions(
        session, interactions, heldout_share=heldout_share, split_blocks=split_blocks, sides=sides
    )
    await _insert_feedback(session, feedback)
    await _count_votes(session, interactions, feedback)
    return added


async def _count_votes(
    session: AsyncSession, interactions: Sequence[Interaction], feedback: Sequence[Feedback]
) -> None:
    graded = {item.id for item in interactions if item.grade is not None}
    said = {
        item.interaction_id
        for item in feedback
        if any(each is not None for each in (item.correct, item.reference, item.edited_reference, item.rating))
    }
    await count_votes(session, graded | said)


async def _insert_interactions(
    session: AsyncSession,
    interactions: Sequence[Interaction],
    *,
    heldout_share: float,
    split_blocks: SplitBlocks,
    sides: Mapping[bytes, Split] = NO_SIDES,
) -> int:
    if gone := await forgotten(session, interactions):
        interactions = [interaction for interaction in interactions if interaction.id not in gone]
    if not interactions:
        return 0
    hashes = {interaction.id: question_hash(interaction.question) for interaction in interactions}
    questions = {hashes[interaction.id]: interaction.question for interaction in interactions}
    await place_questions(session, questions, heldout_share=heldout_share, blocks=split_blocks, sides=sides)
    # Every writer inserts in the same order, so that two writers of the same rows cannot deadlock.
    episodes = {interaction.episode_id: interaction for interaction in reversed(interactions)}
    await _insert_episodes(session, [episodes[id] for id in sorted(episodes)], hashes)
    ordered = sorted(interactions, key=lambda interaction: (interaction.request_id or "", interaction.id))
    try:
        added = await _insert_missing(
            session,
            InteractionRow,
            [_values_of(item, hashes[item.id]) for item in ordered],
        )
    except IntegrityError as error:
        raise _explained(error) from error
    await _insert_missing(
        session,
        CritiqueRow,
        [
            values_of(CritiqueRow, critique, interaction_id=interaction.id, position=position)
            for interaction in interactions
            for position, critique in enumerate(interaction.critiques)
        ],
    )
    await _insert_missing(
        session,
        RefinementRow,
        [
            values_of(RefinementRow, refinement, interaction_id=interaction.id, position=position)
            for interaction in interactions
            for position, refinement in enumerate(interaction.refinements)
        ],
    )
    await _insert_missing(
        session,
        CritiqueDueRow,
        [
            {"interaction_id": interaction.id, "created_at": interaction.created_at}
            for interaction in interactions
            if interaction.critique_due
        ],
    )
    await end_claims(session, interactions)
    return added


def _values_of(interaction: Interaction, hash_: bytes) -> dict[str, Any]:
    return values_of(
        InteractionRow,
        interaction,
        question_hash=hash_,
        text_sha256=None if interaction.response is None else text_sha256(interaction.response),
        own_grade=interaction.grade,
    )


async def _insert_missing(session: AsyncSession, table: type[Table], rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows whose key is not stored yet, and return how many were inserted."""
    if not rows:
        return 0
    return await _insert(session, _missing_insertion(table, tuple(rows[0])), rows)


async def _insert(session: AsyncSession, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> int:
    connection = await session.connection()
    arrays = {name: [row[name] for row in rows] for name in rows[0]}
    result = await connection.execute(statement, arrays, execution_options={"preserve_rowcount": True})
    return result.rowcount


def _insertion(table: type[Table], columns: tuple[str, ...]) -> Insert:
    """Takes an array for each column: one statement for any number of rows, which Postgres prepares once."""
    stored = table.__table__.c
    arrays = (bindparam(name, type_=ARRAY(stored[name].type, dimensions=1)) for name in columns)
    new = func.unnest(*arrays).table_valued(*columns).render_derived()
    return insert(table).from_select([stored[name] for name in columns], select(*new.c))


@cache  # building a statement takes longer than running it
def _missing_insertion(table: type[Table], columns: tuple[str, ...]) -> Insert:
    return _insertion(table, columns).on_conflict_do_nothing(index_elements=table.__mapper__.primary_key)


@cache
def _episode_insertion(columns: tuple[str, ...]) -> Insert:
    statement = _insertion(EpisodeRow, columns)
    # An imported episode has no critic until its first critique.
    return statement.on_conflict_do_update(
        index_elements=[EpisodeRow.id],
        set_={"critic_version": statement.excluded.critic_version},
        where=EpisodeRow.critic_version.is_(None) & statement.excluded.critic_version.is_not(None),
    )


async def _insert_episodes(session: AsyncSession, firsts: Sequence[Interaction], hashes: dict[UUID, bytes]) -> None:
    rows = [
        {
            "id": first.episode_id,
            "question_hash": hashes[first.id],
            "critic_version": first.critic_version,
            "created_at": first.created_at,
        }
        for first in firsts
    ]
    await _insert(session, _episode_insertion(tuple(rows[0])), rows)


async def _insert_feedback(session: AsyncSession, feedback: Sequence[Feedback]) -> list[Stored]:
    if not feedback:
        return []
    ids = sorted({item.interaction_id for item in feedback})
    # The lock serialises equal feedback that arrives concurrently, so that the second sees the first.
    stored_ids = await session.scalars(
        select(InteractionRow.id)
        .where(InteractionRow.id.in_(ids))
        .order_by(InteractionRow.id)
        .with_for_update(key_share=True)
    )
    if missing := set(ids).difference(stored_ids):
        raise NotFound(f"there is no interaction {min(missing)}")
    rows = await session.scalars(
        select(FeedbackRow)
        .ext(distinct_on(FeedbackRow.interaction_id, FeedbackRow.key_id))
        .where(FeedbackRow.interaction_id.in_(ids))
        .order_by(FeedbackRow.interaction_id, FeedbackRow.key_id, *newest_first(FeedbackRow))
    )
    newest = {(row.interaction_id, row.key_id): record_of(Feedback, row) for row in rows}
    sent_ids = [item.id for item in feedback]
    rows = await session.scalars(select(FeedbackRow).where(FeedbackRow.id.in_(sent_ids)))
    known = {row.id: record_of(Feedback, row) for row in rows}
    stored: list[Stored] = []
    for item in feedback:
        last = newest.get((item.interaction_id, item.key_id))
        if earlier := known.get(item.id):
            if item.source is FeedbackSource.CALLER:
                _must_be_a_repeat(item, earlier)
            stored.append(Stored(earlier, True))
        elif last is not None and _content(last) == _content(item):
            stored.append(Stored(last, True))
        else:
            newest[item.interaction_id, item.key_id] = known[item.id] = item
            stored.append(Stored(item, False))
    added = [item.record for item in stored if not item.is_repeat]
    await _insert_missing(session, FeedbackRow, [values_of(FeedbackRow, record) for record in added])
    await take_newest_grades(session, ids)
    return stored


async def take_newest_grades(session: AsyncSession, interaction_ids: Sequence[UUID]) -> None:
    """Give interactions and their refinements the grades of their newest feedback with a readable reference, if any."""
    newest = (
        select(FeedbackRow.interaction_id, FeedbackRow.grade, FeedbackRow.grader, FeedbackRow.refinement_grades)
        .ext(distinct_on(FeedbackRow.interaction_id))
        .where(
            FeedbackRow.interaction_id.in_(interaction_ids),
            known_reference().is_not(None),
            FeedbackRow.grade_problem.is_(None),
        )
        .order_by(FeedbackRow.interaction_id, *newest_first(FeedbackRow))
        .subquery()
    )
    await session.execute(
        update(InteractionRow)
        .where(InteractionRow.id == newest.c.interaction_id)
        .values(grade=newest.c.grade, grader=newest.c.grader, grade_problem=None)
        .execution_options(synchronize_session=False)
    )
    await session.execute(
        update(RefinementRow)
        .where(RefinementRow.interaction_id == newest.c.interaction_id)
        .values(grade=newest.c.refinement_grades.op("->>")(sql_cast(RefinementRow.id, Text)))
        .execution_options(synchronize_session=False)
    )


_THAW = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdrawn:
    """The answer after feedback about it was withdrawn."""

    interaction_id: UUID
    is_right: bool | None  # its label now
    standing: VoteAgreement
    is_frozen: bool


async def feedback_target(session: AsyncSession, id: UUID, *, scope: Scope) -> UUID:
    """The interaction that feedback is about.

    Raises:
        NotFound: there is none with this id, or it is another key's.
    """
    statement = select(FeedbackRow.interaction_id).where(FeedbackRow.id == id)
    if scope is not None:
        statement = statement.where(FeedbackRow.key_id == scope)
    found = await session.scalar(statement)
    if found is None:
        raise NotFound(f"there is no feedback {id}")
    return found


async def withdraw_feedback(
    session: AsyncSession, id: UUID, *, scope: Scope, own_grades: Mapping[UUID, Grade]
) -> tuple[Withdrawn, Feedback]:
    """Remove feedback that was given by mistake, and count the votes without it; also returns what was removed.

    A held-out answer whose label this feedback froze gets its label again from the remaining votes, if the feedback is
    at most 15 minutes old: later, gates may have used it. `own_grades` are the grades of the interaction's refinements
    against its own reference, which count again where no other feedback has one.

    Raises:
        NotFound: there is no such feedback, or it is another key's.
    """
    interaction_id = await feedback_target(session, id, scope=scope)
    await session.execute(select(InteractionRow.id).where(InteractionRow.id == interaction_id).with_for_update())
    row = await session.get(FeedbackRow, id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no feedback {id}")
    removed = record_of(Feedback, row)
    stored_at = row.stored_at
    await session.delete(row)
    await session.flush()
    if removed.reference is not None or removed.edited_reference is not None:
        await _take_own_grades(session, interaction_id, own_grades)
        await take_newest_grades(session, [interaction_id])
    answer = (
        await session.execute(
            select(InteractionRow.question_hash, stored_text_sha256(), InteractionRow.response.is_(None)).where(
                InteractionRow.id == interaction_id
            )
        )
    ).one()
    if answer[2]:  # an imported question
        return Withdrawn(
            interaction_id=interaction_id, is_right=None, standing=VoteAgreement.NONE, is_frozen=False
        ), removed
    key = (answer[0], answer[1])
    if stored_at is not None:
        await session.execute(
            update(AnswerRow)
            .where(
                is_among([key]),
                AnswerRow.frozen_at >= stored_at,
                func.clock_timestamp() <= stored_at + _THAW,
            )
            .values(frozen_at=None)
            .execution_options(synchronize_session=False)
        )
    await relabel(session, [key])
    label = (
        await session.execute(
            select(AnswerRow.is_right, AnswerRow.standing, AnswerRow.frozen_at.is_not(None)).where(is_among([key]))
        )
    ).one()
    found = Withdrawn(interaction_id=interaction_id, is_right=label[0], standing=label[1], is_frozen=label[2])
    return found, removed


async def _take_own_grades(session: AsyncSession, interaction_id: UUID, grades: Mapping[UUID, Grade]) -> None:
    """Give an interaction and its refinements the grades against its own reference, or none without one."""
    await session.execute(
        update(InteractionRow)
        .where(InteractionRow.id == interaction_id)
        .values(grade=InteractionRow.own_grade)
        .execution_options(synchronize_session=False)
    )
    refinements = await session.scalars(select(RefinementRow).where(RefinementRow.interaction_id == interaction_id))
    for refinement in refinements:
        refinement.grade = grades.get(refinement.id)
    await session.flush()


_CONFLICTS = {
    "uq_interactions_request_id_key_id": "the request id belongs to another interaction",
    "fk_interactions_episode_id_question_hash": "the episode is about another question",
}


def _explained(error: IntegrityError) -> Exception:
    message = _CONFLICTS.get(error.orig.diag.constraint_name)  # type: ignore[union-attr]
    return error if message is None else Conflict(message)


def _must_be_a_repeat(feedback: Feedback, earlier: Feedback) -> None:
    """Raises:
    Conflict: the two have one id and differ.
    """
    about = (earlier.interaction_id, earlier.key_id, *_content(earlier))
    if about != (feedback.interaction_id, feedback.key_id, *_content(feedback)):
        raise Conflict("this feedback_id belongs to other feedback: make a new id for each statement")


def _content(feedback: Feedback) -> tuple[Any, ...]:
    free_form = (feedback.reference, feedback.edited_response, feedback.comment, feedback.metadata)
    about = (feedback.critique_id, feedback.refinement_id)
    words = (feedback.correct, feedback.helpful, feedback.rating)
    return (feedback.source, *about, *words, *map(storable_json, free_form))


async def delete_interaction(session: AsyncSession, id: UUID, *, scope: Scope) -> None:
    """Delete an interaction: its texts, critiques, refinements and feedback; see `gadfly.store.forgetting.forget`.

    Raises:
        NotFound: there is none, or it belongs to another key.
    """
    if not await session.scalar(select(exists().where(InteractionRow.id == id, *_in_scope(scope)))):
        raise NotFound(f"there is no interaction {id}")
    await forget(session, [id])


def _in_scope(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    return () if scope is None else (InteractionRow.key_id == scope,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Conditions on interactions; None leaves a field unrestricted."""

    kind: Kind | None = None
    verdict: Verdict | None = None
    grade: Grade | None = None
    split: Split | None = None
    episode_id: UUID | None = None
    critic_version: int | None = None
    created_from: datetime | None = None  # inclusive
    created_before: datetime | None = None  # exclusive
    has_feedback: bool | None = None
    label: LabelState | None = None
    task: str | None = None
    key_id: UUID | None = None
    confidence_from: float | None = None  # of the first critique's verdict, inclusive
    confidence_to: float | None = None  # inclusive
    words: str | None = None  # in question or response, as a web search takes them

    def conditions(self) -> tuple[ColumnElement[bool], ...]:
        conditions: list[ColumnElement[bool]] = [
            getattr(InteractionRow, name) == value
            for name in ("kind", "verdict", "grade", "episode_id", "critic_version", "task", "key_id")
            if (value := getattr(self, name)) is not None
        ]
        if self.split is not None:
            conditions.append(QuestionRow.split == self.split)
        if self.created_from is not None:
            conditions.append(InteractionRow.created_at >= self.created_from)
        if self.created_before is not None:
            conditions.append(InteractionRow.created_at < self.created_before)
        if self.has_feedback is not None:
            feedback = exists().where(FeedbackRow.interaction_id == InteractionRow.id)
            conditions.append(feedback if self.has_feedback else ~feedback)
        if self.label is not None:
            conditions.append(_has_label(self.label))
        if self.confidence_from is not None or self.confidence_to is not None:
            low, high = self.confidence_from, self.confidence_to
            conditions.append(_has_confidence(0.0 if low is None else low, 1.0 if high is None else high))
        if self.words is not None:
            searched: ColumnElement[Any] = literal_column(SEARCHED_TEXT)
            conditions.append(searched.bool_op("@@")(func.websearch_to_tsquery("simple", self.words)))
        return tuple(conditions)


def _has_label(label: LabelState) -> ColumnElement[bool]:
    labelled = exists().where(is_about(AnswerRow, InteractionRow))
    match label:
        case LabelState.RIGHT:
            return labelled.where(AnswerRow.is_right.is_(True))
        case LabelState.WRONG:
            return labelled.where(AnswerRow.is_right.is_(False))
        case LabelState.CONFLICT:
            return labelled.where(AnswerRow.is_right.is_(None), AnswerRow.standing == VoteAgreement.CONFLICT)
        case LabelState.NONE:
            return ~labelled.where(AnswerRow.is_right.is_not(None))


def _has_confidence(low: float, high: float) -> ColumnElement[bool]:
    p_correct: ColumnElement[float] = literal_column(P_CORRECT)
    says_correct, says_incorrect = (CritiqueRow.verdict == each for each in (Verdict.CORRECT, Verdict.INCORRECT))
    return exists().where(
        CritiqueRow.interaction_id == InteractionRow.id,
        CritiqueRow.round == literal_column("0"),  # as in the index
        CritiqueRow.sample == literal_column("0"),
        ~CritiqueRow.supplied,
        or_(
            and_(says_correct, p_correct.between(low, high)),
            and_(says_incorrect, p_correct.between(1 - high, 1 - low)),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class InteractionFacts:
    """What is known about an interaction besides its own record."""

    confidence: float | None = None  # of the verdict of the first critique
    label: bool | None = None
    label_source: LabelSource | None = None
    standing: VoteAgreement = VoteAgreement.NONE


async def facts_of(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, InteractionFacts]:
    """The label and the critic's confidence of interactions, by their ids."""
    p_correct: ColumnElement[float | None] = literal_column(P_CORRECT)
    first = (
        select(
            case(
                (CritiqueRow.verdict == Verdict.CORRECT, p_correct),
                (CritiqueRow.verdict == Verdict.INCORRECT, 1 - p_correct),
            ).label("confidence")
        )
        .select_from(CritiqueRow)
        .where(
            CritiqueRow.interaction_id == InteractionRow.id,
            CritiqueRow.round == 0,
            CritiqueRow.sample == 0,
            ~CritiqueRow.supplied,
        )
        .limit(1)
        .lateral("first")
    )
    rows = await session.execute(
        select(InteractionRow.id, first.c.confidence, AnswerRow.is_right, AnswerRow.source, AnswerRow.standing)
        .outerjoin(AnswerRow, is_about(AnswerRow, InteractionRow))
        .outerjoin(first, true())
        .where(InteractionRow.id.in_(ids))
    )
    return {
        row.id: InteractionFacts(
            confidence=row.confidence,
            label=row.is_right,
            label_source=row.source,
            standing=row.standing or VoteAgreement.NONE,
        )
        for row in rows
    }


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list, newest first; `next_cursor` is None on the last page."""

    interactions: list[Interaction]
    next_cursor: str | None
    facts: Mapping[UUID, InteractionFacts]


async def read_interaction(session: AsyncSession, id: UUID, *, scope: Scope) -> Interaction:
    """One interaction with its critiques and refinements.

    Raises:
        NotFound: there is none, or it belongs to another key.
    """
    row = await session.scalar(_whole().where(InteractionRow.id == id, *_in_scope(scope)))
    if row is None:
        raise NotFound(f"there is no interaction {id}")
    return _to_interaction(row)


async def find_by_request_id(session: AsyncSession, request_id: str, *, key_id: UUID | None) -> Interaction | None:
    """The interaction that this key requested with this request id."""
    row = await session.scalar(
        _whole().where(InteractionRow.request_id == request_id, InteractionRow.key_id.is_not_distinct_from(key_id))
    )
    return None if row is None else _to_interaction(row)


async def list_interactions(
    session: AsyncSession, *, scope: Scope, filters: Filters, limit: int, cursor: str | None = None
) -> Page:
    """Interactions without their critiques, refinements and conversations, newest first.

    Raises:
        BadInput: no page returns such a cursor.
    """
    listed = select(InteractionRow).options(defer(InteractionRow.conversation))
    statement = _selected(listed, filters).where(*_in_scope(scope))
    if cursor is not None:
        statement = statement.where(tuple_(InteractionRow.created_at, InteractionRow.id) < _read_cursor(cursor))
    statement = statement.order_by(InteractionRow.created_at.desc(), InteractionRow.id.desc()).limit(limit + 1)
    rows = list(await session.scalars(statement))
    next_cursor = _write_cursor(rows[limit - 1]) if len(rows) > limit else None
    facts = await facts_of(session, [row.id for row in rows[:limit]])
    return Page([_to_interaction(row, is_whole=False) for row in rows[:limit]], next_cursor, facts)


async def stored_sides(session: AsyncSession, hashes: Iterable[bytes]) -> dict[bytes, Split]:
    """The sides of those questions, named by their hash, that are stored."""
    rows = await session.execute(select(QuestionRow.hash, QuestionRow.split).where(QuestionRow.hash.in_(list(hashes))))
    return dict(rows.all())


async def find_imported(session: AsyncSession, ids: Iterable[UUID]) -> dict[UUID, bool | None]:
    """The stored ones among these interactions, each with its newest label from an import."""
    rows = await session.execute(
        select(InteractionRow.id, FeedbackRow.correct)
        .ext(distinct_on(InteractionRow.id))
        .outerjoin(
            FeedbackRow,
            (FeedbackRow.interaction_id == InteractionRow.id)
            & (FeedbackRow.source == FeedbackSource.IMPORT)
            & FeedbackRow.correct.is_not(None),
        )
        .where(InteractionRow.id.in_(list(ids)))
        .order_by(InteractionRow.id, *newest_first(FeedbackRow))
    )
    return dict(rows.all())


async def find_critique(session: AsyncSession, id: UUID, *, scope: Scope) -> tuple[Critique, bytes] | None:
    """A critique in an interaction that the caller may see, and the hash of its question."""
    row = (
        await session.execute(
            select(CritiqueRow, InteractionRow.question_hash)
            .join(InteractionRow, InteractionRow.id == CritiqueRow.interaction_id)
            .where(CritiqueRow.id == id, *_in_scope(scope))
        )
    ).one_or_none()
    return None if row is None else (record_of(Critique, row[0]), row[1])


async def feedback_of(session: AsyncSession, interaction_id: UUID) -> list[Feedback]:
    """All feedback about an interaction, oldest first."""
    rows = await session.scalars(
        select(FeedbackRow)
        .where(FeedbackRow.interaction_id == interaction_id)
        .order_by(FeedbackRow.created_at, FeedbackRow.id)
    )
    return [record_of(Feedback, row) for row in rows]


@dataclass(frozen=True, slots=True)
class LoggedInteraction:
    """An interaction with everything that belongs to it."""

    interaction: Interaction
    feedback: tuple[Feedback, ...]
    split: Split
    label: bool | None  # whether the response is right, by the rule of `gadfly/votes.py`


async def stream_interactions(
    session: AsyncSession, filters: Filters, *, batch: int, by_question: bool = False
) -> AsyncGenerator[list[LoggedInteraction]]:
    """Interactions with everything that belongs to them, oldest first, `batch` at a time; memory holds one batch.

    `by_question` keeps those about one question together.
    """
    label = Label()
    whole = _whole().options(selectinload(InteractionRow.feedback), joinedload(InteractionRow.question_row))
    statement = label.joined(_selected(whole, filters)).add_columns(label.is_right)
    order = (InteractionRow.created_at, InteractionRow.id)
    if by_question:
        statement = statement.order_by(InteractionRow.question_hash)
    rows = await session.stream(statement.order_by(*order).execution_options(yield_per=batch))
    try:
        async for part in rows.partitions():
            yield [
                LoggedInteraction(
                    _to_interaction(row),
                    tuple(record_of(Feedback, item) for item in row.feedback),
                    row.question_row.split,
                    is_right,
                )
                for row, is_right in part
            ]
    finally:
        await rows.close()


@dataclass(frozen=True, slots=True)
class Episode:
    """The bindings of an episode: one question, and one critic from the first critique on."""

    question_hash: bytes
    critic_version: int | None


async def find_episode(session: AsyncSession, id: UUID, *, scope: Scope) -> Episode | None:
    """The episode with this id, None if there is none yet.

    Raises:
        NotFound: the caller may see none of its interactions.
    """
    row = await session.get(EpisodeRow, id)
    if row is None:
        return None
    if scope is not None and not await session.scalar(
        select(exists().where(InteractionRow.episode_id == id, *_in_scope(scope)))
    ):
        raise NotFound(f"you have no episode {id}")
    return Episode(row.question_hash, row.critic_version)


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of stored rows."""

    interactions: dict[Kind, int]
    feedback: int
    questions: dict[Split, int]
    labelled: dict[Split, int]  # interactions whose `response` has a label


async def count_rows(session: AsyncSession) -> Counts:
    """Counts over whole tables: about a second per few million rows."""
    kinds = await session.execute(select(InteractionRow.kind, func.count()).group_by(InteractionRow.kind))
    splits = await session.execute(select(QuestionRow.split, func.count()).group_by(QuestionRow.split))
    labelled = await session.execute(
        select(QuestionRow.split, func.count())
        .join(InteractionRow, InteractionRow.question_hash == QuestionRow.hash)
        .join(AnswerRow, is_about(AnswerRow, InteractionRow))
        .where(AnswerRow.is_right.is_not(None))
        .group_by(QuestionRow.split)
    )
    feedback = await session.scalar(select(func.count()).select_from(FeedbackRow))
    return Counts(
        interactions=dict.fromkeys(Kind, 0) | dict(kinds.all()),
        feedback=feedback or 0,
        questions=dict.fromkeys(Split, 0) | dict(splits.all()),
        labelled=dict.fromkeys(Split, 0) | dict(labelled.all()),
    )


def _whole() -> Select[InteractionRow]:
    return select(InteractionRow).options(
        selectinload(InteractionRow.critiques), selectinload(InteractionRow.refinements)
    )


def _selected(statement: Select[InteractionRow], filters: Filters) -> Select[InteractionRow]:
    if filters.split is not None:
        statement = statement.join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
    return statement.where(*filters.conditions())


def _write_cursor(row: InteractionRow) -> str:
    return base64.urlsafe_b64encode(f"{row.created_at.isoformat()}|{row.id}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, UUID]:
    try:
        created_at, _, id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().partition("|")
        moment = datetime.fromisoformat(created_at)
        if moment.tzinfo is None:
            raise ValueError(created_at)
        return moment, UUID(id)
    except ValueError as error:
        raise BadInput("the cursor was not returned with a page", field="cursor") from error


def _to_interaction(row: InteractionRow, *, is_whole: bool = True) -> Interaction:
    if not is_whole:
        return record_of(Interaction, row, conversation=None)
    critiques = tuple(record_of(Critique, item) for item in row.critiques)
    refinements = tuple(record_of(Refinement, item) for item in row.refinements)
    return record_of(Interaction, row, critiques=critiques, refinements=refinements)
