"""The wall in the database: near-duplicates on one side, also from two writers at once, and stored questions' keys."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.records import Interaction, Kind, Split
from gadfly.settings import SplitBlocks
from gadfly.store.blocks import block_keys
from gadfly.store.database import Database
from gadfly.store.split import question_hash, split_of
from gadfly.store.wall import apart_from_training, key_stored_questions
from tests.support.postgres import SPLIT_SECRET
from tests.support.records import make_interaction, unrelated_question

ALL_TRAIN, ALL_HELDOUT = 1e-9, 1 - 1e-9

TEMPLATES = (
    "A farmer has {a} cows and buys {b} more at the market. How many cows does the farmer have?",
    "The train leaves the station {a} minutes late and arrives after {b} minutes. How long did passengers wait?",
    "Anna reads {a} pages of her novel each evening for {b} days. How many pages has she read?",
    "There are {a} red marbles and {b} blue marbles in a jar. What share of all marbles is red?",
    "A rectangle is {a} cm wide and {b} cm long. What is its perimeter?",
    "A shop sells {a} loaves in the morning and {b} in the afternoon, at $2 each. What does it earn?",
    "If f(x) = {a}x + {b}, what is f(3)?",
    "Ben runs {a} km on Monday, and on Friday {b} km less than that. What distance is it altogether?",
)


@pytest.fixture
async def seeded(database: Database) -> Database:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    return database


def asked(question: str) -> Interaction:
    return make_interaction(kind=Kind.IMPORT, question=question, critic_version=None, critiques=())


async def keep(
    database: Database, *questions: str, share: float = 0.5, blocks: SplitBlocks = SplitBlocks.NEAR
) -> list[Split]:
    """Store questions in one transaction; the side of each."""
    async with database.session() as session:
        await store.interactions.insert_interactions(
            session, [asked(question) for question in questions], heldout_share=share, split_blocks=blocks
        )
    return await sides(database, questions)


async def sides(database: Database, questions: Sequence[str]) -> list[Split]:
    async with database.session() as session:
        rows = await session.execute(text("SELECT hash, split FROM questions"))
        found = {bytes(hash_): Split(split) for hash_, split in rows}
    return [found[question_hash(question)] for question in questions]


def twins(count: int, *, seed: int = 0) -> list[str]:
    """Numbers-only twins, some in a wrapper."""
    rng = random.Random(seed)
    wrappers = ("{}", "{}", "Question: {}", "Please solve this problem.\n\n{}", "{} Show your work.")
    return [
        rng.choice(wrappers).format(rng.choice(TEMPLATES).format(a=rng.randint(2, 99), b=rng.randint(2, 99)))
        for _ in range(count)
    ]


# ----------------------------------------------------------------------------------------------------------- one writer


async def test_a_question_without_a_block_follows_the_secret(seeded: Database) -> None:
    for question in (template.format(a=1, b=2) for template in TEMPLATES):
        assert await keep(seeded, question) == [split_of(question_hash(question), 0.5, secret=SPLIT_SECRET)]


async def test_a_new_secret_decides_about_new_questions_only(seeded: Database) -> None:
    questions = [unrelated_question(number) for number in range(40)]
    before = await keep(seeded, *questions)
    async with seeded.session() as session:
        await session.execute(text("UPDATE split_secrets SET secret = 'another'"))
    assert await keep(seeded, *questions) == before
    newer = [unrelated_question(number) for number in range(40, 80)]
    assert await keep(seeded, *newer) == [split_of(question_hash(each), 0.5, secret=b"another") for each in newer]


@pytest.mark.parametrize("first", [ALL_TRAIN, ALL_HELDOUT])
async def test_twins_follow_the_first_for_ever(seeded: Database, first: float) -> None:
    [side] = await keep(seeded, TEMPLATES[0].format(a=1, b=2), share=first)
    assert await keep(seeded, "Question: " + TEMPLATES[0].format(a=1, b=2), share=1 - first) == [side]
    assert await keep(seeded, TEMPLATES[0].format(a=13, b="7,000"), share=1 - first) == [side]
    assert await keep(seeded, TEMPLATES[1].format(a=1, b=2), share=1 - first) != [side]


async def test_twins_in_one_transaction_share_a_side(seeded: Database) -> None:
    questions = twins(120)
    found = await keep(seeded, *questions)
    by_template: dict[tuple[int, ...], set[Split]] = {}
    for question, side in zip(questions, found, strict=True):
        by_template.setdefault(block_keys(question).near, set()).add(side)
    assert len(by_template) == len(TEMPLATES)
    assert all(len(each) == 1 for each in by_template.values())


async def test_only_spellings_are_bound_where_blocks_are_exact(seeded: Database) -> None:
    questions = [TEMPLATES[0].format(a=number, b=2) for number in range(60)]
    found = await keep(seeded, *questions, blocks=SplitBlocks.EXACT)
    assert set(found) == set(Split)
    assert await keep(seeded, *(f"**Question:** {each}" for each in questions), blocks=SplitBlocks.EXACT) == found


async def test_a_deployment_with_one_template_gets_a_held_out_set(seeded: Database) -> None:
    found: list[Split] = []
    for start in range(0, 200, 10):
        found += await keep(seeded, *(f"What is {number} + 1?" for number in range(start, start + 10)), share=0.2)
    assert len(set(found[:20])) == 1
    assert set(found[30:]) == set(Split)


# ---------------------------------------------------------------------------------------------------------- two writers


async def test_the_second_of_two_concurrent_writers_waits_and_follows(seeded: Database, database_url: str) -> None:
    one, other = (TEMPLATES[0].format(a=a, b=2) for a in (1, 99))
    async with Database(database_url) as replica:
        async with seeded.session() as session:
            await store.interactions.insert_interactions(session, [asked(one)], heldout_share=ALL_HELDOUT)
            waiting = asyncio.create_task(keep(replica, other, share=ALL_TRAIN))
            unrelated = await keep(replica, TEMPLATES[1].format(a=1, b=2), share=ALL_TRAIN)
            await asyncio.sleep(0.3)
            assert not waiting.done(), "the first writer's decision is not known yet"
        assert unrelated == [Split.TRAIN], "only writers of near-duplicates wait"
        assert await waiting == [Split.HELDOUT]


async def test_a_writer_whose_predecessor_fails_decides_itself(seeded: Database, database_url: str) -> None:
    one, other = (TEMPLATES[0].format(a=a, b=2) for a in (1, 99))
    async with Database(database_url) as replica:
        async with seeded.session() as session:
            await store.interactions.insert_interactions(session, [asked(one)], heldout_share=ALL_HELDOUT)
            waiting = asyncio.create_task(keep(replica, other, share=ALL_TRAIN))
            await asyncio.sleep(0.3)
            await session.rollback()
        assert await waiting == [Split.TRAIN]


async def test_replicas_that_write_twins_at_once_agree(seeded: Database, database_url: str) -> None:
    batches = [[twins(6, seed=10 * writer + turn) for turn in range(6)] for writer in range(4)]

    async def write(own: Sequence[list[str]]) -> None:
        async with Database(database_url) as replica:
            for batch in own:
                await keep(replica, *batch)

    await asyncio.gather(*map(write, batches))
    questions = [question for own in batches for batch in own for question in batch]
    by_template: dict[tuple[int, ...], set[Split]] = {}
    for question, side in zip(questions, await sides(seeded, questions), strict=True):
        by_template.setdefault(block_keys(question).near, set()).add(side)
    assert all(len(each) == 1 for each in by_template.values())
    async with seeded.session() as session:
        assert await session.scalar(text("SELECT bool_and(is_keyed) FROM questions"))


# ------------------------------------------------------------------------------------------------------- the whole wall


async def test_what_is_near_to_training_is_known(seeded: Database) -> None:
    await keep(seeded, TEMPLATES[0].format(a=1, b=2), share=ALL_TRAIN)
    await keep(seeded, TEMPLATES[1].format(a=1, b=2), share=ALL_HELDOUT)
    near, far, unknown = TEMPLATES[0].format(a=5, b=5), TEMPLATES[1].format(a=5, b=5), "Who was Pythagoras?"
    async with seeded.session() as session:
        found = await apart_from_training(session, {question_hash(each): each for each in (near, far, unknown)})
        assert await apart_from_training(session, {}) == frozenset()
    assert found == {question_hash(far), question_hash(unknown)}
    await keep(seeded, "Question: " + far, TEMPLATES[1].format(a=6, b=6), share=ALL_TRAIN, blocks=SplitBlocks.EXACT)
    async with seeded.session() as session:  # now a twin of it is in training
        assert await apart_from_training(session, {question_hash(far): far}) == frozenset()


async def test_rows_of_an_earlier_release_get_keys_and_keep_their_sides(seeded: Database) -> None:
    both = [TEMPLATES[0].format(a=a, b=2) for a in (1, 2)]  # a block with members on both sides
    clean = TEMPLATES[1].format(a=1, b=2)
    gone = TEMPLATES[2].format(a=1, b=2)
    for question, side in ((both[0], "heldout"), (both[1], "train"), (clean, "heldout"), (gone, "train")):
        await keep(seeded, question)
        async with seeded.session() as session:  # as an earlier release, which may still run, stores it
            await session.execute(
                text("UPDATE questions SET split = :side, is_keyed = false WHERE hash = :hash"),
                {"side": side, "hash": question_hash(question)},
            )
            await session.execute(text("DELETE FROM block_keys"))
    async with seeded.session() as session:
        await session.execute(
            text("DELETE FROM interactions WHERE question_hash = :hash"), {"hash": question_hash(gone)}
        )
        await session.execute(text("DELETE FROM episodes WHERE question_hash = :hash"), {"hash": question_hash(gone)})
    assert await key_stored_questions(seeded) == 3
    assert await key_stored_questions(seeded) == 0
    before = [Split.HELDOUT, Split.TRAIN, Split.HELDOUT, Split.TRAIN]
    assert await sides(seeded, [*both, clean, gone]) == before
    async with seeded.session() as session:
        texts = {question_hash(each): each for each in (both[0], clean)}
        assert await apart_from_training(session, texts) == {question_hash(clean)}
    assert await keep(seeded, TEMPLATES[0].format(a=9, b=9), share=ALL_HELDOUT) == [Split.TRAIN]
    assert await keep(seeded, TEMPLATES[1].format(a=9, b=9), share=ALL_TRAIN) == [Split.HELDOUT]
    assert await keep(seeded, gone, share=ALL_HELDOUT) == [Split.TRAIN], "a question that returns has its old side"
    assert await keep(seeded, TEMPLATES[2].format(a=9, b=9), share=ALL_HELDOUT) == [Split.TRAIN], "and keys again"


async def test_keying_continues_in_steps_and_beside_other_processes(seeded: Database, database_url: str) -> None:
    questions = [unrelated_question(number) for number in range(1200)]
    before = await keep(seeded, *questions)
    async with seeded.session() as session:
        await session.execute(text("DELETE FROM block_keys"))
        await session.execute(text("UPDATE questions SET is_keyed = false"))
    async with Database(database_url) as replica:
        counts = await asyncio.gather(*(key_stored_questions(each) for each in (seeded, replica)))
    assert sum(counts) == 1200
    assert await sides(seeded, questions) == before
    async with seeded.session() as session:
        missing = await session.scalar(text("SELECT count(*) FROM questions WHERE NOT is_keyed"))
    assert missing == 0
