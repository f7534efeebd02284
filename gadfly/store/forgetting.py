"""Forgetting: rows are deleted with all that was derived from them, and the critics that learned from them are marked.

A tombstone outlives each deleted interaction, and an order outlives each deletion of an episode, a key's rows or a
time: a replica that was cut off may still have such a record in its spool, and must not bring it back.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Text,
    Uuid,
    any_,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import Interaction, Kind, Loss, new_id, now
from gadfly.store.keys import keep_usage
from gadfly.store.labels import recount, stored_text_sha256
from gadfly.store.tables import (
    CriticLossRow,
    CriticVersionRow,
    EpisodeRow,
    FeedbackRow,
    ForgetOrderRow,
    GuardedConversationRow,
    InteractionRow,
    LearningRow,
    TombstoneRow,
)

_ORDERS_KEPT = timedelta(days=90)  # longer than a replica that is cut off keeps a spool


@dataclass(frozen=True, kw_only=True, slots=True)
class What:
    """The interactions to forget: all conditions hold."""

    interaction_id: UUID | None = None
    episode_id: UUID | None = None
    key_id: UUID | None = None
    since: datetime | None = None  # inclusive
    until: datetime | None = None  # exclusive
    kind: Kind | None = None

    def conditions(self) -> tuple[ColumnElement[bool], ...]:
        conditions = [
            getattr(InteractionRow, column) == value
            for column, value in (
                ("id", self.interaction_id),
                ("episode_id", self.episode_id),
                ("key_id", self.key_id),
                ("kind", self.kind),
            )
            if value is not None
        ]
        if self.since is not None:
            conditions.append(InteractionRow.created_at >= self.since)
        if self.until is not None:
            conditions.append(InteractionRow.created_at < self.until)
        return tuple(conditions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Affected:
    """A critic that learned from forgotten answers; 0 answers: only a version that it continues did."""

    version: int
    answers: int
    run_id: UUID | None


async def count(session: AsyncSession, what: What) -> tuple[int, int]:
    """How many interactions, and how much feedback about them, there is to forget."""
    chosen = select(InteractionRow.id).where(*what.conditions())
    interactions = await session.scalar(select(func.count()).select_from(chosen.subquery()))
    feedback = await session.scalar(
        select(func.count()).select_from(FeedbackRow).where(FeedbackRow.interaction_id.in_(chosen))
    )
    return interactions or 0, feedback or 0


async def oldest(session: AsyncSession, what: What) -> datetime | None:
    """The time of the oldest interaction to forget."""
    return await session.scalar(select(func.min(InteractionRow.created_at)).where(*what.conditions()))


@dataclass(frozen=True, slots=True)
class Chosen:
    """An interaction to forget."""

    id: UUID
    created_at: datetime


async def choose(
    session: AsyncSession, what: What, *, limit: int, after: Chosen | None = None, skip_locked: bool = False
) -> list[Chosen]:
    """Some of the interactions to forget, the oldest first.

    `after` is the last one of the choice before: rows older than it need not be read again, of which many may stay.
    `skip_locked` leaves out those of another deletion.
    """
    place = tuple_(InteractionRow.created_at, InteractionRow.id)
    statement = (
        select(InteractionRow.id, InteractionRow.created_at)
        .where(*what.conditions(), *(() if after is None else (place > (after.created_at, after.id),)))
        .order_by(InteractionRow.created_at, InteractionRow.id)
        .limit(limit)
    )
    if skip_locked:
        statement = statement.with_for_update(skip_locked=True)
    return [Chosen(id, created_at) for id, created_at in await session.execute(statement)]


async def learned_from(session: AsyncSession, what: What | Sequence[UUID]) -> dict[UUID, int]:
    """The runs that learned from interactions, each with the number of answers.

    By the ledger of a run, or by its manifest if it has no ledger: runs of earlier releases.
    """
    chosen: Any = (
        select(InteractionRow.id).where(*what.conditions())
        if isinstance(what, What)
        else select(func.unnest(literal(list(what), ARRAY(Uuid))))
    )
    rows = await session.execute(
        select(LearningRow.run_id, func.count(LearningRow.interaction_id.distinct()))
        .where(LearningRow.interaction_id.in_(chosen))
        .group_by(LearningRow.run_id)
    )
    found = dict(rows.all())
    ids = list(await session.scalars(chosen)) if isinstance(what, What) else list(what)
    older = await session.execute(
        text(
            "SELECT run.id, count(*) FROM training_runs AS run"
            " CROSS JOIN jsonb_array_elements(run.manifest -> 'answers') AS entry"
            " WHERE jsonb_typeof(run.manifest -> 'answers') = 'array'"
            " AND NOT EXISTS (SELECT FROM learning_ledger AS l WHERE l.run_id = run.id)"
            " AND entry ->> 'id' = ANY(:ids) GROUP BY run.id"
        ),
        {"ids": [str(id) for id in ids]},
    )
    return found | dict(older.all())


async def affected_critics(session: AsyncSession, runs: dict[UUID, int]) -> list[Affected]:
    """The critics that these runs made, and those that continue them, by version."""
    rows = await session.execute(select(CriticVersionRow.version, CriticVersionRow.parent, CriticVersionRow.run_id))
    found: dict[int, Affected] = {}
    for version, parent, run_id in sorted(rows.all()):  # a version is younger than its parent
        answers = 0 if run_id is None else runs.get(run_id, 0)
        if answers or parent in found:
            found[version] = Affected(version=version, answers=answers, run_id=run_id)
    return list(found.values())


async def mark(session: AsyncSession, critics: Sequence[Affected]) -> None:
    """Add to what critics learned from and is gone."""
    for critic in critics:
        statement = insert(CriticLossRow).values(version=critic.version, answers=critic.answers)
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=[CriticLossRow.version],
                set_={
                    "answers": CriticLossRow.answers + statement.excluded.answers,
                    "last_at": func.clock_timestamp(),
                },
            )
        )


async def loss_of(session: AsyncSession, version: int) -> Loss | None:
    """What a critic lost; None: nothing."""
    row = await session.get(CriticLossRow, version)
    return None if row is None else Loss(answers=row.answers, first_at=row.first_at, last_at=row.last_at)


async def clean_version(session: AsyncSession, *, base_model: str, without: Sequence[int]) -> int | None:
    """The newest version of a base model that has lost nothing and is not among these; None: there is none.

    It is of the same task as one of these; without any of them, of any task.
    """
    tasks = select(CriticVersionRow.task).where(CriticVersionRow.version.in_(without))
    return await session.scalar(
        select(func.max(CriticVersionRow.version)).where(
            CriticVersionRow.base_model == base_model,
            CriticVersionRow.task.in_(tasks) if without else true(),
            CriticVersionRow.version.not_in(without),
            ~exists().where(CriticLossRow.version == CriticVersionRow.version),
        )
    )


@dataclass(frozen=True, slots=True)
class DeletedRows:
    """What was deleted of some interactions: those that were there."""

    ids: list[UUID]
    held_s: float = 0.0  # since the first lock that others may wait for


async def forget(session: AsyncSession, ids: Sequence[UUID]) -> DeletedRows:
    """Delete interactions with all that belongs to them, in this transaction.

    With a refined chat answer, the interaction with its first answer and its rewrites is deleted too. Labels are
    counted again, episodes that are then empty are deleted, and so are alarms and samples of training runs that quote
    critiques. Critics that learned from them are marked. Hashes of questions stay: a question that returns must not
    change sides.
    """
    refined = InteractionRow.parameters["refined"]["interaction_id"].astext
    rows = await session.execute(
        select(InteractionRow.id, InteractionRow.episode_id, refined).where(_is_any(InteractionRow.id, ids))
    )
    chosen = rows.all()
    every = sorted({id for id, _, _ in chosen} | {UUID(other) for _, _, other in chosen if other is not None})
    if not every:
        return DeletedRows([])
    await _forget_quotes(session, every)  # before the locks: it reads the events of all runs
    began = time.monotonic()
    # Locked first: a writer that adds to an episode now waits, and then creates it again.
    episodes = sorted({episode for _, episode, _ in chosen})
    await session.execute(
        select(EpisodeRow.id).where(_is_any(EpisodeRow.id, episodes)).order_by(EpisodeRow.id).with_for_update()
    )
    runs = await learned_from(session, every)
    gone = await session.execute(
        delete(InteractionRow)
        .where(_is_any(InteractionRow.id, every))
        .returning(
            InteractionRow.id,
            InteractionRow.question_hash,
            stored_text_sha256().label("text"),
            InteractionRow.response,
            InteractionRow.key_id,
            InteractionRow.created_at,
            (InteractionRow.prompt_tokens + InteractionRow.completion_tokens).label("tokens"),
        )
        .execution_options(synchronize_session=False)
    )
    deleted = gone.all()
    await recount(session, {(row.question_hash, row.text) for row in deleted if row.response is not None})
    await _keep_usage(session, deleted)
    await mark(session, await affected_critics(session, runs))
    await session.execute(delete(LearningRow).where(_is_any(LearningRow.interaction_id, every)))
    await session.execute(
        insert(TombstoneRow)
        .from_select(["interaction_id"], select(func.unnest(literal(every, ARRAY(Uuid)))))
        .on_conflict_do_nothing()
    )
    await session.execute(
        delete(EpisodeRow)
        .where(_is_any(EpisodeRow.id, episodes), ~exists().where(InteractionRow.episode_id == EpisodeRow.id))
        .execution_options(synchronize_session=False)
    )
    return DeletedRows([row.id for row in deleted], held_s=time.monotonic() - began)


async def _keep_usage(session: AsyncSession, deleted: Sequence[Any]) -> None:
    """Keep the tokens of today's interactions: to delete them must not give a key its tokens of the day back."""
    today = now().date()
    tokens: Counter[UUID] = Counter()
    for row in deleted:
        if row.key_id is not None and row.created_at.astimezone(UTC).date() == today:
            tokens[row.key_id] += row.tokens
    if tokens:
        await keep_usage(session, tokens, today)


