"""All SQL: functions with verbs that take a session, in whose transaction they run, and return our nouns."""

import base64
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Select,
    Text,
    Uuid,
    bindparam,
    delete,
    exists,
    func,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import Insert, distinct_on, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload, selectinload

from core.errors import BadInput, Conflict, NotFound
from core.grading import Grade
from core.labels import Label, is_labelled
from core.questions import question_hash, split_of
from core.records import (
    CriticVersion,
    Critique,
    Feedback,
    FeedbackSource,
    Interaction,
    Key,
    Kind,
    Pointer,
    Record,
    Refinement,
    Split,
    Usage,
    new_id,
    now,
)
from core.storable import storable_json, storable_text
from core.tables import (
    CriticPointerRow,
    CriticVersionRow,
    CritiqueRow,
    EpisodeRow,
    FeedbackRow,
    InteractionRow,
    KeyRow,
    QuestionRow,
    RefinementRow,
    RequestClaimRow,
    RunEventRow,
    Table,
)
from core.training import EventKind
from core.verdict import Verdict

Scope = UUID | None
"""Whose rows a call may see: those of the key with this id, or everybody's (None)."""

# ------------------------------------------------------------------------------------------------------------ writing


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a record that was to be stored.

    `record` is what is stored: for feedback that says again what the same key said last, that earlier feedback.
    """

    record: Record
    is_repeat: bool


async def insert_records(session: AsyncSession, records: Sequence[Record], *, heldout_share: float) -> list[Stored]:
    """Store records, in order; a record that is stored already is left as it is. A few round trips, however many.

    Raises:
        Conflict: the request id of an interaction belongs to another, or its episode to another question.
        NotFound: feedback about an interaction that is not stored.
    """
    await insert_interactions(
        session, [record for record in records if isinstance(record, Interaction)], heldout_share=heldout_share
    )
    stored = iter(await _insert_feedback(session, [record for record in records if isinstance(record, Feedback)]))
    return [next(stored) if isinstance(record, Feedback) else Stored(record, False) for record in records]


async def insert_interactions(
    session: AsyncSession, interactions: Sequence[Interaction], *, heldout_share: float
) -> int:
    """Store interactions with their critiques and refinements; say how many were not stored before.

    Raises:
        Conflict: as `insert_records`.
    """
    if not interactions:
        return 0
    hashes = {interaction.id: question_hash(interaction.question) for interaction in interactions}
    # Every writer inserts in the same order, so that two that write the same rows wait for each other at most once.
    questions = {hash_: split_of(hash_, heldout_share) for hash_ in sorted(hashes.values())}
    await _insert_missing(
        session,
        QuestionRow,
        [{"hash": hash_, "split": split, "created_at": now()} for hash_, split in questions.items()],
    )
    episodes = {interaction.episode_id: interaction for interaction in reversed(interactions)}
    await _insert_episodes(session, [episodes[id] for id in sorted(episodes)], hashes)
    ordered = sorted(interactions, key=lambda interaction: (interaction.request_id or "", interaction.id))
    try:
        added = await _insert_missing(
            session, InteractionRow, [interaction_values(item, hashes[item.id]) for item in ordered]
        )
    except IntegrityError as error:
        raise _explained(error) from error
    await _insert_missing(
        session,
        CritiqueRow,
        [
            critique_values(critique, interaction.id, position)
            for interaction in interactions
            for position, critique in enumerate(interaction.critiques)
        ],
    )
    await _insert_missing(
        session,
        RefinementRow,
        [
            refinement_values(refinement, interaction.id, position)
            for interaction in interactions
            for position, refinement in enumerate(interaction.refinements)
        ],
    )
    await end_claims(session, interactions)
    return added


async def _insert_missing(session: AsyncSession, table: type[Table], rows: list[dict[str, Any]]) -> int:
    if not rows:
        return 0
    connection = await session.connection()
    result = await connection.execute(_insertion(table), rows, execution_options={"preserve_rowcount": True})
    return result.rowcount


@cache  # building a statement takes longer than running it
def _insertion(table: type[Table]) -> Insert:
    return insert(table).on_conflict_do_nothing(index_elements=table.__mapper__.primary_key)


@cache
def _episode_insertion() -> Insert:
    statement = insert(EpisodeRow)
    # An imported episode has no critic until one speaks in it.
    return statement.on_conflict_do_update(
        index_elements=[EpisodeRow.id],
        set_={"critic_version": statement.excluded.critic_version},
        where=EpisodeRow.critic_version.is_(None) & statement.excluded.critic_version.is_not(None),
    )


async def _insert_episodes(session: AsyncSession, firsts: Sequence[Interaction], hashes: dict[UUID, bytes]) -> None:
    connection = await session.connection()
    await connection.execute(
        _episode_insertion(),
        [
            {
                "id": first.episode_id,
                "question_hash": hashes[first.id],
                "critic_version": first.critic_version,
                "created_at": first.created_at,
            }
            for first in firsts
        ],
    )


async def _insert_feedback(session: AsyncSession, feedback: Sequence[Feedback]) -> list[Stored]:
    if not feedback:
        return []
    ids = sorted({item.interaction_id for item in feedback})
    # The lock makes two that say the same at once one after the other, so that the second sees the first.
    found = await session.scalars(
        select(InteractionRow.id)
        .where(InteractionRow.id.in_(ids))
        .order_by(InteractionRow.id)
        .with_for_update(key_share=True)
    )
    if missing := set(ids).difference(found):
        raise NotFound(f"there is no interaction {min(missing)}")
    rows = await session.scalars(
        select(FeedbackRow)
        .ext(distinct_on(FeedbackRow.interaction_id, FeedbackRow.key_id))
        .where(FeedbackRow.interaction_id.in_(ids))
        .order_by(FeedbackRow.interaction_id, FeedbackRow.key_id, FeedbackRow.created_at.desc(), FeedbackRow.id.desc())
    )
    newest = {(row.interaction_id, row.key_id): to_feedback(row) for row in rows}
    stored: list[Stored] = []
    for item in feedback:
        said = newest.get((item.interaction_id, item.key_id))
        if said is not None and said.id != item.id and _content(said) == _content(item):
            stored.append(Stored(said, True))
        else:
            newest[item.interaction_id, item.key_id] = item
            stored.append(Stored(item, False))
    added = [item.record for item in stored if not item.is_repeat]
    await _insert_missing(session, FeedbackRow, [feedback_values(cast(Feedback, record)) for record in added])
    await _take_newest_grades(session, ids)
    return stored


async def _take_newest_grades(session: AsyncSession, interaction_ids: Sequence[UUID]) -> None:
    newest = (
        select(FeedbackRow.interaction_id, FeedbackRow.grade, FeedbackRow.refinement_grades)
        .ext(distinct_on(FeedbackRow.interaction_id))
        .where(FeedbackRow.interaction_id.in_(interaction_ids), FeedbackRow.reference.is_not(None))
        .order_by(FeedbackRow.interaction_id, FeedbackRow.created_at.desc(), FeedbackRow.id.desc())
        .subquery()
    )
    await session.execute(
        update(InteractionRow)
        .where(InteractionRow.id == newest.c.interaction_id)
        .values(grade=newest.c.grade)
        .execution_options(synchronize_session=False)
    )
    await session.execute(
        update(RefinementRow)
        .where(RefinementRow.interaction_id == newest.c.interaction_id)
        .values(grade=newest.c.refinement_grades.op("->>")(sql_cast(RefinementRow.id, Text)))
        .execution_options(synchronize_session=False)
    )


async def end_claims(session: AsyncSession, interactions: Sequence[Interaction]) -> None:
    done = [(item.request_id, item.key_id) for item in interactions if item.request_id is not None]
    if done:
        await session.execute(
            text(
                "DELETE FROM request_claims USING unnest(:request_ids, :key_ids) AS done (request_id, key_id)"
                " WHERE request_claims.request_id = done.request_id"
                " AND request_claims.key_id IS NOT DISTINCT FROM done.key_id"
            ).bindparams(
                bindparam("request_ids", [storable_text(request_id) for request_id, _ in done], ARRAY(Text)),
                bindparam("key_ids", [key_id for _, key_id in done], ARRAY(Uuid)),
            )
        )


_CONFLICTS = {
    "uq_interactions_request_id_key_id": "the request id belongs to another interaction",
    "fk_interactions_episode_id_question_hash": "the episode is about another question",
}


def _explained(error: IntegrityError) -> Exception:
    message = _CONFLICTS.get(error.orig.diag.constraint_name)  # type: ignore[union-attr]
    return error if message is None else Conflict(message)


def _content(feedback: Feedback) -> tuple[Any, ...]:
    said = (feedback.reference, feedback.edited_response, feedback.comment, feedback.metadata)
    return (feedback.source, feedback.correct, feedback.rating, *map(storable_json, said))


async def delete_interaction(session: AsyncSession, id: UUID, *, scope: Scope) -> None:
    """Forget an interaction: its texts, critiques, refinements and feedback, and its episode if nothing is left in it.

    The question's hash stays, which holds no text: should the question return, it must not change sides.

    Raises:
        NotFound: there is none, or it is another key's.
    """
    episode_id = await session.scalar(
        select(InteractionRow.episode_id).where(InteractionRow.id == id, *_in_scope(scope))
    )
    if episode_id is None:
        raise NotFound(f"there is no interaction {id}")
    # Locked first: whoever adds to this episode now waits, and then makes it anew.
    await session.execute(select(EpisodeRow.id).where(EpisodeRow.id == episode_id).with_for_update())
    await session.execute(delete(InteractionRow).where(InteractionRow.id == id))
    # Alarms of training runs show critiques, and name the interaction that each is about.
    await session.execute(
        delete(RunEventRow).where(
            RunEventRow.kind == EventKind.ALARM, sql_cast(RunEventRow.data, Text).contains(str(id))
        )
    )
    await session.execute(
        delete(EpisodeRow).where(
            EpisodeRow.id == episode_id, ~exists().where(InteractionRow.episode_id == EpisodeRow.id)
        )
    )


# ------------------------------------------------------------------------------------------------------------ reading


def _in_scope(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    return () if scope is None else (InteractionRow.key_id == scope,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Which interactions are meant; None leaves a field open."""

    kind: Kind | None = None
    verdict: Verdict | None = None
    grade: Grade | None = None
    split: Split | None = None
    episode_id: UUID | None = None
    critic_version: int | None = None
    created_from: datetime | None = None  # inclusive
    created_before: datetime | None = None  # exclusive
    has_feedback: bool | None = None

    def conditions(self) -> tuple[ColumnElement[bool], ...]:
        found: list[ColumnElement[bool]] = [
            getattr(InteractionRow, name) == value
            for name in ("kind", "verdict", "grade", "episode_id", "critic_version")
            if (value := getattr(self, name)) is not None
        ]
        if self.split is not None:
            found.append(QuestionRow.split == self.split)
        if self.created_from is not None:
            found.append(InteractionRow.created_at >= self.created_from)
        if self.created_before is not None:
            found.append(InteractionRow.created_at < self.created_before)
        if self.has_feedback is not None:
            said = exists().where(FeedbackRow.interaction_id == InteractionRow.id)
            found.append(said if self.has_feedback else ~said)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list, newest first; `next_cursor` is None on the last page."""

    interactions: list[Interaction]
    next_cursor: str | None


async def read_interaction(session: AsyncSession, id: UUID, *, scope: Scope) -> Interaction:
    """One interaction with its critiques and refinements.

    Raises:
        NotFound: there is none, or it is another key's.
    """
    row = await session.scalar(_whole().where(InteractionRow.id == id, *_in_scope(scope)))
    if row is None:
        raise NotFound(f"there is no interaction {id}")
    return to_interaction(row)


async def find_by_request_id(session: AsyncSession, request_id: str, *, key_id: UUID | None) -> Interaction | None:
    """The interaction that this key's request id stands for."""
    row = await session.scalar(
        _whole().where(InteractionRow.request_id == request_id, InteractionRow.key_id.is_not_distinct_from(key_id))
    )
    return None if row is None else to_interaction(row)


