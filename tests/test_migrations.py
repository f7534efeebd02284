"""The schema: up, down, up again; equal to the tables; replicas that migrate at once; another release's schema."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from alembic import command
from sqlalchemy import Connection, NullPool, create_engine, inspect, text

from gadfly import store
from gadfly.errors import StoreUnavailable
from gadfly.records import Split, new_id
from gadfly.store.blocks import block_keys
from gadfly.store.database import Database, migrate, migration_config, require_current_schema, schema_state
from gadfly.store.labels import refresh
from gadfly.store.split import question_hash
from gadfly.store.tables import Table
from gadfly.store.training_data import labelled_answers
from gadfly.votes import LabelSource
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


_OLD_ROWS = r"""
CREATE FUNCTION id(number int) RETURNS uuid LANGUAGE sql RETURN lpad(number::text, 32, '0')::uuid;
INSERT INTO critic_versions (version, base_model, created_at) VALUES (0, 'tiny', now());
INSERT INTO keys (id, name, tier, hint, digest, created_at)
    SELECT id(number), 'key ' || number, 'caller', 'gf', decode('0' || number, 'hex'), now()
    FROM generate_series(1, 2) AS number;
INSERT INTO questions (hash, split, created_at) VALUES ('\x01', 'train', now()), ('\x02', 'heldout', now());
INSERT INTO episodes (id, question_hash, created_at)
    SELECT id(number), decode('0' || number, 'hex'), now() FROM generate_series(1, 2) AS number;
INSERT INTO interactions (id, episode_id, question_hash, key_id, response, grade, created_at, kind, question, metadata,
    parameters, prompt_tokens, completion_tokens, reference)
SELECT id(number), id(episode), decode('0' || episode, 'hex'), id(key), response, grade,
    now() - age * interval '1 hour', 'critique', 'q', '{}', '{}', 1, 1, CASE WHEN grade IS NOT NULL THEN '4' END
FROM (VALUES
    (1, 1, 1, 'a', 'right', 9), (2, 1, 2, E' a\n', NULL, 8),
    (3, 1, 1, 'b', 'wrong', 7), (4, 1, 1, 'c', 'no_answer', 6),
    (5, 2, 1, 'a', 'right', 5), (6, 2, 2, 'a ', NULL, 4), (7, 2, 1, 'd', NULL, 3)
) AS rows (number, episode, key, response, grade, age);
INSERT INTO feedback (id, interaction_id, key_id, created_at, source, correct, metadata, refinement_grades)
SELECT id(number), id(about), id(key), now() - age * interval '1 hour', source, correct, '{}', '{}'
FROM (VALUES (1, 2, 2, 2, 'caller', false), (2, 1, 1, 3, 'caller', true), (3, 6, 2, 2, 'caller', false))
    AS rows (number, about, key, age, source, correct);
