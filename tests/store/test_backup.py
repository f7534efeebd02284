"""Backups and restores on real servers, also with a kill in the middle of each."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from gadfly.adapters import WEIGHTS, AdapterFolder
from gadfly.cli.main import app
from gadfly.errors import BadInput, Conflict, StoreUnavailable
from gadfly.store.backup import MANIFEST, BackupManifest, back_up, read_manifest, restore
from gadfly.store.database import migrate, schema_state
from gadfly.store.embedded import tools_for
from tests.support.postgres import PostgresServer
from tests.support.published import make_adapter

_ROWS = (
    "INSERT INTO critic_versions (version, base_model, created_at, task) VALUES (0, 'tiny', now(), 'math')",
    "INSERT INTO critic_versions (version, base_model, adapter_path, adapter_sha256, created_at, task)"
    " VALUES (1, 'tiny', 'one', 'x', now(), 'math'), (2, 'tiny', 'lost', 'y', now(), 'math')",
    "INSERT INTO critic_pointers (task, name, version, moved_at) VALUES ('math', 'live', 1, now())",
    "INSERT INTO admin_acts (id, action, subject, details) SELECT gen_random_uuid(), 'promote', 'x', '{}'"
    " FROM generate_series(1, 2000)",
)


class World:
    """A deployment with a live critic, a place for backups, and an empty database to restore into."""

    def __init__(self, server: PostgresServer, url: str, folder: Path) -> None:
        self.url, self.backup, self.home, self.new_home = url, folder / "backup", folder / "home", folder / "new"
        self.empty_url = server.url_of("test_restore")
        server.execute("DROP DATABASE IF EXISTS test_restore WITH (FORCE)")
        server.execute("CREATE DATABASE test_restore")
        make_adapter(self.home / "adapters" / "one", base_model="tiny", base_sha256="0" * 64)
        (self.home / "tasks" / "own").mkdir(parents=True)
        (self.home / "tasks" / "own" / "task.toml").write_text("name = 'own'\n")
        with connect(url) as connection:
            for statement in _ROWS:
                connection.execute(statement.encode())

    def back_up(self) -> BackupManifest:
        adapters, tasks = self.home / "adapters", self.home / "tasks"
        return back_up(self.url, self.backup, adapters=adapters, tasks=tasks, version="0")

    def restore(self, *, with_webhooks: bool = True) -> tuple[BackupManifest, int]:
        adapters, tasks = self.new_home / "adapters", self.new_home / "tasks"
        return restore(self.empty_url, self.backup, adapters=adapters, tasks=tasks, with_webhooks=with_webhooks)

    def start(self, command: str, url: str, home: Path) -> subprocess.Popen[bytes]:
        """`gadfly backup` or `restore` in a process that the test may kill."""
        program = [sys.executable, "-m", "gadfly.cli.main", command, str(self.backup), "--home", str(home)]
        environment = os.environ | {"GADFLY_DATABASE_URL": url}
        return subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def world(postgres: PostgresServer, database_url: str) -> Iterator[World]:
    with TemporaryDirectory() as folder:
        yield World(postgres, database_url, Path(folder))


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))


def count(url: str, statement: str) -> int:
    with connect(url) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return int(row[0])


def tables(url: str) -> int:
    return count(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")


def waiting_for_locks(url: str, *, of: str) -> int:
    """Connections of the database `of` that wait for a lock, as another database of the server sees them."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
    return count(url, f"{waiting}'{make_url(of).database}'")


def until(wanted: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not wanted():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_a_restored_deployment_has_the_rows_the_wall_and_the_live_critic(world: World) -> None:
    manifest = world.back_up()
    assert (manifest.live, manifest.missing_adapters) == ({"math": 1}, ("lost",))
    assert read_manifest(world.backup) == manifest
    assert world.backup.stat().st_mode & 0o077 == 0, "it holds callers' texts"
    assert [path.name for path in world.backup.parent.iterdir() if "unfinished" in path.name] == []
    assert world.restore() == (manifest, 0)
    assert count(world.empty_url, "SELECT count(*) FROM admin_acts") == 2000
    assert count(world.empty_url, "SELECT version FROM critic_pointers WHERE name = 'live'") == 1
    state = schema_state(world.empty_url)
    assert (state.is_current, state.drift) == (True, ())
    policies = "SELECT count(*) FROM pg_policies WHERE policyname = 'training'"
    assert count(world.empty_url, policies) == count(world.url, policies) > 0
    granted = "SELECT count(*) FROM information_schema.role_table_grants WHERE grantee = 'gadfly_training'"
    assert count(world.empty_url, granted) == count(world.url, granted) > 0
    assert count(world.empty_url, "SELECT count(*) FROM split_secrets") == 1
    AdapterFolder.read(world.new_home / "adapters" / "one", base_model="tiny", max_rank=2)
    assert (world.new_home / "tasks" / "own" / "task.toml").exists()


def test_a_database_with_tables_and_a_folder_that_exists_are_refused(world: World) -> None:
    world.back_up()
    with pytest.raises(BadInput, match="choose a new folder"):
        world.back_up()
    migrate(world.empty_url)
    with pytest.raises(Conflict, match="is not empty"):
        world.restore()
    assert count(world.empty_url, "SELECT count(*) FROM admin_acts") == 0


def test_another_critic_of_the_same_name_is_kept(world: World) -> None:
    world.back_up()
    other = world.new_home / "adapters" / "one"
    other.mkdir(parents=True)
    (other / "file").write_text("another critic")
    with pytest.raises(Conflict, match="exists with other contents"):
        world.restore()
    assert (other / "file").read_text() == "another critic"
    assert tables(world.empty_url) == 0


def _shorten(folder: Path) -> None:
    (folder / "database.dump").write_bytes((folder / "database.dump").read_bytes()[:-1])


def _change_weights(folder: Path) -> None:
    path = folder / "adapters" / "one" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _edit(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | values))