async def list_interactions(
    session: AsyncSession, *, scope: Scope, filters: Filters, limit: int, cursor: str | None = None
) -> Page:
    """Interactions without their critiques and refinements, newest first.

    Raises:
        BadInput: the cursor is not one that a page ended with.
    """
    statement = _selected(select(InteractionRow), filters).where(*_in_scope(scope))
    if cursor is not None:
        statement = statement.where(tuple_(InteractionRow.created_at, InteractionRow.id) < _read_cursor(cursor))
    statement = statement.order_by(InteractionRow.created_at.desc(), InteractionRow.id.desc()).limit(limit + 1)
    rows = list(await session.scalars(statement))
    next_cursor = _write_cursor(rows[limit - 1]) if len(rows) > limit else None
    return Page([to_interaction(row, is_whole=False) for row in rows[:limit]], next_cursor)


async def find_imported(session: AsyncSession, ids: Iterable[UUID]) -> dict[UUID, bool | None]:
    """Which of these interactions are stored, each with the newest label that an import gave it."""
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
        .order_by(InteractionRow.id, FeedbackRow.created_at.desc(), FeedbackRow.id.desc())
    )
    return dict(rows.all())


async def find_critique(session: AsyncSession, id: UUID, *, scope: Scope) -> tuple[Critique, bytes] | None:
    """A critique in an interaction that the caller may see, and the hash of the question it is about."""
    found = (
        await session.execute(
            select(CritiqueRow, InteractionRow.question_hash)
            .join(InteractionRow, InteractionRow.id == CritiqueRow.interaction_id)
            .where(CritiqueRow.id == id, *_in_scope(scope))
        )
    ).one_or_none()
    return None if found is None else (to_critique(found[0]), found[1])


