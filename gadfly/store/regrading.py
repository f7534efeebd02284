"""Stored grades, given again by the grader of this release.

A row carries the version of the grader that graded it, and rows of release 0.1.0 carry none. A batch is stored in one
transaction together with the version, so a job that ended early goes on where it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import selectinload

from gadfly.errors import UnreadableReference
from gadfly.grading import Grade, Submission, TaskGrader
from gadfly.records import Refinement
from gadfly.store.database import Database
from gadfly.store.interactions import take_newest_grades
from gadfly.store.labels import count_votes
from gadfly.store.mapping import record_of
from gadfly.store.tables import FeedbackRow, InteractionRow, RefinementRow
from gadfly.store.words import known_reference
from gadfly.task_names import DEFAULT_TASK

_BATCH_ROWS = 100
_BATCH_LIMIT_S = 120.0


@dataclass(slots=True)
class RegradeReport:
    """How many interactions were graded again, and how many of their grades changed."""

    graded: int = 0
    changed: int = 0

    def __add__(self, other: "RegradeReport") -> "RegradeReport":
        return RegradeReport(self.graded + other.graded, self.changed + other.changed)


async def regrade(
    database: Database,
    *,
    grader: TaskGrader,
    task: str = DEFAULT_TASK,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> RegradeReport:
    """Grade again all that an older grader of the task graded.

    `on_progress` receives the interactions done and their total.

    Raises:
        StoreUnavailable: Postgres became unavailable. A repeated call goes on after the last batch.
    """
    async with database.session(limit_s=_BATCH_LIMIT_S) as session:
        total = (
            await session.scalar(
                select(func.count()).select_from(InteractionRow).where(*_is_outdated(task, grader.version))
            )
            or 0
        )
    report = RegradeReport()
    while report.graded < total and (ids := await _next_batch(database, task, grader.version)):
        changed = await _regrade_batch(database, grader, ids)
        report.graded += len(ids)
        report.changed += changed
        on_progress(report.graded, total)
    return report


def _is_outdated(task: str, version: int) -> tuple[ColumnElement[bool], ...]:
    """Whether an interaction of the task, or feedback about it, has a reference that an older grader graded against."""
    by_feedback = exists().where(
        FeedbackRow.interaction_id == InteractionRow.id,
        known_reference().is_not(None),
        FeedbackRow.grader.is_distinct_from(version),
    )
    own = and_(InteractionRow.reference.is_not(None), InteractionRow.grader.is_distinct_from(version))
    return InteractionRow.task == task, or_(own, by_feedback)


async def _next_batch(database: Database, task: str, version: int) -> Sequence[UUID]:
    async with database.session(limit_s=_BATCH_LIMIT_S) as session:
        ids = await session.scalars(
            select(InteractionRow.id).where(*_is_outdated(task, version)).order_by(InteractionRow.id).limit(_BATCH_ROWS)
        )
        return ids.all()


async def _regrade_batch(database: Database, grader: TaskGrader, ids: Sequence[UUID]) -> int:
    async with database.session(limit_s=_BATCH_LIMIT_S) as session:
        statement = select(InteractionRow).where(InteractionRow.id.in_(ids))
        options = selectinload(InteractionRow.refinements), selectinload(InteractionRow.feedback)
        rows = (await session.scalars(statement.options(*options))).all()
        before = {row.id: row.grade for row in rows}
        holders: list[tuple[InteractionRow | FeedbackRow, InteractionRow]] = [(row, row) for row in rows]
        holders += [(item, row) for row in rows for item in row.feedback]
        graded = [(holder, row, known) for holder, row in holders if (known := _reference(holder)) is not None]
        texts = {row.id: _texts(row) for row in rows}
    submissions = [
        Submission(text, reference, is_cut, row.question)
        for _, row, reference in graded
        for text, is_cut in texts[row.id]
    ]
    outcomes = iter(await grader.grade_all(submissions))
    async with database.session(limit_s=_BATCH_LIMIT_S) as session:
        for holder, row, _ in graded:
            own, *refined = [next(outcomes) for _ in texts[row.id]]
            grades = {
                item.id: grade for item, grade in zip(row.refinements, refined, strict=True) if isinstance(grade, Grade)
            }
            values: dict[str, Any] = {
                "grade": own if isinstance(own, Grade) and row.response is not None else None,
                "grader": grader.version,
                "grade_problem": str(own) if isinstance(own, UnreadableReference) else None,
            }
            if isinstance(holder, FeedbackRow):
                values["refinement_grades"] = grades
                await session.execute(update(FeedbackRow).where(FeedbackRow.id == holder.id).values(values))
                continue
            values["own_grade"] = values["grade"]
            await session.execute(update(InteractionRow).where(InteractionRow.id == holder.id).values(values))
            for id in (item.id for item in row.refinements):
                await session.execute(update(RefinementRow).where(RefinementRow.id == id).values(grade=grades.get(id)))
        await take_newest_grades(session, ids)
        await count_votes(session, ids)
        after = await session.execute(select(InteractionRow.id, InteractionRow.grade).where(InteractionRow.id.in_(ids)))
        return sum(before[id] is not grade for id, grade in after)


def _reference(holder: InteractionRow | FeedbackRow) -> str | None:
    edited = holder.edited_reference if isinstance(holder, FeedbackRow) else None
    return edited if holder.reference is None else holder.reference


def _texts(row: InteractionRow) -> list[tuple[str, bool]]:
    """The texts of an interaction that are graded, each with whether its token limit ended it."""
    refinements = [record_of(Refinement, item) for item in row.refinements]
    return [(row.response or "", False), *((item.text, item.is_cut) for item in refinements)]
