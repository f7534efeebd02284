"""Processes that end when the one that started them ends, however it ends.

`python tether.py PARENT_PID PROGRAM ARGUMENT...` becomes PROGRAM, and ends when the process that started it ends. It is
a script, because the kernel is asked between fork and exec, where Python code of a parent with threads must not run.
Elsewhere than on Linux it only starts the program.
"""

import ctypes
import os
import signal
import sys
from multiprocessing import parent_process
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def tether() -> list[str]:
    """What to put before a program's arguments so that it ends when this process ends, however it ends."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid())]


def end_with_parent() -> None:
    """Called in a process that multiprocessing spawned: the kernel ends it when the process that spawned it is gone.

    A pool that is killed leaves its children working, or waiting for work for ever, with all the memory they hold. In a
    process that nobody spawned this does nothing.
    """
    parent = parent_process()
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:  # it was gone before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def main(parent: int, program: list[str]) -> None:
    if sys.platform == "linux":
        # Asked to end rather than killed: the engine ends its own processes, the database closes its files.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the kernel was asked
            sys.exit(1)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