"""


def test_rows_from_before_keep_their_labels_and_held_out_ones_are_frozen(empty_url: str) -> None:
    with _transaction(empty_url) as connection:
        command.upgrade(migration_config(connection), "0004")
    with _transaction(empty_url) as connection:
        connection.exec_driver_sql(_OLD_ROWS)
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        rows = connection.execute(
            text(
                "SELECT a.question_hash, i.response, a.is_right, a.source, a.key_id, a.frozen_at IS NOT NULL, a.votes"
                " FROM answers AS a JOIN interactions AS i ON i.question_hash = a.question_hash"
                " AND sha256(convert_to(i.response, 'UTF8')) = a.text_sha256 ORDER BY i.id"
            )
        ).all()
        stored = connection.execute(text("SELECT count(stored_at) FROM feedback")).scalar_one()
    one, two = (UUID(int=number) for number in (1, 2))
    assert [tuple(row) for row in rows] == [
        (b"\x01", "a", False, "person", two, False, None),  # the newest word, about another interaction with the text
        (b"\x01", "b", False, "reference", one, False, None),
        (b"\x02", "a", False, "person", two, True, None),
    ]
    assert stored == 0, "the database's clock of then is not known"
    assert asyncio.run(_labels_when_counted(empty_url)) == {
        (Split.TRAIN, "a"): (True, LabelSource.REFERENCE),  # another key's bare word does not overrule a grade
        (Split.TRAIN, "b"): (False, LabelSource.REFERENCE),
        (Split.HELDOUT, "a"): (False, LabelSource.PERSON),  # it stays as it was frozen
    }


async def _labels_when_counted(url: str) -> dict[tuple[Split, str], tuple[bool, LabelSource]]:
    found = {}
    async with Database(url) as database:
        await refresh(database)
        for split in Split:
            async with database.session() as session:
                for item in await labelled_answers(session, split, limit=10):
                    found[split, item.response.strip()] = (item.is_right, item.source)
    return found


def test_questions_of_an_earlier_release_keep_their_sides(empty_url: str) -> None:
    with _transaction(empty_url) as connection:
        command.upgrade(migration_config(connection), "0004")
        for hash_, split in ((b"a", "train"), (b"b", "heldout")):
            row = {"hash": hash_, "split": split}
            connection.execute(text("INSERT INTO questions VALUES (:hash, :split, now())"), row)
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        stored = connection.execute(text("SELECT hash, split, is_keyed FROM questions ORDER BY hash")).all()
        assert [tuple(row) for row in stored] == [(b"a", "train", False), (b"b", "heldout", False)]
        # A process of that release, which may still run, stores a question.
        connection.execute(text("INSERT INTO questions (hash, split, created_at) VALUES ('c', 'train', now())"))
        command.downgrade(migration_config(connection), "0004")
        assert connection.execute(text("SELECT count(*) FROM questions")).scalar_one() == 3


def test_each_deployment_has_a_secret_of_its_own(postgres: PostgresServer, empty_url: str) -> None:
    found = []
    for _ in range(2):
        migrate(empty_url)
        migrate(empty_url)  # the secret is made once
        with _transaction(empty_url) as connection:
            [secret] = connection.scalars(text("SELECT secret FROM split_secrets")).all()
            found.append(secret)
        postgres.execute("DROP DATABASE test_empty WITH (FORCE)")
        postgres.execute("CREATE DATABASE test_empty")
    assert [len(secret) for secret in found] == [32, 32]
    assert found[0] != found[1]


_EPISODE = "'00000000-0000-0000-0000-000000000001'"
_ROW_BEFORE_0010 = f"""
    INSERT INTO questions (hash, split, created_at) VALUES ('\\x01', 'train', now());
    INSERT INTO critic_versions (version, base_model, created_at) VALUES (0, 'tiny', now());
    INSERT INTO episodes (id, question_hash, created_at) VALUES ({_EPISODE}, '\\x01', now());
    INSERT INTO interactions (id, kind, created_at, episode_id, question_hash, question, response, metadata, parameters,
        prompt_tokens, completion_tokens)
    VALUES (gen_random_uuid(), 'import', now(), {_EPISODE}, '\\x01', 'q', 'r', '{{}}', '{{}}', 0, 0)
"""
_QUESTION_WITHOUT_RESPONSE = """
    INSERT INTO interactions (id, kind, created_at, episode_id, question_hash, question, metadata, parameters,
        prompt_tokens, completion_tokens)
    SELECT gen_random_uuid(), kind, created_at, episode_id, question_hash, question, metadata, parameters, 0, 0
    FROM interactions
