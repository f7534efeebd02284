"""Which label counts for an answer: one rule for training, counting, the rollback watch, the dry run and the export.

Feedback that says `correct` counts more than a grade, however new the grade's reference is; of several, the newest
counts. Without such feedback, the grade against the newest reference counts: `InteractionRow.grade`.
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
    """Who says whether an answer is right."""

    PERSON = "person"  # feedback with `correct`
    IMPORT = "import"  # an imported row with `correct`
    REFERENCE = "reference"  # the answer was graded against a reference


@dataclass(frozen=True, slots=True)
class _Parts:
    """The feedback that decides, one row per interaction each."""

    verdict: Subquery  # the newest that says `correct`
    reference: Subquery  # the newest with a reference
    newest: Subquery  # when the newest of either kind came


class Label:
    """The label of an interaction as columns of a statement that selects from `InteractionRow`.

    `joined` adds what the columns read. All are NULL where there is no label, except `reference`, which is the newest
    known whether the answer was graded against it or not.
    """

    def __init__(self) -> None:
        parts = _parts()
        self._parts = parts
        verdict, reference = parts.verdict.c, parts.reference.c
        self.is_right: ColumnElement[bool | None] = func.coalesce(verdict.correct, InteractionRow.grade == Grade.RIGHT)
        self.exists: ColumnElement[bool] = or_(verdict.correct.is_not(None), InteractionRow.grade.is_not(None))
        self.source: ColumnElement[str | None] = case(
            (verdict.source == FeedbackSource.IMPORT, LabelSource.IMPORT.value),
            (verdict.correct.is_not(None), LabelSource.PERSON.value),
            (InteractionRow.grade.is_not(None), LabelSource.REFERENCE.value),
            else_=None,
        )
        self.reference: ColumnElement[str | None] = func.coalesce(reference.reference, InteractionRow.reference)
        self.given_at: ColumnElement[Any] = verdict.created_at
        """When the feedback came that says `correct`; NULL for a grade."""
        self.changed_at: ColumnElement[Any] = case(
            (
                self.exists,
                func.greatest(
                    parts.newest.c.at, case((InteractionRow.grade.is_not(None), InteractionRow.created_at), else_=None)
                ),
            ),
            else_=None,
        )
        """When the newest feedback came that could change the label; for a grade alone, when the answer was stored."""
        self.key_id: ColumnElement[Any] = case(
            (verdict.interaction_id.is_not(None), verdict.key_id),
            (reference.interaction_id.is_not(None), reference.key_id),
            else_=InteractionRow.key_id,
        )
        """The key of the caller who gave the label."""

    def joined(self, statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        """The statement, with the feedback that the columns read."""
        for part in (self._parts.verdict, self._parts.reference, self._parts.newest):
            statement = statement.outerjoin(part, part.c.interaction_id == InteractionRow.id)
        return statement


def is_labelled() -> ColumnElement[bool]:
    """Whether an interaction has a label, for statements that ask nothing else: it stops at the first feedback."""
    said = exists().where(FeedbackRow.interaction_id == InteractionRow.id, FeedbackRow.correct.is_not(None))
    return or_(InteractionRow.grade.is_not(None), said)


def _parts() -> _Parts:
    def newest_with(column: Any, name: str) -> Subquery:
        return (
            select(FeedbackRow.interaction_id, column, FeedbackRow.source, FeedbackRow.key_id, FeedbackRow.created_at)
            .ext(distinct_on(FeedbackRow.interaction_id))
            .where(column.is_not(None))
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
        reference=newest_with(FeedbackRow.reference, "newest_reference"),
        newest=newest,
    )
