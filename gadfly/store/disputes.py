"""Disputes about labels: the answers whose votes differ, the rulings of admins, and what a key taught.

The label of an answer follows the rule of `gadfly/votes.py`; `gadfly/store/labels.py` keeps it in line with the votes.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, cast, func, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import NotFound
from gadfly.records import Ruling, Split
from gadfly.store.labels import WHITE_SPACE, AnswerKey, is_about, is_among, relabel, stored_text_sha256
from gadfly.store.tables import AnswerRow, CriticVersionRow, InteractionRow, QuestionRow, StoredVotes
from gadfly.votes import LabelSource, VoteAgreement, Votes


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedAnswer:
    """One answer with the votes about it and its label; the texts are those of the newest interaction about it."""

    interaction_id: UUID
    question: str
    response: str
    split: Split
    votes: Votes
    voted_right: bool | None
    standing: VoteAgreement
    is_right: bool | None
    source: LabelSource | None
    frozen_at: datetime | None
    ruling: Ruling | None


async def rule(session: AsyncSession, interaction_id: UUID, ruling: Ruling) -> tuple[bool | None, JudgedAnswer]:
    """Decide the label of the answer that an interaction is about, whatever the votes say and whether it is frozen.

    Returns the label before and the answer after.

    `Ruling.VOTES` ends an earlier ruling; a held-out answer is then frozen with the label that the votes give now.

    Raises:
        NotFound: there is no such interaction.
    """
    answer = await _answer_of(session, interaction_id)
    await relabel(session, [answer])  # adds and locks the row
    before = await session.scalar(select(AnswerRow.is_right).where(is_among([answer])))
    is_withdrawn = ruling is Ruling.VOTES
    await session.execute(
        update(AnswerRow)
        .where(is_among([answer]))
        .values({"ruling": None if is_withdrawn else ruling} | ({"frozen_at": None} if is_withdrawn else {}))
        .execution_options(synchronize_session=False)
    )
    await relabel(session, [answer])
    return before, await judged_answer(session, interaction_id)


async def judged_answer(session: AsyncSession, interaction_id: UUID) -> JudgedAnswer:
    """The answer that an interaction is about.

    Raises:
        NotFound: there is no such interaction, or no vote about its answer.
    """
    found = await session.execute(_judged().where(is_among([await _answer_of(session, interaction_id)])))
    row = found.first()
    if row is None:
        raise NotFound(f"there is no vote about the answer of the interaction {interaction_id}")
    return JudgedAnswer(**row._mapping)


async def disputed_answers(
    session: AsyncSession, *, only_conflicts: bool, limit: int, after: AnswerKey | None = None
) -> list[tuple[AnswerKey, JudgedAnswer]]:
    """Answers whose votes differ from each other or from a frozen label, and about which no admin decided.

    With `only_conflicts`, only those that have no label because of it. Answers come in the order of their hashes, from
    the one after `after` on.
    """
    differs = or_(
        AnswerRow.standing.in_((VoteAgreement.CONFLICT, VoteAgreement.DISPUTED)),
        and_(AnswerRow.frozen_at.is_not(None), AnswerRow.voted_right != AnswerRow.is_right),
    )
    chosen = (
        select(AnswerRow.question_hash, AnswerRow.text_sha256)
        .where(AnswerRow.ruling.is_(None), AnswerRow.standing == VoteAgreement.CONFLICT if only_conflicts else differs)
        .order_by(AnswerRow.question_hash, AnswerRow.text_sha256)
        .limit(limit)
    )
    if only_conflicts:
        chosen = chosen.where(AnswerRow.is_right.is_(None))
    if after is not None:
        chosen = chosen.where(tuple_(AnswerRow.question_hash, AnswerRow.text_sha256) > after)
    keys = [(question_hash, text) for question_hash, text in await session.execute(chosen)]
    rows = await session.execute(
        _judged()
        .add_columns(AnswerRow.question_hash.label("hash"), AnswerRow.text_sha256.label("text"))
        .where(is_among(keys))
    )
    found = {}
    for row in rows:
        values = dict(row._mapping)
        key = (values.pop("hash"), values.pop("text"))
        found[key] = JudgedAnswer(**values)
    return [(key, found[key]) for key in keys if key in found]


def _judged() -> Select[*tuple[Any, ...]]:
    return (
        select(
            InteractionRow.id.label("interaction_id"),
            InteractionRow.question,
            InteractionRow.response,
            QuestionRow.split,
            func.coalesce(AnswerRow.votes, cast("[]", JSONB), type_=StoredVotes).label("votes"),
            AnswerRow.voted_right,
            AnswerRow.standing,
            AnswerRow.is_right,
            AnswerRow.source,
            AnswerRow.frozen_at,
            AnswerRow.ruling,
        )
        .ext(distinct_on(AnswerRow.question_hash, AnswerRow.text_sha256))
        .join(AnswerRow, is_about(AnswerRow, InteractionRow))
        .join(QuestionRow, QuestionRow.hash == AnswerRow.question_hash)
        .order_by(
            AnswerRow.question_hash, AnswerRow.text_sha256, InteractionRow.created_at.desc(), InteractionRow.id.desc()
        )
    )


async def _answer_of(session: AsyncSession, interaction_id: UUID) -> AnswerKey:
    statement = select(InteractionRow.question_hash, stored_text_sha256())
    found = (await session.execute(statement.where(InteractionRow.id == interaction_id))).one_or_none()
    if found is None:
        raise NotFound(f"there is no interaction {interaction_id}")
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Taught:
    """A critic that learned from labels of a key; `answers` is 0 if only a version that it continues did."""

    version: int
    answers: int


async def critics_taught_by(session: AsyncSession, key_id: UUID) -> list[Taught]:
    """The critics whose runs, or the runs of the versions that they continue, learned from labels that a key supports.

    The manifests of the runs name the answers. Those whose interactions were deleted since are not counted.
    """
    rows = await session.execute(
        text(
            "SELECT critic.version, count(*) AS answers FROM critic_versions AS critic JOIN training_runs AS run"
            " ON run.id = critic.run_id CROSS JOIN jsonb_array_elements(run.manifest -> 'answers') AS entry"
            " JOIN interactions AS i ON i.id = (entry ->> 'id')::uuid"
            " JOIN answers AS a ON a.question_hash = i.question_hash"
            " AND a.text_sha256 = coalesce(i.text_sha256,"
            " sha256(convert_to(btrim(i.response, :white_space), 'UTF8')))"
            " WHERE a.votes @> jsonb_build_array(jsonb_build_object("
            "'key', CAST(:key_id AS text), 'right', (entry ->> 'is_right')::boolean))"
            " GROUP BY critic.version"
        ),
        {"key_id": str(key_id), "white_space": WHITE_SPACE},
    )
    answers = {row.version: row.answers for row in rows}
    parents = (await session.execute(select(CriticVersionRow.version, CriticVersionRow.parent))).all()
    taught: list[Taught] = []
    for version, parent in sorted(parents):  # a version is younger than its parent
        if version in answers or any(item.version == parent for item in taught):
            taught.append(Taught(version, answers.get(version, 0)))
    return taught
