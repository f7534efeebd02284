"""An engine that answers at once with the same critique, for tests of what happens around a generation."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIMIT_S = 30.0


@contextmanager
def instant_engine(folder: Path) -> Iterator[str]:
    """The address of `bench.instant_engine`, on a socket in a folder."""
    socket = folder / "instant.sock"
    process = subprocess.Popen([sys.executable, "-m", "bench.instant_engine", "--uds", str(socket)])
    try:
        deadline = time.monotonic() + _LIMIT_S
        while not socket.exists():
            assert process.poll() is None, "the instant engine did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        process.kill()
        process.wait()
