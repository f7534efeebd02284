"""What `gadfly up` leaves in GADFLY_HOME/run: who runs, and how the next `up` finds and ends what a killed one left.

A process is ours when its environment carries the random mark of that run. A number alone proves nothing: after a
restart it may be anybody's.
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
class Running:
    """A process that `up` started."""

    role: str
    pid: int
    started_at: float  # seconds since the epoch, as the kernel says


@dataclass(kw_only=True, slots=True)
class RunState:
    """What one run of `gadfly up` says about itself."""

    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    pid: int = field(default_factory=os.getpid)
    started_at: float = field(default_factory=lambda: started_at(os.getpid()) or time.time())
    service_url: str = ""
    engine_urls: tuple[str, ...] = ()
    processes: list[Running] = field(default_factory=list)  # in the order they were started

    def write(self, home: Path) -> None:
        """Replace the state of this home folder in one step."""
        path = home / "run" / _STATE
        unfinished = path.with_suffix(".new")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(orjson.dumps(asdict(self)))
        unfinished.replace(path)

    @classmethod
    def read(cls, home: Path) -> "RunState | None":
        """The state that the newest run left, or None when there is none that can be read."""
        try:
            values = orjson.loads((home / "run" / _STATE).read_bytes())
            processes = [Running(**item) for item in values.pop("processes")]
            return cls(**{**values, "engine_urls": tuple(values["engine_urls"]), "processes": processes})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Be the only `gadfly up` of this folder. The kernel frees the lock however this process ends.

    Raises:
        Conflict: one is running.
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
            state = RunState.read(home)
            who = f" (process {state.pid}, {state.service_url})" if state is not None else ""
            raise Conflict(
                f"gadfly up is already running on {home}{who}: stop it first, or choose another folder with --home."
            ) from None
        yield


def running_state(home: Path) -> RunState | None:
    """What the `gadfly up` that runs on this folder says about itself, None if none runs."""
    state = RunState.read(home)  # not the lock: to try it would refuse an `up` that starts in the same instant
    if state is None or not is_alive(Running(role="up", pid=state.pid, started_at=state.started_at)):
        return None
    return state


def started_at(pid: int) -> float | None:
    """When the process with this number was started, None if there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_alive(process: Running) -> bool:
    """Whether this very process still runs, and not another that got its number."""
    try:
        found = psutil.Process(process.pid)
        # The kernel counts from the start of the machine, and where that lies on the clock may be corrected a little.
        return abs(found.create_time() - process.started_at) < 2 and not is_over(found)
    except psutil.Error:
        return False


def is_over(process: psutil.Process) -> bool:
    """Whether it has ended, also when nobody has asked for its exit status yet: some containers never do."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def clean_leftovers(home: Path, *, patience_s: float = 15.0) -> list[str]:
    """End what a killed `up` of this folder left running; the roles that were found. Call it under `exclusive`."""
    state = RunState.read(home)
    if state is None:
        return []
    roles = {process.pid: process.role for process in state.processes}
    order = {role: place for place, role in enumerate(dict.fromkeys(reversed(list(roles.values()))))}
    left = sorted(marked(state.mark), key=lambda process: order.get(roles.get(process.pid, ""), len(order)))
    found = [roles.get(process.pid, "a child process") for process in left]
    for process in left:  # the newest first, as an orderly stop does
        _signal(process, kill=False)
        if process.pid in roles:
            _wait([process], patience_s)
    _wait(left, patience_s)
    for process in marked(state.mark):
        _signal(process, kill=True)
    _wait(left, 5.0)
    (home / "run" / _STATE).unlink(missing_ok=True)
    return found


def marked(mark: str) -> list[psutil.Process]:
    """The processes of the run with this mark, without this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or gone
    return found


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
