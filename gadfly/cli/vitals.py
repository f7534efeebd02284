"""A program's state in the kernel: whether it is stopped, whether it works, and whether memory ran out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_WHOLE_MACHINE = Path("/proc/vmstat")


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """When a program that does not answer is ended."""

    every_s: float = 2.0
    limit_s: float = 2.5  # of one probe
    missed: int = 3  # probes in a row
    busy_s: float = 60.0  # without an answer, for a program that uses its processor meanwhile


@dataclass(slots=True)
class Vitals:
    """Counts the missed probes of one session of processes, and tells a frozen program from a busy one."""

    session: int
    patience: Patience
    _missed: int = 0
    _silent_s: float = 0.0
    _cpu_s: float = 0.0

    def is_stuck(self, *, answers: bool, waited_s: float) -> bool:
        """Whether it is time to end the program. `answers`: the result of the probe, `waited_s` after the last one.

        A probe is missed when a process is stopped (SIGSTOP), or when nothing answers and no processor time was used.
        """
        processes = list(_session(self.session))
        stopped = any(map(_is_stopped, processes))
        cpu_s = sum(map(_cpu_s, processes))
        is_idle, self._cpu_s = cpu_s - self._cpu_s < 0.01, cpu_s
        if answers and not stopped:
            self._missed, self._silent_s = 0, 0.0
            return False
        self._silent_s += waited_s
        self._missed = self._missed + 1 if stopped or is_idle else 0
        return self._missed >= self.patience.missed or self._silent_s >= self.patience.busy_s


def _session(leader: int) -> Iterator[psutil.Process]:
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader:
                yield psutil.Process(pid)
        except (OSError, psutil.Error):
            continue  # it ended, or belongs to another user


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


class MemoryKills:
    """How often the kernel has ended a process for lack of memory: in this container, or else on this machine."""

    def __init__(self) -> None:
        self.known = memory_kills()

    def is_new(self) -> bool:
        """Whether the kernel did so since the last question."""
        before, self.known = self.known, memory_kills()
        return before is not None and self.known is not None and self.known > before


def memory_kills() -> int | None:
    """The kernel's counter of processes ended for lack of memory; None where it has none."""
    for path in (*_of_cgroup(), _WHOLE_MACHINE):
        try:
            counters = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
            return int(counters["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None


def _of_cgroup() -> Iterator[Path]:
    """The files with the counters of this process's own control group, versions 1 and 2."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            yield _CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control"
        elif not controllers:
            yield _CGROUPS / path.lstrip("/") / "memory.events"
