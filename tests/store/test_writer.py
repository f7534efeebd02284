"""Interactions stored in two round trips: the same rows and the same wall as by `insert_records`."""

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.errors import StoreUnavailable
from gadfly.grading import Grade
from gadfly.records import Interaction, Split
from gadfly.settings import SplitBlocks
from gadfly.store.database import Database
from gadfly.store.forgetting import What
from gadfly.store.interactions import insert_records, read_interaction
from gadfly.store.writer import InteractionWriter
from tests.support.records import make_interaction

SHARE = 0.5
NUMBERS = "A farmer has {n} cows and buys 12 more at the market. How many cows does the farmer have now?"


@pytest.fixture
async def seeded(database: Database) -> Database:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    return database


def writer_of(database: Database) -> InteractionWriter:
    return InteractionWriter(database, heldout_share=SHARE, blocks=SplitBlocks.NEAR)


async def kept(database: Database, *interactions: Interaction) -> None:
    async with database.session() as session:
        await insert_records(session, interactions, heldout_share=SHARE)


async def rows_of(database: Database, table: str, but: Sequence[str] = ("stored_at",)) -> list[dict[str, object]]:
    async with database.session() as session:
        found = await session.execute(text(f"SELECT to_jsonb(t) AS row FROM {table} AS t ORDER BY t::text"))  # noqa: RUF100, S608
        return [{name: value for name, value in row.items() if name not in but} for (row,) in found]


AWKWARD = (
    make_interaction(samples=2, refined=True, metadata={"a": [1, 2.5, None, "ü\x00", {"\ud800": True}]}),
    make_interaction(question="Is \x00 a “number”? \N{GRINNING FACE} 'quoted' \\ %s %% $1;", response="\ud800 no"),
    make_interaction(response=None, critiques=(), critique_due=True, latency_ms=None),
    make_interaction(request_id="it's", fingerprint="f", conversation={"messages": []}),
)


async def test_rows_are_those_of_the_other_way(seeded: Database) -> None:
    assert await writer_of(seeded).write(AWKWARD)
    tables = ("questions", "block_keys", "episodes", "interactions", "critiques", "refinements", "critiques_due")
    written = {table: await rows_of(seeded, table, ("stored_at",)) for table in tables}
    async with seeded.session() as session:
        await session.execute(text(f"TRUNCATE {', '.join(tables)} CASCADE"))
    await kept(seeded, *AWKWARD)
    for table in tables:
        without = ("stored_at", "created_at") if table == "questions" else ("stored_at",)
        expected = await rows_of(seeded, table, without)
        assert [{k: v for k, v in row.items() if k not in without} for row in written[table]] == expected, table


async def test_a_group_of_several_tasks_has_one_question_for_each(seeded: Database) -> None:
    group = [make_interaction(question="How many?", task=task) for task in ("math", "sql", "math")]
    assert await writer_of(seeded).write(group)
    assert [row["task"] for row in await rows_of(seeded, "questions")].count("sql") == 1
    tables = ("questions", "block_keys", "interactions")
    written = {table: await rows_of(seeded, table, ("stored_at", "created_at")) for table in tables}
    async with seeded.session() as session:
        await session.execute(text(f"TRUNCATE {', '.join(tables)} CASCADE"))
    await kept(seeded, *group)
    for table in tables:
        assert await rows_of(seeded, table, ("stored_at", "created_at")) == written[table], table


@pytest.mark.parametrize("how", ["by its id", "by its episode"])
async def test_what_was_forgotten_does_not_come_back(seeded: Database, how: str) -> None:
    writer, interaction, other = writer_of(seeded), make_interaction(), make_interaction()
    assert await writer.write([interaction])
    async with seeded.session() as session:
        if how == "by its id":
            await store.interactions.delete_interaction(session, interaction.id, scope=None)
        else:
            await store.forgetting.order(session, What(episode_id=interaction.episode_id))
            await store.forgetting.forget(session, [interaction.id])
    assert not await writer.write([interaction, other])
    await kept(seeded, interaction, other)
    assert [row["id"] for row in await rows_of(seeded, "interactions")] == [str(other.id)]
    assert await writer.write([make_interaction()])


