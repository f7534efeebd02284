"""What there is to learn from, and the life of a run, its job and its events, on a real database."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.errors import Conflict, NotFound
from gadfly.grading import Grade
from gadfly.records import FeedbackSource, Interaction, Record, Split, Tier, new_id, now
from gadfly.settings import SplitBlocks
from gadfly.store.critics import insert_critic
from gadfly.store.database import Database
from gadfly.store.runs import (
    append_event,
    begin_run,
    events_after,
    finish_run,
    list_runs,
    read_run,
    request_cancel,
    request_run,
    run_status,
    save_gate,
    save_manifest,
    save_progress,
    seconds_per_step,
    unfinished_runs,
)
from gadfly.store.split import question_hash, split_of
from gadfly.store.training_data import LabelledAnswer, count_new_labels, has_labels, labelled_answers, source_counts
from gadfly.training import EventKind, GateOutcome, Progress, Run, RunStatus, Stage, TrainConfig, Trigger
from tests.support.postgres import SPLIT_SECRET
from tests.support.records import make_feedback, make_interaction

ALL_TRAIN, ALL_HELDOUT = 1e-9, 1 - 1e-9
START = now() - timedelta(hours=1)


def at(minutes: float) -> Any:
    return START + timedelta(minutes=minutes)


@pytest.fixture
async def seeded(database: Database) -> Database:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    return database


async def keep(
    seeded: Database, *records: Record, heldout_share: float = ALL_TRAIN, split_blocks: SplitBlocks = SplitBlocks.NEAR
) -> None:
    async with seeded.session() as session:
        await store.interactions.insert_records(
            session, records, heldout_share=heldout_share, split_blocks=split_blocks
        )


async def learn_from(seeded: Database, split: Split = Split.TRAIN, limit: int = 100) -> list[LabelledAnswer]:
    async with seeded.session() as session:
        return await labelled_answers(session, split, limit=limit)


def answer(minutes: float = 0, response: str = "The answer is 5", **fields: Any) -> Interaction:
    return make_interaction(created_at=at(minutes), response=response, **fields)


async def the_one(seeded: Database) -> tuple[bool, str, str | None]:
    [found] = await learn_from(seeded)
    return found.is_right, found.source.value, found.reference


# ----------------------------------------------------------------------------------------------- what there is to learn


async def test_a_grade_is_a_label_and_nothing_is_none(seeded: Database) -> None:
    graded = answer(reference="4", grade=Grade.WRONG)
    await keep(seeded, graded, answer(response="no label"), answer(response="only rated"))
    assert await the_one(seeded) == (False, "reference", "4")
    [found] = await learn_from(seeded)
    assert (found.interaction_id, found.question, found.response) == (graded.id, graded.question, graded.response)
    assert found.question_hash == question_hash(graded.question)


GRADES = [  # grade, is it right, why this row exists
    (Grade.RIGHT, True, "the only one that is"),
    (Grade.WRONG, False, "said and wrong"),
    (Grade.NO_ANSWER, None, "nothing said is neither right nor wrong"),
]


@pytest.mark.parametrize(("grade", "is_right", "why"), GRADES)
async def test_what_a_grade_says(seeded: Database, grade: Grade, is_right: bool | None, why: str) -> None:
    await keep(seeded, answer(reference="4", grade=grade))
    assert [item.is_right for item in await learn_from(seeded)] == ([] if is_right is None else [is_right]), why


async def test_the_newest_word_counts_and_a_word_over_a_grade(seeded: Database) -> None:
    asked = answer(reference="4", grade=Grade.WRONG)
    await keep(seeded, asked)
    words = [
        (make_feedback(asked.id, correct=True, created_at=at(1), source=FeedbackSource.IMPORT), (True, "import")),
        (make_feedback(asked.id, correct=False, created_at=at(3)), (False, "reference")),  # agrees with the grade
        (make_feedback(asked.id, correct=True, created_at=at(2)), (True, "person")),  # stored last, so it is the newest
        (make_feedback(asked.id, comment="no label", created_at=at(4)), (True, "person")),
        (make_feedback(asked.id, correct=False, created_at=at(1)), (False, "reference")),
    ]
    for feedback, expected in words:
        await keep(seeded, feedback)
        assert (await the_one(seeded))[:2] == expected, feedback


async def test_the_newest_reference_serves_and_brings_its_grade(seeded: Database) -> None:
    asked = answer(reference="4", grade=Grade.WRONG)
    await keep(seeded, asked)
    await keep(seeded, make_feedback(asked.id, reference="6", grade=Grade.WRONG, created_at=at(2)))
    await keep(seeded, make_feedback(asked.id, reference="5", grade=Grade.RIGHT, created_at=at(1)))
    assert (await the_one(seeded))[2] == "5"
    async with seeded.session() as session:
        grade = (await store.interactions.read_interaction(session, asked.id, scope=None)).grade
    assert (await the_one(seeded))[0] is (grade is Grade.RIGHT), "as the interaction is graded now"


async def test_one_text_is_one_answer_and_says_all_that_is_known_of_it(seeded: Database) -> None:
    old = answer(0, reference="5")  # its reference was never compared: only a word makes it labelled
    middle = answer(1, response=" The answer is 5\n", reference="4", grade=Grade.WRONG)
    new = answer(2, grade=Grade.WRONG)
    await keep(seeded, old, middle, new)
    [found] = await learn_from(seeded)
    assert (found.interaction_id, found.is_right, found.source) == (new.id, False, "reference")
    assert found.reference == "4", "the newest twin has none, an older one that is labelled has"
    await keep(seeded, make_feedback(old.id, correct=True, created_at=at(3)))
    [found] = await learn_from(seeded)
    assert (found.interaction_id, found.is_right, found.source) == (new.id, True, "person")
    await keep(seeded, make_feedback(middle.id, correct=False, created_at=at(4)))
    assert (await the_one(seeded))[:2] == (False, "reference"), "the newest word, whichever twin it is about"
    await keep(seeded, make_feedback(new.id, correct=True, created_at=at(3.5)))
    assert (await the_one(seeded))[:2] == (True, "person"), "the newest by the database's clock"


async def test_questions_are_the_newest_and_their_answers_come_newest_first(seeded: Database) -> None:
    def about(question: str, minutes: float, response: str) -> Interaction:
        return answer(minutes, question=question, response=response, reference="4", grade=Grade.WRONG)

    await keep(seeded, about("A?", 1, "a1"), about("B?", 2, "b1"), about("C?", 3, "c1"), about("a?", 4, "a2"))
    await keep(seeded, answer(9, question="D?"))  # newer, and no label
    assert [item.response for item in await learn_from(seeded)] == ["a2", "c1", "b1", "a1"]
    assert [item.response for item in await learn_from(seeded, limit=2)] == ["a2", "c1", "a1"], "whole questions"
    assert [item.response for item in await learn_from(seeded, limit=1)] == ["a2", "a1"]


async def test_only_the_side_that_was_asked_for(seeded: Database) -> None:
    questions = [f"What is {number} + 1?" for number in range(20)]
    for question in questions:
        graded = answer(question=question, reference="4", grade=Grade.RIGHT)
        await keep(seeded, graded, heldout_share=0.5, split_blocks=SplitBlocks.EXACT)
    for split in Split:
        expected = {item for item in questions if split_of(question_hash(item), 0.5, secret=SPLIT_SECRET) is split}
        assert 0 < len(expected) < 20
        assert {item.question for item in await learn_from(seeded, split)} == expected


async def test_labels_are_counted_by_source(seeded: Database) -> None:
    person, imported, graded = (answer(response=name) for name in ("p", "i", "g"))
    await keep(seeded, person, imported, replace(graded, reference="4", grade=Grade.WRONG))
    await keep(
        seeded,
        make_feedback(person.id, correct=True),
        make_feedback(imported.id, correct=True, source=FeedbackSource.IMPORT),
    )
    assert source_counts(await learn_from(seeded)) == {
        "person": 1,
        "import": 1,
        "reference": 1,
        "rating": 0,
        "admin": 0,
    }
    assert set(source_counts([]).values()) == {0}


async def test_whether_there_is_anything_to_learn_from(seeded: Database) -> None:
    async def has(split: Split = Split.TRAIN, *, with_reference: bool = False) -> bool:
        async with seeded.session() as session:
            return await has_labels(session, split, with_reference=with_reference)

    unlabelled = answer(question="Train?", reference="4")
    await keep(seeded, unlabelled)
    await keep(seeded, answer(question="Held out?", reference="4", grade=Grade.WRONG), heldout_share=ALL_HELDOUT)
    assert (await has(), await has(Split.HELDOUT)) == (False, True)
    said = answer(question="Said?")
    await keep(seeded, said, make_feedback(said.id, comment="hm"))
    assert not await has()
    await keep(seeded, make_feedback(said.id, correct=False))
    assert (await has(), await has(with_reference=True)) == (True, False), (
        "a reference of another answer is not its own"
    )
    await keep(seeded, make_feedback(said.id, reference="4"))
    assert await has(with_reference=True)


async def test_new_labels_are_those_since_the_newest_run_was_asked_for(seeded: Database) -> None:
    async def new_labels() -> int:
        async with seeded.session() as session:
            return await count_new_labels(session)

    first, second = answer(response="1", reference="4", grade=Grade.WRONG), answer(response="2")
    await keep(seeded, first, second, answer(response="unlabelled"))
    await keep(seeded, answer(question="Held out?", reference="4", grade=Grade.WRONG), heldout_share=ALL_HELDOUT)
    assert await new_labels() == 1, "one is graded; one has no label; one is held out"
    await keep(seeded, make_feedback(second.id, correct=True))
    assert await new_labels() == 2
    await ask(seeded)
    assert await new_labels() == 0, "the run learns from these"
    await keep(seeded, make_feedback(first.id, comment="not a label"))
    assert await new_labels() == 0
    await keep(seeded, make_feedback(first.id, correct=True), make_feedback(first.id, correct=False))
    assert await new_labels() == 0, "the label is what it was"
    await keep(seeded, make_feedback(first.id, correct=True))
    assert await new_labels() == 1
    later = make_interaction(response="3", reference="4", grade=Grade.RIGHT)
    await keep(seeded, later)
    assert await new_labels() == 2


# ----------------------------------------------------------------------------------------------------------------- runs


async def ask(seeded: Database, **fields: Any) -> Run:
    async with seeded.session() as session:
        asked = await request_run(session, **{"config": TrainConfig(), "trigger": Trigger.ADMIN, **fields})
    return asked.run


async def do(seeded: Database, work: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    """One query in a transaction of its own."""
    async with seeded.session() as session:
        return await work(session, *arguments, **options)


async def kinds(seeded: Database, run_id: UUID) -> list[tuple[EventKind, Any]]:
    async with seeded.session() as session:
        return [(event.kind, event.data.get("status")) for event in await events_after(session, run_id, after=0)]


async def jobs(seeded: Database) -> list[tuple[Any, ...]]:
    async with seeded.session() as session:
        rows = await session.execute(
            text("SELECT queue_name, task_name, lock, args ->> 'run_id', status FROM procrastinate_jobs ORDER BY id")
        )
        return [tuple(row) for row in rows]


async def test_a_run_and_its_job_are_stored_together_or_not_at_all(seeded: Database) -> None:
    async def request_and_fail(session: AsyncSession) -> None:
        await request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN, request_id="r")
        raise NotFound("something else of this transaction")

    with pytest.raises(NotFound, match="something else"):
        await do(seeded, request_and_fail)
    assert await jobs(seeded) == []
    assert await do(seeded, list_runs, limit=9) == []
    config = TrainConfig(seed=3, cycles=2, steps_stage_1=5, steps_stage_2=1)
    run = await ask(seeded, config=config, request_id="r", trigger=Trigger.LABELS)
    assert (run.status, run.trigger, run.config, run.attempt) == (RunStatus.QUEUED, Trigger.LABELS, config, 0)
    assert run.progress == Progress(stage=None, step=0, steps=12, eta_s=None)
    assert await jobs(seeded) == [("training", "train", "training", str(run.id), "todo")]
    assert await kinds(seeded, run.id) == [(EventKind.STATUS, "queued")]


async def test_a_request_id_is_one_run_of_its_key(seeded: Database) -> None:
    async with seeded.session() as session:
        ann, _ = await issue_key(session, name="ann", tier=Tier.ADMIN)
    first = await ask(seeded, request_id="r")
    async with seeded.session() as session:
        again = await request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN, request_id="r")
    assert (again.run, again.is_repeat) == (first, True)
    with pytest.raises(Conflict, match="'r' belongs to a run with another config"):
        await ask(seeded, request_id="r", config=TrainConfig(seed=1))
    hers = await ask(seeded, request_id="r", key_id=ann.id, config=TrainConfig(seed=1))
    assert hers.id != first.id
    assert len({first.id, (await ask(seeded)).id, (await ask(seeded)).id}) == 3, "without one each is a run"
    assert len(await jobs(seeded)) == 4


async def test_one_request_id_at_once_is_one_run(seeded: Database) -> None:
    async def request() -> tuple[UUID, bool]:
        async with seeded.session() as session:
            asked = await request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN, request_id="r")
        return asked.run.id, asked.is_repeat

    found = await asyncio.gather(*(request() for _ in range(5)))
    assert len({id for id, _ in found}) == 1
    assert sorted(is_repeat for _, is_repeat in found) == [False, True, True, True, True]
    assert len(await jobs(seeded)) == 1


async def test_the_life_of_a_run(seeded: Database) -> None:
    id = (await ask(seeded)).id

    begun = await do(seeded, begin_run, id)
    assert (begun.status, begun.attempt) == (RunStatus.RUNNING, 1)
    assert begun.started_at is not None
    again = await do(seeded, begin_run, id)
    assert (again.attempt, again.started_at) == (2, begun.started_at), "an interrupted run goes on"
    progress = Progress(stage=Stage.STAGE_1, step=4, steps=40, eta_s=12.5)
    await do(seeded, save_progress, id, progress)
    await do(seeded, save_manifest, id, {"answers": [1]})
    await do(seeded, save_gate, id, GateOutcome.PROMOTE, {"items": 7})
    run = await do(seeded, read_run, id)
    assert (run.progress, run.manifest, run.outcome, run.gate) == (
        progress,
        {"answers": [1]},
        GateOutcome.PROMOTE,
        {"items": 7},
    )
    assert await do(seeded, unfinished_runs) == [run]
    [listed] = await do(seeded, list_runs, limit=5)
    assert listed == replace(run, manifest=None)

    assert await do(seeded, finish_run, id, RunStatus.FAILED, error="why")
    over = await do(seeded, read_run, id)
    assert (over.status, over.error, over.progress.eta_s) == (RunStatus.FAILED, "why", None)
    assert over.finished_at >= over.started_at
    assert not await do(seeded, finish_run, id, RunStatus.SUCCEEDED)
    assert await do(seeded, begin_run, id) == over, "what is over stays over"
    assert await do(seeded, run_status, id) is RunStatus.FAILED
    assert await do(seeded, unfinished_runs) == []
    assert await kinds(seeded, id) == [
        (EventKind.STATUS, "queued"),
        (EventKind.STATUS, "running"),
        (EventKind.STATUS, "running"),
        (EventKind.STATUS, "failed"),
    ]


async def test_cancelling(seeded: Database) -> None:
    waiting, working = (await ask(seeded)).id, (await ask(seeded)).id
    cancelled = await do(seeded, request_cancel, waiting)
    assert cancelled.status is RunStatus.CANCELLED
    assert cancelled.finished_at is not None
    assert await kinds(seeded, waiting) == [(EventKind.STATUS, "queued"), (EventKind.STATUS, "cancelled")]
    assert (await do(seeded, begin_run, waiting)).status is RunStatus.CANCELLED
    with pytest.raises(Conflict, match="is over: cancelled"):
        await do(seeded, request_cancel, waiting)

    await do(seeded, begin_run, working)
    asked = await do(seeded, request_cancel, working)
    assert (asked.status, asked.finished_at) == (RunStatus.RUNNING, None)
    repeated = await do(seeded, request_cancel, working)
    assert repeated.cancel_requested_at == asked.cancel_requested_at is not None
    for work in (request_cancel, read_run, run_status, begin_run):
        with pytest.raises(NotFound, match="there is no training run"):
            await do(seeded, work, new_id())


@pytest.mark.parametrize("begins_first", [True, False])
async def test_a_cancellation_and_a_beginning_at_once(seeded: Database, *, begins_first: bool) -> None:
    """Whichever is first, the run is either cancelled and not begun, or begun and asked to end."""
    id = (await ask(seeded)).id
    first, second = (begin_run, request_cancel) if begins_first else (request_cancel, begin_run)
    async with seeded.session() as session:
        await first(session, id)
        waits = asyncio.create_task(do(seeded, second, id))
        await asyncio.sleep(0.2)
        assert not waits.done(), "the second waits for what the first did"
    await waits
    run = await do(seeded, read_run, id)
    if begins_first:
        assert (run.status, run.attempt) == (RunStatus.RUNNING, 1)
        assert run.cancel_requested_at is not None
    else:
        assert (run.status, run.attempt) == (RunStatus.CANCELLED, 0)


async def test_runs_are_listed_newest_first_from_any_place(seeded: Database) -> None:
    ids = [(await ask(seeded)).id for _ in range(4)][::-1]
    assert [run.id for run in await do(seeded, list_runs, limit=9)] == ids
    assert [run.id for run in await do(seeded, list_runs, limit=2, before=ids[0])] == ids[1:3]
    assert [run.id for run in await do(seeded, unfinished_runs)] == ids[::-1]


async def test_how_long_a_step_takes_is_known_from_the_newest_run_of_its_size(seeded: Database) -> None:
    async def expected(**fields: Any) -> float | None:
        async with seeded.session() as session:
            return await seconds_per_step(session, TrainConfig(**fields))

    assert await expected() is None
    old, new, other = await ask(seeded), await ask(seeded), await ask(seeded, config=TrainConfig(prompts_per_step=4))
    await ask(seeded)  # the newest, and it has not taken a step
    for run, seconds in ((old, (100.0,)), (new, (10.0, 14.0)), (other, (3.0,))):
        for took in seconds:
            data = {"step": 1, "seconds": took}
            await do(seeded, append_event, run.id, EventKind.STEP, data)
    await do(seeded, append_event, new.id, EventKind.NOTE, {"seconds": 1e6})
    assert await expected() == 12.0
    assert await expected(seed=5, learning_rate=1e-3) == 12.0, "what does not change a step's size"
    assert await expected(prompts_per_step=4) == 3.0
    assert await expected(max_critique_tokens=64) is None


# --------------------------------------------------------------------------------------------------------------- events


async def test_events_are_read_on_from_any_of_them(seeded: Database) -> None:
    mine, other = (await ask(seeded)).id, (await ask(seeded)).id
    for step in range(4):
        for run in (mine, other):
            data = {"step": step, "loss": float("nan")}
            await do(seeded, append_event, run, EventKind.STEP, data)
    async with seeded.session() as session:
        events = await events_after(session, mine, after=0)
        assert [event.data.get("step") for event in events] == [None, 0, 1, 2, 3]
        assert events[1].data["loss"] is None, "JSON has no NaN"
        assert [event.id for event in events] == sorted({event.id for event in events})
        assert {event.run_id for event in events} == {mine}
        assert await events_after(session, mine, after=events[2].id) == events[3:]
        assert await events_after(session, mine, after=events[1].id, limit=2) == events[2:4]
        assert await events_after(session, mine, after=events[-1].id) == []


async def test_an_event_that_is_not_visible_yet_is_not_passed_by(seeded: Database) -> None:
    """Two processes write of one run: a reader that starts after the second's event must not miss the first's."""
    id = (await ask(seeded)).id
    async with seeded.session() as session:
        last = (await events_after(session, id, after=0))[-1].id
    async with seeded.session() as slow:
        await append_event(slow, id, EventKind.NOTE, {"message": "first"})
        quick = asyncio.create_task(do(seeded, append_event, id, EventKind.NOTE, {"message": "second"}))
        await asyncio.sleep(0.2)
        async with seeded.session() as reader:
            assert await events_after(reader, id, after=last) == []
    await quick
    async with seeded.session() as session:
        assert [event.data["message"] for event in await events_after(session, id, after=last)] == ["first", "second"]


async def test_an_event_needs_its_run(seeded: Database) -> None:
    with pytest.raises(IntegrityError):
        await do(seeded, append_event, new_id(), EventKind.NOTE, {})


# ----------------------------------------------------------------------------------------------------------- publishing


async def test_versions_are_numbered_one_after_another_whoever_publishes(seeded: Database) -> None:
    runs = [(await ask(seeded)).id for _ in range(5)]

    async def publish(run_id: UUID) -> int:
        async with seeded.session() as session:
            critic = await insert_critic(
                session,
                run_id=run_id,
                parent=0,
                base_model="tiny",
                prompt_set="stepwise@1",
                adapter_path=str(run_id),
                adapter_sha256="ab" * 32,
            )
        return critic.version

    versions = await asyncio.gather(*map(publish, runs))
    assert sorted(versions) == [1, 2, 3, 4, 5]
    assert await asyncio.gather(*map(publish, runs)) == versions, "a run that publishes again publishes the same"
    assert await do(seeded, list_runs, limit=9)
    for run_id, version in zip(runs, versions, strict=True):
        run = await do(seeded, read_run, run_id)
        assert run.version == version
        async with seeded.session() as session:
            told = [event.data for event in await events_after(session, run_id, after=0) if event.kind == "published"]
        assert told == [{"version": version, "adapter_sha256": "ab" * 32, "examples": 0}], "told once"
    async with seeded.session() as session:
        [newest, *_] = await store.critics.list_critic_versions(session)
    assert (newest.version, newest.engine_name, newest.parent) == (5, "critic@5-abababab", 0)
