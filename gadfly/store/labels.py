"""Labels in the database: the rows of `answers`, kept in line with the votes, and read by everything that uses a label.

A row is one text answered to a question. `count_votes` brings rows up to date in the transaction that stores a vote, so
reading a label is one join: training, counts, the dry run, the rollback watch and the export read `Label`. The rule
itself is in `gadfly/votes.py`.

How reliable voters are changes slowly, so it is estimated apart (`refresh`, every few minutes and before each run) and
stored as one row. A refresh groups the answers by their votes: its work depends on the number of different groups, and
it writes only rows whose label changes.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CompoundSelect,
    LargeBinary,
    Select,
    and_,
    any_,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy import text as sql_text
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.grading import Grade
from gadfly.records import FeedbackSource, Ruling, Split
from gadfly.storable import storable_text
from gadfly.store import webhooks
from gadfly.store.database import Database
from gadfly.store.tables import (
    AnswerRow,
    ChosenAnswerRow,
    FeedbackRow,
    InteractionRow,
    KeyRow,
    LabelModelRow,
    QuestionRow,
    StoredVotes,
)
from gadfly.store.words import known_reference, rating_of_response, word_on_response
from gadfly.votes import (
    AnswerLabel,
    LabelModel,
    LabelSource,
    Pattern,
    Vote,
    VoteAgreement,
    Votes,
    fit,
    label,
    one_vote_each,
    opinion,
)
from gadfly.webhooks import WebhookEvent

AnswerKey = tuple[bytes, bytes]
"""The identity of an answer: the hashes of its question and of its text."""

WHITE_SPACE = " \t\n\r\f\v"
_CHUNK = 500  # answers read or written in one statement
_FIRST: AnswerKey = (b"", b"")  # before all answers
_REFRESH_LIMIT_S = 300.0
T = TypeVar("T")


def text_sha256(response: str) -> bytes:
    """The hash of an answer's text without the white space around it, as it is stored."""
    return hashlib.sha256(storable_text(response).strip(WHITE_SPACE).encode()).digest()


def stored_text_sha256() -> ColumnElement[bytes]:
    """The hash of an interaction's `response`, also where release 0.1.0 stored the row without one."""
    computed = func.sha256(func.convert_to(func.btrim(InteractionRow.response, WHITE_SPACE), "UTF8"), type_=LargeBinary)
    return func.coalesce(InteractionRow.text_sha256, computed)


def is_about(answer: type[AnswerRow], interaction: type[InteractionRow]) -> ColumnElement[bool]:
    """Whether an interaction is about an answer."""
    return and_(answer.question_hash == interaction.question_hash, answer.text_sha256 == stored_text_sha256())


def is_any_of(column: Any, values: Iterable[bytes]) -> ColumnElement[bool]:
    """Whether a column has one of many values, as one parameter."""
    found: ColumnElement[bool] = column == any_(literal(list(values), ARRAY(LargeBinary)))
    return found


_was_chosen = exists().where(
    ChosenAnswerRow.question_hash == AnswerRow.question_hash,
    ChosenAnswerRow.text_sha256 == AnswerRow.text_sha256,
    ChosenAnswerRow.chosen_at <= AnswerRow.changed_at,
)


