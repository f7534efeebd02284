"""The state of `gadfly up` in GADFLY_HOME/run: its processes, and the cleanup after an `up` that was killed.

A process belongs to an `up` when its environment carries that run's random mark. A process id alone proves nothing:
after a restart of the machine it may belong to another program.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson
import psutil

from gadfly.errors import Conflict, StoreUnavailable

MARK = "GADFLY_RUN_MARK"
_STATE = "state.json"
_LOCK = "up.lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedProcess:
    """A process that `up` started."""

    role: str
    pid: int
    started_at: float  # seconds since the epoch, from the kernel


@dataclass(kw_only=True, slots=True)
class UpState:
    """The state of one `gadfly up`, as stored in its home folder."""

    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    pid: int = field(default_factory=os.getpid)
    started_at: float = field(default_factory=lambda: started_at(os.getpid()) or time.time())
    service_url: str = ""
    engine_urls: tuple[str, ...] = ()
    processes: list[StartedProcess] = field(default_factory=list)  # in start order

    def write(self, home: Path) -> None:
        """Replace the stored state atomically."""
        path = home / "run" / _STATE
        unfinished = path.with_suffix(".new")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(orjson.dumps(asdict(self)))
        unfinished.replace(path)

    @classmethod
    def read(cls, home: Path) -> "UpState | None":
        """The state that the last `up` stored, or None if there is no readable one."""
        try:
            values = orjson.loads((home / "run" / _STATE).read_bytes())
            processes = [StartedProcess(**item) for item in values.pop("processes")]
            return cls(**{**values, "engine_urls": tuple(values["engine_urls"]), "processes": processes})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Hold the lock that allows one `gadfly up` per folder. The kernel releases it however this process ends.

    Raises:
        Conflict: another `up` holds it.
        StoreUnavailable: the folder cannot be written.
    """
    try:
        (home / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        lock = (home / "run" / _LOCK).open("a")
    except OSError as error:
        raise StoreUnavailable(f"Cannot write to {home}: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state = UpState.read(home)
            holder = f" (process {state.pid}, {state.service_url})" if state is not None else ""
            raise Conflict(
                f"gadfly up is already running on {home}{holder}: stop it first, or choose another folder with --home."
            ) from None
        yield


def active_state(home: Path) -> UpState | None:
    """The state of the `gadfly up` that runs on this folder, None if none runs."""
    state = UpState.read(home)  # trying the lock instead could refuse an `up` that starts at the same moment
    if state is None or not is_alive(StartedProcess(role="up", pid=state.pid, started_at=state.started_at)):
        return None
    return state


def started_at(pid: int) -> float | None:
    """Start time of a process in seconds since the epoch, None if it does not exist."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_alive(process: StartedProcess) -> bool:
    """Whether this process still runs. A later process with the same id does not count."""
    try:
        current = psutil.Process(process.pid)
        # The kernel counts from boot, and the boot time may shift a little when the clock is corrected.
        return abs(current.create_time() - process.started_at) < 2 and not is_over(current)
    except psutil.Error:
        return False


def is_over(process: psutil.Process) -> bool:
    """Whether a process has ended. A zombie counts as ended: in some containers no parent collects its exit status."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def clean_leftovers(home: Path, *, patience_s: float = 15.0) -> list[str]:
    """End the processes that a killed `up` of this folder left; their roles. The caller must hold `exclusive`."""
    state = UpState.read(home)
    if state is None:
        return []
    roles = {process.pid: process.role for process in state.processes}
    order = {role: place for place, role in enumerate(dict.fromkeys(reversed(list(roles.values()))))}
    left = sorted(marked(state.mark), key=lambda process: order.get(roles.get(process.pid, ""), len(order)))
    left_roles = [roles.get(process.pid, "a child process") for process in left]
    for process in left:  # newest first, as in an orderly stop
        _signal(process, kill=False)
        if process.pid in roles:
            _wait([process], patience_s)
    _wait(left, patience_s)
    for process in marked(state.mark):
        _signal(process, kill=True)
    _wait(left, 5.0)
    (home / "run" / _STATE).unlink(missing_ok=True)
    return left_roles


def marked(mark: str) -> list[psutil.Process]:
    """The processes with this mark, without the calling process."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                processes.append(process)
        except (psutil.Error, OSError):
            continue  # another user's process, or it has ended
    return processes


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.Error:
        pass


def _wait(processes: list[psutil.Process], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and not all(map(is_over, processes)):
        time.sleep(0.05)
