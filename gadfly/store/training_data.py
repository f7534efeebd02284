"""The data that a training run can learn from: labelled answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self
from uuid import UUID, uuid5

from sqlalchemy import ARRAY, Uuid, any_, case, cast, exists, func, null, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.fields import HexBytes
from gadfly.grading import Grade
from gadfly.records import Kind, Split
from gadfly.store.labels import Label, LabelSource, is_labelled
from gadfly.store.tables import (
    CritiqueRow,
    FeedbackRow,
    InteractionRow,
    QuestionRow,
    RefinementRow,
    TrainingRunRow,
)
from gadfly.store.votes import known_reference, rating_of_refinement, word_on_refinement


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledAnswer:
    """An answer to a question, and whether it is right: a logged one, a served refinement, or one sampled for a run."""

    interaction_id: UUID  # for a sampled answer, the interaction with its question and reference
    question_hash: HexBytes
    question: str
    response: str
    is_right: bool
    source: LabelSource
    reference: str | None  # the newest known; with it the answer also serves stage II
    sample: int | None = None  # the number of a sampled answer; None: logged
    refinement_id: UUID | None = None  # of a refinement in the interaction; None: its response

    @property
    def key(self) -> str:
        """The identity of the answer within a run."""
        logged = str(self.refinement_id or self.interaction_id)
        return logged if self.sample is None else f"{logged}/{self.sample}"

    @property
    def id(self) -> UUID:
        """The identity of the answer in an evaluation, by which the judgements of two critics are paired."""
        logged = self.refinement_id or self.interaction_id
        return logged if self.sample is None else uuid5(logged, self.key)

    def sampled(self, sample: int, response: str, *, is_right: bool) -> Self:
        """The same question with an answer sampled by the actor and graded against the reference."""
        return replace(self, sample=sample, response=response, is_right=is_right, source=LabelSource.REFERENCE)


async def labelled_answers(session: AsyncSession, split: Split, *, limit: int) -> list[LabelledAnswer]:
    """Labelled answers, the newest first, each text once per question; of at most `limit` questions.

    Feedback about an answer takes precedence over its grade against a reference, and newer feedback over older, even
    when it is about another interaction with the same text. A newer reference updates the grades. On the held-out side
    a rating is no label.
    """
    label = Label()
    counts = label.exists if split is Split.TRAIN else label.is_firm
    questions = (
        label.joined(select(InteractionRow.question_hash))
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .where(QuestionRow.split == split, counts)
        .group_by(InteractionRow.question_hash)
        .order_by(func.max(InteractionRow.created_at).desc(), InteractionRow.question_hash)
        .limit(limit)
    )
    rows = await session.execute(
        label.joined(
            select(
                InteractionRow.id,
                InteractionRow.question_hash,
                InteractionRow.question,
                InteractionRow.response,
                label.is_right.label("is_right"),
                label.source.label("source"),
                label.reference.label("reference"),
                label.given_at.label("given_at"),
            )
        )
        .where(InteractionRow.question_hash.in_(questions), counts)
        .order_by(InteractionRow.created_at.desc(), InteractionRow.id.desc())
    )
    answers: dict[tuple[bytes, str], LabelledAnswer] = {}
    newest_given_at: dict[tuple[bytes, str], datetime] = {}
    for row in rows:
        same = (row.question_hash, row.response.strip())
        newer = answers.get(same)
        if newer is None:
            answers[same] = LabelledAnswer(
                interaction_id=row.id,
                question_hash=row.question_hash,
                question=row.question,
                response=row.response,
                is_right=row.is_right,
                source=LabelSource(row.source),
                reference=row.reference,
            )
        else:
            answers[same] = replace(newer, reference=newer.reference or row.reference)
            if newer.source is LabelSource.RATING and LabelSource(row.source) is not LabelSource.RATING:
                answers[same] = replace(answers[same], is_right=row.is_right, source=LabelSource(row.source))
        if row.given_at is not None and (same not in newest_given_at or row.given_at > newest_given_at[same]):
            newest_given_at[same] = row.given_at
            answers[same] = replace(answers[same], is_right=row.is_right, source=LabelSource(row.source))
    return list(answers.values())


async def answers_to_learn_from(session: AsyncSession, *, limit: int) -> list[LabelledAnswer]:
    """The labelled answers of the train side, and the labelled refinements that callers were served; see `labelled_*`.

    A refinement whose text is also a response is left out.
    """
    answers = await labelled_answers(session, Split.TRAIN, limit=limit)
    texts = {(answer.question_hash, answer.response.strip()) for answer in answers}
    refinements = await labelled_refinements(session, Split.TRAIN, limit=limit)
    return [*answers, *(item for item in refinements if (item.question_hash, item.response.strip()) not in texts)]


async def labelled_refinements(session: AsyncSession, split: Split, *, limit: int) -> list[LabelledAnswer]:
    """At most `limit` refinements that are known to be right or wrong, newest first, each text once per question.

    The newest word about a refinement decides, else its grade, else the newest rating. A text that states no answer is
    none to judge.
    """
    label = Label()
    word, rating = (
        select(FeedbackRow.refinement_id, said.label("said"))
        .ext(distinct_on(FeedbackRow.refinement_id))
        .where(said.is_not(None))
        .order_by(FeedbackRow.refinement_id, FeedbackRow.created_at.desc(), FeedbackRow.id.desc())
        .subquery(name)
        for said, name in ((word_on_refinement(), "newest_word"), (rating_of_refinement(), "newest_rated"))
    )
    grade = case((RefinementRow.grade == Grade.RIGHT, True), (RefinementRow.grade == Grade.WRONG, False), else_=null())
    is_right = func.coalesce(word.c.said, grade, rating.c.said)
    source = case(
        (word.c.said.is_not(None), LabelSource.PERSON.value),
        (grade.is_not(None), LabelSource.REFERENCE.value),
        else_=LabelSource.RATING.value,
    )
    columns = select(
        RefinementRow.id.label("refinement_id"),
        RefinementRow.text,
        InteractionRow.id,
        InteractionRow.question_hash,
        InteractionRow.question,
        is_right.label("is_right"),
        source.label("source"),
        label.reference.label("reference"),
    )
    rows = await session.execute(
        label.joined(columns.join(InteractionRow, InteractionRow.id == RefinementRow.interaction_id))
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .outerjoin(word, word.c.refinement_id == RefinementRow.id)
        .outerjoin(rating, rating.c.refinement_id == RefinementRow.id)
        .where(QuestionRow.split == split, is_right.is_not(None))
        .order_by(InteractionRow.created_at.desc(), RefinementRow.id.desc())
        .limit(limit)
    )
    found: dict[tuple[bytes, str], LabelledAnswer] = {}
    for row in rows:
        answer = LabelledAnswer(
            interaction_id=row.id,
            question_hash=row.question_hash,
            question=row.question,
            response=row.text,
            is_right=row.is_right,
            source=LabelSource(row.source),
            reference=row.reference,
            refinement_id=row.refinement_id,
        )
        found.setdefault((row.question_hash, row.text.strip()), answer)
    return list(found.values())


async def served_confidences(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, float]:
    """By interaction, the mean probability that its response is right, by the critic that served it.

    An interaction without a critique of its response whose verdict's probabilities were read is absent.
    """
    stated = CritiqueRow.p_correct + CritiqueRow.p_incorrect
    rows = await session.execute(
        select(CritiqueRow.interaction_id, func.avg(CritiqueRow.p_correct / stated))
        .where(
            CritiqueRow.interaction_id == any_(cast(list(ids), ARRAY(Uuid))),
            CritiqueRow.round == 0,
            CritiqueRow.supplied.is_(False),
            stated > 0,
        )
        .group_by(CritiqueRow.interaction_id)
    )
    return {id: float(confidence) for id, confidence in rows}


async def traffic_counts(session: AsyncSession) -> tuple[int, int]:
    """Numbers of right and of wrong labelled answers in the deployment's own traffic; in imported rows without any.

    Only callers' own answers have the class shares that callers see.
    """
    label = Label()
    rows = await session.execute(
        label.joined(
            select(
                (InteractionRow.kind == Kind.IMPORT).label("is_import"),
                label.is_right.label("is_right"),
                func.count().label("answers"),
            ).select_from(InteractionRow)
        )
        .where(label.is_firm)
        .group_by("is_import", "is_right")
    )
    counts = {(row.is_import, row.is_right): int(row.answers) for row in rows}
    for is_import in (False, True):
        right_and_wrong = counts.get((is_import, True), 0), counts.get((is_import, False), 0)
        if any(right_and_wrong):
            return right_and_wrong
    return 0, 0


async def has_labels(session: AsyncSession, split: Split, *, with_reference: bool = False) -> bool:
    """Whether any answer on this side has a label, and, if `with_reference`, a known reference."""
    statement = (
        select(InteractionRow.id)
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .where(
            QuestionRow.split == split,
            is_labelled(),
        )
        .limit(1)
    )
    if with_reference:
        statement = statement.where(
            InteractionRow.reference.is_not(None)
            | exists().where(FeedbackRow.interaction_id == InteractionRow.id, known_reference().is_not(None))
        )
    return await session.scalar(statement) is not None


async def count_new_labels(session: AsyncSession) -> int:
    """Labelled train-split answers whose label is newer than the newest run."""
    since = select(func.max(TrainingRunRow.created_at)).scalar_subquery()
    label = Label()
    # An imported row keeps its own time, which may be years ago; its question was stored at the import.
    stored_at = case((InteractionRow.grade.is_not(None), QuestionRow.created_at), else_=None)
    count = await session.scalar(
        label.joined(select(func.count()).select_from(InteractionRow))
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .where(
            QuestionRow.split == Split.TRAIN,
            label.exists,
            func.greatest(label.changed_at, stored_at) > func.coalesce(since, text("'-infinity'::timestamptz")),
        )
    )
    return count or 0


def source_counts(answers: Sequence[LabelledAnswer]) -> dict[str, int]:
    """The number of answers from each label source."""
    counts = dict.fromkeys((source.value for source in LabelSource), 0)
    for answer in answers:
        counts[answer.source.value] += 1
    return counts
