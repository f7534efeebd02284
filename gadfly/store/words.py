"""The statements of one row of feedback about an answer: columns of a statement that selects from `FeedbackRow`.

A word is `correct`; a rating is a weaker vote. A row about a refinement says nothing about the interaction's response.
"""

from sqlalchemy import ColumnElement, and_, case, func, not_, null, select

from gadfly.store.tables import CritiqueRow, FeedbackRow
from gadfly.verdict import Verdict

_GOOD, _BAD = 4, 2  # ratings from here on say right, and up to here wrong


def word_on_response() -> ColumnElement[bool | None]:
    """Whether the row's word says that the response is right: `correct`, or the verdict that makes a critique correct.

    A critique of a later round judged a refinement, and an unparsed one has no verdict: NULL.
    """
    verdict = (
        select(CritiqueRow.verdict)
        .where(CritiqueRow.id == FeedbackRow.critique_id, CritiqueRow.round == 0)
        .correlate(FeedbackRow)
        .scalar_subquery()
    )
    return case(
        (FeedbackRow.refinement_id.is_not(None), null()),
        (FeedbackRow.critique_id.is_(None), FeedbackRow.correct),
        (verdict == Verdict.CORRECT, FeedbackRow.correct),
        (verdict == Verdict.INCORRECT, not_(FeedbackRow.correct)),
        else_=null(),
    )


def rating_of_response() -> ColumnElement[bool | None]:
    """Whether the row's rating says that the response is right."""
    is_about_it = and_(FeedbackRow.critique_id.is_(None), FeedbackRow.refinement_id.is_(None))
    return case((is_about_it, _rated()), else_=null())


def word_on_refinement() -> ColumnElement[bool | None]:
    """Whether the row's word says that the refinement it names is right."""
    return case((FeedbackRow.refinement_id.is_not(None), FeedbackRow.correct), else_=null())


def rating_of_refinement() -> ColumnElement[bool | None]:
    """Whether the row's rating says that the refinement it names is right."""
    return case((FeedbackRow.refinement_id.is_not(None), _rated()), else_=null())


def known_reference() -> ColumnElement[str | None]:
    """The reference that the row gives: its own, else the answer that its edited response states."""
    return func.coalesce(FeedbackRow.reference, FeedbackRow.edited_reference)


def _rated() -> ColumnElement[bool | None]:
    return case((FeedbackRow.rating >= _GOOD, True), (FeedbackRow.rating <= _BAD, False), else_=null())