"""


def test_rows_from_before_stay_and_questions_without_a_response_go_with_their_revision(empty_url: str) -> None:
    with _transaction(empty_url) as connection:
        command.upgrade(migration_config(connection), "0004")
        connection.execute(text(_ROW_BEFORE_0010))
    with _transaction(empty_url) as connection:
        command.upgrade(migration_config(connection), "0010")
        connection.execute(text(_QUESTION_WITHOUT_RESPONSE))
        connection.execute(text("UPDATE critic_versions SET origin = '{}'"))
    with _transaction(empty_url) as connection:
        command.downgrade(migration_config(connection), "0004")
        assert connection.execute(text("SELECT response FROM interactions")).scalars().all() == ["r"]
    migrate(empty_url)
    assert schema_state(empty_url).drift == ()


def test_feedback_and_critics_of_an_earlier_release(empty_url: str) -> None:
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


def test_critics_of_an_earlier_release_have_no_examples_and_those_with_examples_do_not_go_live_in_it(
    empty_url: str,
) -> None:
    with _transaction(empty_url) as connection:
        command.upgrade(migration_config(connection), "0004")
        for statement in _ROWS_OF_0004:
            connection.execute(text(statement))
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        found = connection.execute(text("SELECT DISTINCT examples, examples_sha256 FROM critic_versions")).all()
        assert [tuple(row) for row in found] == [(0, None)]
        connection.execute(text("UPDATE critic_versions SET examples = 2, examples_sha256 = 'x' WHERE version = 3"))
        connection.execute(
            text(
                "INSERT INTO critic_pointers VALUES ('live', 3, now()), ('candidate', 3, now()), ('previous', 0, now())"
            )
        )
        connection.execute(
            text(
                "INSERT INTO critic_versions (version, base_model, created_at, task, examples)"
                " SELECT number, base_model, now(), 'sql', 4 * (number - 4) FROM critic_versions,"
                " generate_series(4, 5) AS number WHERE version = 3"
            )
        )
        connection.execute(text("INSERT INTO critic_pointers VALUES ('live', 5, now(), 'sql')"))
    with _transaction(empty_url) as connection:
        command.downgrade(migration_config(connection), "0025")
        pointers = connection.execute(text("SELECT task, name, version FROM critic_pointers")).all()
        assert {tuple(row) for row in pointers} == {
            ("math", "live", 0),
            ("math", "previous", 0),
            ("sql", "live", 4),
        }, "each task has the root of its own line"
        command.downgrade(migration_config(connection), "0019")
        pointers = connection.execute(text("SELECT name, version FROM critic_pointers")).all()
        assert {tuple(row) for row in pointers} == {("live", 0), ("previous", 0)}
        paths = connection.execute(text("SELECT adapter_path FROM critic_versions WHERE version = 3")).scalars()
        assert list(paths) == ["examples"], "an earlier release takes no path for the base model"


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


UNABLE = [  # arguments, database, words of the sentence
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


def test_critics_and_critiques_from_before_have_no_calibration(empty_url: str) -> None:
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        command.downgrade(migration_config(connection), "0004")
        for statement in _BEFORE_CALIBRATION:
            connection.execute(text(statement))
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        row = connection.execute(text("SELECT p_correct, calibrated_p_right FROM critiques")).one()
        assert tuple(row) == (0.25, None)
        assert connection.scalar(text("SELECT count(*) FROM critic_calibrations")) == 0


_ID = "'01900000-0000-7000-8000-000000000001'"
_BEFORE_CALIBRATION = (  # rows as release 0.1.0 wrote them
    "INSERT INTO critic_versions (version, base_model, created_at) VALUES (0, 'tiny', now())",
    "INSERT INTO questions (hash, split, created_at) VALUES ('\\x01', 'train', now())",
    f"INSERT INTO episodes (id, question_hash, critic_version, created_at) VALUES ({_ID}, '\\x01', 0, now())",
    "INSERT INTO interactions (id, kind, created_at, episode_id, question_hash, question, response, metadata,"
    " parameters, critic_version, prompt_tokens, completion_tokens)"
    f" VALUES ({_ID}, 'critique', now(), {_ID}, '\\x01', 'q', 'r', '{{}}', '{{}}', 0, 1, 1)",
    "INSERT INTO critiques (id, interaction_id, position, round, sample, text, stated, verdict, verdict_source,"
    " p_correct, p_incorrect, prompt_tokens, completion_tokens, supplied)"
    f" VALUES ({_ID}, {_ID}, 0, 0, 0, 'c', 'correct', 'correct', 'stated', 0.25, 0.5, 1, 1, false)",
)


def test_looks_of_earlier_gates_are_counted_once_for_each_lineage(empty_url: str) -> None:
    hashes = {name: bytes([number]) * 32 for number, name in enumerate(("both", "once", "trained", "unseen"), start=1)}

    def gate(lineage: int, *names: str) -> str:
        questions = [hashes[name][:8].hex() for name in names]
        return json.dumps({"live": 0, "numbers": {"evidence": {"lineage": lineage, "questions": questions}}})

    reports = [gate(1, "both"), gate(1, "both", "once"), gate(2, "both", "trained"), '{"live": 0, "numbers": {}}', None]
    with _transaction(empty_url) as connection:
        command.upgrade(migration_config(connection), "0014")
        for name, hash_ in hashes.items():
            row = {"hash": hash_, "split": "train" if name == "trained" else "heldout"}
            connection.execute(
                text("INSERT INTO questions (hash, split, created_at) VALUES (:hash, :split, now())"), row
            )
        for report in reports:
            connection.execute(
                text(
                    "INSERT INTO training_runs (id, status, trigger, created_at, config, attempt, step, steps, gate)"
                    " VALUES (:id, 'succeeded', 'admin', now(), '{}', 1, 0, 0, cast(:gate AS jsonb))"
                ),
                {"id": new_id(), "gate": report},
            )
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        rows = connection.execute(text("SELECT hash, looks, retired_at, is_pinned FROM questions ORDER BY hash")).all()
        assert [tuple(row) for row in rows] == [
            (hashes["both"], 2, None, False),
            (hashes["once"], 1, None, False),
            (hashes["trained"], 0, None, False),
            (hashes["unseen"], 0, None, False),
        ]
        command.downgrade(migration_config(connection), "0014")
        assert connection.execute(text("SELECT count(*) FROM questions")).scalar_one() == 4


_EARLIER_ROW = """
    INSERT INTO questions (hash, split, created_at) VALUES (:hash, 'train', now());
    INSERT INTO episodes (id, question_hash, created_at) VALUES (:id, :hash, now());
    INSERT INTO interactions (id, kind, created_at, episode_id, question_hash, question, response, metadata, parameters,
        prompt_tokens, completion_tokens) VALUES (:id, :kind, now(), :id, :hash, 'q', 'r', '{"a": 1}', '{"n": 1}', 1, 2)
