"""`python -m gadfly.cli.postgres`: runs the embedded Postgres for the lifetime of this process.

Postgres detaches itself from the process that starts it and would outlive a killed `gadfly up`. This process stays
attached: it receives SIGTERM when `gadfly up` ends for any reason, and then stops Postgres.
"""

import signal
import sys
import threading
from types import FrameType

from gadfly.errors import GadflyError
from gadfly.settings import Settings
from gadfly.store.embedded import EmbeddedPostgres

_CHECK_EVERY_S = 1.0


def main() -> int:
    """The exit code: 0 after a request to stop, 1 if Postgres does not start or stopped by itself."""
    stop_requested = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        with EmbeddedPostgres(Settings.load().home) as server:
            print(f"Postgres runs at {server.url}", file=sys.stderr, flush=True)
            while not stop_requested.wait(_CHECK_EVERY_S):
                if not server.is_running:
                    print("error: Postgres stopped by itself.", file=sys.stderr, flush=True)
                    return 1
    except GadflyError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
