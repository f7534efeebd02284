"""Tasks in one database: questions, labels, walls, lines of critics, swaps and runs of one do not touch another's."""

import hashlib
from dataclasses import replace
from uuid import UUID

import pytest

from gadfly import store
from gadfly.errors import Conflict
from gadfly.grading import Grade
from gadfly.records import Interaction, Split, SwapKind, TaskId, new_id
from gadfly.rowfiles.rows import ImportRow
from gadfly.settings import SplitBlocks
from gadfly.store.blocks import block_keys
from gadfly.store.critics import insert_pulled_critic
from gadfly.store.database import Database
from gadfly.store.split import question_hash
from gadfly.store.training_data import labelled_answers
from gadfly.training import TrainConfig, Trigger
from tests.support.records import make_interaction

MATH, SQL = TaskId("math", "def"), TaskId("sql", "abc")


async def start(database: Database, *tasks: TaskId, base_model: str = "tiny") -> None:
    """What a service does first."""
    async with database.session() as session:
        for task in tasks:
            await store.critics.ensure_version_zero(session, base_model, task=task)


async def insert_critic(database: Database, task: TaskId) -> int:
    async with database.session() as session:
        critic = await insert_pulled_critic(
            session,
            base_model="tiny",
            prompt_set="p",
            adapter_path="a",
            adapter_sha256=str(new_id()),
            origin={},
            task=task,
        )
        return critic.version


async def insert(database: Database, *interactions: Interaction) -> None:
    await start(database, MATH)
    async with database.session() as session:
        await store.interactions.insert_interactions(session, interactions, [], heldout_share=1e-9)


def labelled(question: str, grade: Grade, *, task: str) -> Interaction:
    return replace(make_interaction(question=question, reference="1", grade=grade), task=task)


def test_a_question_of_mathematics_keeps_its_identity_and_one_of_another_task_has_its_own() -> None:
    asked = "What is 2 + 3?"
    assert question_hash(asked) == hashlib.sha256(b"what is 2 + 3").digest()
    assert question_hash(asked, "math") == question_hash(asked)
    assert len({question_hash(asked, task) for task in ("math", "sql", "sql2")}) == 3
    assert question_hash("  what is 2 + 3", "sql") == question_hash(asked, "sql")
    assert block_keys(asked, "math") == block_keys(asked)
    assert set(block_keys(asked, "sql")).isdisjoint(block_keys(asked))


async def test_each_task_has_a_line_of_critics_and_numbers_are_of_all(database: Database) -> None:
    await start(database, MATH, SQL)
    await start(database, MATH, SQL)  # a second replica
    async with database.session() as session:
        roots = [await store.critics.base_version(session, "tiny", task.name) for task in (MATH, SQL)]
        assert [root.version for root in roots] == [0, 1]
        assert [TaskId(root.task, root.task_version) for root in roots] == [MATH, SQL]
        assert await store.critics.read_all_pointers(session) == {"math": {"live": 0}, "sql": {"live": 1}}
        assert await store.tasks.known_tasks(session) == ["math", "sql"]
    trained = await insert_critic(database, SQL)
    assert trained == 2
    await start(database, MATH, replace(SQL, version="edited"))
    async with database.session() as session:
        root, critic = [await store.critics.resolve_critic(session, each) for each in (1, trained)]
        assert (root.task_version, critic.task_version) == ("edited", "abc")  # what each is under, what it learned


async def test_the_first_task_of_a_database_has_version_zero_whatever_its_name(database: Database) -> None:
    await start(database, SQL)
    await start(database, SQL, MATH)
    async with database.session() as session:
        assert (await store.critics.base_version(session, "tiny", "sql")).version == 0
        assert (await store.critics.base_version(session, "tiny", "math")).version == 1


async def test_another_base_model_begins_a_lineage_of_each_task(database: Database) -> None:
    await start(database, MATH, SQL)
    await start(database, MATH, SQL, base_model="small")
    async with database.session() as session:
        pointers = await store.critics.read_all_pointers(session)
        live = {task: await store.critics.resolve_critic(session, names["live"]) for task, names in pointers.items()}
    assert {task: (critic.base_model, critic.task) for task, critic in live.items()} == {
        "math": ("small", "math"),
        "sql": ("small", "sql"),
    }


async def test_swaps_of_two_tasks_do_not_wait_for_each_other(database: Database) -> None:
    await start(database, MATH, SQL)
    of_math, of_sql = await insert_critic(database, MATH), await insert_critic(database, SQL)
    async with database.session() as session:
        first = await store.swaps.request_swap(session, version=of_math, kind=SwapKind.PROMOTE)
        second = await store.swaps.request_swap(session, version=of_sql, kind=SwapKind.PROMOTE)
        assert (first.task, second.task) == ("math", "sql")
        assert await store.swaps.pending_swaps(session) == {"math": first, "sql": second}
        with pytest.raises(Conflict, match="another swap is in progress"):
            await store.swaps.request_swap(session, version=of_sql, kind=SwapKind.PROMOTE)
    async with database.session() as session:
        with pytest.raises(Conflict, match=f"version {of_sql} is a critic of the task sql, and not of math"):
            await store.swaps.request_swap(session, version=of_sql, kind=SwapKind.PROMOTE, task="math")
        await store.swaps.move_pointer(session, second.id)
        pointers = await store.critics.read_all_pointers(session)
        assert pointers == {"math": {"live": 0}, "sql": {"live": of_sql, "previous": 1}}
        back = await store.swaps.request_swap(session, kind=SwapKind.ROLLBACK, task="sql")
        assert (back.version, back.task) == (1, "sql")
        assert await store.swaps.pending_swap(session) == first, "a rollback refuses the promotion of its own task only"


