"""Grades of an older grader, given again."""

from collections.abc import AsyncIterator

import pytest

from gadfly import store
from gadfly.grading import GRADER_VERSION, Grade, Grader
from gadfly.records import Interaction
from gadfly.store.database import Database
from gadfly.store.interactions import Filters, feedback_of, insert_records, list_interactions
from gadfly.store.regrading import RegradeReport, regrade
from tests.support.records import make_critique, make_feedback, make_interaction, make_refinement


@pytest.fixture
async def grader() -> AsyncIterator[Grader]:
    async with Grader(timeout_s=5.0) as grader:
        yield grader


async def _stored(database: Database) -> dict[str, Interaction]:
    async with database.session() as session:
        page = await list_interactions(session, scope=None, filters=Filters(), limit=100)
        return {
            item.question: await store.interactions.read_interaction(session, item.id, scope=None)
            for item in page.interactions
        }


async def test_old_grades_are_given_again_and_new_ones_are_left_alone(database: Database, grader: Grader) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    critique = make_critique()
    refinement = make_refinement(critique_id=critique.id, text="1. Add.\n2.", finish_reason="length", grade=Grade.RIGHT)
    doubted = make_interaction(
        question="capital", response="The capital may be Paris.", reference="Paris", grade=Grade.WRONG
    )
    refined = make_interaction(
        question="two",
        response="The answer is 3.",
        reference="2",
        grade=Grade.RIGHT,
        critic_version=0,
        critiques=(critique,),
        refinements=(refinement,),
    )
    new = make_interaction(
        question="new", response="The answer is 3.", reference="2", grade=Grade.RIGHT, grader=GRADER_VERSION
    )
    told = make_interaction(question="told", response="\\boxed{2^5 = 64}")
    said = make_feedback(told.id, reference="2^5 = 32", grade=Grade.RIGHT)
    unread = make_interaction(question="unread", response="It is 7.", reference="1/0", grade=Grade.WRONG)
    async with database.session() as session:
        await insert_records(session, [doubted, refined, new, told, said, unread], heldout_share=0.2)
    assert await regrade(database, grader=grader) == RegradeReport(graded=4, changed=4)
    stored = await _stored(database)
    assert stored["capital"].grade is Grade.NO_ANSWER
    assert stored["two"].grade is Grade.WRONG
    assert [item.grade for item in stored["two"].refinements] == [Grade.NO_ANSWER]
    assert stored["new"].grade is Grade.RIGHT
    assert stored["told"].grade is Grade.WRONG
    assert (stored["unread"].grade, stored["unread"].grade_problem is None) == (None, False)
    async with database.session() as session:
        (again,) = await feedback_of(session, told.id)
    assert (again.grade, again.grader) == (Grade.WRONG, GRADER_VERSION)
    assert await regrade(database, grader=grader) == RegradeReport()
