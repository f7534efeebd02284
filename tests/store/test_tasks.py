"""A database belongs to one task, that of its rows."""

from dataclasses import replace

import pytest

from gadfly import store
from gadfly.errors import Conflict
from gadfly.records import TaskId
from gadfly.store.critics import insert_pulled_critic
from gadfly.store.database import Database
from gadfly.store.runs import TRAINING_ROLE
from tests.support.records import make_interaction

SQL, MATH = TaskId("sql", "abc"), TaskId("math", "def")


async def start(database: Database, task: TaskId) -> None:
    """What a service does first."""
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny", task=task)


async def insert_critic(database: Database, task: TaskId) -> int:
    async with database.session() as session:
        critic = await insert_pulled_critic(
            session, base_model="tiny", prompt_set="p", adapter_path="a", adapter_sha256="b", origin={}, task=task
        )
        return critic.version


async def test_a_database_without_anything_of_a_task_takes_any(database: Database) -> None:
    await start(database, MATH)
    await start(database, SQL)
    async with database.session() as session:
        zero = await store.critics.resolve_critic(session, 0)
        assert TaskId(zero.task, zero.task_version) == SQL
        assert await store.tasks.stored_task(session) is None


async def test_a_database_with_a_critic_of_another_task_is_refused(database: Database) -> None:
    await start(database, SQL)
    version = await insert_critic(database, SQL)
    with pytest.raises(Conflict, match="the database belongs to the task sql, but GADFLY_TASK is math: set it to sql"):
        await start(database, MATH)
    await start(database, replace(SQL, version="new"))
    async with database.session() as session:
        trained, zero = [await store.critics.resolve_critic(session, each) for each in (version, 0)]
    assert (trained.task, trained.task_version) == ("sql", "abc")  # the task it was trained on
    assert zero.task_version == "new"


async def test_a_database_with_rows_of_another_task_is_refused(database: Database, database_url: str) -> None:
    await start(database, SQL)
    interaction = replace(make_interaction(), task="sql", task_version="abc")
    async with database.session() as session:
        await store.interactions.insert_interactions(session, [interaction], [], heldout_share=1e-9)
    with pytest.raises(Conflict, match="belongs to the task sql"):
        await start(database, MATH)
    async with Database(database_url, role=TRAINING_ROLE) as behind_the_wall, behind_the_wall.session() as session:
        with pytest.raises(Conflict, match="belongs to the task sql"):
            await store.tasks.require_task(session, "math")
    async with database.session() as session:
        kept = await store.interactions.read_interaction(session, interaction.id, scope=None)
    assert (kept.task, kept.task_version) == ("sql", "abc")