async def test_a_repeat_changes_nothing(seeded: Database) -> None:
    writer, interaction = writer_of(seeded), make_interaction()
    assert await writer.write([interaction])
    assert await writer.write([interaction, make_interaction(question=interaction.question)])
    async with seeded.session() as session:
        assert await read_interaction(session, interaction.id, scope=None) == interaction
        assert await session.scalar(text("SELECT count(*) FROM questions")) == 1


async def test_near_duplicates_of_writers_at_once_have_one_side(seeded: Database) -> None:
    async def write(start: int) -> None:
        writer = writer_of(seeded if start else other)
        for number in range(start, start + 8):
            interaction = make_interaction(question=NUMBERS.format(n=number))
            if not await writer.write([interaction]):
                await kept(seeded, interaction)

    async with Database(seeded.url) as other:
        await asyncio.gather(write(0), write(1000))
    async with seeded.session() as session:
        sides = (await session.execute(text("SELECT split, count(*) FROM questions GROUP BY split"))).all()
    assert [count for _, count in sides] == [16]


async def test_a_key_that_another_writer_stored_first_is_not_decided_here(seeded: Database) -> None:
    mine, other = (make_interaction(question=NUMBERS.format(n=number)) for number in (3, 4))
    writer = writer_of(seeded)
    async with seeded.session() as session:
        await insert_records(session, [other], heldout_share=SHARE)
        writing = asyncio.create_task(writer.write([mine]))  # it reads no key, and waits for this transaction
        await asyncio.sleep(0.5)
        assert not writing.done()
    assert not await writing
    async with seeded.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM interactions")) == 1
    await kept(seeded, mine)
    assert len({row["split"] for row in await rows_of(seeded, "questions")}) == 1


NOT_HERE = [  # records, why `insert_records` stores them
    ([make_interaction(grade=Grade.RIGHT, reference="4")], "a grade is a vote"),
    ([make_interaction(request_id="a"), make_interaction(request_id="a")], "two with one request id are a conflict"),
    ([make_interaction(metadata={"n": 2**70})], "orjson has no such number"),
]


@pytest.mark.parametrize("interactions", [row[0] for row in NOT_HERE], ids=[row[1] for row in NOT_HERE])
async def test_what_goes_the_other_way_leaves_nothing(seeded: Database, interactions: list[Interaction]) -> None:
    writer = writer_of(seeded)
    assert not await writer.write(interactions)
    assert await rows_of(seeded, "questions") == []
    assert await writer.write([make_interaction()])  # the connection is still of use


async def test_a_question_that_a_restored_backup_lacks_is_stored_again(seeded: Database) -> None:
    writer, interaction = writer_of(seeded), make_interaction()
    assert await writer.write([interaction])
    async with seeded.session() as session:
        await session.execute(text("TRUNCATE questions, block_keys CASCADE"))
    again = make_interaction(question=interaction.question)
    assert not await writer.write([again])
    assert await writer.write([again])
    assert [Split(row["split"]) for row in await rows_of(seeded, "questions")]


async def test_a_stored_question_without_keys_gets_them_elsewhere(seeded: Database) -> None:
    interaction = make_interaction()
    await kept(seeded, interaction)
    async with seeded.session() as session:
        await session.execute(text("UPDATE questions SET is_keyed = false"))
    assert not await writer_of(seeded).write([make_interaction(question=interaction.question)])


async def test_a_cut_connection_is_an_outage_and_the_next_group_has_a_new_one(seeded: Database) -> None:
    writer = writer_of(seeded)
    assert await writer.write([make_interaction()])
    async with seeded.own_connection() as connection:
        pid = connection.info.backend_pid
    async with seeded.session() as session:
        await session.execute(text("LOCK TABLE questions"))
        writing = asyncio.create_task(writer.write([make_interaction(question="Another one?")]))
        await asyncio.sleep(0.3)
        await session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        with pytest.raises(StoreUnavailable):
            await writing
    assert await writer.write([make_interaction(question="Another one?")])
