"""The embedded server under faults: its owner killed, its pid reused, its disk full."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import psycopg
import pytest
from sqlalchemy import make_url

from gadfly.errors import BadSettings, StoreUnavailable
from gadfly.store import embedded
from gadfly.store.embedded import EmbeddedPostgres
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.database


@pytest.fixture
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="gadfly-") as folder:
        yield Path(folder)


def query(server: EmbeddedPostgres, statement: str) -> str | None:
    url = make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
    return None if row is None else str(row[0])


def test_data_stay_and_durability_is_on(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        assert server.is_running
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
            assert query(server, f"SHOW {setting}") == "on"
        assert query(server, "SHOW listen_addresses") == ""
        assert query(server, "SHOW server_encoding") == "UTF8"
        query(server, "CREATE TABLE kept AS SELECT 7 AS number")
        url = server.url
    assert not server.is_running
    with EmbeddedPostgres(home) as server:
        assert server.url == url
        assert query(server, "SELECT number FROM kept") == "7"


def test_only_its_user_can_connect(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        (address,) = server.data.glob(".s.PGSQL.5432")
        assert stat.S_IMODE(address.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(server.data.stat().st_mode) & 0o077 == 0


def test_texts_stay_out_of_the_log(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        query(server, "CREATE TABLE t (id text PRIMARY KEY)")
        for statement in ("INSERT INTO t VALUES ('secret-text'), ('secret-text')", "SELECT 'secret-text' FROM nothing"):
            with pytest.raises(psycopg.Error):
                query(server, statement)
        assert "secret-text" not in server.log.read_text()


def test_a_second_process_uses_it_and_leaves_it_running(home: Path) -> None:
    with EmbeddedPostgres(home) as owner:
        with EmbeddedPostgres(home) as other:
            assert query(other, "SELECT 1") == "1"
        assert query(owner, "SELECT 1") == "1"


WITH_CLIENT_VARIABLES = """
import sys
from pathlib import Path
import psycopg
from gadfly.store.database import migrate
from gadfly.store.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    migrate(server.url)
    with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
        print(connection.execute("SHOW default_transaction_read_only").fetchone()[0])
"""


def test_variables_for_other_databases_do_not_reach_it(home: Path) -> None:
    variables = {
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGOPTIONS": "-c default_transaction_read_only=on",
        "PGSERVICE": "another",
        "PGSSLMODE": "verify-full",
        "PGTARGETSESSIONATTRS": "standby",
    }
    command = [sys.executable, "-c", WITH_CLIENT_VARIABLES, str(home)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("off", 0), done.stderr


OWNER = """
import os, signal, sys
from pathlib import Path
from gadfly.store.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_of_its_owner_the_next_start_takes_over(home: Path) -> None:
    assert subprocess.run([sys.executable, "-c", OWNER, str(home)], check=False).returncode == -signal.SIGKILL
    with PostgresServer(home) as server:
        first = server._postmaster()
        assert first is not None
        query(server, "CREATE TABLE kept AS SELECT 7 AS number")
        again = server._postmaster()
        assert again == first  # taken over as it ran
    assert not server.is_running
    assert not first.is_running()


def test_it_recovers_from_a_crash(home: Path) -> None:
    with PostgresServer(home) as server:
        query(server, "CREATE TABLE kept AS SELECT 7 AS number")
        server.kill()
        server.start()
        assert query(server, "SELECT number FROM kept") == "7"
        postmaster = server._postmaster()
        assert postmaster is not None
        os.kill(postmaster.pid, signal.SIGKILL)  # its pid file stays, and its children for a moment
        postmaster.wait(10)
        assert not server.is_running
        server.stop()
        server.start()
        assert query(server, "SELECT number FROM kept") == "7"


@pytest.mark.parametrize("whose", ["no program's", "another program's"])
def test_a_stale_pid_file_is_no_obstacle(home: Path, whose: str) -> None:
    with PostgresServer(home) as server:
        pid_file = server.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        server.kill()
        owner = pid_file.parent.stat()
        lines[0] = str(os.getpid() if whose == "another program's" else 2**22 - 1)
        pid_file.write_text("\n".join(lines) + "\n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        assert not server.is_running
        server.start()
        assert query(server, "SELECT 1") == "1"
    assert psutil.pid_exists(os.getpid())


def test_a_half_made_data_folder_is_made_anew(home: Path) -> None:
    unfinished = home / "postgres" / "data.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18")
    with EmbeddedPostgres(home) as server:
        assert query(server, "SELECT 1") == "1"
    assert not unfinished.exists()