async def test_labels_and_sides_are_of_a_task(database: Database) -> None:
    asked = "Tom has 3 pens and buys 4 more. How many pens has Tom?"
    await insert(database, labelled(asked, Grade.RIGHT, task="math"), labelled(asked, Grade.WRONG, task="sql"))
    async with database.session() as session:
        for task, is_right in (("math", True), ("sql", False)):
            [answer] = await labelled_answers(session, Split.TRAIN, limit=10, task=task)
            assert answer.is_right is is_right
            assert answer.question_hash == question_hash(asked, task)
            assert await store.training_data.traffic_counts(session, task) == (int(is_right), int(not is_right))
            assert await store.training_data.count_new_labels(session, task) == 1
            assert await store.training_data.has_labels(session, Split.TRAIN, task=task)
        assert not await store.training_data.has_labels(session, Split.TRAIN, task="invoices")
        filters = store.interactions.Filters(task="sql")
        page = await store.interactions.list_interactions(session, scope=None, filters=filters, limit=10)
        assert [item.task for item in page.interactions] == ["sql"]


async def test_a_near_duplicate_follows_its_own_task_only(database: Database) -> None:
    await start(database, MATH)
    heldout = "A shelf holds 5 rows of 8 books, and 6 books are lent out. How many books are on the shelf?"
    near = heldout.replace("5", "7").replace("8", "9")
    async with database.session() as session:
        item = replace(make_interaction(question=heldout), task="sql")
        await store.interactions.insert_interactions(session, [item], heldout_share=1.0)
    await insert(
        database,
        *(replace(make_interaction(question=near), task=task) for task in ("math", "sql")),
    )
    async with database.session() as session:
        sides = await store.interactions.stored_sides(
            session, [question_hash(near, "math"), question_hash(near, "sql")]
        )
        apart = await store.wall.apart_from_training(session, {question_hash(heldout, "sql"): heldout}, "sql")
    assert sides == {question_hash(near, "math"): Split.TRAIN, question_hash(near, "sql"): Split.HELDOUT}
    assert apart == {question_hash(heldout, "sql")}


async def test_stored_questions_get_the_keys_of_their_task(database: Database) -> None:
    asked = "How many customers are there in each city of the shop's table?"
    await insert(database, replace(make_interaction(question=asked), task="sql"))
    async with database.session() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("DELETE FROM block_keys")
        await connection.exec_driver_sql("UPDATE questions SET is_keyed = false")
    assert await store.wall.key_stored_questions(database) == 1
    async with database.session() as session:
        connection = await session.connection()
        keys = {row[0] for row in await connection.exec_driver_sql("SELECT key FROM block_keys")}
    assert keys == set(block_keys(asked, "sql"))


async def test_worn_questions_of_one_task_are_retired_without_those_of_another(database: Database) -> None:
    await start(database, MATH)
    asked = [f"What does the word number {place} in this list of animals mean?" for place in ("one", "two")]
    async with database.session() as session:
        items = [replace(make_interaction(question=q), task=task) for q in asked for task in ("math", "sql")]
        await store.interactions.insert_interactions(session, items, heldout_share=1.0, split_blocks=SplitBlocks.EXACT)
        hashes = [question_hash(q, task) for q in asked for task in ("math", "sql")]
        await store.wear.count_looks(session, hashes)
    retired = await store.wear.retire_worn(
        database, after_looks=1, share=1.0, keep=0, blocks=SplitBlocks.EXACT, task="sql"
    )
    assert (retired.moved, retired.due) == (2, 2)
    async with database.session() as session:
        sides = await store.interactions.stored_sides(session, hashes)
    assert {hash_ for hash_, side in sides.items() if side is Split.TRAIN} == {question_hash(q, "sql") for q in asked}


async def test_runs_are_of_a_task(database: Database) -> None:
    async def request(task: str, request_id: str | None = None) -> UUID:
        async with database.session() as session:
            requested = await store.runs.request_run(
                session, config=TrainConfig(seed=1), trigger=Trigger.ADMIN, task=task, request_id=request_id
            )
            return requested.run.id

    of_math, of_sql = await request("math"), await request("sql", "r")
    async with database.session() as session:
        assert (await store.runs.read_run(session, of_sql)).task == "sql"
        assert [run.id for run in await store.runs.list_runs(session, limit=9, task="sql")] == [of_sql]
        assert [run.id for run in await store.runs.unfinished_runs(session, "math")] == [of_math]
        assert len(await store.runs.unfinished_runs(session)) == 2
    assert await request("sql", "r") == of_sql
    with pytest.raises(Conflict, match="belongs to a run of the task sql"):
        await request("math", "r")


def test_the_same_row_imported_under_two_tasks_is_two_rows() -> None:
    row = ImportRow(question="q", response="r")
    assert row.interaction_id_of("math") != row.interaction_id_of("sql") == row.interaction_id_of("sql")
