"""A supervisor: starts programs, restarts crashed ones, and stops all of them in order."""

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

from gadfly.cli.up_state import MARK, StartedProcess, UpState, marked, started_at
from gadfly.cli.vitals import MemoryKills, Patience, Vitals
from gadfly.errors import GadflyError
from gadfly.tether import tether

NOT_WORTH_A_RETRY = 2
"""Exit code of a program with wrong settings: a restart would fail the same way."""

_MAX_LOG_BYTES = 16 * 2**20
_LOG_CHECK_S = 30.0
_PROBE_EVERY_S = 0.2
_UNREADY_LIMIT_S = 3.0
_PATIENCE = Patience()
_MOST_KILLS = 3  # while a program starts for the first time; another kill then has a lasting cause

# The reason for an exit in the logs of Gadfly's processes, and of vLLM's argument parser.
_REASON = re.compile(r"(?:(?:\S+\.py: )?error|gadfly service): (.+)")

IsReady = Callable[[], Awaitable[bool]]
Report = Callable[[str], None]


class ProgramFailed(GadflyError):
    """A program ended before it was ready, or cannot be restarted. `tail` has the last lines of its log."""

    def __init__(self, message: str, *, tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tail = tail


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program to keep running."""

    role: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    is_ready: IsReady
    is_alive: IsReady | None = None  # whether it answers at all; None: only a stopped process counts as frozen
    served_after_s: float = 1.0  # of being ready: from then on it is restarted at once
    longest_wait_s: float = 60.0  # before a restart of a program that did not get that far
    stop_limit_s: float = 30.0  # from SIGTERM to SIGKILL
    hurried_limit_s: float = 0.0  # from the second Ctrl-C to SIGKILL


@dataclass
class Backoff:
    """The wait before a restart: none for a program that served; otherwise it doubles with each crash."""

    first_s: float = 1.0
    longest_s: float = 60.0
    _next_s: float = field(default=0.0, init=False)

    def after(self, *, served: bool) -> float:
        """The wait in seconds after a crash. `served`: the program had become ready, and worked."""
        if served:
            self._next_s = 0.0
            return 0.0
        wait_s = min(self._next_s or self.first_s, self.longest_s)
        self._next_s = 2 * wait_s
        return wait_s


@dataclass
class _Child:
    program: Program
    process: asyncio.subprocess.Process
    log_from: int  # byte offset of this start in the log
    memory_kills: MemoryKills = field(default_factory=MemoryKills)
    ready_at: float | None = None
    starts: int = 1
    keeper: asyncio.Task[None] | None = None
    watch: asyncio.Task[None] | None = None

    @property
    def was_ready(self) -> bool:
        return self.ready_at is not None

    @property
    def served(self) -> bool:
        return self.ready_at is not None and time.monotonic() - self.ready_at >= self.program.served_after_s

    def exit_text(self) -> str:
        """How the program ended."""
        code = self.process.returncode
        assert code is not None
        return describe_exit(code, memory_ran_out=self.memory_kills.is_new())


class Supervisor:
    """Keeps programs running and records them in the state of `up`.

    Every program is the leader of a new session, so that a Ctrl-C in the terminal reaches the supervisor alone. It has
    the mark of this `up` in its environment, so that the next `up` can find the processes left by a `kill -9`.

    Example:
        >>> supervisor = Supervisor(home, UpState(), report=print)
        >>> await supervisor.start(engine)
        >>> await supervisor.start(service)
        >>> await supervisor.failed()  # until one cannot be restarted
    """

    def __init__(
        self, home: Path, state: UpState, *, report: Report, first_wait_s: float = 1.0, patience: Patience = _PATIENCE
    ) -> None:
        self._home = home
        self._state = state
        self._report = report
        self._first_wait_s = first_wait_s
        self._patience = patience
        self._children: list[_Child] = []
        self._hurry = asyncio.Event()

    async def start(self, program: Program, *, note: Report = lambda text: None) -> None:
        """Start a program, wait until it is ready, and restart it from then on when it crashes or freezes.

        A program that is killed meanwhile is started again.

        Raises:
            ProgramFailed: it ended before it was ready, or was killed several times.
        """
        child = await self._spawn(program)
        self._children.append(child)
        kills = 0
        while not await self._until_ready(child, note):
            if (child.process.returncode or 0) >= 0 or kills == _MOST_KILLS:
                raise self._failure(child)
            kills += 1
            self._sweep(child)
            self._report(f"the {program.role} was ended while it started ({child.exit_text()}), starting it again")
            await self._respawn(child)
        child.keeper = asyncio.create_task(self._keep(child))

    async def failed(self) -> None:
        """Wait until a program cannot be restarted.

        Raises:
            ProgramFailed: names the program and the reason.
        """
        trimmer = asyncio.create_task(self._trim_logs())
        tasks = [child.keeper for child in self._children if child.keeper is not None]
        try:
            await asyncio.gather(*tasks)
        finally:
            trimmer.cancel()

    async def stop(self) -> None:
        """Stop all programs one after the other, newest first."""
        for child in reversed(self._children):
            for task in filter(None, (child.keeper, child.watch)):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if child.process.returncode is None:
                hint = " (Ctrl-C again kills it)" if child.was_ready and not self._hurry.is_set() else ""
                self._report(f"stopping the {child.program.role}{hint}")
                await self._stop(child)
            self._sweep(child)
        self._children.clear()

    def starts(self, role: str) -> int:
        """How often the program has been started."""
        return sum(child.starts for child in self._children if child.program.role == role)

    def hurry(self) -> None:
        """Stop without waiting for work in progress, including a program that is being stopped now."""
        self._hurry.set()

    async def _spawn(self, program: Program) -> _Child:
        # SPT_NOENV: a process title set by vLLM must not overwrite the mark.
        environment = {**program.environment, MARK: self._state.mark, "SPT_NOENV": "1"}
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
        self._record(program.role, process.pid)
        child = _Child(program, process, log_from)
        child.watch = asyncio.create_task(self._end_when_stuck(child))
        return child

    async def _respawn(self, child: _Child) -> None:
        fresh = await self._spawn(child.program)
        if fresh.watch is not None:
            fresh.watch.cancel()
        child.process, child.log_from, child.ready_at = fresh.process, fresh.log_from, None
        child.starts += 1
        child.watch = asyncio.create_task(self._end_when_stuck(child))

    async def _end_when_stuck(self, child: _Child) -> None:
        """Kill the program when it is frozen: its exit is then handled as any other."""
        process, patience = child.process, self._patience
        vitals = Vitals(process.pid, patience)
        while process.returncode is None:
            began = time.monotonic()
            await asyncio.sleep(patience.every_s)
            answers = not child.was_ready or await self._answers(child.program)
            is_stuck = await asyncio.to_thread(vitals.is_stuck, answers=answers, waited_s=time.monotonic() - began)
            if is_stuck and process.returncode is None:
                self._report(f"the {child.program.role} does not answer, ending it")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return

    async def _answers(self, program: Program) -> bool:
        if program.is_alive is None:
            return True
        try:
            async with asyncio.timeout(self._patience.limit_s):
                return await program.is_alive()
        except TimeoutError:
            return False

    def _record(self, role: str, pid: int) -> None:
        entry = StartedProcess(role=role, pid=pid, started_at=started_at(pid) or time.time())
        positions = {process.role: position for position, process in enumerate(self._state.processes)}
        if role in positions:
            self._state.processes[positions[role]] = entry
        else:
            self._state.processes.append(entry)
        try:
            self._state.write(self._home)
        except OSError as error:  # a full disk must not stop the programs; the mark still identifies this process
            self._report(f"{self._home} cannot be written: {error.strerror}")

    async def _until_ready(self, child: _Child, note: Report) -> bool:
        """True when the program is ready, False when it ended first."""
        while child.process.returncode is None:
            if await child.program.is_ready():
                if child.process.returncode is None:
                    child.ready_at = time.monotonic()
                return child.was_ready
            note(last_line(child.program.log, child.log_from))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.process.wait(), timeout=_PROBE_EVERY_S)
        return False

    async def _keep(self, child: _Child) -> None:
        backoff = Backoff(first_s=self._first_wait_s, longest_s=child.program.longest_wait_s)
        role = child.program.role
        while True:
            code = await child.process.wait()
            self._sweep(child)
            if code == NOT_WORTH_A_RETRY:
                raise self._failure(child)
            wait_s = backoff.after(served=child.served)
            when = f"in {wait_s:.0f} s" if wait_s else "at once"
            self._report(f"the {role} ended ({child.exit_text()}), restarting it {when}")
            await asyncio.sleep(wait_s)
            await self._respawn(child)
            if await self._until_ready(child, lambda text: None):
                self._report(f"the {role} is ready again")

    async def _stop(self, child: _Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
        ended = asyncio.ensure_future(child.process.wait())
        hurried = asyncio.ensure_future(self._hurry.wait())
        # A program that was never ready has no work to finish, and may not react to signals while it starts.
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
        # A crashed server may leave child processes. Its group id may have been reused, so the mark decides.
        for process in marked(self._state.mark):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process.pid) == child.process.pid:
                    os.kill(process.pid, signal.SIGKILL)

    def _failure(self, child: _Child) -> ProgramFailed:
        lines = tail(child.program.log, child.log_from)
        reasons = [match[1] for line in lines if (match := _REASON.match(line))]
        if reasons:
            return ProgramFailed(f"The {child.program.role} does not start: {reasons[-1]}")
        return ProgramFailed(
            f"The {child.program.role} does not start: {child.exit_text()}. Its log is {child.program.log}.",
            tail=lines,
        )

    async def _trim_logs(self) -> None:
        while True:
            for child in self._children:
                trim(child.program.log)
            await asyncio.sleep(_LOG_CHECK_S)


def describe_exit(code: int, *, memory_ran_out: bool = False) -> str:
    """An exit status as text. `memory_ran_out`: the kernel has ended a process for that reason meanwhile."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name} because memory ran out" if name == "SIGKILL" and memory_ran_out else f"killed by {name}"


def tail(log: Path, start: int = 0, *, lines: int = 20) -> list[str]:
    """The last lines of a log, from byte `start` on."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - 16_384))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def last_line(log: Path, start: int = 0) -> str:
    """The last line of a log that is not blank."""
    return next((line.strip() for line in reversed(tail(log, start)) if line.strip()), "")


def trim(log: Path, *, limit: int = _MAX_LOG_BYTES) -> None:
    """Move the content of a log larger than `limit` bytes to `NAME.1`. Its writer appends and needs no signal.

    Lines written between the copy and the truncation are lost, because the writer owns the open file.
    """
    try:
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
    except OSError:
        pass  # a full disk must not stop the programs
