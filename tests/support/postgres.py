"""A real Postgres for tests, which can be stopped, killed, frozen and started again on the same data and address."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from gadfly.store.embedded import EmbeddedPostgres

SPLIT_SECRET = b"\x01" * 32
"""The secret of every database of the fixture `database`: the same questions are held out in every run of a test."""


class PostgresServer(EmbeddedPostgres):
    """The server that Gadfly embeds, with the faults a server can have. It dies with the process that started it."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        super().start()
        if self._watcher is None:
            # `read` returns when this process ends, however it ends.
            script = 'read _; kill -QUIT "$(head -n 1 "$1")"'
            self._watcher = subprocess.Popen(
                ["sh", "-c", script, "watcher", str(self.data / "postmaster.pid")],
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Stop as an administrator would: the server closes its clients' connections."""
        super().stop()
        if self._watcher is not None:
            self._watcher.communicate()
            self._watcher = None

    def kill(self) -> None:
        """Stop at once, as after a crash: no goodbye to clients, recovery at the next start."""
        self._end(signal.SIGQUIT)
        self.stop()

    def freeze(self) -> None:
        """Keep every connection open and answer nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def execute(self, statement: str, database: str = "postgres") -> None:
        url = make_url(self.url_of(database)).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _signal(self, number: int) -> None:
        postmaster = self._postmaster()
        assert postmaster is not None
        for process in (postmaster, *postmaster.children()):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
