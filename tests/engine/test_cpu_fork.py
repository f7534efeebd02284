"""The engine's process as a fork of vLLM's server."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, SpawnContext
from pathlib import Path

import psutil
import pytest

from gadfly.engine.cpu_fork import forking_where_safe, is_asked_for
from tests.support.engines import start_engine
from tests.support.tiny_models import Adapted

# Two threads of OpenMP work in the parent process before the fork, and in the child after it.
_PARALLEL_BEFORE_AND_AFTER = """
import multiprocessing, os, torch
from gadfly.engine.cpu_fork import forking_where_safe

def total():
    return torch.ones(1 << 20).add(1).sum().item()

torch.set_num_threads(2)
threads = len(os.listdir("/proc/self/task"))
assert total() == 2 << 20
assert len(os.listdir("/proc/self/task")) > threads, "no second thread: this would prove nothing"
context = forking_where_safe(lambda: multiprocessing.get_context("spawn"))()
assert context.get_start_method() == "fork"
reader, writer = context.Pipe(duplex=False)
child = context.Process(target=lambda: writer.send((total(), len(os.listdir("/proc/self/task")))))
child.start()
print("answered:", reader.poll(20) and reader.recv() == (2 << 20, 2), total() == 2 << 20)
child.kill()
"""


def test_a_fork_computes_with_threads_after_its_parent_did(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PARALLEL_BEFORE_AND_AFTER],
        env=os.environ | {"OMP_NUM_THREADS": "2"}, stdout=subprocess.PIPE, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == b"answered: True True\n"


ASKED = [  # variable, arguments, whether the process is forked, why this row exists
    ("fork", ["--model", "m"], True, "Gadfly's command"),
    (None, ["--model", "m"], False, "vLLM started without Gadfly"),
    ("spawn", ["--model", "m"], False, "the user's value wins"),
    ("fork", ["--numa-bind"], False, "memory is bound at exec"),
    ("fork", ["--otlp-traces-endpoint", "http://collector"], False, "the exporter of traces has threads"),
    ("fork", ["--otlp-traces-endpoint=http://collector"], False, "the other way to write an option"),
]


@pytest.mark.parametrize(("method", "arguments", "forks", "why"), ASKED)
def test_a_fork_is_asked_for(method: str | None, arguments: list[str], forks: bool, why: str) -> None:
    environ = {} if method is None else {"VLLM_WORKER_MULTIPROC_METHOD": method}
    assert is_asked_for(environ, arguments) is forks, why


@pytest.fixture
def own() -> BaseContext:
    return multiprocessing.get_context("spawn")


def test_a_library_that_vllm_would_preload_keeps_vllms_way(own: BaseContext, monkeypatch: pytest.MonkeyPatch) -> None:
    get_context = forking_where_safe(lambda: own)
    monkeypatch.setenv("LD_PRELOAD", "/lib/libtcmalloc_minimal.so.4")
    assert get_context() is own
    monkeypatch.delenv("LD_PRELOAD")
    assert get_context().get_start_method() == "fork"


def test_another_thread_than_the_main_one_keeps_vllms_way(own: BaseContext) -> None:
    found: list[BaseContext] = []
    thread = threading.Thread(target=lambda: found.append(forking_where_safe(lambda: own)()))
    thread.start()
    thread.join()
    assert found == [own]


def _say_and_stay(writer: Connection) -> None:
    writer.send("runs")
    time.sleep(60)


def test_the_child_does_not_keep_the_servers_address(tmp_path: Path) -> None:
    address = tmp_path / "engine.sock"
    context = forking_where_safe(SpawnContext)()
    reader, writer = context.Pipe(duplex=False)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        child = context.Process(target=_say_and_stay, args=(writer,))  # type: ignore[attr-defined]
        child.start()
        assert reader.recv() == "runs"
        server.listen()
    try:
        with socket.socket(socket.AF_UNIX) as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(str(address))
    finally:
        child.kill()
        child.join()


@pytest.mark.engine
def test_a_killed_server_takes_its_fork_along(tiny: Adapted, tmp_path: Path) -> None:
    with start_engine(tiny.model, home=tmp_path) as engine:
        [core] = psutil.Process(engine.process.pid).children()  # a spawned one has multiprocessing's tracker beside it
        engine.process.send_signal(signal.SIGKILL)
        psutil.wait_procs([core], timeout=10)
        assert not core.is_running() or core.status() == psutil.STATUS_ZOMBIE
