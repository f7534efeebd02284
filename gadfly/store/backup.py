"""Backups of a deployment: the database by Postgres's own pg_dump, the published critics, and the added tasks.

A backup is a folder, written under another name and renamed at the end: a folder of the right name is complete.
Its manifest names size and hash of every file. All calls block.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

import psycopg
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg import sql
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import make_url

from gadfly.adapters import MARKER, BadAdapter, file_sha256, read_marker, sync, write_durably
from gadfly.errors import BadInput, Conflict, StoreUnavailable
from gadfly.records import now
from gadfly.store.database import MIGRATIONS, VERSION_TABLE, migrate
from gadfly.store.embedded import tools_for
from gadfly.tether import tether

MANIFEST = "manifest.json"
FORMAT = 1
_DUMP = "database.dump"
_ADAPTERS = "adapters"
_TASKS = "tasks"
_TRAINING_ROLE = "gadfly_training"
_CONNECT_LIMIT_S = 10


class BackedUpFile(BaseModel):
    """Size and hash of one file of a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str  # hex


class BackupManifest(BaseModel):
    """What a backup contains, and which release and database wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    created_at: datetime
    gadfly: str  # the release that wrote it
    revision: str  # of the tables
    namespace: str  # the schema of Postgres that holds the tables
    postgres: int  # major version of the server
    live: dict[str, int]  # task -> version of its live critic
    missing_adapters: tuple[str, ...]  # critics whose folder was missing or incomplete when the backup was made
    files: dict[str, BackedUpFile]  # path in the folder -> size and hash

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())


def back_up(url: str, folder: Path, *, adapters: Path, tasks: Path, version: str) -> BackupManifest:
    """Write a backup of the database at `url` and of its critics to `folder`, which must not exist.

    The service may run meanwhile: database and list of critics are of one moment, and published folders never change.

    Raises:
        BadInput: `folder` exists or cannot be written.
        StoreUnavailable: Postgres is unavailable, has no schema of Gadfly, or is too new for the tools of this release.
    """
    if folder.exists():
        raise BadInput(f"{folder} exists: choose a new folder for each backup")
    try:
        with _unfinished(folder) as work:
            manifest = _write(url, work, adapters=adapters, tasks=tasks, version=version)
            work.rename(folder)
            sync(folder.parent)
            return manifest
    except OSError as error:
        raise BadInput(f"the backup cannot be written to {folder}: {error.strerror}") from error


def read_manifest(folder: Path) -> BackupManifest:
    """The manifest of a backup, after a check of every file.

    Raises:
        BadInput: the folder is no backup, or a file of it is missing or changed.
    """
    try:
        manifest = BackupManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError:
        raise BadInput(f"{folder} is no complete backup: it has no {MANIFEST}") from None
    except ValidationError as error:
        raise BadInput(f"{folder / MANIFEST} cannot be read: {error.errors()[0]['msg']}") from None
    if manifest.format != FORMAT:
        raise BadInput(f"{folder} has format {manifest.format}; this release reads format {FORMAT}")
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"the manifest names a file outside the backup: {name!r}")
        try:
            is_same = path.stat().st_size == expected.bytes and file_sha256(path) == expected.sha256
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from None
        if not is_same:
            raise BadInput(f"{path} is not the file that was backed up: its size or hash differs")
    if _DUMP not in manifest.files:
        raise BadInput(f"{folder} is no backup: its manifest names no {_DUMP}")
    return manifest


def restore(
    url: str, folder: Path, *, adapters: Path, tasks: Path, with_webhooks: bool = True
) -> tuple[BackupManifest, int]:
    """Restore a backup into the empty database at `url`, and bring its schema up to date.

    Returns the manifest and the number of webhooks that are announced to from there. Without webhooks, those of the
    backup and their deliveries are removed: a copy beside the original would announce its own events to them.

    The critics come first and the database last, in one transaction. After a kill, the same call does the rest.

    Raises:
        BadInput: the backup is incomplete or changed, or its schema belongs to a newer release.
        Conflict: the database is not empty, or another critic or task has a folder of the same name.
        StoreUnavailable: Postgres is unavailable, is older than that of the backup, or refuses the rows.
    """
    manifest = read_manifest(folder)
    _require_known(manifest.revision)
    with _connected(url) as connection:
        _require_empty(connection, manifest.namespace)
        major = _major(connection)
        if major < manifest.postgres:
            raise StoreUnavailable(
                f"the backup is of Postgres {manifest.postgres} and this server is Postgres {major}: restore it into "
                f"Postgres {manifest.postgres} or newer"
            )
        _require_role(connection, manifest.namespace)
    for source, target in ((folder / _ADAPTERS, adapters), (folder / _TASKS, tasks)):
        _copy_back(source, target)
    _pg_tool(
        "pg_restore", major, url,
        *("--single-transaction", "--exit-on-error", "--no-owner", f"--schema={manifest.namespace}"),
        str(folder / _DUMP),
    )  # fmt: skip
    migrate(url)
    with _connected(url) as connection:
        if not with_webhooks:
            connection.execute("DELETE FROM webhook_deliveries")
            connection.execute("DELETE FROM webhook_endpoints")
        return manifest, int(_one(connection, "SELECT count(*) FROM webhook_endpoints")[0])


def _write(url: str, work: Path, *, adapters: Path, tasks: Path, version: str) -> BackupManifest:
    with _connected(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        revision = _revision(connection)
        critics = connection.execute("SELECT DISTINCT adapter_path FROM critic_versions WHERE adapter_path IS NOT NULL")
        names = sorted(name for (name,) in critics)
        live = connection.execute("SELECT task, version FROM critic_pointers WHERE name = 'live'").fetchall()
        snapshot, schema = _one(connection, "SELECT pg_export_snapshot(), current_schema()")
        major = _major(connection)
        _pg_tool(
            "pg_dump", major, url,
            *("--format=custom", "--no-owner", f"--snapshot={snapshot}", f"--schema={_quoted(schema)}"),
            f"--file={work / _DUMP}",
        )  # fmt: skip
    missing = tuple(name for name in names if not _copy_adapter(adapters / name, work / _ADAPTERS / Path(name).name))
    if tasks.is_dir():
        shutil.copytree(tasks, work / _TASKS)
    manifest = BackupManifest(
        created_at=now(),
        gadfly=version,
        revision=revision,
        namespace=schema,
        postgres=major,
        live=dict(live),
        missing_adapters=missing,
        files={str(path.relative_to(work)): _described(path) for path in _files(work)},
    )
    write_durably(work / MANIFEST, manifest.model_dump_json(indent=2).encode())
    return manifest


@contextmanager
def _unfinished(folder: Path) -> Generator[Path]:
    """A new folder beside `folder`, removed at an error. What killed backups left there is removed first."""
    prefix = f".{folder.name}.unfinished-"
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f"{prefix}*"):
        with _locked(leftover) as is_mine:
            if is_mine:  # no running process writes there
                shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))  # mode 700: it holds callers' texts
    with _locked(work):
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)  # absent after it was renamed


@contextmanager
def _locked(folder: Path) -> Generator[bool]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _copy_adapter(source: Path, target: Path) -> bool:
    """Copy a published critic; False where its folder is missing or incomplete."""
    try:
        names = [*read_marker(source).files, MARKER]
        target.mkdir(parents=True)
        for name in names:
            shutil.copyfile(source / name, target / name)
    except (BadAdapter, FileNotFoundError):
        shutil.rmtree(target, ignore_errors=True)
        return False
    return True


def _copy_back(source: Path, target: Path) -> None:
    """Copy each folder of `source` that `target` lacks.

    Raises:
        Conflict: `target` has a folder of the same name with other contents.
    """
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for folder in sorted(source.iterdir()):
        place = target / folder.name
        if place.exists():
            if _contents(place) != _contents(folder):
                raise Conflict(f"{place} exists with other contents: restore into a new folder (GADFLY_HOME)")
            continue
        unfinished = target / f".{folder.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(folder, unfinished)
        for path in _files(unfinished):
            sync(path)
        unfinished.rename(place)
    sync(target)


def _contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in _files(folder)}


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _described(path: Path) -> BackedUpFile:
    sync(path)
    return BackedUpFile(bytes=path.stat().st_size, sha256=file_sha256(path))


@contextmanager
def _connected(url: str) -> Generator[psycopg.Connection]:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(plain, connect_timeout=_CONNECT_LIMIT_S, client_encoding="utf8") as connection:
            yield connection
    except psycopg.Error as error:
        raise StoreUnavailable(f"Postgres is unavailable: {str(error).strip()}") from error


def _one(connection: psycopg.Connection, statement: str) -> tuple[str, ...]:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return tuple(row)


def _major(connection: psycopg.Connection) -> int:
    return connection.info.server_version // 10_000


def _quoted(schema: str) -> str:
    """A schema's name as a pattern of pg_dump."""
    return '"' + schema.replace('"', '""') + '"'


