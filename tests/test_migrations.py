"""The schema: up, down, up again; what the tables say; replicas that migrate at once; another release's schema."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, NullPool, create_engine, inspect, text

from gadfly.errors import StoreUnavailable
from gadfly.store.database import Database, migrate, migration_config, require_current_schema, schema_state
from gadfly.store.tables import Table
from tests.support.postgres import PostgresServer

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def empty_url(postgres: PostgresServer) -> str:
    postgres.execute("DROP DATABASE IF EXISTS test_empty WITH (FORCE)")
    postgres.execute("CREATE DATABASE test_empty")
    return postgres.url_of("test_empty")


@contextmanager
def _transaction(url: str) -> Generator[Connection]:
    with create_engine(url, poolclass=NullPool).begin() as connection:
        yield connection


def _constraints(connection: Connection) -> set[tuple[str, str, str]]:
    rows = connection.execute(
        text(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'gadfly_schema'"
            " AND conrelid::regclass::text NOT LIKE 'procrastinate%'"
        )
    )
    return {(table, name, definition) for table, name, definition in rows}


def test_the_migrations_make_what_the_tables_say(database_url: str, empty_url: str) -> None:
    state = schema_state(database_url)
    assert state.is_current
    assert state.drift == ()
    # Alembic compares neither checks nor tables that are too many.
    with _transaction(database_url) as migrated, _transaction(empty_url) as made:
        Table.metadata.create_all(made)
        names = {name for name in inspect(migrated).get_table_names() if not name.startswith("procrastinate_")}
        assert names == {*Table.metadata.tables, "gadfly_schema"}
        assert _constraints(migrated) == _constraints(made)


def test_drift_is_seen_and_other_programs_tables_are_none(database_url: str) -> None:
    with _transaction(database_url) as connection:
        connection.execute(text("CREATE TABLE somebody_elses (id int)"))
        connection.execute(text("ALTER TABLE interactions DROP COLUMN latency_ms"))
    (drift,) = schema_state(database_url).drift
    assert "latency_ms" in drift


def test_a_new_migration_leaves_the_job_queue_alone(database_url: str) -> None:
    with _transaction(database_url) as connection:
        command.check(migration_config(connection))


def test_every_migration_goes_down_and_up_again(empty_url: str) -> None:
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        command.downgrade(migration_config(connection), "base")
        assert inspect(connection).get_table_names() == ["gadfly_schema"]
    migrate(empty_url)
    assert schema_state(empty_url).drift == ()


def test_feedback_and_critics_from_before_0011(empty_url: str) -> None:
    with _transaction(empty_url) as connection:
        command.upgrade(migration_config(connection), "0004")
        for statement in _ROWS_OF_0004:
            connection.execute(text(statement))
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        feedback = connection.execute(text("SELECT correct, critique_id, refinement_id, helpful FROM feedback")).one()
        assert tuple(feedback) == (False, None, None, None)
        marked = connection.execute(text("SELECT version FROM critic_versions WHERE verdict_only"))
        assert list(marked.scalars()) == [1], "2 was graded by references, and 3 ran stage II"


_ID = "00000000-0000-7000-8000-00000000000"
_ROWS_OF_0004 = [
    "INSERT INTO questions VALUES ('x', 'train', now())",
    f"INSERT INTO episodes VALUES ('{_ID}1', 'x', NULL, now())",
    "INSERT INTO interactions (id, kind, created_at, episode_id, question_hash, question, response, metadata,"
    f" parameters, prompt_tokens, completion_tokens) VALUES ('{_ID}2', 'import', now(), '{_ID}1', 'x', 'q', 'r',"
    " '{}', '{}', 0, 0)",
    "INSERT INTO feedback (id, interaction_id, created_at, source, correct, metadata, refinement_grades)"
    f" VALUES ('{_ID}3', '{_ID}2', now(), 'caller', false, '{{}}', '{{}}')",
    "INSERT INTO critic_versions (version, base_model, created_at) VALUES (0, 'tiny', now())",
    *(
        "INSERT INTO training_runs (id, status, trigger, created_at, config, attempt, step, steps, manifest) VALUES"
        f" ('{_ID}{version}', 'succeeded', 'admin', now(), '{{}}', 1, 1, 1,"
        f' \'{{"label_sources": {{"person": 9, "reference": {graded}}}}}\')'
        for version, graded in ((1, 0), (2, 5), (3, 0))
    ),
    "INSERT INTO run_events (run_id, created_at, kind, data)"
    f""" VALUES ('{_ID}3', now(), 'stage', '{{"stage": "stage_2", "step": 4}}')""",
    *(
        "INSERT INTO critic_versions (version, base_model, created_at, run_id)"
        f" VALUES ({version}, 'tiny', now(), '{_ID}{version}')"
        for version in (1, 2, 3)
    ),
]


def test_replicas_may_migrate_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor() as threads:
        list(threads.map(migrate, [empty_url] * 4))
    assert schema_state(empty_url).is_current


def test_a_migration_does_not_queue_behind_a_lock_for_long(database_url: str) -> None:
    with _transaction(database_url) as holder:
        holder.execute(text("LOCK TABLE interactions IN ACCESS SHARE MODE"))
        with _transaction(database_url) as connection, pytest.raises(Exception, match="lock timeout"):
            command.downgrade(migration_config(connection), "base")


def test_a_schema_of_a_newer_release_is_one_sentence(database_url: str) -> None:
    with _transaction(database_url) as connection:
        connection.execute(text("UPDATE gadfly_schema SET version_num = 'ffff'"))
    with pytest.raises(StoreUnavailable, match="belongs to a newer release"):
        migrate(database_url)


def test_another_programs_revision_in_the_same_database_is_not_ours(empty_url: str) -> None:
    with _transaction(empty_url) as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num text)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
    migrate(empty_url)
    assert schema_state(empty_url).is_current
    with _transaction(empty_url) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "theirs"


async def test_another_releases_schema_is_refused(database: Database, empty_url: str) -> None:
    await require_current_schema(database)
    async with database.session() as session:
        await session.execute(text("UPDATE gadfly_schema SET version_num = 'ffff'"))
    with pytest.raises(StoreUnavailable, match=r"ffff.*gadfly migrate"):
        await require_current_schema(database)
    async with Database(empty_url) as empty:
        with pytest.raises(StoreUnavailable, match="revision none"):
            await require_current_schema(empty)
    assert not (await asyncio.to_thread(schema_state, empty_url)).is_current


def _alembic(*arguments: str, url: str | None) -> "subprocess.CompletedProcess[str]":
    """The command `alembic` with the repository's alembic.ini, from another folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    if url is not None:
        environment["GADFLY_DATABASE_URL"] = url
    return subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(REPOSITORY / "alembic.ini"), *arguments],
        cwd=REPOSITORY.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_alembic_itself_migrates_the_database_of_the_settings(empty_url: str) -> None:
    def run(*arguments: str) -> str:
        done = _alembic(*arguments, url=empty_url)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("current") == ""
    run("upgrade", "head")
    state = schema_state(empty_url)
    assert (state.is_current, state.drift) == (True, ())
    assert run("current").strip() == f"{state.head} (head)"
    assert f"{state.head} (head)" in run("history")
    run("check")
    run("downgrade", "-1")
    assert not schema_state(empty_url).is_current
    migrate(empty_url)
    assert schema_state(empty_url).is_current


UNABLE = [  # arguments, database, what the sentence says
    (("current",), None, "set GADFLY_DATABASE_URL"),
    (("current",), "postgresql://127.0.0.1:1/nothing", "Postgres is unavailable"),
    (("upgrade", "head", "--sql"), "postgresql://127.0.0.1:1/nothing", "--sql is not supported"),
]


@pytest.mark.parametrize(("arguments", "url", "sentence"), UNABLE)
def test_alembic_says_in_a_sentence_why_it_cannot(arguments: tuple[str, ...], url: str | None, sentence: str) -> None:
    done = _alembic(*arguments, url=url)
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
