"""One table of labels, read by every part that uses one: training, counts, the dry run, the watch and the export."""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.grading import Grade
from gadfly.records import Feedback, FeedbackSource, Interaction, Split, new_id, now
from gadfly.store.database import Database
from gadfly.store.files import ExportFormat, export
from gadfly.store.interactions import Filters
from gadfly.store.keys import insert_key
from gadfly.store.labels import Label, count_votes
from gadfly.store.tables import AnswerRow, FeedbackRow, InteractionRow
from gadfly.store.training_data import (
    answers_to_learn_from,
    count_new_labels,
    has_labels,
    labelled_answers,
    labelled_refinements,
    served_confidences,
    source_counts,
)
from gadfly.store.watch import verdict_outcomes
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource
from tests.support.records import make_critique, make_feedback, make_interaction, make_key, make_refinement

ALL_TRAIN = 1e-9
START = now() - timedelta(hours=1)
INTERACTION, CRITIQUE, UNPARSED, DOUBTING, LATER, REFINEMENT = (new_id() for _ in range(6))

WRONG_GRADE = {"reference": "4", "grade": Grade.WRONG}
RIGHT_GRADE = {"reference": "4", "grade": Grade.RIGHT}
NO_GRADE = {"reference": "4", "grade": Grade.NO_ANSWER}


A, B, C, D, OUT = KEYS = [new_id() for _ in range(5)]  # OUT is distrusted
BY_A = {"key_id": A}


def said(minute: int, **fields: Any) -> Feedback:
    return make_feedback(INTERACTION, created_at=START + timedelta(minutes=minute), **fields)


@dataclass(frozen=True)
class Case:
    asked: dict[str, Any]  # fields of the request
    feedback: list[Feedback]
    is_right: bool | None
    source: LabelSource | None
    why: str


