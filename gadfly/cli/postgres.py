"""`python -m gadfly.cli.postgres`: runs the embedded Postgres for the lifetime of this process.

Postgres detaches itself from the process that starts it and would outlive a killed `gadfly up`. This process stays
attached: it receives SIGTERM when `gadfly up` ends for any reason, and then stops Postgres.
"""

import signal
import sys
import threading
import time
from types import FrameType

from gadfly.errors import GadflyError, StoreUnavailable
from gadfly.settings import Settings
from gadfly.store.embedded import EmbeddedPostgres

_CHECK_EVERY_S = 0.2
_PROBE_EVERY_S = 2.0
_MISSED = 3  # probes in a row, before a frozen server is killed
_MISSED_WHEN_BUSY = 12  # by a server that runs and is late, for a minute


def main() -> int:
    """The exit code: 0 after a request to stop, 1 if Postgres does not start, stopped by itself, or was frozen."""
    stop_requested = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        server = EmbeddedPostgres(Settings.load().home)
        start(server)
        try:
            print(f"Postgres runs at {server.url}", file=sys.stderr, flush=True)
            problem = watch(server, stop_requested)
        finally:
            server.stop()
    except GadflyError as error:
        problem = str(error)
    if problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    return 1 if problem else 0


def start(server: EmbeddedPostgres) -> None:
    """Start the server; once more if that fails, because something may have killed it while it started."""
    if server.is_frozen:  # its last owner was killed with it
        server.kill_all()
    try:
        server.start()
    except StoreUnavailable:
        server.start()


def watch(server: EmbeddedPostgres, stop_requested: threading.Event) -> str:
    """Wait for a request to stop, or for a problem, which is returned; empty: a request.

    A frozen server is killed: its log keeps all committed data.
    """
    probe_at = time.monotonic() + _PROBE_EVERY_S
    late = frozen = 0
    while not stop_requested.wait(_CHECK_EVERY_S):
        if not server.is_running:
            return "Postgres stopped by itself."
        if time.monotonic() < probe_at:
            continue
        frozen = frozen + 1 if server.is_frozen else 0
        late = 0 if frozen or not server.is_late else late + 1
        probe_at = time.monotonic() + _PROBE_EVERY_S
        if frozen >= _MISSED or late >= _MISSED_WHEN_BUSY:
            server.kill_all()
            return "Postgres did not react and was killed."
    return ""


if __name__ == "__main__":
    sys.exit(main())