async def feedback_of(session: AsyncSession, interaction_id: UUID) -> list[Feedback]:
    """All feedback about an interaction, oldest first."""
    rows = await session.scalars(
        select(FeedbackRow)
        .where(FeedbackRow.interaction_id == interaction_id)
        .order_by(FeedbackRow.created_at, FeedbackRow.id)
    )
    return [to_feedback(row) for row in rows]


@dataclass(frozen=True, slots=True)
class LoggedInteraction:
    """An interaction with all that belongs to it."""

    interaction: Interaction
    feedback: tuple[Feedback, ...]
    split: Split
    label: bool | None  # whether the response is right, as `core.labels` says


async def stream_interactions(
    session: AsyncSession, filters: Filters, *, batch: int
) -> AsyncGenerator[list[LoggedInteraction]]:
    """Interactions with all that belongs to them, oldest first, `batch` at a time; memory holds one batch."""
    label = Label()
    whole = _whole().options(selectinload(InteractionRow.feedback), joinedload(InteractionRow.question_row))
    statement = label.joined(_selected(whole, filters)).add_columns(label.is_right)
    rows = await session.stream(
        statement.order_by(InteractionRow.created_at, InteractionRow.id).execution_options(yield_per=batch)
    )
    try:
        async for part in rows.partitions():
            yield [
                LoggedInteraction(
                    to_interaction(row), tuple(map(to_feedback, row.feedback)), row.question_row.split, is_right
                )
                for row, is_right in part
            ]
    finally:
        await rows.close()