CASES = [
    Case({}, [], None, None, "there is neither a grade nor feedback"),
    Case({}, [said(1, rating=3), said(2, comment="bad")], None, None, "neither is a label"),
    Case({}, [said(1, rating=2)], False, LabelSource.RATING, "a low rating is a label where there is no other"),
    Case({}, [said(1, rating=4)], True, LabelSource.RATING, "so is a high one"),
    Case({}, [said(1, rating=5), said(2, rating=1), said(3, rating=3)], False, LabelSource.RATING, "the newest counts"),
    Case(RIGHT_GRADE, [said(1, rating=1)], True, LabelSource.REFERENCE, "a grade counts more than a rating"),
    Case({}, [said(1, correct=True), said(2, rating=1)], True, LabelSource.PERSON, "so does a word, however old"),
    Case(
        WRONG_GRADE,
        [said(1, edited_response="...", edited_reference="5", grade=Grade.RIGHT)],
        True,
        LabelSource.REFERENCE,
        "an edited response that states an answer is a reference",
    ),
    Case({}, [said(1, edited_response="Write it out.")], None, None, "one that states none is not"),
    Case({}, [said(1, refinement_id=REFINEMENT, correct=True, rating=5)], None, None, "that is about another text"),
    Case({}, [said(1, critique_id=CRITIQUE, correct=True)], True, LabelSource.PERSON, "the verdict, correct, is right"),
    Case({}, [said(1, critique_id=CRITIQUE, correct=False)], False, LabelSource.PERSON, "the verdict is wrong"),
    Case(
        {}, [said(1, critique_id=DOUBTING, correct=True)], False, LabelSource.PERSON, "the verdict, incorrect, is right"
    ),
    Case({}, [said(1, critique_id=DOUBTING, correct=False)], True, LabelSource.PERSON, "that verdict is wrong"),
    Case({}, [said(1, critique_id=CRITIQUE, rating=1, helpful=False)], None, None, "a critique's rating says nothing"),
    Case({}, [said(1, critique_id=UNPARSED, correct=True)], None, None, "there is no verdict to be right about"),
    Case({}, [said(1, critique_id=LATER, correct=True)], None, None, "that critique judged a refinement"),
    Case(RIGHT_GRADE, [], True, LabelSource.REFERENCE, "a grade is a label"),
    Case(WRONG_GRADE, [], False, LabelSource.REFERENCE, "a grade is a label"),
    Case(NO_GRADE, [], None, None, "a grade that cannot tell is none"),
    Case(RIGHT_GRADE, [said(1, **NO_GRADE)], None, None, "also where it replaces one that could"),
    Case({"grade": Grade.RIGHT}, [], True, LabelSource.REFERENCE, "a grade counts without its reference"),
    Case(WRONG_GRADE, [said(1, reference="5")], None, None, "a newer reference without a grade leaves none"),
    Case(
        WRONG_GRADE,
        [said(1, edited_response="...", edited_reference="5")],
        None,
        None,
        "also one that an edited response states",
    ),
    Case(NO_GRADE, [said(1, correct=False)], False, LabelSource.PERSON, "nor does it hide a person's word"),
    Case(
        RIGHT_GRADE,
        [said(1, reference="???", grade_problem="cannot be read", correct=False)],
        False,
        LabelSource.PERSON,
        "a label beside an unreadable reference counts",
    ),
    Case(
        WRONG_GRADE,
        [said(1, reference="???", grade_problem="cannot be read")],
        False,
        LabelSource.REFERENCE,
        "an unreadable reference replaces no grade",
    ),
    Case({}, [said(1, **WRONG_GRADE)], False, LabelSource.REFERENCE, "so is the grade of a later reference"),
    Case({"reference": "4", "grade": Grade.NO_ANSWER}, [], None, None, "no answer is neither right nor wrong"),
    Case(
        WRONG_GRADE,
        [said(1, reference="5", grade=Grade.RIGHT)],
        True,
        LabelSource.REFERENCE,
        "a key's newest reference counts",
    ),
    Case(
        WRONG_GRADE,
        [said(1, reference="x", grade=Grade.NO_ANSWER)],
        None,
        None,
        "also where the answer is neither by it",
    ),
    Case(WRONG_GRADE, [said(1, correct=True)], True, LabelSource.PERSON, "a key's word counts more than its grade"),
    Case(
        {},
        [said(1, correct=True), said(2, **WRONG_GRADE)],
        True,
        LabelSource.PERSON,
        "also where its reference came later",
    ),
    Case(
        {},
        [said(1, **RIGHT_GRADE), said(2, correct=False)],
        False,
        LabelSource.PERSON,
        "and where it came earlier",
    ),
    Case(
        {},
        [said(2, correct=False), said(1, correct=True)],
        True,
        LabelSource.PERSON,
        "the newest by the database's clock, whatever the caller's process says",
    ),
    Case({}, [said(1, correct=True, **WRONG_GRADE)], True, LabelSource.PERSON, "both in one feedback"),
    Case(RIGHT_GRADE, [said(1, correct=True)], True, LabelSource.REFERENCE, "a word that agrees with the key's grade"),
    Case(
        RIGHT_GRADE,
        [said(1, correct=False, source=FeedbackSource.IMPORT)],
        False,
        LabelSource.IMPORT,
        "an imported label counts like a person's",
    ),
    Case(
        {},
        [said(1, correct=False), said(2, correct=True, source=FeedbackSource.IMPORT)],
        True,
        LabelSource.IMPORT,
        "the newest of the two sources counts",
    ),
    Case(
        BY_A | RIGHT_GRADE,
        [said(1, correct=False, key_id=B)],
        True,
        LabelSource.REFERENCE,
        "another key's bare word does not overrule a grade",
    ),
    Case(
        BY_A | RIGHT_GRADE,
        [said(1, correct=False, key_id=B), said(2, correct=False, key_id=B)],
        True,
        LabelSource.REFERENCE,
        "nor if it is repeated",
    ),
    Case(
        BY_A | RIGHT_GRADE,
        [said(1, correct=False, key_id=B), said(2, correct=False, key_id=C)],
        False,
        LabelSource.PERSON,
        "two keys overrule a grade",
    ),
    Case(
        BY_A | RIGHT_GRADE,
        [said(1, correct=False, key_id=B), said(2, correct=False, key_id=C), said(3, correct=True, key_id=D)],
        True,
        LabelSource.REFERENCE,
        "if they are more than the keys on its side",
    ),
    Case(
        BY_A | RIGHT_GRADE,
        [said(1, reference="5", grade=Grade.WRONG, key_id=B)],
        None,
        None,
        "another key's newer reference does not replace the first one: a conflict",
    ),
    Case(
        BY_A | RIGHT_GRADE,
        [
            said(1, reference="5", grade=Grade.WRONG, key_id=B),
            said(2, correct=False, key_id=C),
            said(3, correct=False, key_id=D),
        ],
        None,
        None,
        "which votes do not resolve",
    ),
    Case(
        BY_A,
        [said(1, correct=True, key_id=A), said(2, correct=False, key_id=B)],
        None,
        None,
        "two words that differ are a conflict",
    ),
    Case(
        BY_A,
        [said(1, correct=True, key_id=A), said(2, correct=False, key_id=B), said(3, correct=False, key_id=C)],
        False,
        LabelSource.PERSON,
        "and of three the two that agree decide",
    ),
    Case(
        BY_A,
        [said(1, correct=True, key_id=A), said(2, correct=False, key_id=B), said(3, correct=True, key_id=B)],
        True,
        LabelSource.PERSON,
        "a key may change its mind",
    ),
    Case(BY_A, [said(1, correct=True, key_id=OUT)], None, None, "a distrusted key's word does not count"),
    Case(
        BY_A | RIGHT_GRADE,
        [said(1, reference="5", grade=Grade.WRONG, key_id=OUT)],
        True,
        LabelSource.REFERENCE,
        "nor does its reference",
    ),
]
IDS = [case.why for case in CASES]