def _is_any(column: Any, ids: Sequence[UUID]) -> ColumnElement[bool]:
    """Whether a column has one of many ids, as one parameter: a list of parameters is compiled at each call."""
    found: ColumnElement[bool] = column == any_(literal(list(ids), ARRAY(Uuid)))
    return found


async def _forget_quotes(session: AsyncSession, ids: Sequence[UUID]) -> None:
    """Delete the events of runs that quote critiques about these interactions; each names its interaction."""
    await session.execute(
        text(
            "DELETE FROM run_events WHERE kind IN ('alarm', 'samples') AND EXISTS (SELECT FROM regexp_matches("
            "data::text, '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', 'g') AS named"
            " WHERE named[1] = ANY(:ids))"
        ),
        {"ids": [str(id) for id in ids]},
    )


async def order(session: AsyncSession, what: What) -> None:
    """Refuse records that match and were made before now, which a replica may still have in its spool.

    Conversations that a proxy announced and that belong to no interaction yet are deleted, by key and time.
    """
    moment = now()
    if what.episode_id is None:
        announced = delete(GuardedConversationRow)
        if what.key_id is not None:
            announced = announced.where(GuardedConversationRow.key == str(what.key_id))
        if what.since is not None:
            announced = announced.where(GuardedConversationRow.kept_at >= what.since)
        if what.until is not None:
            announced = announced.where(GuardedConversationRow.kept_at < what.until)
        await session.execute(announced)
    await session.execute(delete(ForgetOrderRow).where(ForgetOrderRow.ordered_at < moment - _ORDERS_KEPT))
    session.add(
        ForgetOrderRow(
            id=new_id(),
            ordered_at=moment,
            episode_id=what.episode_id,
            key_id=what.key_id,
            since=what.since,
            until=what.until,
            kind=None if what.kind is None else what.kind.value,
        )
    )
    await session.flush()