class Label:
    """The label of an interaction as columns of a statement that selects from `InteractionRow`.

    `joined` adds the table that the columns read. All columns are NULL where there is no label.
    """

    is_right: ColumnElement[bool | None] = AnswerRow.is_right.expression
    exists: ColumnElement[bool] = AnswerRow.is_right.is_not(None)
    is_firm: ColumnElement[bool] = and_(exists, AnswerRow.source != LabelSource.RATING)
    """Whether the label is more than a rating: only then does it measure a critic. NULL without a label."""
    is_sampled: ColumnElement[bool] = ~_was_chosen
    """Whether people labelled the answer for another reason than what critics said about it.

    On answers of which a critic was unsure, or about which two disagreed, that critic looks worse than it is.
    """
    measures: ColumnElement[bool] = and_(is_firm, is_sampled)
    """Whether the label may be compared with verdicts on live traffic. NULL without a label."""
    source: ColumnElement[LabelSource | None] = AnswerRow.source.expression
    key_id: ColumnElement[UUID | None] = AnswerRow.key_id.expression
    """The only key that supports the label; NULL for several keys and for the operator."""
    arrived_at: ColumnElement[datetime | None] = func.greatest(
        AnswerRow.changed_at, func.coalesce(InteractionRow.stored_at, InteractionRow.created_at)
    )
    """When the interaction had its label, by the database's clock."""

    @staticmethod
    def joined(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        """The statement, joined with the answers that the columns read."""
        return statement.outerjoin(AnswerRow, is_about(AnswerRow, InteractionRow))


def own_grade() -> ColumnElement[Grade | None]:
    """The grade of an interaction's response against its own reference.

    Rows of release 0.1.0 have one grade, that against the newest reference. It is the own one if no feedback gave any.
    """
    given = exists().where(FeedbackRow.interaction_id == InteractionRow.id, known_reference().is_not(None))
    return func.coalesce(InteractionRow.own_grade, case((~given, InteractionRow.grade), else_=None))


def newest_first(row: type[FeedbackRow] | type[InteractionRow]) -> tuple[ColumnElement[Any], ...]:
    """The order of rows by the database's clock, the newest first. Rows of release 0.1.0 are older than all others."""
    return (row.stored_at.desc().nulls_last(), row.created_at.desc(), row.id.desc())


# -------------------------------------------------------------------------------------------------------- count votes


async def count_votes(session: AsyncSession, interaction_ids: Collection[UUID]) -> None:
    """Bring the labels of these interactions' answers up to date, in this transaction.

    The rows stay locked until it ends, so two writers of votes about one text count both. Interactions must be locked
    before their answers.
    """
    for ids in _chunks(sorted(interaction_ids)):
        answers = await session.execute(
            select(InteractionRow.question_hash, stored_text_sha256()).where(
                InteractionRow.id.in_(ids), InteractionRow.response.is_not(None)
            )
        )
        await relabel(session, {(question_hash, text) for question_hash, text in answers})


async def relabel(session: AsyncSession, answers: Collection[AnswerKey]) -> None:
    """Count the votes about these answers again; the others stay as they are."""
    if not answers:
        return
    model, distrusted = await read_model(session), await distrusted_keys(session)
    for chunk in _chunks(sorted(answers)):
        wanted = _table_of(chunk)
        await session.execute(
            insert(AnswerRow)
            .from_select(
                ["question_hash", "text_sha256", "votes", "standing"],
                select(
                    wanted.c.question_hash, wanted.c.text, literal((), StoredVotes), literal(VoteAgreement.NONE.value)
                ),
            )
            .on_conflict_do_nothing()
        )
        rows = await session.execute(
            select(AnswerRow, QuestionRow.split, func.clock_timestamp())
            .join(QuestionRow, QuestionRow.hash == AnswerRow.question_hash)
            .where(is_among(chunk))
            .order_by(AnswerRow.question_hash, AnswerRow.text_sha256)
            .with_for_update(of=AnswerRow)
            .execution_options(populate_existing=True)
        )
        locked = rows.all()
        votes = await _votes(session, chunk)  # after the locks, so that no vote is missed
        changed = []
        for row, split, moment in locked:
            before = row.is_right
            now = _State.of(row, split, votes.get((row.question_hash, row.text_sha256), ()))
            _write(row, now.updated(model, distrusted), moment)
            if row.is_right is not before:
                changed.append((row.question_hash, row.text_sha256))
        await session.flush()
        await _announce(session, changed)


async def _announce(session: AsyncSession, changed: Sequence[AnswerKey]) -> None:
    """Announce the new labels of these answers; one event for all. Each is named by its newest interaction."""
    if not changed or not await webhooks.wanting(session, WebhookEvent.LABEL_CHANGED):
        return
    answer = (AnswerRow.question_hash, AnswerRow.text_sha256)
    rows = await session.execute(
        select(InteractionRow.id, InteractionRow.task, AnswerRow.is_right, AnswerRow.source)
        .ext(distinct_on(*answer))
        .join(InteractionRow, is_about(AnswerRow, InteractionRow))
        .where(is_among(changed))
        .order_by(*answer, *newest_first(InteractionRow))
    )
    labels = [
        {
            "interaction_id": str(id),
            "task": task,
            "correct": is_right,
            "source": None if source is None else source.value,
        }
        for id, task, is_right, source in rows
    ]
    if labels:
        await webhooks.announce(session, WebhookEvent.LABEL_CHANGED, {"labels": labels})


def is_among(answers: Sequence[AnswerKey]) -> ColumnElement[bool]:
    """Whether an answer is one of these."""
    wanted = _table_of(answers)
    return tuple_(AnswerRow.question_hash, AnswerRow.text_sha256).in_(select(wanted.c.question_hash, wanted.c.text))


def _table_of(answers: Sequence[AnswerKey]) -> Any:
    """The keys as a table of two columns: a list of pairs in a condition is compared one by one."""
    columns = [literal([answer[part] for answer in answers], ARRAY(LargeBinary)) for part in (0, 1)]
    return func.unnest(*columns).table_valued("question_hash", "text", name="wanted").render_derived()


@dataclass(frozen=True, slots=True)
class _State:
    """The columns of an answer that its label depends on or consists of."""

    votes: Votes
    voted_right: bool | None
    standing: VoteAgreement
    is_right: bool | None
    source: LabelSource | None
    key_id: UUID | None
    is_frozen: bool
    ruling: Ruling | None
    is_heldout: bool

    @classmethod
    def of(cls, row: AnswerRow, split: Split, votes: Votes) -> "_State":
        return cls(
            votes=votes,
            voted_right=row.voted_right,
            standing=row.standing,
            is_right=row.is_right,
            source=row.source,
            key_id=row.key_id,
            is_frozen=row.frozen_at is not None,
            ruling=row.ruling,
            is_heldout=split is Split.HELDOUT,
        )

    def updated(self, model: LabelModel, distrusted: frozenset[UUID]) -> "_State":
        found = opinion(self.votes, model, distrusted=distrusted)
        frozen = AnswerLabel(self.is_right, self.source, self.key_id) if self.is_frozen else None
        given = label(found, frozen=frozen, ruling=self.ruling, distrusted=distrusted)
        return _State(
            votes=self.votes,
            voted_right=found.is_right,
            standing=found.standing,
            is_right=given.is_right,
            source=given.source,
            key_id=given.key_id,
            is_frozen=self.is_heldout and given.is_right is not None and given.source is not LabelSource.RATING,
            ruling=self.ruling,
            is_heldout=self.is_heldout,
        )


def _write(row: AnswerRow, state: _State, moment: datetime) -> None:
    if row.is_right is not state.is_right:
        row.changed_at = moment
    if (row.is_right, row.source, row.key_id) != (state.is_right, state.source, state.key_id):
        row.updated_at = moment
    if (row.frozen_at is not None) is not state.is_frozen:
        row.frozen_at = moment if state.is_frozen else None
    for name in ("votes", "voted_right", "standing", "is_right", "source", "key_id"):
        setattr(row, name, getattr(state, name))


async def _votes(session: AsyncSession, answers: Sequence[AnswerKey]) -> dict[AnswerKey, Votes]:
    """All votes about these answers: of each key the newest word, grade and rating, reduced to one vote."""
    said = _statements(dict.fromkeys(question_hash for question_hash, _ in answers)).subquery()
    wanted = _table_of(answers)
    form = case((said.c.source == LabelSource.IMPORT.value, LabelSource.PERSON.value), else_=said.c.source).label(
        "form"
    )
    columns = (said.c.question_hash, said.c.text, said.c.key_id, form)
    rows = await session.execute(
        select(*columns, said.c.source, said.c.is_right)
        .ext(distinct_on(*columns))
        .join(wanted, and_(wanted.c.question_hash == said.c.question_hash, wanted.c.text == said.c.text))
        .order_by(*columns, said.c.stored_at.desc().nulls_last(), said.c.created_at.desc(), said.c.id.desc())
    )
    statements: dict[AnswerKey, list[Vote]] = {}
    for row in rows:
        if row.is_right is not None:  # a response without an answer is neither right nor wrong
            vote = Vote(row.key_id, LabelSource(row.source), row.is_right)
            statements.setdefault((row.question_hash, row.text), []).append(vote)
    return {answer: one_vote_each(given) for answer, given in statements.items()}


def reference_statements(question_hashes: Iterable[bytes]) -> CompoundSelect[Any]:
    """All references that were given with or about the answers to these questions, each with the key that gave it.

    Columns: question_hash, text (its hash), key_id, source, is_right (by this reference; NULL: neither), reference,
    and those of the order, stored_at, created_at and id.
    """
    return union_all(*_reference_selects(question_hashes))


def _statements(question_hashes: Iterable[bytes]) -> CompoundSelect[Any]:
    """All statements about the answers to these questions."""
    word = case((FeedbackRow.source == FeedbackSource.IMPORT, LabelSource.IMPORT.value), else_=LabelSource.PERSON.value)
    words, ratings = (
        select(*_said(FeedbackRow, source, is_right))
        .join(InteractionRow, FeedbackRow.interaction_id == InteractionRow.id)
        .where(is_any_of(InteractionRow.question_hash, question_hashes), is_right.is_not(None))
        for source, is_right in (
            (word, word_on_response()),
            (literal(LabelSource.RATING.value), rating_of_response()),
        )
    )
    return union_all(*_reference_selects(question_hashes), words, ratings)


def _reference_selects(question_hashes: Iterable[bytes]) -> tuple[Select[Any], Select[Any]]:
    source = literal(LabelSource.REFERENCE.value)
    is_about_them = is_any_of(InteractionRow.question_hash, question_hashes)
    own = select(*_said(InteractionRow, source, _is_right(own_grade())))
    given = select(*_said(FeedbackRow, source, _is_right(FeedbackRow.grade)))
    return (
        own.where(
            is_about_them,
            or_(
                and_(InteractionRow.reference.is_not(None), InteractionRow.grade_problem.is_(None)),
                own_grade().is_not(None),
            ),
        ),
        given.join(InteractionRow, FeedbackRow.interaction_id == InteractionRow.id).where(
            is_about_them,
            or_(known_reference().is_not(None), FeedbackRow.grade.is_not(None)),
            FeedbackRow.grade_problem.is_(None),  # a reference that cannot be read says nothing
        ),
    )


def _said(row: type[FeedbackRow] | type[InteractionRow], source: Any, is_right: Any) -> tuple[Any, ...]:
    return (
        InteractionRow.question_hash,
        stored_text_sha256().label("text"),
        row.key_id,
        source.label("source"),
        is_right.label("is_right"),
        (known_reference() if row is FeedbackRow else row.reference).label("reference"),
        row.stored_at,
        row.created_at,
        row.id,
    )


def _is_right(grade: Any) -> ColumnElement[bool | None]:
    return case((grade == Grade.RIGHT, True), (grade == Grade.WRONG, False), else_=None)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def recount(session: AsyncSession, answers: Collection[AnswerKey]) -> None:
    """After a deletion of interactions: delete those of these answers that no interaction is about any more, and count
    the votes about the others again.
    """
    if not answers:
        return
    key = (AnswerRow.question_hash, AnswerRow.text_sha256)
    # Locked first: a writer that adds an interaction about one of them has committed before it is looked for.
    locked = await session.execute(select(*key).where(is_among(list(answers))).order_by(*key).with_for_update())
    counted = {(question_hash, text) for question_hash, text in locked}
    if not counted:
        return
    deleted = await session.execute(
        delete(AnswerRow)
        .where(is_among(list(counted)), ~exists().where(is_about(AnswerRow, InteractionRow)))
        .returning(*key)
        .execution_options(synchronize_session=False)
    )
    gone = {(question_hash, text) for question_hash, text in deleted}
    if gone:
        chosen = (ChosenAnswerRow.question_hash, ChosenAnswerRow.text_sha256)
        wanted = _table_of(list(gone))
        await session.execute(
            delete(ChosenAnswerRow)
            .where(tuple_(*chosen).in_(select(wanted.c.question_hash, wanted.c.text)))
            .execution_options(synchronize_session=False)
        )
    await relabel(session, counted - gone)


# --------------------------------------------------------------------------------------------------------- the model


async def read_model(session: AsyncSession) -> LabelModel:
    """The stored estimate of the voters' reliabilities; the priors where there is none yet."""
    stored = await session.scalar(select(LabelModelRow.model))
    return LabelModel() if stored is None else LabelModel.from_json(stored)


async def was_fitted_within(session: AsyncSession, seconds: float) -> bool:
    """Whether the model was estimated in the last so many seconds, by any process."""
    since = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return bool(await session.scalar(select(exists().where(LabelModelRow.fitted_at > since))))


async def distrusted_keys(session: AsyncSession) -> frozenset[UUID]:
    """The keys whose labels do not count."""
    return frozenset(await session.scalars(select(KeyRow.id).where(KeyRow.distrusted_at.is_not(None))))


async def read_patterns(session: AsyncSession) -> list[Pattern]:
    """How many answers have which votes, without those of distrusted keys."""
    distrusted = await distrusted_keys(session)
    rows = await session.execute(
        select(AnswerRow.votes, AnswerRow.ruling, func.count())
        .where(AnswerRow.votes.is_not(None))
        .group_by(AnswerRow.votes, AnswerRow.ruling)
    )
    truths: dict[Ruling | None, bool] = {Ruling.RIGHT: True, Ruling.WRONG: False}
    return [
        Pattern(tuple(vote for vote in votes if vote.key_id not in distrusted), truths.get(ruling), answers)
        for votes, ruling, answers in rows
        if votes is not None and ruling is not Ruling.NONE
    ]


async def refresh(database: Database) -> LabelModel:
    """Estimate the voters' reliabilities again, store them, and bring all labels up to date.

    First hashes the texts and counts the votes of rows of release 0.1.0. Several processes may call it at once.
    """
    await _count_old_rows(database)
    async with _long_session(database) as session:
        patterns = await read_patterns(session)
    model = await asyncio.to_thread(fit, patterns)
    async with database.session() as session:
        statement = insert(LabelModelRow).values(id=1, fitted_at=func.clock_timestamp(), model=model.to_json())
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=[LabelModelRow.id],
                set_={"fitted_at": statement.excluded.fitted_at, "model": statement.excluded.model},
            )
        )
    async with _long_session(database) as session:
        changes = [change async for change in _changes(session, model)]
    for state, new in changes:
        after: AnswerKey | None = _FIRST
        while after is not None:
            after = await _apply(database, state, new, after)
    return model


