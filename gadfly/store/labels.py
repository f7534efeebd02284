"""The label of an answer: one rule for training, counting, the rollback watch, the dry run and the export.

Feedback with `correct` takes precedence over a grade, however new the grade's reference is; the newest such feedback
decides. Without it, the grade against the newest reference decides: `InteractionRow.grade`. A grade that cannot tell
(`no_answer`) is no label.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, case, exists, func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.sql.selectable import Subquery

from gadfly.grading import Grade
from gadfly.records import FeedbackSource
from gadfly.store.tables import FeedbackRow, InteractionRow


class LabelSource(StrEnum):
    """The source of a label."""

    PERSON = "person"  # feedback with `correct`
    IMPORT = "import"  # an imported row with `correct`
    REFERENCE = "reference"  # the answer was graded against a reference


@dataclass(frozen=True, slots=True)
class _Parts:
    """The feedback that decides, each with at most one row per interaction."""

    verdict: Subquery  # the newest with `correct`
    reference: Subquery  # the newest with a reference that the grader can read
    newest: Subquery  # the time of the newest of either kind


class Label:
    """The label of an interaction as columns of a statement that selects from `InteractionRow`.

    `joined` adds the tables that the columns read. All columns are NULL where there is no label, except `reference`:
    the newest known one that the grader can read, whether or not the answer was graded against it.
    """

    def __init__(self) -> None:
        parts = _parts()
        self._parts = parts
        verdict, reference = parts.verdict.c, parts.reference.c
        of_grade = case((is_graded(), InteractionRow.grade == Grade.RIGHT), else_=None)
        self.is_right: ColumnElement[bool | None] = func.coalesce(verdict.correct, of_grade)
        self.exists: ColumnElement[bool] = or_(verdict.correct.is_not(None), is_graded())
        self.source: ColumnElement[str | None] = case(
            (verdict.source == FeedbackSource.IMPORT, LabelSource.IMPORT.value),
            (verdict.correct.is_not(None), LabelSource.PERSON.value),
            (is_graded(), LabelSource.REFERENCE.value),
            else_=None,
        )
        readable = case((InteractionRow.grade_problem.is_(None), InteractionRow.reference), else_=None)
        self.reference: ColumnElement[str | None] = func.coalesce(reference.reference, readable)
        self.given_at: ColumnElement[Any] = verdict.created_at
        """The time of the feedback with `correct`; NULL for a grade."""
        self.changed_at: ColumnElement[Any] = case(
            (
                self.exists,
                func.greatest(parts.newest.c.at, case((is_graded(), InteractionRow.created_at), else_=None)),
            ),
            else_=None,
        )
        """The time of the newest feedback that could change the label; for a grade alone, of the answer."""
        self.key_id: ColumnElement[Any] = case(
            (verdict.interaction_id.is_not(None), verdict.key_id),
            (reference.interaction_id.is_not(None), reference.key_id),
            else_=InteractionRow.key_id,
        )
        """The key of the caller who gave the label."""

    def joined(self, statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        """The statement, joined with the feedback that the columns read."""
        for part in (self._parts.verdict, self._parts.reference, self._parts.newest):
            statement = statement.outerjoin(part, part.c.interaction_id == InteractionRow.id)
        return statement


def is_graded() -> ColumnElement[bool]:
    """Whether the grade of an interaction is a label. It is NULL, and so not true, without a grade."""
    return InteractionRow.grade.in_((Grade.RIGHT, Grade.WRONG))


def is_labelled() -> ColumnElement[bool]:
    """Whether an interaction has a label, for statements that need nothing else: it stops at the first feedback."""
    judged = exists().where(FeedbackRow.interaction_id == InteractionRow.id, FeedbackRow.correct.is_not(None))
    return or_(is_graded(), judged)


def _parts() -> _Parts:
    def newest_with(column: Any, name: str, *conditions: ColumnElement[bool]) -> Subquery:
        return (
            select(FeedbackRow.interaction_id, column, FeedbackRow.source, FeedbackRow.key_id, FeedbackRow.created_at)
            .ext(distinct_on(FeedbackRow.interaction_id))
            .where(column.is_not(None), *conditions)
            .order_by(FeedbackRow.interaction_id, FeedbackRow.created_at.desc(), FeedbackRow.id.desc())
            .subquery(name)
        )

    newest = (
        select(FeedbackRow.interaction_id, func.max(FeedbackRow.created_at).label("at"))
        .where(or_(FeedbackRow.correct.is_not(None), FeedbackRow.reference.is_not(None)))
        .group_by(FeedbackRow.interaction_id)
        .subquery("newest_label")
    )
    return _Parts(
        verdict=newest_with(FeedbackRow.correct, "newest_correct"),
        reference=newest_with(FeedbackRow.reference, "newest_reference", FeedbackRow.grade_problem.is_(None)),
        newest=newest,
    )