async def forgotten(session: AsyncSession, interactions: Sequence[Interaction]) -> set[UUID]:
    """Those of these new interactions that were forgotten already. Imported rows are not: importing again is a wish."""
    asked = [each for each in interactions if each.kind is not Kind.IMPORT]
    if not asked:
        return set()
    new = (
        func.unnest(
            literal([each.id for each in asked], ARRAY(Uuid)),
            literal([each.episode_id for each in asked], ARRAY(Uuid)),
            literal([each.key_id for each in asked], ARRAY(Uuid)),
            literal([each.created_at for each in asked], ARRAY(TIMESTAMP(timezone=True))),
            literal([each.kind.value for each in asked], ARRAY(Text)),
        )
        .table_valued("id", "episode_id", "key_id", "created_at", "kind", name="new")
        .render_derived()
    )
    is_ordered = exists().where(
        new.c.created_at < ForgetOrderRow.ordered_at,
        *(
            or_(getattr(ForgetOrderRow, name).is_(None), getattr(ForgetOrderRow, name) == new.c[name])
            for name in ("episode_id", "key_id", "kind")
        ),
        or_(ForgetOrderRow.since.is_(None), new.c.created_at >= ForgetOrderRow.since),
        or_(ForgetOrderRow.until.is_(None), new.c.created_at < ForgetOrderRow.until),
    )
    is_dead = exists().where(TombstoneRow.interaction_id == new.c.id)
    return set(await session.scalars(select(new.c.id).where(or_(is_dead, is_ordered))))


def due(kind: Kind, days: int) -> What:
    """What retention forgets: rows of a kind that are older than so many days."""
    return replace(What(), kind=kind, until=now() - timedelta(days=days))
