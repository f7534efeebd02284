"""The pool and the edge of a transaction, against a Postgres that stops, dies, hangs and comes back."""

import asyncio
import gc
import time
from contextlib import suppress

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import StoreUnavailable
from gadfly.store.breaker import BreakerLimits
from gadfly.store.database import Database
from tests.support.postgres import PostgresServer


async def ping(database: Database, *, limit_s: float | None = None) -> None:
    async with database.session(limit_s=limit_s) as session:
        assert await session.scalar(text("SELECT 1")) == 1


async def until_it_answers(database: Database) -> None:
    """A server that did not answer is asked in the background."""
    async with asyncio.timeout(10):
        while True:
            with suppress(StoreUnavailable):
                return await ping(database)
            await asyncio.sleep(0.05)


async def add(session: AsyncSession, *versions: int) -> None:
    for version in versions:
        await session.execute(
            text("INSERT INTO critic_versions (version, base_model, created_at) VALUES (:version, 'm', now())"),
            {"version": version},
        )


async def count(database: Database) -> int:
    async with database.session() as session:
        return int(await session.scalar(text("SELECT count(*) FROM critic_versions")) or 0)


async def test_a_block_commits_at_its_end_and_rolls_back_when_it_raises(database: Database) -> None:
    async with database.session() as session:
        await add(session, 1)

    async def fail() -> None:
        async with database.session() as session:
            await add(session, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await count(database) == 1


async def test_a_mistake_in_a_statement_is_no_unavailable_store(database: Database) -> None:
    with pytest.raises(ProgrammingError):
        async with database.session() as session:
            await session.execute(text("SELECT * FROM nothing"))
    with pytest.raises(IntegrityError):
        async with database.session() as session:
            await add(session, 1, 1)
    await ping(database)


async def test_errors_name_no_parameters(database: Database) -> None:
    """They reach the log, and parameters are callers' texts."""
    with pytest.raises(ProgrammingError) as caught:
        async with database.session() as session:
            await session.execute(text("SELECT :question FROM no_such_table"), {"question": "a secret question"})
    assert "secret" not in str(caught.value)


async def test_a_cancelled_block_gives_its_connection_back(database_url: str) -> None:
    async with Database(database_url, pool=2, timeout_s=2.0) as database:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), database.session() as session:
                    await session.execute(text("SELECT pg_sleep(30)"))
        await asyncio.gather(ping(database), ping(database))


async def test_waiting_for_a_connection_ends(database_url: str) -> None:
    async with (
        Database(database_url, pool=2, timeout_s=0.5) as database,
        database.session(limit_s=60),
        database.session(limit_s=60),
    ):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="all connections are in use"):
            await ping(database)
        assert time.monotonic() - started < 20


async def test_a_slow_statement_ends(database_url: str) -> None:
    async with Database(database_url, timeout_s=0.3) as database:
        with pytest.raises(StoreUnavailable, match="statement timeout"):
            async with database.session(limit_s=10) as session:
                await session.execute(text("SELECT pg_sleep(30)"))


async def test_a_small_pool_serves_many(database_url: str) -> None:
    async with Database(database_url, pool=5, timeout_s=30.0) as database:
        await asyncio.gather(*(ping(database) for _ in range(200)))


async def test_no_server_is_an_unavailable_store() -> None:
    async with Database("postgresql+psycopg://nobody@127.0.0.1:1/none", timeout_s=0.5) as database:
        with pytest.raises(StoreUnavailable, match="Connection refused"):
            await ping(database)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_connections_survive_a_restart(own_postgres: PostgresServer, how: str) -> None:
    async with Database(own_postgres.url, pool=5, timeout_s=5.0) as database:
        await asyncio.gather(*(ping(database) for _ in range(5)))  # five idle connections
        await asyncio.to_thread(getattr(own_postgres, how))
        with pytest.raises(StoreUnavailable):
            await ping(database)
        await asyncio.to_thread(own_postgres.start)
        for _ in range(10):
            await ping(database)  # none of the dead ones is handed out
        async with database.session() as session:
            await add(session, 1)
        await asyncio.to_thread(getattr(own_postgres, how))
        await asyncio.to_thread(own_postgres.start)
        assert await count(database) == 1


async def test_a_restart_under_an_open_transaction(own_postgres: PostgresServer) -> None:
    async def work() -> None:
        async with database.session(limit_s=60) as session:
            await add(session, 1)
            await asyncio.to_thread(own_postgres.kill)
            await asyncio.to_thread(own_postgres.start)

    async with Database(own_postgres.url, timeout_s=5.0) as database:
        with pytest.raises(StoreUnavailable):
            await work()
        assert await count(database) == 0