async def _count_old_rows(database: Database) -> None:
    uncounted = (
        select(AnswerRow.question_hash, AnswerRow.text_sha256)
        .where(AnswerRow.votes.is_(None))
        .order_by(AnswerRow.question_hash, AnswerRow.text_sha256)
        .limit(_CHUNK)
    )
    after = _FIRST
    while True:
        async with _long_session(database) as session:
            keys = await _keys(session, uncounted.where(_key() > after))
        if not keys:
            return
        if after == _FIRST:
            await _hash_old_texts(database)
        async with _long_session(database) as session:
            await relabel(session, keys)
        after = keys[-1]


async def _hash_old_texts(database: Database) -> None:
    """Store the hashes of the texts of old interactions; a row that another transaction holds is left without one."""
    after: UUID | None = UUID(int=0)
    while after is not None:
        async with _long_session(database) as session:
            found = await session.scalars(
                select(InteractionRow.id)
                .where(
                    InteractionRow.text_sha256.is_(None),
                    InteractionRow.response.is_not(None),
                    InteractionRow.id > after,
                )
                .order_by(InteractionRow.id)
                .limit(_CHUNK)
                .with_for_update(skip_locked=True)
            )
            ids = found.all()
            await session.execute(
                update(InteractionRow)
                .where(InteractionRow.id.in_(ids))
                .values(text_sha256=stored_text_sha256())
                .execution_options(synchronize_session=False)
            )
        after = ids[-1] if ids else None


