"""The engine's process of a CPU server is a fork of the server, whose imports it needs too.

vLLM spawns this process, which then imports nearly the same modules a second time: seven of the seventeen seconds of
processor time of a start. vLLM's variable VLLM_WORKER_MULTIPROC_METHOD could change that, but on a CPU vLLM overwrites
it; here the value "fork" that the server was started with holds. A fork hangs in its first parallel operation if
libgomp has threads of the forking thread, so these are ended before.
Source: vLLM 0.32, vllm/platforms/cpu.py and vllm/v1/engine/utils.py.
"""

import ctypes
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import BaseContext, ForkContext, ForkProcess
from pathlib import Path

_OMP_PAUSE_HARD = 2  # omp_pause_resource_t of OpenMP 5.0

# Options of vLLM with which a fork does not work: it binds memory at exec, and exporters of traces have threads.
_SPAWNED = ("--numa-bind", "--otlp-traces-endpoint")


def install() -> None:
    """Has a server on CPU fork the engine's process if its environment asks for it. Idempotent."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or not is_asked_for(os.environ, sys.argv):
        return
    from vllm.v1.engine import utils

    if not hasattr(utils, "_gadfly_forks"):
        utils._gadfly_forks = True
        utils.get_mp_context = forking_where_safe(utils.get_mp_context)


def is_asked_for(environ: Mapping[str, str], arguments: Sequence[str]) -> bool:
    """Whether a server with this environment and these arguments is to fork the engine's process."""
    return environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork" and not any(
        argument.startswith(_SPAWNED) for argument in arguments
    )


def forking_where_safe(get_context: Callable[[], BaseContext]) -> Callable[[], BaseContext]:
    """The function `get_mp_context` that gives a forking context, or vLLM's own where a fork would not be its equal."""

    def get_mp_context() -> BaseContext:
        own = get_context()  # has side effects, and refuses some machines
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread and _has_preloaded() and end_openmp_threads():
            return _Context()
        return own

    return get_mp_context


def end_openmp_threads() -> bool:
    """Ends the threads that every libgomp of this process keeps for the calling thread; the next use starts new ones.

    Intel's OpenMP does this itself at a fork. Returns whether it was possible: libgomp before GCC 9 cannot.
    """
    for path in {line.split(maxsplit=5)[5] for line in _maps() if "libgomp" in line}:
        try:
            if ctypes.CDLL(path).omp_pause_resource_all(_OMP_PAUSE_HARD) != 0:
                return False
        except (AttributeError, OSError):
            return False
    return True


def _has_preloaded() -> bool:
    """Whether this process has the libraries that vLLM added to LD_PRELOAD for a process that it spawns."""
    mapped = {Path(line.split(maxsplit=5)[5]) for line in _maps()}
    wanted = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    return all(Path(path).resolve() in mapped for path in wanted)


def _maps() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]


class _Process(ForkProcess):
    """Without what belongs to the server."""

    def run(self) -> None:
        import vllm.plugins

        gc.freeze()  # the server's objects are never collected here: their finalizers are the server's
        signal.set_wakeup_fd(-1)  # otherwise a signal to this process wakes the server's event loop
        _close_address()
        vllm.plugins.plugins_loaded = False  # vLLM loads them again, as in a process that it spawns
        super().run()


class _Context(ForkContext):
    Process = _Process


def _close_address() -> None:
    """Closes the server's address: bound, and not listening yet. A stopped server must not seem to accept requests."""
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # not a socket
            inherited = socket.socket(fileno=os.dup(int(path.name)))
            with inherited:
                if inherited.type == socket.SOCK_STREAM and _is_bound_only(inherited):
                    null = os.open(os.devnull, os.O_RDWR)
                    os.dup2(null, int(path.name))  # the number stays taken, since an object of the server still has it
                    os.close(null)


def _is_bound_only(inherited: socket.socket) -> bool:
    if inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    try:
        inherited.getpeername()
    except OSError:  # not connected
        address = inherited.getsockname()
        return bool(address[1] if isinstance(address, tuple) else address)
    return False
