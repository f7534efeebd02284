"""The data that a training run can learn from: labelled answers."""

from collections.abc import Sequence  # noqa: I001
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Self
from uuid import UUID, uuid5

from sqlalchemy import ARRAY, ColumnElement, Uuid, any_, case, cast, exists, func, or_, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.fields import HexBytes
from gadfly.grading import Grade
from gadfly.records import Kind, Split
from gadfly.store.labels import (
    AnswerKey,
    Label,
    distrusted_keys,
    is_about,
    is_any_of,
    newest_first,
    read_model,
    reference_statements,
    text_sha256,
)
from gadfly.store.tables import (
    AnswerRow,
    CritiqueRow,
    FeedbackRow,
    InteractionRow,
    QuestionRow,
    RefinementRow,
    TrainingRunRow,
)
from gadfly.store.words import known_reference, rating_of_refinement, word_on_refinement
from gadfly.task_names import DEFAULT_TASK
from gadfly.votes import GRADE_ACCURACY, LabelSource, Vote, Votes, certainty, one_vote_each, opinion


_FEW_LABELS = 20_000  # so many are sorted in a fraction of a second


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledAnswer:
    """An answer to a question, and whether it is right: a logged one, a served refinement, or one sampled for a run."""

    interaction_id: UUID  # for a sampled answer, the interaction with its question and reference
    question_hash: HexBytes
    question: str
    response: str
    is_right: bool
    source: LabelSource
    reference: str | None  # with it the answer also serves stage II
    sample: int | None = None  # the number of a sampled answer; None: logged
    certainty: float = 1.0  # the probability that `is_right` is true
    key_id: UUID | None = None  # the only key that supports the label; None: several, or the operator
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
        return replace(
            self,
            sample=sample,
            response=response,
            is_right=is_right,
            source=LabelSource.REFERENCE,
            certainty=GRADE_ACCURACY,
            key_id=None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenQuestion:
    """An imported question with a reference and without a response: the actor samples answers to it."""

    interaction_id: UUID
    question_hash: HexBytes
    question: str
    reference: str

    def sampled(self, sample: int, response: str, *, is_right: bool) -> LabelledAnswer:
        """An answer sampled by the actor and graded against the reference."""
        return LabelledAnswer(
            interaction_id=self.interaction_id,
            question_hash=self.question_hash,
            question=self.question,
            response=response,
            is_right=is_right,
            source=LabelSource.REFERENCE,
            reference=self.reference,
            sample=sample,
            certainty=GRADE_ACCURACY,
        )


async def open_questions(
    session: AsyncSession, split: Split, *, limit: int, task: str = DEFAULT_TASK
) -> list[OpenQuestion]:
    """Questions of a task without a response on one side, the newest first, each once."""
    reference = _known_reference(await distrusted_keys(session))
    rows = await session.execute(
        select(InteractionRow.id, InteractionRow.question_hash, InteractionRow.question, reference.label("reference"))
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .where(*_on_side(task, split), InteractionRow.response.is_(None), reference.is_not(None))
        .order_by(InteractionRow.created_at.desc(), InteractionRow.id.desc())
        .limit(limit)
    )
    found: dict[bytes, OpenQuestion] = {}
    for row in rows:
        found.setdefault(
            row.question_hash,
            OpenQuestion(
                interaction_id=row.id,
                question_hash=row.question_hash,
                question=row.question,
                reference=row.reference,
            ),
        )
    return list(found.values())


def _on_side(task: str, split: Split) -> tuple[ColumnElement[bool], ...]:
    return QuestionRow.task == task, QuestionRow.split == split


def _known_reference(distrusted: frozenset[UUID]) -> ColumnElement[str | None]:
    """The newest readable reference of an interaction: of feedback about it, or its own."""
    newest = (
        select(known_reference())
        .where(
            FeedbackRow.interaction_id == InteractionRow.id,
            known_reference().is_not(None),
            FeedbackRow.grade_problem.is_(None),
            or_(FeedbackRow.key_id.is_(None), FeedbackRow.key_id.not_in(distrusted)),
        )
        .order_by(*newest_first(FeedbackRow))
        .limit(1)
        .scalar_subquery()
    )
    own = case((InteractionRow.grade_problem.is_(None), InteractionRow.reference), else_=None)
    return func.coalesce(newest, own)


async def count_open_questions(session: AsyncSession, split: Split, task: str = DEFAULT_TASK) -> int:
    """The number of questions of a task without a response on one side."""
    count = await session.scalar(
        select(func.count(InteractionRow.question_hash.distinct()))
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .where(*_on_side(task, split), InteractionRow.response.is_(None))
    )
    return count or 0


async def labelled_answers(
    session: AsyncSession, split: Split, *, limit: int, task: str = DEFAULT_TASK
) -> list[LabelledAnswer]:
    """Labelled answers of a task, the newest first, each text once per question; of at most `limit` questions.

    Several interactions about one text are one answer: that of the newest interaction. On the held-out side a rating is
    no label.
    """
    counts = Label.exists if split is Split.TRAIN else Label.measures
    hashes = await _newest_labelled_questions(session, task, split, counts, limit=limit)
    label = (AnswerRow.is_right, AnswerRow.source, AnswerRow.key_id, AnswerRow.votes, AnswerRow.ruling)
    rows = await session.execute(
        select(
            InteractionRow.id,
            InteractionRow.question,
            InteractionRow.response,
            AnswerRow.question_hash,
            AnswerRow.text_sha256,
            *label,
        )
        .join(AnswerRow, is_about(AnswerRow, InteractionRow))
        .where(is_any_of(InteractionRow.question_hash, hashes), counts)
        .order_by(InteractionRow.created_at.desc(), InteractionRow.id.desc())
    )
    model, distrusted = await read_model(session), await distrusted_keys(session)
    references = await _references(session, hashes, distrusted)
    certain = cache(partial(certainty, model=model, distrusted=distrusted))  # few answers have votes of their own
    answers: dict[AnswerKey, LabelledAnswer] = {}
    for row in rows:
        key = (row.question_hash, row.text_sha256)
        if key not in answers:
            answers[key] = LabelledAnswer(
                interaction_id=row.id,
                question_hash=row.question_hash,
                question=row.question,
                response=row.response,
                is_right=row.is_right,
                source=row.source,
                reference=_reference(references.get(key, ()), row.is_right, row.votes or ()),
                certainty=certain(row.is_right, row.votes, row.ruling),
                key_id=row.key_id,
            )
    return list(answers.values())


async def _newest_labelled_questions(
    session: AsyncSession, task: str, split: Split, counts: ColumnElement[bool], *, limit: int
) -> list[bytes]:
    """A task's questions with the newest interactions about a labelled answer, the newest first, of at most `limit`."""
    labelled = (
        select(InteractionRow.question_hash, InteractionRow.created_at, InteractionRow.id)
        .join(AnswerRow, is_about(AnswerRow, InteractionRow))
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .where(*_on_side(task, split), counts)
    )
    some = select(AnswerRow.question_hash).where(Label.exists).limit(_FEW_LABELS + 1).subquery()
    if (await session.scalar(select(func.count()).select_from(some)) or 0) <= _FEW_LABELS:
        found = labelled.subquery()
        every = await session.scalars(
            select(found.c.question_hash)
            .group_by(found.c.question_hash)
            .order_by(func.max(found.c.created_at).desc(), found.c.question_hash)
            .limit(limit)
        )
        return list(every)
    # Where labels are many, the newest interactions have enough of them: nothing older is read.
    hashes: dict[bytes, None] = {}
    page = labelled.order_by(InteractionRow.created_at.desc(), InteractionRow.id.desc()).limit(limit)
    while len(hashes) < limit:
        rows = (await session.execute(page)).all()
        hashes.update(dict.fromkeys(row.question_hash for row in rows))
        if len(rows) < limit:
            break
        page = page.where(tuple_(InteractionRow.created_at, InteractionRow.id) < (rows[-1].created_at, rows[-1].id))
    return list(hashes)[:limit]


async def answers_to_learn_from(session: AsyncSession, *, limit: int, task: str = DEFAULT_TASK) -> list[LabelledAnswer]:
    """The labelled answers of a task's train side, and the labelled refinements that callers were served.

    A refinement whose text is also a response is left out. `limit` is as in `labelled_answers`, for each of the two.
    """
    answers = await labelled_answers(session, Split.TRAIN, limit=limit, task=task)
    texts = {(answer.question_hash, text_sha256(answer.response)) for answer in answers}
    refinements = await labelled_refinements(session, Split.TRAIN, limit=limit, task=task)
    return [*answers, *(each for each in refinements if (each.question_hash, text_sha256(each.response)) not in texts)]


async def labelled_refinements(
    session: AsyncSession, split: Split, *, limit: int, task: str = DEFAULT_TASK
) -> list[LabelledAnswer]:
    """Of the newest `limit` refinements with a grade or feedback those with a label, each text once per question.

    The label follows the rule for responses (`gadfly/votes.py`), from the words and ratings about the refinements and
    from their grades. A text that states no answer is none to judge.
    """
    model, distrusted = await read_model(session), await distrusted_keys(session)
    given_by = (
        select(FeedbackRow.key_id)
        .where(
            FeedbackRow.interaction_id == InteractionRow.id,
            known_reference().is_not(None),
            FeedbackRow.grade_problem.is_(None),
        )
        .order_by(*newest_first(FeedbackRow))
        .limit(1)
    )
    is_graded = RefinementRow.grade.in_((Grade.RIGHT, Grade.WRONG))
    says_it = or_(FeedbackRow.correct.is_not(None), FeedbackRow.rating.is_not(None))
    rows = await session.execute(
        select(
            RefinementRow.id.label("refinement_id"),
            RefinementRow.text,
            RefinementRow.grade,
            case((given_by.exists(), given_by.scalar_subquery()), else_=InteractionRow.key_id).label("grade_key"),
            InteractionRow.id,
            InteractionRow.question_hash,
            InteractionRow.question,
            _known_reference(distrusted).label("reference"),
        )
        .join(InteractionRow, InteractionRow.id == RefinementRow.interaction_id)
        .join(QuestionRow, QuestionRow.hash == InteractionRow.question_hash)
        .where(
            *_on_side(task, split),
            or_(is_graded, exists().where(FeedbackRow.refinement_id == RefinementRow.id, says_it)),
        )
        .order_by(InteractionRow.created_at.desc(), RefinementRow.id.desc())
        .limit(limit)
    )
    found: dict[AnswerKey, list[Any]] = {}
    statements: dict[AnswerKey, list[Vote]] = {}
    texts: dict[UUID, AnswerKey] = {}
    for row in rows:
        texts[row.refinement_id] = key = (row.question_hash, text_sha256(row.text))
        found.setdefault(key, []).append(row)
        if row.grade in (Grade.RIGHT, Grade.WRONG):
            vote = Vote(row.grade_key, LabelSource.REFERENCE, row.grade is Grade.RIGHT)
            statements.setdefault(key, []).append(vote)
    for refinement_id, vote in await _votes_on_refinements(session, list(texts)):
        statements.setdefault(texts[refinement_id], []).append(vote)
    answers = []
    for key, (newest, *_) in found.items():
        votes = one_vote_each(statements.get(key, ()))
        given = opinion(votes, model, distrusted=distrusted)
        if given.is_right is None or given.source is None:
            continue
        contradicting = Grade.WRONG if given.is_right else Grade.RIGHT
        answers.append(
            LabelledAnswer(
                interaction_id=newest.id,
                question_hash=newest.question_hash,
                question=newest.question,
                response=newest.text,
                is_right=given.is_right,
                source=given.source,
                reference=None if newest.grade is contradicting else newest.reference,
                certainty=certainty(given.is_right, votes, None, model, distrusted),
                key_id=given.key_id,
                refinement_id=newest.refinement_id,
            )
        )
    return answers


async def _votes_on_refinements(session: AsyncSession, ids: Sequence[UUID]) -> list[tuple[UUID, Vote]]:
    """The words and ratings about these refinements, the oldest first."""
    rows = await session.execute(
        select(
            FeedbackRow.refinement_id,
            FeedbackRow.key_id,
            word_on_refinement().label("word"),
            rating_of_refinement().label("rating"),
        )
        .where(FeedbackRow.refinement_id == any_(cast(list(ids), ARRAY(Uuid))))
        .order_by(*newest_first(FeedbackRow))
    )
    return [
        (row.refinement_id, Vote(row.key_id, source, is_right))
        for row in reversed(rows.all())
        for source, is_right in ((LabelSource.RATING, row.rating), (LabelSource.PERSON, row.word))
        if is_right is not None
    ]


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


@dataclass(frozen=True, slots=True)
class _Reference:
    """A reference that a key gave with an answer or about it, and whether the answer is right by it."""

    text: str
    key_id: UUID | None
    is_right: bool | None  # None: by this reference the answer is neither


async def _references(
    session: AsyncSession, questions: Sequence[bytes], distrusted: frozenset[UUID]
) -> dict[AnswerKey, list[_Reference]]:
    """The references of the answers to these questions, the newest first."""
    said = reference_statements(questions).subquery()
    rows = await session.execute(
        select(said)
        .where(said.c.reference.is_not(None))
        .order_by(said.c.stored_at.desc().nulls_last(), said.c.created_at.desc(), said.c.id.desc())
    )
    found: dict[AnswerKey, list[_Reference]] = {}
    for row in rows:
        if row.key_id not in distrusted:
            given = _Reference(row.reference, row.key_id, row.is_right)
            found.setdefault((row.question_hash, row.text), []).append(given)
    return found


def _reference(given: Sequence[_Reference], is_right: bool, votes: Votes) -> str | None:
    """The reference to learn with: the newest that agrees with the label, else one that does not contradict it.

    A reference that contradicts the label serves only where its own key supports the label: then that key says that its
    reference is right, although the answer was not recognised by it.
    """
    supporters = {vote.key_id for vote in votes if vote.is_right is is_right}
    usable = [item for item in given if item.is_right in (None, is_right) or item.key_id in supporters]
    best = max(usable, key=lambda item: (item.is_right is is_right, item.is_right is None), default=None)
    return None if best is None else best.text


async def traffic_counts(session: AsyncSession, task: str = DEFAULT_TASK) -> tuple[int, int]:
    """Numbers of right and of wrong labelled answers in a task's own traffic; in imported rows without any.

    Only callers' own answers have the class shares that callers see, and among those only labels that the label queue
    did not ask for because of what critics said.
    """
    rows = await session.execute(
        select(
            (InteractionRow.kind == Kind.IMPORT).label("is_import"),
            Label.is_right.label("is_right"),
            func.count().label("answers"),
        )
        .join(AnswerRow, is_about(AnswerRow, InteractionRow))
        .where(Label.measures, InteractionRow.task == task)
        .group_by("is_import", "is_right")
    )
    counts = {(row.is_import, row.is_right): int(row.answers) for row in rows}
    for is_import in (False, True):
        right_and_wrong = counts.get((is_import, True), 0), counts.get((is_import, False), 0)
        if any(right_and_wrong):
            return right_and_wrong
    return 0, 0


async def has_labels(
    session: AsyncSession, split: Split, *, with_reference: bool = False, task: str = DEFAULT_TASK
) -> bool:
    """Whether a task has anything to learn from: a labelled answer on this side, or a question for the actor's pool.

    `with_reference` counts answers only if a reference is known; every question for the pool has one.
    """
    statement = (
        select(AnswerRow.question_hash)
        .join(QuestionRow, QuestionRow.hash == AnswerRow.question_hash)
        .where(*_on_side(task, split), Label.exists)
        .limit(1)
    )
    if with_reference:
        statement = statement.join(InteractionRow, is_about(AnswerRow, InteractionRow)).where(
            (InteractionRow.reference.is_not(None) & InteractionRow.grade_problem.is_(None))
            | exists().where(
                FeedbackRow.interaction_id == InteractionRow.id,
                known_reference().is_not(None),
                FeedbackRow.grade_problem.is_(None),
            )
        )
    return await session.scalar(statement) is not None or await count_open_questions(session, split, task) > 0


async def count_new_labels(session: AsyncSession, task: str = DEFAULT_TASK, *, at_most: int = 2**31) -> int:
    """Train-split answers whose label is newer than the task's newest run: they had none then, or another one.

    It reads no more than the first `at_most` of them.
    """
    since = select(func.max(TrainingRunRow.created_at)).where(TrainingRunRow.task == task).scalar_subquery()
    found = (
        select(AnswerRow.question_hash)
        .join(QuestionRow, QuestionRow.hash == AnswerRow.question_hash)
        .where(
            *_on_side(task, Split.TRAIN),
            Label.exists,
            AnswerRow.changed_at > func.coalesce(since, text("'-infinity'::timestamptz")),
        )
        .limit(at_most)
    )
    return await session.scalar(select(func.count()).select_from(found.subquery())) or 0


def source_counts(answers: Sequence[LabelledAnswer]) -> dict[str, int]:
    """The number of answers from each label source."""
    counts = dict.fromkeys((source.value for source in LabelSource), 0)
    for answer in answers:
        counts[answer.source.value] += 1
    return counts
