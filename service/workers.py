"""Several processes of the service on one address (GADFLY_WORKERS): each is a replica like one on another machine.

The first process answers no requests. It opens a socket for each worker, all bound to the address with SO_REUSEPORT, so
that the kernel spreads connections over them, and keeps them open: connections that arrive while a worker restarts wait
for it. A worker writes a byte into a pipe every second; one that has stopped doing so is ended and started again.

The Prometheus client sums the metrics of the workers over files in a folder, which ends with the first process.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from prometheus_client import multiprocess

from gadfly.settings import Settings
from gadfly.tether import tether

BEAT_S = 1.0

_LONGEST_SILENCE_S = 10.0
_START_LIMIT_S = 120.0  # to the first beat
_STOP_LIMIT_S = 40.0  # a worker drains its requests for 30
_RETRY_S = 1.0  # after a worker that never was ready
_TICK_S = 0.25
_BACKLOG = 2048

log = structlog.get_logger(__name__)


@dataclass
class _Worker:
    number: int
    socket: socket.socket
    process: subprocess.Popen[bytes] | None = None
    beats: int = -1  # the end of the pipe that is read
    heard_at: float = 0.0
    has_started: bool = False
    starts_at: float = field(default_factory=time.monotonic)


def bind(host: str, port: int, *, workers: int) -> list[socket.socket]:
    """Sockets on one address, one for each worker; port 0 gives all of them the same free port.

    Raises:
        OSError: the address is in use by another program, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:  # without SO_REUSEPORT: another service may be on the address
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
    sockets = []
    for _ in range(workers):
        each = socket.socket(family)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        each.bind((host, port))
        port = each.getsockname()[1]
        sockets.append(each)
    return sockets


class Workers:
    """Starts the workers, and starts again those that end or fall silent, until it is told to stop."""

    def __init__(self, settings: Settings, sockets: list[socket.socket], *, exit_bad_settings: int) -> None:
        self._environment = os.environ | settings.to_environment()
        self._workers = [_Worker(number, each) for number, each in enumerate(sockets)]
        self._exit_bad_settings = exit_bad_settings
        self._stopping = threading.Event()

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status of this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        with tempfile.TemporaryDirectory(prefix="gadfly-metrics-") as folder:
            self._environment["PROMETHEUS_MULTIPROC_DIR"] = folder
            try:
                while not self._stopping.wait(_TICK_S):
                    for worker in self._workers:
                        status = self._tend(worker, folder)
                        if status is not None:
                            return status
                return 0
            finally:
                self._stop()

    def _tend(self, worker: _Worker, folder: str) -> int | None:
        """Look after one worker; the exit status for this process if a restart would not help."""
        if worker.process is None:
            if time.monotonic() >= worker.starts_at:
                self._start(worker)
            return None
        self._hear(worker)
        status = worker.process.poll()
        if status is None:
            limit = _LONGEST_SILENCE_S if worker.has_started else _START_LIMIT_S
            if time.monotonic() - worker.heard_at > limit:
                log.error("worker_frozen", worker=worker.number, silent_s=limit)
                worker.process.kill()
            return None
        if status == self._exit_bad_settings:
            return status
        log.error("worker_ended", worker=worker.number, status=status)
        multiprocess.mark_process_dead(worker.process.pid, folder)  # type: ignore[no-untyped-call]
        os.close(worker.beats)
        worker.process = None
        worker.starts_at = time.monotonic() + (0.0 if worker.has_started else _RETRY_S)
        return None

    def _start(self, worker: _Worker) -> None:
        worker.beats, beat = os.pipe()
        os.set_blocking(worker.beats, False)
        descriptor = worker.socket.fileno()
        worker.process = subprocess.Popen(
            [*tether(), sys.executable, "-P", "-m", "gadfly.service", str(descriptor), str(beat)],
            env=self._environment,
            pass_fds=(descriptor, beat),
            start_new_session=True,  # Ctrl-C reaches this process only
        )
        os.close(beat)
        worker.heard_at, worker.has_started = time.monotonic(), False
        log.info("worker_started", worker=worker.number, pid=worker.process.pid)

    def _hear(self, worker: _Worker) -> None:
        try:
            if os.read(worker.beats, 4096):
                worker.heard_at, worker.has_started = time.monotonic(), True
        except BlockingIOError:
            pass

    def _stop(self) -> None:
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _STOP_LIMIT_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def metrics_folder() -> Path | None:
    """Where the workers' metrics are, as the Prometheus client finds it; None in a process on its own."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None