def _key() -> Any:
    return tuple_(AnswerRow.question_hash, AnswerRow.text_sha256)


async def _keys(session: AsyncSession, statement: Select[*tuple[Any, ...]]) -> list[AnswerKey]:
    return [(question_hash, text) for question_hash, text in await session.execute(statement)]


@asynccontextmanager
async def _long_session(database: Database) -> AsyncIterator[AsyncSession]:
    async with database.session(limit_s=_REFRESH_LIMIT_S) as session:
        await session.execute(sql_text(f"SET LOCAL statement_timeout = {int(1000 * _REFRESH_LIMIT_S)}"))
        yield session


async def _changes(session: AsyncSession, model: LabelModel) -> AsyncIterator[tuple[_State, _State]]:
    """The states of answers whose label the model changes, each with its new state."""
    distrusted = await distrusted_keys(session)
    columns = (
        AnswerRow.votes,
        AnswerRow.voted_right,
        AnswerRow.standing,
        AnswerRow.is_right,
        AnswerRow.source,
        AnswerRow.key_id,
        AnswerRow.frozen_at.is_not(None),
        AnswerRow.ruling,
        QuestionRow.split == Split.HELDOUT,
    )
    rows = await session.execute(
        select(*columns)
        .join(QuestionRow, QuestionRow.hash == AnswerRow.question_hash)
        .where(AnswerRow.votes.is_not(None))
        .distinct()
    )
    for row in rows:
        state = _State(*row)  # type: ignore[arg-type]  # votes are not NULL here
        if state != (new := state.updated(model, distrusted)):
            yield state, new


