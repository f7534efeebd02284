"""One table of labels, read by every part that uses one: training, counts, the dry run, the watch and the export."""

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gadfly import store
from gadfly.grading import Grade
from gadfly.records import Feedback, FeedbackSource, Split, new_id, now
from gadfly.store.database import Database
from gadfly.store.files import ExportFormat, export
from gadfly.store.interactions import Filters
from gadfly.store.keys import insert_key
from gadfly.store.training_data import count_new_labels, has_labels, labelled_answers, source_counts
from gadfly.store.watch import verdict_outcomes
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource
from tests.support.records import make_critique, make_feedback, make_interaction, make_key

ALL_TRAIN = 1e-9
START = now() - timedelta(hours=1)
INTERACTION = new_id()

WRONG_GRADE = {"reference": "4", "grade": Grade.WRONG}
RIGHT_GRADE = {"reference": "4", "grade": Grade.RIGHT}
NO_GRADE = {"reference": "4", "grade": Grade.NO_ANSWER}


A, B, C, D, OUT = KEYS = [new_id() for _ in range(5)]  # OUT is distrusted
BY_A = {"key_id": A}


def said(minute: int, **fields: Any) -> Feedback:
    return make_feedback(INTERACTION, created_at=START + timedelta(minutes=minute), **fields)


@dataclass(frozen=True)
class Case:
    asked: dict[str, Any]  # what came with the request
    feedback: list[Feedback]
    is_right: bool | None
    source: LabelSource | None
    why: str


CASES = [
    Case({}, [], None, None, "there is nothing to go by"),
    Case({}, [said(1, rating=1), said(2, comment="bad")], None, None, "neither is a label"),
    Case(RIGHT_GRADE, [], True, LabelSource.REFERENCE, "a grade is a label"),
    Case(WRONG_GRADE, [], False, LabelSource.REFERENCE, "a grade is a label"),
    Case(NO_GRADE, [], None, None, "a grade that cannot tell is none"),
    Case(RIGHT_GRADE, [said(1, **NO_GRADE)], None, None, "also where it replaces one that could"),
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
        critiques=(make_critique(stated=Verdict.CORRECT, verdict=Verdict.CORRECT),),
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
        [] if case.is_right is None else [(case.is_right, case.is_right)]
    ), "the critic said correct"


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_the_export(seeded: Database, case: Case, tmp_path: Path) -> None:
    await keep(seeded, case)
    out = tmp_path / "out.jsonl"
    assert await export(seeded, out, format=ExportFormat.JSONL, filters=Filters(split=Split.TRAIN)) == 1
    assert json.loads(out.read_text())["label"] is case.is_right
