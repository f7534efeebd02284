"""Reads that do not grow with the log give what reading everything gives."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.grading import Grade
from gadfly.records import FeedbackSource, Split, new_id, now
from gadfly.store import interactions, training_data
from gadfly.store.database import Database
from gadfly.store.interactions import insert_records
from gadfly.store.watch import OutcomeLog, verdict_outcomes
from tests.support.records import make_critique, make_feedback, make_interaction

ALL_TRAIN = 1e-9


@pytest.fixture
async def seeded(database: Database) -> Database:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    return database


async def keep(database: Database, *records: object) -> None:
    async with database.session() as session:
        await insert_records(session, records, heldout_share=ALL_TRAIN)  # type: ignore[arg-type]


async def test_the_watch_sees_what_changed_since_its_last_look(seeded: Database) -> None:
    log = OutcomeLog(0)

    async def look() -> int:
        async with seeded.session() as session:
            await log.refresh(session)
            assert log.outcomes == await verdict_outcomes(session, 0)
        return len(log.outcomes)

    assert await look() == 0
    graded = make_interaction(question="one?", reference="4", grade=Grade.WRONG)
    plain = make_interaction(question="two?", response="Two.")
    await keep(seeded, graded, plain)
    assert await look() == 1, "an interaction with a label of its own"
    rating = make_feedback(plain.id, correct=None, rating=5, source=FeedbackSource.CALLER)
    await keep(seeded, rating)
    assert await look() == 1, "a rating is no label here"
    word = make_feedback(plain.id, correct=True)
    await keep(seeded, word)
    assert await look() == 2, "the label is as before, and now a person's"
    await keep(seeded, make_interaction(question="two?", response="Two."))
    assert await look() == 3, "a new interaction about a labelled answer"
    before = log.outcomes
    await keep(seeded, make_feedback(plain.id, correct=False, created_at=now() + timedelta(seconds=1)))
    assert await look() == 3
    assert log.outcomes != before, "another label"

    due = make_interaction(question="three?", critiques=(), critique_due=True, critic_version=None, verdict=None)
    await keep(seeded, due, make_feedback(due.id, correct=False))
    assert await look() == 3
    async with seeded.session() as session:
        critic = await store.critics.resolve_critic(session, 0)
        stored = await store.chat.store_critique(
            session, due.id, make_critique(), critic=critic, prompt_set="p", parameters={"n": 1}
        )
        assert stored
    assert await look() == 4, "judged in the background"


async def test_the_watch_keeps_the_first_outcomes_only(seeded: Database) -> None:
    log = OutcomeLog(0, limit=2)
    for number in range(4):
        graded = make_interaction(question=f"{number}?", reference="4", grade=Grade.WRONG)
        await keep(seeded, graded)
        async with seeded.session() as session:
            await log.refresh(session)
    async with seeded.session() as session:
        assert log.outcomes == await verdict_outcomes(session, 0, limit=2)
    assert len(log.outcomes) == 2


async def test_many_labels_are_read_from_the_newest_on(seeded: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_interaction(reference="4", grade=Grade.WRONG)
    for number in range(9):  # each question twice, and an answer without a label between them
        for turn in range(2):
            moment = now() + timedelta(seconds=number + 20 * turn)
            record = replace(base, id=new_id(), episode_id=new_id(), created_at=moment, question=f"{number}?")
            await keep(seeded, record, make_interaction(question=f"other {number} {turn}?", created_at=moment))

    async def found(limit: int) -> list[str]:
        async with seeded.session() as session:
            answers = await training_data.labelled_answers(session, Split.TRAIN, limit=limit)
        return [answer.question for answer in answers]

    expected = {limit: await found(limit) for limit in (1, 4, 9, 100)}
    assert [len(questions) for questions in expected.values()] == [1, 4, 9, 9]
    monkeypatch.setattr(training_data, "_FEW_LABELS", 0)
    assert {limit: await found(limit) for limit in expected} == expected


async def test_new_labels_are_counted_up_to_what_is_needed(seeded: Database) -> None:
    for number in range(5):
        await keep(seeded, make_interaction(question=f"{number}?", reference="4", grade=Grade.WRONG))
    async with seeded.session() as session:
        assert await training_data.count_new_labels(session) == 5
        assert await training_data.count_new_labels(session, at_most=3) == 3


async def test_rows_of_large_tables_are_estimated(seeded: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        await keep(seeded, make_interaction(question=f"{number}?", reference="4", grade=Grade.WRONG))
    async with seeded.session() as session:
        await session.execute(text("ANALYZE"))
        counted = await interactions.count_rows(session)
        monkeypatch.setattr(interactions, "_COUNTED", 5)
        estimated = await interactions.count_rows(session)
    assert estimated.are_estimates
    assert replace(estimated, are_estimates=False) == counted, "the sample of a small table is all of it"
