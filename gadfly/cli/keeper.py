"""`python -m gadfly.cli.keeper`: runs the embedded Postgres for as long as this process lives.

Postgres makes itself independent of whoever starts it. This process does not: it is asked to end when `gadfly up` ends,
however that happens, and stops Postgres then.
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
    """Returns 0 when asked to stop, 1 when Postgres stopped by itself."""
    asked = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        with EmbeddedPostgres(Settings.load().home) as server:
            print(f"Postgres runs, reachable through {server.url}", file=sys.stderr, flush=True)
            while not asked.wait(_CHECK_EVERY_S):
                if not server.is_running:
                    print("error: Postgres stopped by itself.", file=sys.stderr, flush=True)
                    return 1
    except GadflyError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