@dataclass(frozen=True, slots=True)
class Episode:
    """What an episode is bound to: one question, and one critic once a critic has spoken in it."""

    question_hash: bytes
    critic_version: int | None


async def find_episode(session: AsyncSession, id: UUID, *, scope: Scope) -> Episode | None:
    """The episode with this id, None if there is none yet.

    Raises:
        NotFound: it holds nothing that the caller may see.
    """
    row = await session.get(EpisodeRow, id)
    if row is None:
        return None
    if scope is not None and not await session.scalar(
        select(exists().where(InteractionRow.episode_id == id, *_in_scope(scope)))
    ):
        raise NotFound(f"there is no episode {id} of yours")
    return Episode(row.question_hash, row.critic_version)


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a deployment remembers."""

    interactions: dict[Kind, int]
    feedback: int
    questions: dict[Split, int]
    labelled: dict[Split, int]  # interactions whose `response` somebody graded or called right or wrong


async def count_rows(session: AsyncSession) -> Counts:
    """Counts over whole tables: a second or so per few million rows."""
    kinds = await session.execute(select(InteractionRow.kind, func.count()).group_by(InteractionRow.kind))
    splits = await session.execute(select(QuestionRow.split, func.count()).group_by(QuestionRow.split))
    labelled = await session.execute(
        select(QuestionRow.split, func.count())
        .join(InteractionRow, InteractionRow.question_hash == QuestionRow.hash)
        .where(is_labelled())
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
        raise BadInput("the cursor is not one that a page ended with", field="cursor") from error


# ------------------------------------------------------------------------------------------------------------ critics


async def ensure_version_zero(session: AsyncSession, base_model: str) -> CriticVersion:
    """Make the base model under the critic's prompt version 0, and live if nothing is; say what version 0 is.

    Raises:
        Conflict: the database's critics stand on another base model.
    """
    await session.execute(
        insert(CriticVersionRow).values(version=0, base_model=base_model, created_at=now()).on_conflict_do_nothing()
    )
    await session.execute(
        insert(CriticPointerRow).values(name="live", version=0, moved_at=now()).on_conflict_do_nothing()
    )
    zero = await resolve_critic(session, 0)
    if zero.base_model != base_model:
        raise Conflict(
            f"the database's critics stand on the model {zero.base_model}, not {base_model}: use that model, "
            "or another database"
        )
    return zero


async def resolve_critic(session: AsyncSession, choice: Pointer | int) -> CriticVersion:
    """The critic that a pointer or a number names.

    Raises:
        NotFound: there is none.
    """
    statement = select(CriticVersionRow)
    if isinstance(choice, int):
        statement = statement.where(CriticVersionRow.version == choice)
    else:
        statement = statement.join(CriticPointerRow, CriticPointerRow.version == CriticVersionRow.version).where(
            CriticPointerRow.name == choice
        )
    row = await session.scalar(statement)
    if row is None:
        raise NotFound(
            f"there is no critic version {choice}" if isinstance(choice, int) else f"there is no {choice} critic now"
        )
    return to_critic_version(row)


async def list_critic_versions(session: AsyncSession) -> list[CriticVersion]:
    """All versions, newest first."""
    rows = await session.scalars(select(CriticVersionRow).order_by(CriticVersionRow.version.desc()))
    return [to_critic_version(row) for row in rows]


async def read_pointers(session: AsyncSession) -> dict[Pointer, int]:
    """Which version each pointer that is set names."""
    rows = await session.execute(select(CriticPointerRow.name, CriticPointerRow.version))
    return {cast(Pointer, name): version for name, version in rows}


# ------------------------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True, slots=True)
class Claimed:
    """The request id is the caller's to work on, until the lease runs out."""

    claim_id: UUID


