"""Starting programs, keeping them running, and stopping them in order."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gadfly.cli.running import MARK, Running, RunState, marked, started_at
from gadfly.errors import GadflyError
from gadfly.tether import tether

NOT_WORTH_A_RETRY = 2
"""The exit code of a program that will fail the same way again: its settings are wrong."""

_MAX_LOG_BYTES = 16 * 2**20
_LOG_CHECK_S = 30.0
_PROBE_EVERY_S = 0.2
_UNREADY_LIMIT_S = 3.0

# How our own programs say why they end, and how vLLM's says it of its arguments.
_REASON = re.compile(r"(?:(?:\S+\.py: )?error|gadfly service): (.+)")

IsReady = Callable[[], Awaitable[bool]]
Report = Callable[[str], None]


class ProgramFailed(GadflyError):
    """A program ended before it was ready, or will not start again. `tail` is the end of its log."""

    def __init__(self, message: str, *, tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tail = tail


@dataclass(frozen=True, kw_only=True)
class Program:
    """Something to keep running."""

    role: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    is_ready: IsReady
    stop_limit_s: float = 30.0  # after asking it to stop; then it is killed
    hurried_limit_s: float = 0.0  # the same after a second Ctrl-C


@dataclass
class Backoff:
    """How long to wait before the next start: doubles with each crash, starts over after a quiet while."""

    first_s: float = 1.0
    longest_s: float = 60.0
    quiet_s: float = 120.0
    _next_s: float = field(default=0.0, init=False)

    def after(self, uptime_s: float) -> float:
        """The wait after a crash that came `uptime_s` seconds after the start."""
        wait_s = self.first_s if uptime_s >= self.quiet_s or not self._next_s else self._next_s
        self._next_s = min(2 * wait_s, self.longest_s)
        return wait_s


@dataclass
class _Child:
    program: Program
    process: asyncio.subprocess.Process
    began: float
    log_from: int  # where in the log this start begins
    was_ready: bool = False
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps programs running and remembers them in the run state.

    Every program is a session of its own, so that a Ctrl-C in the terminal reaches only us, and carries the run's mark
    in its environment, so that the next run can find what a `kill -9` of this one left.

    Example:
        >>> supervisor = Supervisor(home, RunState(), report=print)
        >>> await supervisor.start(engine)
        >>> await supervisor.start(service)
        >>> await supervisor.failed()  # until one cannot be kept running
    """

    def __init__(
        self, home: Path, state: RunState, *, report: Report, make_backoff: Callable[[], Backoff] = Backoff
    ) -> None:
        self._home = home
        self._state = state
        self._report = report
        self._make_backoff = make_backoff
        self._children: list[_Child] = []
        self._hurry = asyncio.Event()

    async def start(self, program: Program, *, note: Report = lambda text: None) -> None:
        """Start a program, wait until it is ready, and keep it running from then on.

        Raises:
            ProgramFailed: it ended before it was ready.
        """
        child = await self._spawn(program)
        self._children.append(child)
        if not await self._until_ready(child, note):
            raise self._failure(child)
        child.keeper = asyncio.create_task(self._keep(child))

    async def failed(self) -> None:
        """Wait until a program cannot be kept running.

        Raises:
            ProgramFailed: which one, and why.
        """
        trimmer = asyncio.create_task(self._trim_logs())
        tasks = [child.keeper for child in self._children if child.keeper is not None]
        try:
            await asyncio.gather(*tasks)
        finally:
            trimmer.cancel()

    async def stop(self) -> None:
        """Stop everything, the newest first, each when the one before it has ended."""
        for child in reversed(self._children):
            if child.keeper is not None:
                child.keeper.cancel()
                await asyncio.gather(child.keeper, return_exceptions=True)
            if child.process.returncode is None:
                hint = " (Ctrl-C again ends it at once)" if child.was_ready and not self._hurry.is_set() else ""
                self._report(f"stopping the {child.program.role}{hint}")
                await self._stop(child)
            self._sweep(child)
        self._children.clear()

    def hurry(self) -> None:
        """Stop without waiting for work under way, also what is being stopped now."""
        self._hurry.set()

    async def _spawn(self, program: Program) -> _Child:
        environment = {**program.environment, MARK: self._state.mark, "SPT_NOENV": "1"}  # vLLM's titles keep the mark
        with program.log.open("ab") as log:
            log_from = log.tell()
            process = await asyncio.create_subprocess_exec(
                *tether(),
                *program.argv,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._remember(program.role, process.pid)
        return _Child(program, process, time.monotonic(), log_from)

    def _remember(self, role: str, pid: int) -> None:
        entry = Running(role=role, pid=pid, started_at=started_at(pid) or time.time())
        places = {process.role: place for place, process in enumerate(self._state.processes)}
        if role in places:
            self._state.processes[places[role]] = entry
        else:
            self._state.processes.append(entry)
        try:
            self._state.write(self._home)
        except OSError as error:  # a full disk must not end what is running; the mark still finds this process
            self._report(f"{self._home} cannot be written: {error.strerror}")

    async def _until_ready(self, child: _Child, note: Report) -> bool:
        """Whether it became ready before it ended."""
        while child.process.returncode is None:
            if await child.program.is_ready():
                child.was_ready = child.process.returncode is None
                return child.was_ready
            note(last_line(child.program.log, child.log_from))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.process.wait(), timeout=_PROBE_EVERY_S)
        return False

    async def _keep(self, child: _Child) -> None:
        backoff = self._make_backoff()
        role = child.program.role
        while True:
            code = await child.process.wait()
            self._sweep(child)
            if code == NOT_WORTH_A_RETRY:
                raise self._failure(child)
            wait_s = backoff.after(time.monotonic() - child.began)
            self._report(f"the {role} ended ({describe_exit(code)}), starting it again in {wait_s:.0f} s")
            await asyncio.sleep(wait_s)
            fresh = await self._spawn(child.program)
            child.process, child.began, child.log_from = fresh.process, fresh.began, fresh.log_from
            child.was_ready = False
            if await self._until_ready(child, lambda text: None):
                self._report(f"the {role} is ready again")

    async def _stop(self, child: _Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
        ended = asyncio.ensure_future(child.process.wait())
        hurried = asyncio.ensure_future(self._hurry.wait())
        # What never was ready has no work to finish, and may be too busy with starting to hear that it shall end.
        limit_s = child.program.stop_limit_s if child.was_ready else min(_UNREADY_LIMIT_S, child.program.stop_limit_s)
        await asyncio.wait((ended, hurried), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and child.program.hurried_limit_s:
            await asyncio.wait((ended,), timeout=child.program.hurried_limit_s)
        hurried.cancel()
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()
        await ended

    def _sweep(self, child: _Child) -> None:
        # A server that crashed may leave processes of its own behind. The number of its group may be another's by now,
        # so the mark decides.
        for process in marked(self._state.mark):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process.pid) == child.process.pid:
                    os.kill(process.pid, signal.SIGKILL)

    def _failure(self, child: _Child) -> ProgramFailed:
        code = child.process.returncode
        assert code is not None
        lines = tail(child.program.log, child.log_from)
        reasons = [match[1] for line in lines if (match := _REASON.match(line))]
        if reasons:
            return ProgramFailed(f"The {child.program.role} does not start: {reasons[-1]}")
        return ProgramFailed(
            f"The {child.program.role} does not start: {describe_exit(code)}. Its log is {child.program.log}.",
            tail=lines,
        )

    async def _trim_logs(self) -> None:
        while True:
            for child in self._children:
                trim(child.program.log)
            await asyncio.sleep(_LOG_CHECK_S)


def describe_exit(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}, often because memory ran out" if name == "SIGKILL" else f"killed by {name}"


def tail(log: Path, start: int = 0, *, lines: int = 20) -> list[str]:
    """The last lines of a log, of what was written after byte `start`."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - 16_384))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def last_line(log: Path, start: int = 0) -> str:
    """The last line of a log that says anything."""
    return next((line.strip() for line in reversed(tail(log, start)) if line.strip()), "")


def trim(log: Path, *, limit: int = _MAX_LOG_BYTES) -> None:
    """Move what is in a log that grew too long to `NAME.1`. Its writer appends, so it needs not be told.

    Lines written in the instant between copying and cutting are lost: the price of writers that own their file.
    """
    try:
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
    except OSError:
        pass  # a full disk must not end what is running