def _revision(connection: psycopg.Connection) -> str:
    if not _one(connection, f"SELECT to_regclass('{VERSION_TABLE}') IS NOT NULL")[0]:
        raise StoreUnavailable("the database has no tables of Gadfly, so there is nothing to back up")
    return _one(connection, f"SELECT version_num FROM {VERSION_TABLE}")[0]  # noqa: S608


def _require_known(revision: str) -> None:
    try:
        ScriptDirectory(str(MIGRATIONS)).get_revision(revision)
    except CommandError:
        raise BadInput(
            f"the backup's schema has revision {revision}, which this release does not know: restore it with the "
            "release that wrote it, or with a newer one"
        ) from None


def _require_empty(connection: psycopg.Connection, namespace: str) -> None:
    used = _one(connection, "SELECT current_schema()")[0]
    if used != namespace:
        raise Conflict(
            f"the backup's tables are in the schema {namespace} and this database's search_path begins with {used}: "
            f"create the schema {namespace} and put it first in the search_path"
        )
    found = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
        " AND relkind IN ('r', 'p', 'v') ORDER BY relname LIMIT 1"
    ).fetchone()
    if found is not None:
        raise Conflict(
            f"the database is not empty (it has a table {found[0]}): restore into a new database, or a new GADFLY_HOME"
        )