@pytest.fixture
async def seeded(database: Database) -> Database:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        for number, id in enumerate(KEYS):
            await insert_key(session, make_key(id=id, distrusted_at=now() if id == OUT else None), bytes([number]))
    return database


async def keep(seeded: Database, case: Case) -> None:
    interaction = make_interaction(
        id=INTERACTION,
        created_at=START,
        critic_version=0,
        critiques=(
            make_critique(id=CRITIQUE, stated=Verdict.CORRECT, verdict=Verdict.CORRECT),
            make_critique(id=UNPARSED, sample=1, stated=Verdict.UNPARSED, verdict=Verdict.UNPARSED),
            make_critique(id=DOUBTING, sample=2, stated=Verdict.INCORRECT, verdict=Verdict.INCORRECT),
            make_critique(id=LATER, round=1, stated=Verdict.CORRECT, verdict=Verdict.CORRECT),
        ),
        refinements=(make_refinement(CRITIQUE, id=REFINEMENT),),
        **case.asked,
    )
    async with seeded.session() as session:
        await store.interactions.insert_records(session, [interaction, *case.feedback], heldout_share=ALL_TRAIN)


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_training_and_the_dry_run(seeded: Database, case: Case) -> None:
    await keep(seeded, case)
    async with seeded.session() as session:
        found = await labelled_answers(session, Split.TRAIN, limit=10)
    expected = [] if case.is_right is None else [(case.is_right, case.source)]
    assert [(item.is_right, item.source) for item in found] == expected
    assert sum(source_counts(found).values()) == len(expected)


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_counts(seeded: Database, case: Case) -> None:
    await keep(seeded, case)
    expected = int(case.is_right is not None)
    async with seeded.session() as session:
        assert await has_labels(session, Split.TRAIN) is bool(expected)
        assert await count_new_labels(session) == expected
        assert (await store.interactions.count_rows(session)).labelled == {Split.TRAIN: expected, Split.HELDOUT: 0}


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_the_watch(seeded: Database, case: Case) -> None:
    await keep(seeded, case)
    async with seeded.session() as session:
        found = await verdict_outcomes(session, 0)
    assert [(outcome.was_right, outcome.is_verdict_right) for outcome in found] == (
        [] if case.source in (None, LabelSource.RATING) else [(case.is_right, case.is_right)]
    ), "the critic said correct"


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_the_export(seeded: Database, case: Case, tmp_path: Path) -> None:
    await keep(seeded, case)
    out = tmp_path / "out.jsonl"
    assert await export(seeded, out, format=ExportFormat.JSONL, filters=Filters(split=Split.TRAIN)) == 1
    assert json.loads(out.read_text())["label"] is case.is_right