@dataclass(frozen=True, slots=True)
class Held:
    """Another is at work on the request id; its lease lasts until `until` unless it is extended."""

    fingerprint: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """The request id stands for an interaction that is stored already."""

    fingerprint: str | None
    interaction_id: UUID


async def claim_request(
    session: AsyncSession,
    *,
    key_id: UUID | None,
    request_id: str,
    fingerprint: str,
    owner: UUID,
    lease_s: float,
) -> Claimed | Held | Done:
    """Claim a request id for `lease_s` seconds, unless its work is done or another holds it.

    A claim whose lease ran out is taken over. Storing the interaction ends the claim.
    """
    lease = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, lease_s)
    statement = insert(RequestClaimRow).values(
        id=new_id(), key_id=key_id, request_id=request_id, fingerprint=fingerprint, owner=owner, expires_at=lease
    )
    claim_id = await session.scalar(
        statement.on_conflict_do_update(
            index_elements=[RequestClaimRow.request_id, RequestClaimRow.key_id],
            set_={name: statement.excluded[name] for name in ("id", "fingerprint", "owner", "expires_at")},
            where=RequestClaimRow.expires_at <= func.clock_timestamp(),
        ).returning(RequestClaimRow.id)
    )
    # Looked for after claiming: storing an interaction and ending its claim are one transaction, so whoever gets the
    # claim sees what its last owner stored.
    done = (
        await session.execute(
            select(InteractionRow.fingerprint, InteractionRow.id).where(
                InteractionRow.request_id == request_id, InteractionRow.key_id.is_not_distinct_from(key_id)
            )
        )
    ).one_or_none()
    if done is not None:
        if claim_id is not None:
            await session.execute(delete(RequestClaimRow).where(RequestClaimRow.id == claim_id))
        return Done(done.fingerprint, done.id)
    if claim_id is not None:
        return Claimed(claim_id)
    held = (
        await session.execute(
            select(RequestClaimRow.fingerprint, RequestClaimRow.expires_at).where(
                RequestClaimRow.request_id == request_id, RequestClaimRow.key_id.is_not_distinct_from(key_id)
            )
        )
    ).one_or_none()
    if held is None:  # it ended between the two looks
        return Held(fingerprint, now())
    return Held(held.fingerprint, held.expires_at)


