"""The label of an answer: one rule for training, counting, the rollback watch, the dry run and the export.

Feedback with `correct` takes precedence over a grade, however new the grade's reference is; the newest such feedback
decides. Without it, the grade against the newest reference decides: `InteractionRow.grade`. Without either, the newest
rating decides, in training alone (`Label.is_firm`). `gadfly.store.votes` says what a row of feedback says.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.sql.selectable import Subquery

from gadfly.grading import Grade
from gadfly.records import FeedbackSource
from gadfly.store.tables import FeedbackRow, InteractionRow
from gadfly.store.votes import known_reference, rating_of_response, word_on_response


class LabelSource(StrEnum):
    """The source of a label."""

    PERSON = "person"  # feedback with `correct`
    IMPORT = "import"  # an imported row with `correct`
    REFERENCE = "reference"  # the answer was graded against a reference
    RATING = "rating"  # a rating, which is weaker than the others


@dataclass(frozen=True, slots=True)
class _Parts:
    """The feedback that decides, each with at most one row per interaction."""

    verdict: Subquery  # the newest with `correct`
    reference: Subquery  # the newest with a reference
    rating: Subquery  # the newest with a rating that says something
    newest: Subquery  # the time of the newest of either kind


class Label:
    """The label of an interaction as columns of a statement that selects from `InteractionRow`.

    `joined` adds the tables that the columns read. All columns are NULL where there is no label, except `reference`:
    the newest known one, whether or not the answer was graded against it.
    """

    def __init__(self) -> None:
        parts = _parts()
        self._parts = parts
        verdict, reference, rating = parts.verdict.c, parts.reference.c, parts.rating.c
        self.is_right: ColumnElement[bool | None] = func.coalesce(
            verdict.said, InteractionRow.grade == Grade.RIGHT, rating.said
        )
        self.is_firm: ColumnElement[bool] = or_(verdict.said.is_not(None), InteractionRow.grade.is_not(None))
        """Whether the label is more than a rating: only then does it measure a critic."""
        self.exists: ColumnElement[bool] = or_(self.is_firm, rating.said.is_not(None))
        self.source: ColumnElement[str | None] = case(
            (verdict.source == FeedbackSource.IMPORT, LabelSource.IMPORT.value),
            (verdict.said.is_not(None), LabelSource.PERSON.value),
            (InteractionRow.grade.is_not(None), LabelSource.REFERENCE.value),
            (rating.said.is_not(None), LabelSource.RATING.value),
            else_=None,
        )
        self.reference: ColumnElement[str | None] = func.coalesce(reference.said, InteractionRow.reference)
        self.given_at: ColumnElement[Any] = verdict.created_at
        """The time of the feedback with `correct`; NULL for a grade."""
        self.changed_at: ColumnElement[Any] = case(
            (
                self.exists,
                func.greatest(
                    parts.newest.c.at, case((InteractionRow.grade.is_not(None), InteractionRow.created_at), else_=None)
                ),
            ),
            else_=None,
        )
        """The time of the newest feedback that could change the label; for a grade alone, of the answer."""
        self.key_id: ColumnElement[Any] = case(
            (verdict.interaction_id.is_not(None), verdict.key_id),
            (reference.interaction_id.is_not(None), reference.key_id),
            (and_(InteractionRow.grade.is_(None), rating.interaction_id.is_not(None)), rating.key_id),
            else_=InteractionRow.key_id,
        )
        """The key of the caller who gave the label."""

    def joined(self, statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        """The statement, joined with the feedback that the columns read."""
        for part in (self._parts.verdict, self._parts.reference, self._parts.rating, self._parts.newest):
            statement = statement.outerjoin(part, part.c.interaction_id == InteractionRow.id)
        return statement


def is_labelled() -> ColumnElement[bool]:
    """Whether an interaction has a label, for statements that need nothing else: it stops at the first feedback."""
    says_it = or_(word_on_response().is_not(None), rating_of_response().is_not(None))
    judged = exists().where(FeedbackRow.interaction_id == InteractionRow.id, says_it)
    return or_(InteractionRow.grade.is_not(None), judged)


def _parts() -> _Parts:
    def newest_with(said: ColumnElement[Any], name: str) -> Subquery:
        about = (FeedbackRow.interaction_id, FeedbackRow.source, FeedbackRow.key_id, FeedbackRow.created_at)
        return (
            select(*about, said.label("said"))
            .ext(distinct_on(FeedbackRow.interaction_id))
            .where(said.is_not(None))
            .order_by(FeedbackRow.interaction_id, FeedbackRow.created_at.desc(), FeedbackRow.id.desc())
            .subquery(name)
        )

    newest = (
        select(FeedbackRow.interaction_id, func.max(FeedbackRow.created_at).label("at"))
        .where(or_(*(said.is_not(None) for said in (word_on_response(), known_reference(), rating_of_response()))))
        .group_by(FeedbackRow.interaction_id)
        .subquery("newest_label")
    )
    return _Parts(
        verdict=newest_with(word_on_response(), "newest_correct"),
        reference=newest_with(known_reference(), "newest_reference"),
        rating=newest_with(rating_of_response(), "newest_rating"),
        newest=newest,
    )