AGAIN = [  # the first request, a later one of the same answer, the label, why
    (WRONG_GRADE, {}, False, "a request without a reference hides no grade of an earlier one"),
    (WRONG_GRADE, {"reference": "???", "grade_problem": "cannot be read"}, False, "nor one that cannot be read"),
    (WRONG_GRADE, {"reference": "5"}, None, "a newer reference without a grade leaves none"),
    (WRONG_GRADE, {"reference": "5", "grade": Grade.RIGHT}, True, "a key's newest reference counts"),
    (WRONG_GRADE, RIGHT_GRADE | {"question": "What is 2 + 3?"}, False, "that is about another question"),
    (WRONG_GRADE, RIGHT_GRADE | {"response": "The answer is 4"}, False, "and that about another answer"),
    (
        WRONG_GRADE,
        RIGHT_GRADE | {"response": " The answer is 5\n"},
        True,
        "white space around it makes no other answer",
    ),
]


@pytest.mark.parametrize(("first", "second", "is_right", "why"), AGAIN)
async def test_an_answer_that_is_requested_again(
    seeded: Database, first: dict[str, Any], second: dict[str, Any], is_right: bool | None, why: str
) -> None:
    requests = make_interaction(id=INTERACTION, critic_version=0, **first), make_interaction(critic_version=0, **second)
    async with seeded.session() as session:
        for request in requests:
            await store.interactions.insert_records(session, [request], heldout_share=ALL_TRAIN)
        assert await label_of(session, INTERACTION) is is_right, why


async def label_of(session: AsyncSession, interaction: UUID) -> bool | None:
    labelled = Label.joined(select(Label.is_right).select_from(InteractionRow).where(InteractionRow.id == interaction))
    return (await session.execute(labelled)).scalar_one()


# With each case there is another interaction, whose feedback has a reference.
OLD_ROWS = [  # the request, feedback, the label, why
    (RIGHT_GRADE, [], True, "the stored grade is of the request's own reference"),
    (RIGHT_GRADE, [said(1, comment="thanks")], True, "also beside feedback without a reference"),
    (
        WRONG_GRADE,
        [said(1, reference="5", grade=Grade.WRONG, key_id=OUT)],
        None,
        "else it is of a feedback's reference",
    ),
    ({}, [said(1, grade=Grade.WRONG)], False, "a grade counts without its reference"),
    ({}, [said(2, correct=False), said(1, correct=True)], False, "the newest by the clock of the process"),
    ({}, [said(1, correct=True), said(1, correct=False)], False, "of the same moment, the one with the later id"),
]


@pytest.mark.parametrize(("asked", "feedback", "is_right", "why"), OLD_ROWS)
async def test_rows_of_release_0_1_0(
    seeded: Database, asked: dict[str, Any], feedback: list[Feedback], is_right: bool | None, why: str
) -> None:
    other = make_interaction(question="Another?")
    await keep(
        seeded, Case(BY_A | asked, [replace(item, key_id=item.key_id or A) for item in feedback], None, None, why)
    )
    async with seeded.session() as session:
        records = [other, make_feedback(other.id, reference="5", grade=Grade.WRONG)]
        await store.interactions.insert_records(session, records, heldout_share=ALL_TRAIN)
        await session.execute(update(InteractionRow).values(text_sha256=None, own_grade=None, stored_at=None))
        await session.execute(update(FeedbackRow).values(stored_at=None))
        await count_votes(session, [INTERACTION])
        assert await label_of(session, INTERACTION) is is_right, why