async def extend_claims(session: AsyncSession, owner: UUID, claim_ids: Iterable[UUID], *, lease_s: float) -> set[UUID]:
    """Renew the leases of claims that `owner` still holds; the rest were taken over or have ended."""
    lease = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, lease_s)
    renewed = await session.scalars(
        update(RequestClaimRow)
        .where(
            # One that is being deleted needs no lease: waiting for it could be waiting in a circle.
            RequestClaimRow.id.in_(
                select(RequestClaimRow.id)
                .where(RequestClaimRow.owner == owner, RequestClaimRow.id.in_(sorted(claim_ids)))
                .with_for_update(skip_locked=True)
            )
        )
        .values(expires_at=lease)
        .returning(RequestClaimRow.id)
        .execution_options(synchronize_session=False)
    )
    return set(renewed)


async def release_claim(session: AsyncSession, claim_id: UUID) -> None:
    """Give a claim up, for instance because the work failed: the next who asks may do it."""
    await session.execute(delete(RequestClaimRow).where(RequestClaimRow.id == claim_id))


# --------------------------------------------------------------------------------------------------------------- keys


async def insert_key(session: AsyncSession, key: Key, digest: bytes) -> None:
    session.add(
        KeyRow(
            id=key.id,
            name=key.name,
            tier=key.tier,
            hint=key.hint,
            digest=digest,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
        )
    )
    await session.flush()


async def find_key(session: AsyncSession, digest: bytes) -> Key | None:
    """The key with this secret, revoked and expired ones too."""
    row = await session.scalar(select(KeyRow).where(KeyRow.digest == digest))
    return None if row is None else to_key(row)


async def has_keys(session: AsyncSession) -> bool:
    """Whether a key was ever made, even if it is revoked or expired by now."""
    return bool(await session.scalar(select(exists().where(KeyRow.id.is_not(None)))))


async def list_keys(session: AsyncSession) -> list[Key]:
    """All keys, oldest first, revoked and expired ones too."""
    return [to_key(row) for row in await session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))]