def _require_role(connection: psycopg.Connection, namespace: str) -> None:
    """Make the role that training acts as, with its right to look up names: neither is in the dump of a schema."""
    role = sql.Identifier(_TRAINING_ROLE)
    try:
        known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (_TRAINING_ROLE,)).fetchone()
        if known is None:
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(role))
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(namespace), role))
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreUnavailable(
            f"the role {_TRAINING_ROLE} is missing and may not be made here: have an administrator run "
            f'"CREATE ROLE {_TRAINING_ROLE} NOLOGIN; GRANT {_TRAINING_ROLE} TO {connection.info.user}"'
        ) from error


def _pg_tool(tool: str, major: int, url: str, *arguments: str) -> None:
    """Run pg_dump or pg_restore against the database at `url`. It ends with this process."""
    address = make_url(url).set(drivername="postgresql")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    if isinstance(address.password, str):
        environment["PGPASSWORD"] = address.password  # not on the command line, which other users can read
    address = address.set(password=None)
    program = [str(tools_for(major) / tool), f"--dbname={address.render_as_string()}", "--no-password", *arguments]
    with tempfile.TemporaryFile("w+") as output:
        try:
            result = _run_with([*tether(), *program], environment, output)
        except OSError as error:
            raise StoreUnavailable(f"{tool} does not start: {error.strerror}") from error
        output.seek(0)
        problem = output.read().strip()
    if result:
        raise StoreUnavailable(f"{tool} failed: {problem.splitlines()[0] if problem else f'exit status {result}'}")


def _run_with(command: list[str], environment: dict[str, str], output: IO[str]) -> int:
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process:
        try:
            return process.wait()
        except BaseException:
            process.kill()
            raise