async def test_a_word_of_release_0_1_0_is_older_than_all_others(seeded: Database) -> None:
    old, new = said(2, correct=True), said(1, correct=False)
    await keep(seeded, Case({}, [old, new], None, None, ""))
    async with seeded.session() as session:
        await session.execute(update(FeedbackRow).where(FeedbackRow.id == old.id).values(stored_at=None))
        await count_votes(session, [INTERACTION])
        assert await label_of(session, INTERACTION) is False


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ({"edited_reference": "5"}, "5"),  # the answer that the edited response states
        ({"edited_reference": "5", "reference": "6"}, "6"),  # the reference itself goes first
    ],
)
async def test_the_reference_of_a_label(seeded: Database, given: dict[str, str], reference: str) -> None:
    await keep(seeded, Case({}, [said(1, edited_response="...", grade=Grade.WRONG, **given)], None, None, ""))
    async with seeded.session() as session:
        [found] = await labelled_answers(session, Split.TRAIN, limit=10)
    assert (found.reference, found.source) == (reference, LabelSource.REFERENCE)


async def test_an_interaction_is_labelled_once_both_it_and_the_label_are_stored(seeded: Database) -> None:
    labelled, later, old, none = (new_id() for _ in range(4))
    async with seeded.session() as session:
        for id, fields in ((labelled, WRONG_GRADE), (later, {}), (old, {}), (none, {"response": "5"})):
            record = make_interaction(id=id, critic_version=0, created_at=START, **fields)
            await store.interactions.insert_records(session, [record], heldout_share=ALL_TRAIN)
    tomorrow = now() + timedelta(days=1)
    async with seeded.session() as session:
        await session.execute(
            update(InteractionRow).where(InteractionRow.id == old).values(stored_at=None, created_at=tomorrow)
        )
        columns = (
            InteractionRow.id,
            Label.arrived_at.label("arrived_at"),
            AnswerRow.changed_at,
            InteractionRow.stored_at,
        )
        statement = Label.joined(select(*columns).select_from(InteractionRow))
        rows = {row.id: row for row in await session.execute(statement)}
    assert rows[labelled].arrived_at == max(rows[labelled].changed_at, rows[labelled].stored_at)
    assert rows[later].arrived_at == rows[later].stored_at > rows[later].changed_at
    assert rows[old].arrived_at == tomorrow
    assert none in rows


async def test_votes_about_one_text_in_two_transactions_both_count(seeded: Database) -> None:
    first, second = (make_interaction(key_id=A, critic_version=0) for _ in range(2))
    async with seeded.session() as session:
        word = make_feedback(first.id, correct=True, key_id=C)
        await store.interactions.insert_records(session, [first, second, word], heldout_share=ALL_TRAIN)

    async def vote(
        interaction: Interaction, key_id: UUID, *, is_stored: asyncio.Event, may_commit: asyncio.Event
    ) -> None:
        async with seeded.session() as session:
            word = make_feedback(interaction.id, correct=True, key_id=key_id)
            await store.interactions.insert_records(session, [word], heldout_share=ALL_TRAIN)
            is_stored.set()
            await may_commit.wait()

    first_is_stored, second_is_stored, may_commit = asyncio.Event(), asyncio.Event(), asyncio.Event()
    one = asyncio.create_task(vote(first, A, is_stored=first_is_stored, may_commit=may_commit))
    await first_is_stored.wait()
    other = asyncio.create_task(vote(second, B, is_stored=second_is_stored, may_commit=may_commit))
    with suppress(TimeoutError):  # it waits for the lock of the first one
        await asyncio.wait_for(second_is_stored.wait(), timeout=0.5)
    may_commit.set()
    await asyncio.gather(one, other)
    async with seeded.session() as session:
        [votes] = await session.scalars(select(AnswerRow.votes))
    assert {vote.key_id for vote in votes or ()} == {A, B, C}


async def test_a_rating_is_no_label_on_the_held_out_side(seeded: Database) -> None:
    rated, judged = (make_interaction(question=question, critic_version=0) for question in ("rated?", "judged?"))
    records = [rated, judged, make_feedback(rated.id, rating=5), make_feedback(judged.id, correct=True)]
    async with seeded.session() as session:
        await store.interactions.insert_records(session, records, heldout_share=1 - 1e-9)
        found = await labelled_answers(session, Split.HELDOUT, limit=10)
    assert [item.question for item in found] == ["judged?"]


