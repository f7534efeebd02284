"""Looks at held-out questions, their wear, and the retirement of worn blocks into training."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.errors import StoreUnavailable
from gadfly.records import Interaction, Kind, Split, now
from gadfly.settings import SplitBlocks
from gadfly.store.blocks import block_keys
from gadfly.store.database import Database
from gadfly.store.labels import refresh
from gadfly.store.split import question_hash
from gadfly.store.training_data import labelled_answers
from gadfly.store.wall import apart_from_training
from gadfly.store.wear import Retired, components, count_looks, read_wear, retire_worn
from tests.support.records import make_feedback, make_interaction, make_key, unrelated_question

ALL_TRAIN, ALL_HELDOUT = 1e-9, 1 - 1e-9
TWIN = "A farmer has {a} cows and buys {b} more at the market. How many cows does the farmer have?"
H, T = Split.HELDOUT, Split.TRAIN
NONE = Retired(moved=0, due=0)


@pytest.fixture
async def seeded(database: Database) -> Database:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    return database


def asked(question: str, **fields: Any) -> Interaction:
    return make_interaction(kind=Kind.IMPORT, question=question, critic_version=None, critiques=(), **fields)


async def keep(
    database: Database,
    *questions: str,
    share: float = ALL_HELDOUT,
    blocks: SplitBlocks = SplitBlocks.NEAR,
    pinned: bool = False,
) -> None:
    async with database.session() as session:
        await store.interactions.insert_interactions(
            session,
            [asked(question) for question in questions],
            heldout_share=share,
            split_blocks=blocks,
            sides={question_hash(question): H for question in questions} if pinned else {},
        )


async def look(database: Database, *questions: str, times: int = 1) -> None:
    async with database.session() as session:
        for _ in range(times):
            await count_looks(session, [question_hash(question) for question in questions])


async def retire(database: Database, **options: Any) -> Retired:
    return await retire_worn(
        database, **{"after_looks": 2, "share": 1.0, "keep": 0, "blocks": SplitBlocks.NEAR, **options}
    )


async def sides(database: Database, questions: Sequence[str]) -> list[Split]:
    async with database.session() as session:
        found = await store.interactions.stored_sides(session, map(question_hash, questions))
    return [found[question_hash(question)] for question in questions]


# --------------------------------------------------------------------------------------------------------------- looks


async def test_the_wear_of_a_set_is_its_looks_and_its_age(seeded: Database) -> None:
    questions = [unrelated_question(number) for number in range(4)]
    await keep(seeded, *questions[:3])
    await keep(seeded, questions[3], share=ALL_TRAIN)
    await look(seeded, questions[0], times=3)
    await look(seeded, questions[1], questions[3])
    async with seeded.session() as session:
        for days, question in enumerate(questions, start=1):
            await session.execute(
                text("UPDATE questions SET created_at = :at WHERE hash = :hash"),
                {"at": now() - timedelta(days=days), "hash": question_hash(question)},
            )
    async with seeded.session() as session:
        found = await read_wear(session, [question_hash(each) for each in questions[:3]])
        trained = await read_wear(session, [question_hash(questions[3])])
        assert await read_wear(session, []) is None
    assert found is not None
    assert trained is not None
    assert (found.questions, found.looks_median, found.looks_most, found.retired) == (3, 1, 3, 0)
    assert (found.days_median, found.days_most) == (pytest.approx(2, abs=0.1), pytest.approx(3, abs=0.1))
    assert trained.looks_most == 0, "only held-out questions wear"
    assert "had been evidence 1 times in the median and 3 times at most" in found.sentence()


# ---------------------------------------------------------------------------------------------------------- retirement


async def test_worn_questions_move_to_training_for_ever(seeded: Database) -> None:
    questions = [unrelated_question(number) for number in range(4)]
    await keep(seeded, *questions)
    assert await retire(seeded) == NONE
    await look(seeded, *questions[:2], times=2)
    await look(seeded, questions[2])
    assert await retire(seeded, after_looks=0) == NONE, "never"
    assert await retire(seeded) == Retired(moved=2, due=2)
    assert await sides(seeded, questions) == [T, T, H, H]
    assert await retire(seeded) == NONE
    await keep(seeded, *questions)
    assert await sides(seeded, questions) == [T, T, H, H], "it returns to the side that it was retired to"
    async with seeded.session() as session:
        found = await read_wear(session, [question_hash(questions[3])])
        moments = await session.execute(text("SELECT split, retired_at IS NOT NULL FROM questions"))
        assert sorted(moments.all()) == [("heldout", False), ("heldout", False), ("train", True), ("train", True)]
    assert found is not None
    assert found.retired == 2


@pytest.mark.parametrize(
    ("options", "moved", "why"),
    [
        ({"share": 0.25}, 2, "a quarter of eight"),
        ({"keep": 5}, 3, "five stay"),
        ({"keep": 20}, 0, "the set is smaller than what one gate judges"),
        ({}, 6, "all that are worn"),
    ],
)
async def test_the_most_worn_move_first_and_enough_stay(
    seeded: Database, options: dict[str, Any], moved: int, why: str
) -> None:
    questions = [unrelated_question(number) for number in range(8)]
    await keep(seeded, *questions)
    for number, question in enumerate(questions):
        await look(seeded, question, times=number)
    assert await retire(seeded, **options) == Retired(moved=moved, due=6), why
    assert await sides(seeded, questions) == [H] * (8 - moved) + [T] * moved


async def test_a_block_moves_as_a_whole_and_takes_later_members_along(seeded: Database) -> None:
    twins = [TWIN.format(a=a, b=2) for a in range(2, 7)]
    other = unrelated_question(1)
    await keep(seeded, *twins, other)
    await look(seeded, twins[0], times=2)
    assert await retire(seeded, share=0.5) == Retired(moved=0, due=5), "no part of a block moves"
    assert await sides(seeded, [*twins, other]) == [H] * 6
    assert await retire(seeded) == Retired(moved=5, due=5)
    later = TWIN.format(a=71, b=13)
    await keep(seeded, later)
    assert await sides(seeded, [*twins, later, other]) == [T] * 6 + [H]
    async with seeded.session() as session:
        texts = {question_hash(each): each for each in (TWIN.format(a=8, b=8), other)}
        assert await apart_from_training(session, texts) == {question_hash(other)}


async def test_only_spellings_are_a_block_where_blocks_are_exact(seeded: Database) -> None:
    exact = {"blocks": SplitBlocks.EXACT}
    twins = [TWIN.format(a=a, b=2) for a in range(2, 6)]
    wrapped = f"Question: {twins[0]}"
    await keep(seeded, *twins, wrapped, **exact)
    await look(seeded, twins[0], times=2)
    assert await retire(seeded, **exact) == Retired(moved=2, due=2)
    assert await sides(seeded, [*twins, wrapped]) == [T, H, H, H, T]
    await keep(seeded, f"Please solve this problem.\n\n{twins[0]}", **exact)
    assert await sides(seeded, [f"Please solve this problem.\n\n{twins[0]}"]) == [T]


async def test_a_test_set_that_a_caller_named_stays_held_out(seeded: Database) -> None:
    named, free = unrelated_question(1), unrelated_question(2)
    await keep(seeded, named, pinned=True)
    await keep(seeded, free)
    await look(seeded, named, free, times=9)
    assert await retire(seeded) == Retired(moved=1, due=1)
    assert await sides(seeded, [named, free]) == [H, T]


async def test_the_labels_of_a_retired_question_follow_its_votes_again(seeded: Database) -> None:
    """Held out, the first word is frozen, whatever two keys say later."""
    question = unrelated_question(1)
    first, one, other = make_key(), make_key(), make_key()
    answer = asked(question, response="It is 4.")
    async with seeded.session() as session:
        for key in (first, one, other):
            await store.keys.insert_key(session, key, key.id.bytes * 2)
        await store.interactions.insert_interactions(session, [answer], heldout_share=ALL_HELDOUT)
    for key, says in ((first, True), (one, False), (other, False)):
        word = make_feedback(answer.id, key_id=key.id, correct=says)
        async with seeded.session() as session:
            await store.interactions.insert_records(session, [word], heldout_share=ALL_HELDOUT)
    async with seeded.session() as session:
        [heldout] = await labelled_answers(session, H, limit=10)
    assert heldout.is_right, "frozen"
    await look(seeded, question, times=2)
    assert await retire(seeded) == Retired(moved=1, due=1)
    async with seeded.session() as session:
        assert await labelled_answers(session, H, limit=10) == []
        [trained] = await labelled_answers(session, T, limit=10)
        assert await session.scalar(text("SELECT count(*) FROM answers WHERE frozen_at IS NOT NULL")) == 0
    assert not trained.is_right, "two of three votes"
    await refresh(seeded)
    async with seeded.session() as session:
        [again] = await labelled_answers(session, T, limit=10)
    assert not again.is_right


# ---------------------------------------------------------------------------------------------------------- at one time


async def test_a_twin_that_arrives_at_the_same_time_is_on_the_new_side(seeded: Database, database_url: str) -> None:
    """A writer that placed a twin before the retirement commits first, and the twin moves with its block."""
    twins = [TWIN.format(a=a, b=2) for a in (1, 99, 55)]
    await keep(seeded, twins[0])
    await look(seeded, twins[0], times=2)
    async with Database(database_url) as replica:
        async with replica.session() as session:
            await store.interactions.insert_interactions(session, [asked(twins[1])], heldout_share=ALL_TRAIN)
            retiring = asyncio.create_task(retire(seeded))
            await asyncio.sleep(0.5)
            assert not retiring.done(), "it waits for the writer"
        assert await retiring == Retired(moved=2, due=2)
        await keep(replica, twins[2])
    assert await sides(seeded, twins) == [T, T, T]


async def test_a_writer_that_does_not_end_delays_the_retirement_to_the_next_run(
    seeded: Database, database_url: str
) -> None:
    question = unrelated_question(1)
    await keep(seeded, question)
    await look(seeded, question, times=2)
    async with Database(database_url, timeout_s=0.5) as replica:
        async with seeded.session() as session:
            await store.interactions.insert_interactions(
                session, [asked(unrelated_question(2))], heldout_share=ALL_TRAIN
            )
            with pytest.raises(StoreUnavailable, match="lock timeout"):
                await retire(replica)
        assert await sides(seeded, [question]) == [H]
        assert await retire(replica) == Retired(moved=1, due=1)


# ---------------------------------------------------------------------------------------------------------- components


def test_questions_that_share_a_binding_key_are_one_component() -> None:
    questions = [TWIN.format(a=1, b=2), TWIN.format(a=7, b=8), unrelated_question(1), unrelated_question(2)]
    keys = {bytes([number]): block_keys(question) for number, question in enumerate(questions)}
    assert components(keys, (), SplitBlocks.NEAR) == [[b"\0", b"\1"], [b"\2"], [b"\3"]]
    assert components(keys, (), SplitBlocks.EXACT) == [[b"\0"], [b"\1"], [b"\2"], [b"\3"]]
    opened = set(keys[b"\0"].near)
    assert components(keys, opened, SplitBlocks.NEAR) == [[b"\0"], [b"\1"], [b"\2"], [b"\3"]]
