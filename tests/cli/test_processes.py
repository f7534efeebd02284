"""Supervision of real child processes: crashes, back-off, stop order, kill -9, and processes of other programs."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gadfly.cli.processes import Backoff, Program, ProgramFailed, Supervisor, describe_exit, tail, trim
from gadfly.cli.up_state import (
    MARK,
    StartedProcess,
    UpState,
    clean_leftovers,
    exclusive,
    is_alive,
    is_over,
    marked,
    started_at,
)
from gadfly.cli.vitals import MemoryKills, Patience
from gadfly.errors import Conflict

# Creates a file when it is ready, and records the order in which programs are stopped.
OBEDIENT = """
import pathlib, signal, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
def stop(number, frame):
    with (folder / "order").open("a") as file: file.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(folder / name).touch()
print("ready", flush=True)
while True: time.sleep(0.05)
"""
STUBBORN = OBEDIENT.replace("sys.exit(0)", "pass")
WITH_CHILD = (
    "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n" + OBEDIENT
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "logs").mkdir()
    return tmp_path


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
async def supervisor(home: Path, reports: list[str]) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(
        home, UpState(), report=reports.append, first_wait_s=0.05, patience=Patience(every_s=0.1, limit_s=0.2)
    )
    yield supervisor
    supervisor.hurry()
    await supervisor.stop()


def program(home: Path, name: str, code: str = OBEDIENT, *, stop_limit_s: float = 5.0) -> Program:
    async def is_ready() -> bool:
        return (home / name).exists()

    return Program(
        role=name,
        argv=(sys.executable, "-c", textwrap.dedent(code), name, str(home)),
        environment=dict(os.environ),
        log=home / "logs" / f"{name}.log",
        is_ready=is_ready,
        stop_limit_s=stop_limit_s,
    )


def pid_of(home: Path, role: str) -> int:
    state = UpState.read(home)
    assert state is not None
    return next(process.pid for process in state.processes if process.role == role)


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        await asyncio.sleep(0.02)


async def test_programs_stop_one_by_one_newest_first(supervisor: Supervisor, home: Path) -> None:
    for name in ("first", "second", "third"):
        await supervisor.start(program(home, name))
    pids = [pid_of(home, name) for name in ("first", "second", "third")]
    await supervisor.stop()
    assert (home / "order").read_text().split() == ["third", "second", "first"]
    assert not any(map(psutil.pid_exists, pids))


async def test_a_crashed_program_is_restarted(supervisor: Supervisor, home: Path, reports: list[str]) -> None:
    await supervisor.start(program(home, "engine"))
    before = pid_of(home, "engine")
    os.kill(before, signal.SIGKILL)
    await until(lambda: "the engine is ready again" in reports)
    assert pid_of(home, "engine") != before
    assert reports[0].startswith("the engine ended (killed by SIGKILL")


async def test_children_of_a_crashed_program_are_killed(supervisor: Supervisor, home: Path, reports: list[str]) -> None:
    await supervisor.start(program(home, "engine", WITH_CHILD))
    (child,) = psutil.Process(pid_of(home, "engine")).children()
    os.kill(pid_of(home, "engine"), signal.SIGKILL)
    await until(lambda: "the engine is ready again" in reports)
    await until(lambda: is_over(child))


async def test_a_program_that_does_not_start_reports_its_reason(supervisor: Supervisor, home: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"The engine does not start: There is no model folder /x\."):
        await supervisor.start(
            program(home, "engine", "import sys; print('error: There is no model folder /x.'); sys.exit(1)")
        )


async def test_a_program_that_dies_without_a_reason_shows_its_log(supervisor: Supervisor, home: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"exit code 1.*engine\.log") as caught:
        await supervisor.start(program(home, "engine", "raise ValueError('too small')"))
    assert caught.value.tail[-1] == "ValueError: too small"


async def test_wrong_settings_are_not_retried(supervisor: Supervisor, home: Path) -> None:
    code = OBEDIENT.replace('print("ready", flush=True)', "time.sleep(0.3); print('error: no such flag'); sys.exit(2)")
    await supervisor.start(program(home, "engine", code))
    with pytest.raises(ProgramFailed, match="no such flag"):
        await asyncio.wait_for(supervisor.failed(), 10)


async def test_a_second_ctrl_c_does_not_wait(supervisor: Supervisor, home: Path) -> None:
    await supervisor.start(program(home, "service", STUBBORN, stop_limit_s=60))
    stopping = asyncio.create_task(supervisor.stop())
    await asyncio.sleep(0.3)
    assert not stopping.done()
    supervisor.hurry()
    await asyncio.wait_for(stopping, 5)


async def test_a_program_that_does_not_stop_is_killed(supervisor: Supervisor, home: Path) -> None:
    await supervisor.start(program(home, "service", STUBBORN, stop_limit_s=0.3))
    pid = pid_of(home, "service")
    await asyncio.wait_for(supervisor.stop(), 5)
    assert not psutil.pid_exists(pid)


async def test_a_program_that_was_never_ready_is_not_waited_for(supervisor: Supervisor, home: Path) -> None:
    """Like an engine that is loading and does not react to signals yet."""
    never_ready = STUBBORN.replace("(folder / name).touch()", '(folder / "begun").touch()')
    starting = asyncio.create_task(supervisor.start(program(home, "engine", never_ready, stop_limit_s=60)))
    while not (home / "begun").exists():  # noqa: ASYNC110  # a file cannot be awaited
        await asyncio.sleep(0.02)
    starting.cancel()
    await asyncio.wait_for(supervisor.stop(), 20)


def test_what_served_is_restarted_at_once_and_other_waits_double_up_to_a_limit() -> None:
    backoff = Backoff(first_s=1, longest_s=5)
    assert [backoff.after(served=False) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.after(served=True) == 0
    assert backoff.after(served=False) == 1


async def test_a_program_that_served_is_restarted_at_once(
    supervisor: Supervisor, home: Path, reports: list[str]
) -> None:
    await supervisor.start(replace(program(home, "service"), served_after_s=0.1))
    for _ in range(3):
        await asyncio.sleep(0.2)
        reports.clear()
        (home / "service").unlink()
        os.kill(pid_of(home, "service"), signal.SIGKILL)
        await until(lambda: "the service is ready again" in reports)
        assert "restarting it at once" in reports[0]


async def test_a_frozen_program_is_ended_and_restarted(supervisor: Supervisor, home: Path, reports: list[str]) -> None:
    await supervisor.start(program(home, "trainer"))
    os.kill(pid_of(home, "trainer"), signal.SIGSTOP)
    await until(lambda: "the trainer is ready again" in reports, within_s=5)
    assert reports[0] == "the trainer does not answer, ending it"


async def test_a_frozen_child_of_a_program_counts(supervisor: Supervisor, home: Path, reports: list[str]) -> None:
    await supervisor.start(program(home, "engine", WITH_CHILD))
    (child,) = psutil.Process(pid_of(home, "engine")).children()
    child.suspend()
    await until(lambda: "the engine is ready again" in reports, within_s=5)
    await until(lambda: is_over(child))


IDLE = OBEDIENT.replace("while True: time.sleep(0.05)", "while True: time.sleep(60)")
BUSY = OBEDIENT.replace("while True: time.sleep(0.05)", "while True: pass")


@pytest.mark.parametrize(("code", "is_ended"), [(IDLE, True), (BUSY, False)], ids=["idle", "busy"])
async def test_what_does_not_answer_is_ended_unless_it_works(
    code: str, is_ended: bool, supervisor: Supervisor, home: Path, reports: list[str]
) -> None:
    async def no_answer() -> bool:
        await asyncio.sleep(60)
        return True

    await supervisor.start(replace(program(home, "service", code), is_alive=no_answer))
    await asyncio.sleep(2)
    assert ("the service does not answer, ending it" in reports) is is_ended


async def test_a_program_that_is_killed_while_it_starts_is_started_again(
    supervisor: Supervisor, home: Path, reports: list[str]
) -> None:
    slow = OBEDIENT.replace("(folder / name).touch()", "time.sleep(0.7); (folder / name).touch()")
    starting = asyncio.create_task(supervisor.start(program(home, "engine", slow)))
    await asyncio.sleep(0.3)
    os.kill(pid_of(home, "engine"), signal.SIGKILL)
    await asyncio.wait_for(starting, 10)
    assert reports == ["the engine was ended while it started (killed by SIGKILL), starting it again"]


async def test_a_program_that_is_killed_at_each_start_is_given_up(supervisor: Supervisor, home: Path) -> None:
    with pytest.raises(ProgramFailed, match="killed by SIGKILL"):
        await supervisor.start(program(home, "engine", "import os; os.kill(os.getpid(), 9)"))


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from gadfly.cli.processes import Supervisor
from gadfly.cli.up_state import UpState, exclusive
from tests.cli.test_processes import OBEDIENT, STUBBORN, WITH_CHILD, program
home = Path(sys.argv[1])
async def main():
    supervisor = Supervisor(home, UpState(), report=print)
    for name, code in {programs}:
        await supervisor.start(program(home, name, code))
    (home / "all-up").touch()
    await supervisor.failed()
with exclusive(home):
    asyncio.run(main())
"""


