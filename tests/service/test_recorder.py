"""Acknowledged records are durable, whatever happens to Postgres, the process or the disk."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from gadfly.errors import Conflict, NotFound, SpoolFull, StoreUnavailable
from gadfly.records import Interaction, Record, new_id
from gadfly.service.recording.recorder import Acknowledgement, Recorder
from gadfly.service.recording.spool import Spool
from gadfly.store.critics import ensure_version_zero
from gadfly.store.database import Database, migrate
from gadfly.store.interactions import feedback_of, find_by_request_id, insert_records, read_interaction
from tests.support.postgres import PostgresServer
from tests.support.records import make_feedback, make_interaction

HELDOUT_SHARE = 0.2


@asynccontextmanager
async def recording(
    url: str, folder: Path, *, pool: int = 5, timeout_s: float = 5.0, spool_max_bytes: int = 2**30
) -> AsyncIterator[Recorder]:
    async with (
        Database(url, pool=pool, timeout_s=timeout_s) as database,
        Recorder(database, folder, heldout_share=HELDOUT_SHARE, spool_max_bytes=spool_max_bytes) as recorder,
    ):
        yield recorder


@pytest.fixture
async def url(database: Database) -> str:
    """A database with version 0, as a service that started leaves it."""
    async with database.session() as session:
        await ensure_version_zero(session, "tiny")
    return database.url


@pytest.fixture
async def server(own_postgres: PostgresServer) -> PostgresServer:
    async with Database(own_postgres.url) as database, database.session() as session:
        await ensure_version_zero(session, "tiny")
    return own_postgres


async def stored_ids(url: str) -> list[UUID]:
    async with Database(url) as database, database.session() as session:
        return list(await session.scalars(text("SELECT id FROM interactions ORDER BY created_at, id")))


async def until_replayed(recorder: Recorder, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while recorder.spooled:
        assert time.monotonic() < deadline, f"{recorder.spooled} records are still in the spool"
        await asyncio.sleep(0.02)


async def test_acknowledged_records_are_committed(url: str, database: Database, tmp_path: Path) -> None:
    async with recording(url, tmp_path) as recorder:
        interaction = make_interaction(refined=True)
        assert await recorder.record(interaction) == Acknowledgement(interaction)
        async with database.session() as session:
            assert await read_interaction(session, interaction.id, scope=None) == interaction
        feedback = make_feedback(interaction.id, correct=True)
        assert await recorder.record(feedback) == Acknowledgement(feedback)
        assert await recorder.record(replace(feedback, id=new_id())) == Acknowledgement(feedback, is_repeat=True)
        assert recorder.last_commit_s > 0


async def test_many_at_once_share_commits_and_a_small_pool(url: str, tmp_path: Path) -> None:
    async with recording(url, tmp_path, pool=5) as recorder:
        acknowledgements = await asyncio.gather(*(recorder.record(make_interaction()) for _ in range(200)))
        assert not any(acknowledgement.is_spooled for acknowledgement in acknowledgements)
        assert recorder.groups < 20
        assert recorder.pending == 0
    assert len(await stored_ids(url)) == 200


async def test_a_bad_record_fails_alone(url: str, tmp_path: Path) -> None:
    taken = make_interaction(request_id="r")
    bad: dict[int, Record] = {
        1: make_interaction(request_id="r"),
        3: make_feedback(new_id(), correct=True),
        5: make_interaction(critic_version=99),
        7: make_interaction(metadata={"not": object()}),
    }
    async with recording(url, tmp_path) as recorder:
        await recorder.record(taken)
        records: list[Record] = [bad.get(number) or make_interaction() for number in range(10)]
        outcomes = await asyncio.gather(*map(recorder.record, records), return_exceptions=True)
        assert {number for number, outcome in enumerate(outcomes) if isinstance(outcome, Exception)} == set(bad)
        assert isinstance(outcomes[1], Conflict)
        assert isinstance(outcomes[3], NotFound)
    assert len(await stored_ids(url)) == 7


async def test_callers_that_disconnect_do_not_break_their_group(url: str, tmp_path: Path) -> None:
    async with recording(url, tmp_path) as recorder:
        interactions = [make_interaction() for _ in range(20)]
        tasks = [asyncio.create_task(recorder.record(item)) for item in interactions]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, Acknowledgement) for outcome in outcomes] == [False, True] * 10
    assert set(await stored_ids(url)) == {item.id for item in interactions}


async def test_closing_writes_pending_records_and_refuses_new_ones(url: str, tmp_path: Path) -> None:
    async with recording(url, tmp_path) as recorder:
        tasks = [asyncio.create_task(recorder.record(make_interaction())) for _ in range(300)]
        await asyncio.sleep(0)
        await recorder.close()
        assert all(isinstance(outcome, Acknowledgement) for outcome in await asyncio.gather(*tasks))
        with pytest.raises(StoreUnavailable, match="stopping"):
            await recorder.record(make_interaction())
    assert len(await stored_ids(url)) == 300


# --------------------------------------------------------------------------------------------- Postgres is unavailable


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_no_acknowledged_record_is_lost_when_postgres_stops_and_starts_under_load(
    server: PostgresServer, tmp_path: Path, how: str
) -> None:
    acknowledged: list[UUID] = []
    spooled = 0
    is_over = False

    async def caller(recorder: Recorder) -> None:
        nonlocal spooled
        while not is_over:
            interaction = make_interaction(refined=True)
            spooled += (await recorder.record(interaction)).is_spooled
            acknowledged.append(interaction.id)
            feedback = make_feedback(interaction.id, rating=3)
            spooled += (await recorder.record(feedback)).is_spooled
            await asyncio.sleep(0.05)  # a generation's time

    async with recording(server.url, tmp_path) as recorder:
        callers = [asyncio.create_task(caller(recorder)) for _ in range(16)]
        for _ in range(2):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(getattr(server, how))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(server.start)
            await until_replayed(recorder)  # while the callers continue: the spool is drained under load
        await asyncio.sleep(0.2)
        is_over = True
        await asyncio.gather(*callers)
        assert spooled > 0
        assert recorder.rejected == 0
    ids = await stored_ids(server.url)
    assert sorted(ids) == sorted(acknowledged)
    async with Database(server.url) as database, database.session() as session:
        for table in ("feedback", "critiques", "refinements"):
            assert await session.scalar(text(f"SELECT count(*) FROM {table}")) == len(ids)
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_a_postgres_that_hangs_delays_only_one_group(server: PostgresServer, tmp_path: Path) -> None:
    async with recording(server.url, tmp_path, timeout_s=1.0) as recorder:
        await recorder.record(make_interaction())
        server.freeze()
        started = time.monotonic()
        assert (await recorder.record(make_interaction())).is_spooled
        assert time.monotonic() - started < 10
        started = time.monotonic()
        for _ in range(30):
            assert (await recorder.record(make_interaction())).is_spooled
            await asyncio.sleep(0.05)
        assert time.monotonic() - started < 15, "waiting for Postgres again would take a second for each"
        server.thaw()
        await until_replayed(recorder)
        assert not (await recorder.record(make_interaction())).is_spooled
    assert len(await stored_ids(server.url)) == 33


async def test_spooled_interactions_can_be_looked_up_and_get_feedback(server: PostgresServer, tmp_path: Path) -> None:
    interaction = make_interaction(request_id="r")
    feedback = make_feedback(interaction.id, correct=False)
    async with recording(server.url, tmp_path) as recorder:
        assert await recorder.lookup(interaction.id) is None
        await asyncio.to_thread(server.stop)
        assert await recorder.record(interaction) == Acknowledgement(interaction, is_spooled=True)
        assert await recorder.record(feedback) == Acknowledgement(feedback, is_spooled=True)
        assert await recorder.lookup(interaction.id) == interaction
        assert await recorder.lookup_request("r", key_id=None) == interaction
        assert await recorder.lookup(new_id()) is None
        assert recorder.spooled == 2
        assert recorder.spool_bytes > 0
        await asyncio.to_thread(server.start)
        await until_replayed(recorder)
        assert await recorder.lookup(interaction.id) is None
    async with Database(server.url) as database, database.session() as session:
        assert await find_by_request_id(session, "r", key_id=None) == interaction
        assert await feedback_of(session, interaction.id) == [feedback]


async def test_a_missing_table_counts_as_an_outage_and_rejects_no_record(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    postgres.execute("DROP DATABASE IF EXISTS test_unmigrated WITH (FORCE)")
    postgres.execute("CREATE DATABASE test_unmigrated")
    url = postgres.url_of("test_unmigrated")
    interaction = make_interaction(critic_version=None)  # version 0 does not exist yet when the replay succeeds
    async with recording(url, tmp_path) as recorder:
        assert (await recorder.record(interaction)).is_spooled
        await asyncio.to_thread(migrate, url)
        await until_replayed(recorder)
        assert recorder.rejected == 0
    assert await stored_ids(url) == [interaction.id]


# ------------------------------------------------------------------------------------------------------------- crashes


def leave_behind(folder: Path, records: Sequence[Any]) -> None:
    """The spool of a process that was killed."""
    spool = Spool(folder, max_bytes=2**30)
    spool.open()
    spool.append(records)
    spool.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from gadfly.store.database import Database
from gadfly.service.recording.recorder import Recorder
from tests.support.records import make_interaction

async def caller(recorder):
    while True:
        interaction = make_interaction(refined=True)
        acknowledgement = await recorder.record(interaction)
        print("kept", interaction.id, acknowledgement.is_spooled, flush=True)

async def main(url, folder):
    async with Database(url, timeout_s=2.0) as database:
        async with Recorder(database, Path(folder), heldout_share=0.2, spool_max_bytes=2**30) as recorder:
            await asyncio.gather(*(caller(recorder) for _ in range(8)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_kill_between_spooling_and_replaying_loses_nothing(server: PostgresServer, tmp_path: Path) -> None:
    await asyncio.to_thread(server.kill)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, server.url, str(tmp_path), stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    acknowledged: list[UUID] = []
    while len(acknowledged) < 500:
        words = (await child.stdout.readline()).decode().split()
        if words[0] == "kept":
            assert words[2] == "True"
            acknowledged.append(UUID(words[1]))
    child.send_signal(signal.SIGKILL)
    rest = (await child.stdout.read()).decode().splitlines(keepends=True)
    acknowledged += [UUID(line.split()[1]) for line in rest if line.startswith("kept") and line.endswith("\n")]
    await child.wait()
    await asyncio.to_thread(server.start)
    async with recording(server.url, tmp_path) as recorder:
        await until_replayed(recorder)
    ids = await stored_ids(server.url)
    assert set(acknowledged) <= set(ids)
    assert len(ids) <= len(acknowledged) + 8  # the last group may be on disk without being acknowledged


async def test_records_already_stored_are_not_stored_again(url: str, database: Database, tmp_path: Path) -> None:
    """As after a crash between the commit of a replay and the removal of its file."""
    interaction = make_interaction(refined=True, request_id="r")
    records: list[Record] = [
        interaction,
        make_feedback(interaction.id, correct=True),
        make_feedback(interaction.id, correct=False),
    ]
    async with database.session() as session:
        await insert_records(session, records, heldout_share=HELDOUT_SHARE)
    leave_behind(tmp_path, records)
    async with recording(url, tmp_path) as recorder:
        await until_replayed(recorder)
        assert recorder.rejected == 0
    async with database.session() as session:
        assert await read_interaction(session, interaction.id, scope=None) == interaction
        assert await feedback_of(session, interaction.id) == records[1:]


async def test_both_answers_of_two_replicas_are_stored_and_the_first_keeps_the_request_id(
    url: str, database: Database, tmp_path: Path
) -> None:
    first, second = make_interaction(request_id="r"), make_interaction(request_id="r")
    leave_behind(tmp_path, [second, make_feedback(second.id, correct=True)])
    async with database.session() as session:
        await insert_records(session, [first], heldout_share=HELDOUT_SHARE)
    async with recording(url, tmp_path) as recorder:
        await until_replayed(recorder)
        assert recorder.rejected == 0
    async with database.session() as session:
        assert await find_by_request_id(session, "r", key_id=None) == first
        assert await read_interaction(session, second.id, scope=None) == replace(second, request_id=None)
        assert len(await feedback_of(session, second.id)) == 1


async def test_an_interaction_leaves_an_episode_that_is_about_another_question(
    url: str, database: Database, tmp_path: Path
) -> None:
    first = make_interaction(question="What is 1 + 1?")
    second = make_interaction(question="What is 2 + 2?", episode_id=first.episode_id, request_id="r")
    leave_behind(tmp_path, [second])
    async with database.session() as session:
        await insert_records(session, [first], heldout_share=HELDOUT_SHARE)
    async with recording(url, tmp_path) as recorder:
        await until_replayed(recorder)
        assert recorder.rejected == 0
    async with database.session() as session:
        stored = await read_interaction(session, second.id, scope=None)
    assert stored.episode_id != first.episode_id
    assert stored.response == second.response


async def test_a_fault_of_the_database_rejects_no_record(url: str, database: Database, tmp_path: Path) -> None:
    """A table is missing for a moment, as during a migration: the replay is retried until it succeeds."""
    interaction = make_interaction()
    leave_behind(tmp_path, [interaction])
    async with database.session() as session:
        await session.execute(text("ALTER TABLE critiques RENAME TO elsewhere"))
    async with recording(url, tmp_path) as recorder:
        await asyncio.sleep(0.5)
        assert (recorder.spooled, recorder.rejected) == (1, 0)
        async with database.session() as session:
            await session.execute(text("ALTER TABLE elsewhere RENAME TO critiques"))
        await until_replayed(recorder)
    assert await stored_ids(url) == [interaction.id]


async def test_records_that_can_never_be_stored_are_rejected_and_the_others_stored(url: str, tmp_path: Path) -> None:
    good, orphan = make_interaction(), make_feedback(new_id(), comment="about nothing")
    leave_behind(tmp_path, [orphan, make_interaction(critic_version=99), good])
    async with recording(url, tmp_path) as recorder:
        await until_replayed(recorder)
        assert recorder.rejected == 2
        assert not (await recorder.record(make_interaction())).is_spooled
    assert (await stored_ids(url))[0] == good.id
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert lines[0]["feedback"]["comment"] == "about nothing"
    assert "fk_interactions_critic_version" in lines[1]["reason"] or "critic_version" in lines[1]["reason"]


# ---------------------------------------------------------------------------------------------------------- full disks


async def test_a_full_spool_refuses_records_and_the_service_continues(server: PostgresServer, tmp_path: Path) -> None:
    kept: list[Interaction] = []
    async with recording(server.url, tmp_path, spool_max_bytes=20_000) as recorder:
        await asyncio.to_thread(server.stop)
        interactions = [make_interaction() for _ in range(50)]
        for interaction in interactions:
            try:
                await recorder.record(interaction)
            except SpoolFull:
                continue
            kept.append(interaction)
        assert 0 < len(kept) < 50
        with pytest.raises(SpoolFull):
            await recorder.record(make_interaction(question="x" * 20_000))
        await asyncio.to_thread(server.start)
        await until_replayed(recorder)
        assert not (await recorder.record(make_interaction())).is_spooled
    assert [item.id for item in kept] == (await stored_ids(server.url))[:-1]