DAMAGES = [  # what happened to the folder, words of the message
    (_shorten, "its size or hash differs"),
    (_change_weights, "its size or hash differs"),
    (lambda folder: (folder / "database.dump").unlink(), "cannot be read"),
    (lambda folder: (folder / MANIFEST).unlink(), "no complete backup"),
    (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be read"),
    (lambda folder: _edit(folder, format=2), "has format 2"),
    (lambda folder: _edit(folder, revision="9999"), "does not know"),
    (lambda folder: _edit(folder, files={"../x": {"bytes": 1, "sha256": "0"}}), "outside the backup"),
    (lambda folder: _edit(folder, files={}), "names no database"),
]


def test_a_damaged_backup_is_refused_before_anything_changes(world: World) -> None:
    world.back_up()
    whole = world.backup
    for number, (damage, words) in enumerate(DAMAGES):
        world.backup = whole.with_name(f"damaged-{number}")
        subprocess.run(["cp", "-a", str(whole), str(world.backup)], check=True)
        damage(world.backup)
        with pytest.raises(BadInput, match=words):
            world.restore()
    assert tables(world.empty_url) == 0
    assert not world.new_home.exists()


def test_a_backup_killed_in_the_middle_leaves_no_folder_and_the_next_one_removes_its_rest(world: World) -> None:
    def leftovers() -> list[Path]:
        return list(world.backup.parent.glob(".backup.unfinished-*"))

    with connect(world.url) as blocker:
        blocker.execute("LOCK TABLE admin_acts IN ACCESS EXCLUSIVE MODE")  # pg_dump waits for it
        running = world.start("backup", world.url, world.home)
        until(lambda: waiting_for_locks(world.empty_url, of=world.url) > 0, "pg_dump did not reach the table")
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not world.backup.exists()
    assert len(leftovers()) == 1
    manifest = world.back_up()
    assert leftovers() == []
    assert read_manifest(world.backup) == manifest


@pytest.mark.parametrize("with_webhooks", [True, False])
def test_a_copy_announces_nothing_to_the_webhooks_of_the_original_if_asked(world: World, with_webhooks: bool) -> None:
    with psycopg.connect(
        make_url(world.url).set(drivername="postgresql").render_as_string(hide_password=False)
    ) as connection:
        connection.execute(
            "INSERT INTO webhook_endpoints (id, url, events, secret, created_at)"
            " VALUES (gen_random_uuid(), 'https://example.com', '{run.ended}', 'whsec_', now())"
        )
        connection.execute(
            "INSERT INTO webhook_deliveries (id, endpoint_id, event, body, created_at, status, attempts, next_at)"
            " SELECT gen_random_uuid(), id, 'run.ended', '{}', now(), 'pending', 0, now() FROM webhook_endpoints"
        )
    world.back_up()
    assert world.restore(with_webhooks=with_webhooks)[1] == int(with_webhooks)
    assert count(world.empty_url, "SELECT count(*) FROM webhook_deliveries") == int(with_webhooks)


def test_a_restore_killed_in_the_middle_leaves_an_empty_database_and_can_be_repeated(world: World) -> None:
    world.back_up()
    with connect(world.empty_url) as blocker:
        # A type of the same name holds the restore's CREATE TABLE back until this transaction ends.
        blocker.execute("CREATE TYPE admin_acts AS ENUM ()")
        running = world.start("restore", world.empty_url, world.new_home)
        until(lambda: waiting_for_locks(world.url, of=world.empty_url) > 0, "the restore did not reach the table")
        running.send_signal(signal.SIGKILL)
        running.wait()
        until(lambda: waiting_for_locks(world.url, of=world.empty_url) == 0, "pg_restore outlived its parent")
        blocker.rollback()
    assert tables(world.empty_url) == 0
    assert (world.new_home / "adapters" / "one").is_dir(), "the critics were restored before"
    world.restore()
    assert count(world.empty_url, "SELECT count(*) FROM admin_acts") == 2000


def test_the_commands_name_what_was_written_and_what_is_missing(world: World) -> None:
    def run(command: str, url: str, home: Path) -> str:
        done = CliRunner().invoke(app, [command, str(world.backup), "--database-url", url, "--home", str(home)])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    told = run("backup", world.url, world.home)
    assert "adapters/lost is missing or incomplete" in told
    assert "bytes, schema" in told
    assert "live: critic@1 of math" in run("restore", world.empty_url, world.new_home)


TOOLS = [(14, 16), (16, 16), (17, 18), (18, 18)]


@pytest.mark.parametrize(("server", "tools"), TOOLS)
def test_the_tools_are_of_the_servers_version_or_the_next(server: int, tools: int) -> None:
    version = subprocess.run([tools_for(server) / "pg_dump", "--version"], capture_output=True, text=True, check=True)
    assert f"(PostgreSQL) {tools}." in version.stdout


def test_a_server_newer_than_all_tools_is_refused() -> None:
    with pytest.raises(StoreUnavailable, match="back it up with its own pg_dump"):
        tools_for(99)
