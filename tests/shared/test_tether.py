"""Processes that multiprocessing spawned end with their parent."""

import subprocess
import sys
from pathlib import Path

import psutil

from gadfly.tether import end_with_parent

PARENT_OF_ONE = """
import multiprocessing, time
from gadfly.tether import end_with_parent

def live(ready):
    end_with_parent()
    ready.set()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=live, args=(ready,))
    child.start()
    ready.wait()
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT_OF_ONE)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        child.wait(timeout=5)


def test_a_process_that_nobody_spawned_goes_on() -> None:
    end_with_parent()