@pytest.mark.parametrize("name", ["x" * 120, "with space, comma and 'quote'"])
def test_any_home_has_a_socket(home: Path, name: str) -> None:
    with EmbeddedPostgres(home / name) as server:
        assert query(server, "SELECT 1") == "1"
        folder = Path(str(make_url(server.url).query["host"]))
        assert folder != server.data
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()


def test_another_major_version_is_named(home: Path) -> None:
    data = home / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("13\n")
    with pytest.raises(BadSettings, match=r"written by Postgres 13 .* runs Postgres 18"):
        EmbeddedPostgres(home).start()


def test_a_home_that_cannot_be_written_is_named(home: Path) -> None:
    (home / "postgres").touch()
    with pytest.raises(StoreUnavailable, match="cannot write to"):
        EmbeddedPostgres(home).start()


def test_a_server_that_does_not_start_says_why(home: Path) -> None:
    server = EmbeddedPostgres(home)
    server.options["shared_buffers"] = "nonsense"
    with pytest.raises(StoreUnavailable, match="shared_buffers"):
        server.start()
    del server.options["shared_buffers"]
    with server:
        assert query(server, "SELECT 1") == "1"


def test_a_full_disk_is_one_sentence(home: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m,mode=755", "tmpfs", str(home)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk")
    said = re.escape(f"the disk under {home / 'postgres'} is full, so Postgres cannot run")
    try:
        fill(home)
        with pytest.raises(StoreUnavailable, match=said):
            EmbeddedPostgres(home).start()  # no room for the data
        (home / "filler").unlink()
        with EmbeddedPostgres(home):
            pass
        fill(home)
        with pytest.raises(StoreUnavailable, match=said):
            EmbeddedPostgres(home).start()  # no room for its pid file
        (home / "filler").unlink()
        with EmbeddedPostgres(home) as server:
            assert query(server, "SELECT 1") == "1"
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(2**16)):
            pass


def test_a_frozen_server_is_killed_and_keeps_its_data(home: Path) -> None:
    """What `gadfly up` runs: the keeper ends, and the next one has the server again."""
    keeper = [sys.executable, "-m", "gadfly.cli.postgres"]
    environment = {**os.environ, "GADFLY_HOME": str(home)}
    server = EmbeddedPostgres(home)
    with subprocess.Popen(keeper, env=environment, stderr=subprocess.PIPE, text=True) as first:
        try:
            assert first.stderr is not None
            assert "Postgres runs" in first.stderr.readline()
            query(server, "CREATE TABLE kept AS SELECT 7 AS number")
            postmaster = server._postmaster()
            assert postmaster is not None
            postmaster.suspend()
            assert first.wait(15) == 1
            assert "did not react" in first.stderr.read()
        finally:
            first.kill()
    assert not server.is_running
    with server:
        assert query(server, "SELECT number FROM kept") == "7"


def test_a_server_that_refuses_is_not_late(home: Path) -> None:
    server = EmbeddedPostgres(home)
    assert not server.is_late, "nothing listens"
    with server:
        assert not server.is_late
        postmaster = server._postmaster()
        assert postmaster is not None
        postmaster.suspend()
        try:
            assert server.is_late
            assert server.is_frozen
        finally:
            postmaster.resume()
        assert not server.is_late


@pytest.mark.skipif(os.geteuid() != 0, reason="only root creates the user")
def test_two_servers_that_start_at_once_create_the_system_user_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the second `useradd` failed, and its server did not start."""
    events: list[str] = []

    def create(name: str) -> None:
        events.append("begins")
        time.sleep(0.1)
        events.append("ends")

    monkeypatch.setattr(embedded, "ensure_user_exists", create)
    with ThreadPoolExecutor(2) as threads:
        for call in [threads.submit(embedded._account) for _ in range(2)]:
            call.result()
    assert events == ["begins", "ends"] * 2