"""


def _insert_earlier_row(connection: Connection, kind: str) -> UUID:
    id = new_id()
    for statement in _EARLIER_ROW.split(";"):
        connection.execute(text(statement), {"id": id, "kind": kind, "hash": id.bytes})
    return id


async def test_rows_from_before_conversations_stay_readable(empty_url: str) -> None:
    def upgrade_with_rows() -> list[UUID]:
        with _transaction(empty_url) as connection:
            command.upgrade(migration_config(connection), "0012")
            ids = [_insert_earlier_row(connection, kind) for kind in ("critique", "refine", "import")]
        migrate(empty_url)
        return ids

    ids = await asyncio.to_thread(upgrade_with_rows)
    async with Database(empty_url) as database, database.session() as session:
        kept = [await store.interactions.read_interaction(session, id, scope=None) for id in ids]
    assert [each.kind.value for each in kept] == ["critique", "refine", "import"]
    assert all(each.conversation is None and each.metadata == {"a": 1} for each in kept)


async def test_what_was_stored_before_tasks_belongs_to_mathematics(empty_url: str) -> None:
    def upgrade_with_rows() -> UUID:
        with _transaction(empty_url) as connection:
            command.upgrade(migration_config(connection), "0014")
            connection.execute(
                text(
                    "INSERT INTO critic_versions (version, base_model, adapter_path, adapter_sha256, created_at) "
                    "VALUES (7, 'tiny', 'a', 'b', now())"
                )
            )
            id = _insert_earlier_row(connection, "critique")
        migrate(empty_url)
        return id

    id = await asyncio.to_thread(upgrade_with_rows)
    async with Database(empty_url) as database, database.session() as session:
        kept = await store.interactions.read_interaction(session, id, scope=None)
        critic = await store.critics.resolve_critic(session, 7)
        assert (kept.task, kept.task_version) == (critic.task, critic.task_version) == ("math", None)


async def test_rows_of_the_only_task_of_a_database_stay_its_own(empty_url: str) -> None:
    asked = "How many customers are in Rome?"

    def upgrade_with_rows() -> None:
        with _transaction(empty_url) as connection:
            command.upgrade(migration_config(connection), "0019")
            hash_ = question_hash(asked)
            statements = (
                "INSERT INTO critic_versions (version, base_model, created_at, task) VALUES (0, 'tiny', now(), 'sql')",
                "INSERT INTO critic_versions (version, base_model, created_at, task) VALUES (1, 'tiny', now(), 'sql')",
                "INSERT INTO critic_pointers (name, version, moved_at)"
                " VALUES ('live', 1, now()), ('previous', 0, now())",
                "INSERT INTO swaps (id, version, from_version, kind, status, requested_at)"
                " VALUES (gen_random_uuid(), 1, 0, 'promote', 'pending', now())",
                "INSERT INTO training_runs (id, status, trigger, created_at, config, attempt, step, steps)"
                " VALUES (gen_random_uuid(), 'failed', 'admin', now(), '{}', 1, 0, 1)",
                "INSERT INTO block_keys (key, split, questions, in_training, is_open)"
                " VALUES (1, 'train', 1, true, false)",
                "INSERT INTO questions (hash, split, created_at, is_keyed) VALUES (:hash, 'heldout', now(), true)",
                "INSERT INTO answers (question_hash, text_sha256, standing) VALUES (:hash, '\\x00', 'none')",
                "INSERT INTO episodes (id, question_hash, created_at) VALUES (gen_random_uuid(), :hash, now())",
                "INSERT INTO interactions (id, kind, created_at, episode_id, question_hash, question, metadata,"
                " parameters, prompt_tokens, completion_tokens, task) SELECT gen_random_uuid(), 'import', now(), id,"
                " :hash, :asked, '{}', '{}', 0, 0, 'sql' FROM episodes",
            )
            for statement in statements:
                connection.execute(text(statement), {"hash": hash_, "asked": asked})
        migrate(empty_url)

    await asyncio.to_thread(upgrade_with_rows)
    assert schema_state(empty_url).drift == ()
    hash_ = question_hash(asked, "sql")
    async with Database(empty_url) as database:
        assert await store.wall.key_stored_questions(database) == 1
        async with database.session() as session:
            assert await store.critics.read_all_pointers(session) == {"sql": {"live": 1, "previous": 0}}
            assert list(await store.swaps.pending_swaps(session)) == ["sql"]
            tasks = await session.scalars(text("SELECT task FROM training_runs UNION SELECT task FROM questions"))
            assert tasks.all() == ["sql"]
            assert await store.interactions.stored_sides(session, [hash_]) == {hash_: Split.HELDOUT}
            for table in ("answers", "episodes", "interactions"):
                assert await session.scalar(text(f"SELECT question_hash FROM {table}")) == hash_
            assert await session.scalar(text("SELECT count(*) FROM block_keys")) == len(list(block_keys(asked, "sql")))
            await store.critics.ensure_version_zero(session, "tiny")  # mathematics is another task of it from now on
            assert (await store.critics.base_version(session, "tiny")).version == 2


def test_a_downgrade_keeps_the_pointers_of_one_task(empty_url: str) -> None:
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        for version, task in ((0, "math"), (1, "sql"), (2, "sql")):
            connection.execute(
                text("INSERT INTO critic_versions (version, base_model, created_at, task) VALUES (:v, 'm', now(), :t)"),
                {"v": version, "t": task},
            )
        connection.execute(
            text(
                "INSERT INTO critic_pointers (task, name, version, moved_at)"
                " VALUES ('math', 'live', 0, now()), ('sql', 'live', 1, now())"
            )
        )
        for version, task in ((0, "math"), (2, "sql")):
            connection.execute(
                text(
                    "INSERT INTO swaps (id, version, from_version, kind, status, requested_at, task)"
                    " VALUES (gen_random_uuid(), :v, 1, 'promote', 'pending', now(), :t)"
                ),
                {"v": version, "t": task},
            )
    with _transaction(empty_url) as connection:
        command.downgrade(migration_config(connection), "0019")
        assert connection.execute(text("SELECT name, version FROM critic_pointers")).all() == [("live", 0)]
        statuses = connection.execute(text("SELECT version, status FROM swaps ORDER BY version")).all()
        assert statuses == [(0, "pending"), (2, "refused")]
    migrate(empty_url)
    assert schema_state(empty_url).drift == ()


def test_a_downgrade_keeps_chat_answers_as_imported_rows(empty_url: str) -> None:
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        _insert_earlier_row(connection, "chat")
    with _transaction(empty_url) as connection:
        command.downgrade(migration_config(connection), "0012")
        assert connection.scalar(text("SELECT kind FROM interactions")) == "import"
    migrate(empty_url)
    assert schema_state(empty_url).drift == ()


async def test_rows_from_before_are_found_and_forgotten(empty_url: str) -> None:
    def upgrade_with_rows() -> UUID:
        with _transaction(empty_url) as connection:
            command.upgrade(migration_config(connection), "0019")
            id = _insert_earlier_row(connection, "critique")
            connection.execute(
                text(
                    "INSERT INTO admin_acts (id, action, subject, details) "
                    "VALUES (gen_random_uuid(), 'set_label', 'x', '{}')"
                )
            )
        migrate(empty_url)
        return id

    id = await asyncio.to_thread(upgrade_with_rows)
    async with Database(empty_url) as database, database.session() as session:
        kept = await store.interactions.read_interaction(session, id, scope=None)
        word = store.interactions.Filters(words=kept.question)
        page = await store.interactions.list_interactions(session, scope=None, filters=word, limit=9)
        assert [each.id for each in page.interactions] == [id]
        assert page.facts[id].label is None
        assert len(await store.acts.list_acts(session, limit=9)) == 1
        assert await store.learning.learned_from(session, id) == []
        assert (await store.forgetting.forget(session, [id])).ids == [id]


def test_acts_and_events_of_later_kinds_go_with_their_revision(empty_url: str) -> None:
    migrate(empty_url)
    with _transaction(empty_url) as connection:
        for action in ("set_label", "promote", "forget", "widen_canary", "create_webhook"):
            connection.execute(
                text(
                    "INSERT INTO admin_acts (id, action, subject, details) "
                    "VALUES (gen_random_uuid(), :action, 'x', '{}')"
                ),
                {"action": action},
            )
    with _transaction(empty_url) as connection:
        command.downgrade(migration_config(connection), "0019")
        assert list(connection.scalars(text("SELECT action FROM admin_acts"))) == ["set_label"]
    migrate(empty_url)
    assert schema_state(empty_url).drift == ()


def test_keys_keep_what_they_may_do_and_a_downgrade_gives_none_more(empty_url: str) -> None:
    def keys() -> dict[str, tuple[bool, tuple[str, ...]]]:
        async def read() -> dict[str, tuple[bool, tuple[str, ...]]]:
            async with Database(empty_url) as database, database.session() as session:
                found = await store.keys.list_keys(session)
            assert all(not key.limits for key in found)
            return {key.name: (key.revoked_at is None, key.granted) for key in found}

        return asyncio.run(read())

    insert = (
        "INSERT INTO keys (id, name, tier, hint, digest, created_at) "
        "VALUES (gen_random_uuid(), :n, :t, 'gf_', :d, now())"
    )
    with _transaction(empty_url) as connection:
        command.upgrade(migration_config(connection), "0030")
        for name, tier in (("ann", "caller"), ("root", "admin"), ("lea", "caller")):
            connection.execute(text(insert), {"n": name, "t": tier, "d": name.encode()})
    migrate(empty_url)
    before = {"ann": (True, ("use",)), "root": (True, ("use", "label", "read", "train")), "lea": (True, ("use",))}
    assert keys() == before
    with _transaction(empty_url) as connection:
        connection.execute(text("UPDATE keys SET scopes = '{label}' WHERE name = 'lea'"))
        command.downgrade(migration_config(connection), "0030")
    migrate(empty_url)
    assert keys() == before | {"lea": (False, ("use",))}
    with _transaction(empty_url) as connection:
        connection.execute(text("UPDATE keys SET tokens_per_day = 5 WHERE name = 'ann'"))
        command.downgrade(migration_config(connection), "0032")
    migrate(empty_url)
    assert keys() == before | {"lea": (False, ("use",)), "ann": (False, ("use",))}
    with _transaction(empty_url) as connection:
        connection.execute(text("UPDATE keys SET revoked_at = NULL"))
        connection.execute(text("UPDATE keys SET tasks = '{math}' WHERE name = 'ann'"))
        command.downgrade(migration_config(connection), "0020")
    migrate(empty_url)
    assert keys() == before | {"ann": (False, ("use",))}