@pytest.fixture
def start_up(home: Path) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Start a supervisor in a child process that can be killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(programs: str) -> "subprocess.Popen[bytes]":
        code = SUPERVISOR.format(paths=[str(Path(__file__).parents[2])], programs=programs)
        process = subprocess.Popen([sys.executable, "-c", code, str(home)])
        started.append(process)
        deadline = time.monotonic() + 30
        while not (home / "all-up").exists():
            assert process.poll() is None, "the supervisor ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    state = UpState.read(home)
    for process_left in marked(state.mark) if state is not None else []:
        process_left.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals children when their parent ends")
def test_kill_9_of_the_supervisor_leaves_nothing(
    home: Path, start_up: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    up = start_up("[('database', OBEDIENT), ('service', OBEDIENT)]")
    left = [psutil.Process(pid_of(home, role)) for role in ("database", "service")]
    up.kill()
    up.wait()
    deadline = time.monotonic() + 10
    while not all(map(is_over, left)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_next_up_ends_the_processes_of_a_killed_one(
    home: Path, start_up: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    up = start_up(
        "[('engine', WITH_CHILD.replace('sys.exit(0)', 'pass'))]"
    )  # ignores the signal after its parent's end
    engine = psutil.Process(pid_of(home, "engine"))
    children = engine.children()
    assert children
    up.kill()
    up.wait()
    time.sleep(0.3)
    assert engine.is_running()
    with exclusive(home):
        assert sorted(clean_leftovers(home, patience_s=0.5)) == ["a child process", "engine"]
    assert all(map(is_over, (engine, *children)))
    assert UpState.read(home) is None


def test_another_program_with_a_recorded_process_id_is_not_touched(home: Path) -> None:
    other_program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        state = UpState()
        state.processes.append(
            StartedProcess(role="engine", pid=other_program.pid, started_at=started_at(other_program.pid) or 0)
        )
        state.write(home)
        assert clean_leftovers(home) == []
        assert other_program.poll() is None
    finally:
        other_program.kill()
        other_program.wait()


def test_a_process_of_another_up_is_not_touched(home: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, MARK: "another up"}
    )
    try:
        UpState().write(home)
        assert clean_leftovers(home) == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_reused_process_id_is_not_alive() -> None:
    current = StartedProcess(role="up", pid=os.getpid(), started_at=started_at(os.getpid()) or 0)
    assert is_alive(current)
    assert not is_alive(StartedProcess(role="up", pid=os.getpid(), started_at=current.started_at - 3600))


def test_an_unreadable_state_counts_as_missing(home: Path) -> None:
    for content in (
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"processes": 3}',
        b'{"processes": [], "unknown": 1, "engine_urls": []}',
    ):
        (home / "run" / "state.json").write_bytes(content)
        assert UpState.read(home) is None
        assert clean_leftovers(home) == []


def test_a_second_up_is_refused(home: Path, start_up: Callable[[str], "subprocess.Popen[bytes]"]) -> None:
    up = start_up("[('database', OBEDIENT)]")
    with pytest.raises(Conflict, match=f"already running.*process {up.pid}"), exclusive(home):
        pass
    up.send_signal(signal.SIGKILL)
    up.wait()
    with exclusive(home):  # the kernel released the lock
        pass


def test_a_long_log_is_rotated_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with log.open("a") as writer:
        writer.write("x" * 100 + "\n")
        writer.flush()
        trim(log, limit=50)
        writer.write("after\n")
        writer.flush()
    assert log.read_text() == "after\n"
    assert (tmp_path / "engine.log.1").stat().st_size == 101
    trim(log, limit=50)
    assert log.read_text() == "after\n"


def test_the_tail_of_a_log_begins_at_an_offset(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("old\nnew 1\nnew 2\n")
    assert tail(log, 4) == ["new 1", "new 2"]
    assert tail(log, 4, lines=1) == ["new 2"]
    assert tail(log, 10_000) == ["old", "new 1", "new 2"], "the log was trimmed meanwhile"
    assert tail(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("code", "text"),
    [(3, "exit code 3"), (-15, "killed by SIGTERM"), (-9, "killed by SIGKILL")],
)
def test_exits_are_described(code: int, text: str) -> None:
    assert describe_exit(code) == text


def test_memory_is_the_reason_only_when_the_kernel_says_so() -> None:
    assert describe_exit(-9, memory_ran_out=True) == "killed by SIGKILL because memory ran out"
    assert describe_exit(-15, memory_ran_out=True) == "killed by SIGTERM"
    assert not MemoryKills().is_new()
    kills = MemoryKills()
    kills.known = -1  # fewer than the kernel counts now
    assert kills.is_new()
    assert not kills.is_new(), "each is reported once"


def test_a_lock_is_not_inherited_by_children(home: Path) -> None:
    with exclusive(home):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    time.sleep(0.2)  # the child closes inherited descriptors only at exec
    try:
        with exclusive(home):
            pass
    finally:
        child.kill()
        child.wait()