async def test_a_server_that_hangs_cannot_hold_the_caller(own_postgres: PostgresServer) -> None:
    async with Database(own_postgres.url, timeout_s=1.0) as database:
        await ping(database)
        own_postgres.freeze()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await ping(database, limit_s=0.5)  # the connection is there, and silent
        assert time.monotonic() - started < 10
        with pytest.raises(StoreUnavailable):
            await ping(database, limit_s=0.5)  # a new one is not even accepted
        assert time.monotonic() - started < 20
        own_postgres.thaw()
        await until_it_answers(database)
        await ping(database)


async def test_a_pause_of_this_process_is_no_silence_of_the_server(database: Database) -> None:
    async with database.session(limit_s=0.4) as session:
        await session.execute(text("SELECT 1"))
        time.sleep(1.0)  # noqa: ASYNC251 - the whole event loop stands still, as in a virtual machine that is paused
        assert await session.scalar(text("SELECT sum(n) FROM generate_series(1, 1000) n")) == 500500


async def test_a_frozen_server_is_noticed_once_and_then_costs_nothing(own_postgres: PostgresServer) -> None:
    limits = BreakerLimits(suspicious_s=0.3, probe_limit_s=0.5, probe_every_s=0.2)
    async with Database(own_postgres.url, pool=2, timeout_s=5, breaker=limits) as database:

        async def seconds() -> float:
            started = time.monotonic()
            try:
                async with database.session() as session:
                    await session.execute(text("SELECT 1"))
            except StoreUnavailable:
                return time.monotonic() - started
            return -1.0

        await asyncio.gather(seconds(), seconds())
        own_postgres.freeze()
        try:
            first = await asyncio.gather(*(seconds() for _ in range(20)))
            later = await asyncio.gather(*(seconds() for _ in range(200)))
        finally:
            own_postgres.thaw()
        assert max(first) < 2.5, "also those that waited for one of the two connections"
        assert min(first) > 0
        assert 0 < max(later) < 0.1
        await until_it_answers(database)


async def test_slow_statements_do_not_open_the_breaker(database_url: str) -> None:
    limits = BreakerLimits(suspicious_s=0.05)
    async with Database(database_url, pool=2, breaker=limits) as database:

        async def sleep() -> None:
            async with database.session() as session:
                await session.execute(text("SELECT pg_sleep(0.3)"))

        await asyncio.gather(*(sleep() for _ in range(6)))
        await sleep()


async def test_a_connection_is_not_lost_when_its_task_is_cancelled(database_url: str) -> None:
    for microseconds in range(0, 6000, 150):
        async with Database(database_url, pool=2, timeout_s=2.0) as database:
            task = asyncio.create_task(ping(database))
            await asyncio.sleep(microseconds / 1e6)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    gc.collect()  # a lost connection warns here, and a warning is an error


async def test_closing_ends_the_connections_of_tasks_that_go_on(database_url: str, postgres: PostgresServer) -> None:
    database = Database(database_url, pool=3, timeout_s=2.0)
    inside = asyncio.Event()

    async def stay() -> None:
        async with database.session() as session:
            await session.execute(text("SELECT 1"))
            inside.set()
            await asyncio.Event().wait()

    staying = asyncio.create_task(stay())
    await inside.wait()
    opening = asyncio.create_task(ping(database))
    await asyncio.sleep(0)
    await database.close()
    with pytest.raises(StoreUnavailable):
        await ping(database)
    staying.cancel()
    await asyncio.gather(staying, opening, return_exceptions=True)
    async with Database(postgres.url_of("postgres")) as other, other.session() as session:
        left = await session.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name"),
            {"name": make_url(database_url).database},
        )
    assert left == 0


async def test_a_snapshot_sees_one_state_and_writes_nothing(database: Database) -> None:
    async with database.session(snapshot=True) as session:
        number = text("SELECT count(*) FROM critic_versions")
        assert await session.scalar(number) == 0
        async with database.session() as other:
            await add(other, 1)
        assert await session.scalar(number) == 0, "committed since the first read"
    assert await count(database) == 1
    with pytest.raises(StoreUnavailable, match="read-only transaction"):
        async with database.session(snapshot=True) as session:
            await add(session, 2)
    async with database.session() as session:
        await add(session, 2)  # the connection went back to the pool as it was