async def _apply(database: Database, state: _State, new: _State, after: AnswerKey) -> AnswerKey | None:
    """Write the new label to the next `_CHUNK` answers of the old state; the last of them, None if there is none."""
    side = Split.HELDOUT if state.is_heldout else Split.TRAIN
    chosen = (
        select(AnswerRow.question_hash, AnswerRow.text_sha256)
        .join(QuestionRow, QuestionRow.hash == AnswerRow.question_hash)
        .where(
            _key() > after,
            QuestionRow.split == side,
            (AnswerRow.frozen_at.is_not(None)).is_(state.is_frozen),
            *(
                getattr(AnswerRow, name).is_not_distinct_from(getattr(state, name))
                for name in ("votes", "voted_right", "standing", "is_right", "source", "key_id", "ruling")
            ),
        )
        .order_by(AnswerRow.question_hash, AnswerRow.text_sha256)
        .limit(_CHUNK)
        .with_for_update(of=AnswerRow, skip_locked=True)  # a row that is being written gets its label there
    )
    values: dict[str, Any] = {
        name: getattr(new, name) for name in ("voted_right", "standing", "is_right", "source", "key_id")
    }
    values["updated_at"] = func.clock_timestamp()
    if state.is_right is not new.is_right:
        values["changed_at"] = func.clock_timestamp()
    if state.is_frozen is not new.is_frozen:
        values["frozen_at"] = func.clock_timestamp() if new.is_frozen else None
    async with _long_session(database) as session:
        keys = await _keys(session, chosen)
        await session.execute(
            update(AnswerRow).where(is_among(keys)).values(values).execution_options(synchronize_session=False)
        )
        if state.is_right is not new.is_right:
            await _announce(session, keys)
    return keys[-1] if keys else None