REFINED = [  # the refinement's grade, feedback, the label, its source, why
    (None, [], None, None, "nothing is known"),
    (Grade.RIGHT, [], True, LabelSource.REFERENCE, "a graded refinement is an answer to judge"),
    (Grade.WRONG, [], False, LabelSource.REFERENCE, "also where it is wrong"),
    (Grade.NO_ANSWER, [], None, None, "a text without an answer is none"),
    (None, [said(1, correct=True)], None, None, "that is about the response"),
    (None, [said(1, refinement_id=REFINEMENT, correct=False)], False, LabelSource.PERSON, "a word about it"),
    (Grade.RIGHT, [said(1, refinement_id=REFINEMENT, correct=False)], False, LabelSource.PERSON, "counts more"),
    (None, [said(1, refinement_id=REFINEMENT, rating=5)], True, LabelSource.RATING, "a rating of it"),
    (Grade.WRONG, [said(1, refinement_id=REFINEMENT, rating=5)], False, LabelSource.REFERENCE, "counts less"),
    (None, [said(1, refinement_id=REFINEMENT, helpful=True)], None, None, "whether it helped is no label"),
]


@pytest.mark.parametrize(("grade", "feedback", "is_right", "source", "why"), REFINED)
async def test_a_refinement_is_an_answer_of_its_own(
    seeded: Database,
    grade: Grade | None,
    feedback: list[Feedback],
    is_right: bool | None,
    source: LabelSource | None,
    why: str,
) -> None:
    refined = make_interaction(
        id=INTERACTION,
        question="2 + 2?",
        response="5",
        critic_version=0,
        critiques=(make_critique(id=CRITIQUE),),
        refinements=(make_refinement(CRITIQUE, id=REFINEMENT, text="4", grade=grade),),
    )
    async with seeded.session() as session:
        await store.interactions.insert_records(session, [refined, *feedback], heldout_share=ALL_TRAIN)
        found = [item for item in await answers_to_learn_from(session, limit=10) if item.refinement_id is not None]
        assert await labelled_refinements(session, Split.HELDOUT, limit=10) == []
    assert [(item.is_right, item.source) for item in found] == ([] if is_right is None else [(is_right, source)]), why
    for item in found:
        assert (item.key, item.id, item.response) == (str(REFINEMENT), REFINEMENT, "4")


async def test_a_refinement_that_is_also_a_response_counts_once(seeded: Database) -> None:
    refined = make_interaction(
        id=INTERACTION,
        question="2 + 2?",
        response="5",
        critic_version=0,
        critiques=(make_critique(id=CRITIQUE),),
        refinements=(make_refinement(CRITIQUE, text="4", grade=Grade.RIGHT),),
        **WRONG_GRADE,
    )
    asked_again = make_interaction(question="2 + 2?", response="4 ", critic_version=0, **RIGHT_GRADE)
    async with seeded.session() as session:
        await store.interactions.insert_records(session, [refined, asked_again], heldout_share=ALL_TRAIN)
        found = await answers_to_learn_from(session, limit=10)
    assert sorted((item.response, item.is_right) for item in found) == [("4 ", True), ("5", False)]


async def test_the_confidence_that_served_an_answer(seeded: Database) -> None:
    read = make_interaction(
        critic_version=0,
        critiques=(
            make_critique(p_correct=0.3, p_incorrect=0.1),
            make_critique(sample=1, p_correct=0.2, p_incorrect=0.2),
            make_critique(round=1, p_correct=0.0, p_incorrect=1.0),
            make_critique(sample=2, supplied=True, p_correct=0.0, p_incorrect=1.0),
        ),
    )
    unread = make_interaction(critic_version=0, critiques=(make_critique(p_correct=None, p_incorrect=None),))
    async with seeded.session() as session:
        await store.interactions.insert_records(session, [read, unread], heldout_share=ALL_TRAIN)
        found = await served_confidences(session, [read.id, unread.id])
    assert found == {read.id: pytest.approx((0.75 + 0.5) / 2)}