async def revoke_key(session: AsyncSession, id: UUID) -> Key:
    """End a key for ever. Revoking again changes nothing.

    Raises:
        NotFound: there is no such key.
    """
    row = await session.get(KeyRow, id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no key {id}")
    row.revoked_at = row.revoked_at or now()
    await session.flush()
    return to_key(row)


# ------------------------------------------------------------------------------------------------------ rows to nouns


def interaction_values(interaction: Interaction, hash_: bytes) -> dict[str, Any]:
    return {
        "id": interaction.id,
        "kind": interaction.kind,
        "created_at": interaction.created_at,
        "episode_id": interaction.episode_id,
        "question_hash": hash_,
        "key_id": interaction.key_id,
        "request_id": interaction.request_id,
        "fingerprint": interaction.fingerprint,
        "question": interaction.question,
        "response": interaction.response,
        "reference": interaction.reference,
        "grade": interaction.grade,
        "metadata": interaction.metadata,
        "parameters": interaction.parameters,
        "model": interaction.model,
        "prompt_set": interaction.prompt_set,
        "critic_version": interaction.critic_version,
        "adapter_sha256": interaction.adapter_sha256,
        "verdict": interaction.verdict,
        "refined_response": interaction.refined_response,
        "stop_reason": interaction.stop_reason,
        "prompt_tokens": interaction.usage.prompt_tokens,
        "completion_tokens": interaction.usage.completion_tokens,
        "latency_ms": interaction.latency_ms,
    }


def to_interaction(row: InteractionRow, *, is_whole: bool = True) -> Interaction:
    return Interaction(
        id=row.id,
        kind=row.kind,
        created_at=row.created_at,
        episode_id=row.episode_id,
        key_id=row.key_id,
        request_id=row.request_id,
        fingerprint=row.fingerprint,
        question=row.question,
        response=row.response,
        reference=row.reference,
        grade=row.grade,
        metadata=row.metadata_,
        parameters=row.parameters,
        model=row.model,
        prompt_set=row.prompt_set,
        critic_version=row.critic_version,
        adapter_sha256=row.adapter_sha256,
        verdict=row.verdict,
        refined_response=row.refined_response,
        stop_reason=row.stop_reason,
        usage=_to_usage(row),
        latency_ms=row.latency_ms,
        critiques=tuple(map(to_critique, row.critiques)) if is_whole else (),
        refinements=tuple(map(to_refinement, row.refinements)) if is_whole else (),
    )


def critique_values(critique: Critique, interaction_id: UUID, position: int) -> dict[str, Any]:
    return {
        "id": critique.id,
        "interaction_id": interaction_id,
        "position": position,
        "round": critique.round,
        "sample": critique.sample,
        "text": critique.text,
        "stated": critique.stated,
        "verdict": critique.verdict,
        "verdict_source": critique.verdict_source,
        "p_correct": critique.p_correct,
        "p_incorrect": critique.p_incorrect,
        "finish_reason": critique.finish_reason,
        "prompt_tokens": critique.usage.prompt_tokens,
        "completion_tokens": critique.usage.completion_tokens,
        "supplied": critique.supplied,
    }


def to_critique(row: CritiqueRow) -> Critique:
    return Critique(
        id=row.id,
        round=row.round,
        sample=row.sample,
        text=row.text,
        stated=row.stated,
        verdict=row.verdict,
        verdict_source=row.verdict_source,
        p_correct=row.p_correct,
        p_incorrect=row.p_incorrect,
        finish_reason=row.finish_reason,
        usage=_to_usage(row),
        supplied=row.supplied,
    )


def refinement_values(refinement: Refinement, interaction_id: UUID, position: int) -> dict[str, Any]:
    return {
        "id": refinement.id,
        "interaction_id": interaction_id,
        "position": position,
        "round": refinement.round,
        "sample": refinement.sample,
        "critique_id": refinement.critique_id,
        "text": refinement.text,
        "finish_reason": refinement.finish_reason,
        "grade": refinement.grade,
        "prompt_tokens": refinement.usage.prompt_tokens,
        "completion_tokens": refinement.usage.completion_tokens,
    }


def to_refinement(row: RefinementRow) -> Refinement:
    return Refinement(
        id=row.id,
        round=row.round,
        sample=row.sample,
        critique_id=row.critique_id,
        text=row.text,
        finish_reason=row.finish_reason,
        grade=row.grade,
        usage=_to_usage(row),
    )


def feedback_values(feedback: Feedback) -> dict[str, Any]:
    return {
        "id": feedback.id,
        "interaction_id": feedback.interaction_id,
        "key_id": feedback.key_id,
        "created_at": feedback.created_at,
        "source": feedback.source,
        "correct": feedback.correct,
        "reference": feedback.reference,
        "edited_response": feedback.edited_response,
        "rating": feedback.rating,
        "comment": feedback.comment,
        "metadata": feedback.metadata,
        "grade": feedback.grade,
        "refinement_grades": {str(id): grade.value for id, grade in feedback.refinement_grades.items()},
    }


def to_feedback(row: FeedbackRow) -> Feedback:
    return Feedback(
        id=row.id,
        interaction_id=row.interaction_id,
        key_id=row.key_id,
        created_at=row.created_at,
        source=row.source,
        correct=row.correct,
        reference=row.reference,
        edited_response=row.edited_response,
        rating=row.rating,
        comment=row.comment,
        metadata=row.metadata_,
        grade=row.grade,
        refinement_grades={UUID(id): Grade(grade) for id, grade in row.refinement_grades.items()},
    )


def _to_usage(row: InteractionRow | CritiqueRow | RefinementRow) -> Usage:
    return Usage(prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens)


def to_critic_version(row: CriticVersionRow) -> CriticVersion:
    return CriticVersion(
        version=row.version,
        parent=row.parent,
        base_model=row.base_model,
        adapter_path=row.adapter_path,
        adapter_sha256=row.adapter_sha256,
        created_at=row.created_at,
        run_id=row.run_id,
        prompt_set=row.prompt_set,
    )


def to_key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        tier=row.tier,
        hint=row.hint,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
