"""Processes that end when their parent process ends, however it ends.

`python tether.py PARENT_PID PROGRAM ARGUMENT...` becomes PROGRAM, and ends when its parent ends. It is a script,
because the request to the kernel is made between fork and exec, where Python code of a parent with threads must not
run. On systems other than Linux it only starts the program.
"""

import ctypes
import os
import signal
import sys
from multiprocessing import parent_process
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def tether() -> list[str]:
    """The command that, put before a program and its arguments, makes the program end with this process."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid())]


def end_with_parent() -> None:
    """Have the kernel end this process, which multiprocessing spawned, when its parent ends.

    The children of a killed pool would otherwise run on, or wait for work indefinitely, with all the memory they hold.
    In a process that multiprocessing did not spawn this does nothing.
    """
    parent = parent_process()
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:  # it ended before the request to the kernel
        os.kill(os.getpid(), signal.SIGKILL)


def main(parent: int, program: list[str]) -> None:
    if sys.platform == "linux":
        # SIGTERM rather than SIGKILL: the engine ends its own processes, the database closes its files.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the request to the kernel
            sys.exit(1)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
