"""Several workers on one address: started, summed up, replaced and stopped as one service."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from gadfly.settings import Settings
from gadfly.store.database import migrate
from tests.support.services import free_port

WORKERS = 2


@pytest.fixture
def service(database_url: str, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a service with two workers and without an engine, and its first process."""
    migrate(database_url)
    settings = Settings.load(
        {
            "home": tmp_path,
            "database_url": database_url,
            "engine_urls": f"unix://{tmp_path}/engine.sock",
            "port": free_port(),
            "workers": WORKERS,
        }
    )
    log = tmp_path / "service.log"
    with log.open("wb") as output:
        first = subprocess.Popen(
            [sys.executable, "-m", "gadfly.service"],
            env=os.environ | settings.to_environment(),
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: len(replicas(settings.service_url)) == WORKERS, log)
        yield settings.service_url, psutil.Process(first.pid)
    finally:
        first.terminate()
        assert first.wait(60) == 0


def replicas(url: str) -> set[str]:
    try:
        return {replica["id"] for replica in httpx.get(f"{url}/state", timeout=60).json()["replicas"]}
    except httpx.TransportError:
        return set()


def until(is_so: Callable[[], bool], log: Path | None = None) -> None:
    deadline = time.monotonic() + 90
    while not is_so():
        assert time.monotonic() < deadline, log and log.read_text()[-3000:]
        time.sleep(0.2)


def workers_of(first: psutil.Process) -> list[psutil.Process]:
    return [child for child in first.children() if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def answered(url: str) -> float:
    name = 'gadfly_http_requests_total{method="GET",route="/healthz",status="200"}'
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def ask(url: str, times: int) -> None:
    for _ in range(times):  # each on a connection of its own, which the kernel gives to either worker
        assert httpx.get(f"{url}/healthz", timeout=60).status_code == httpx.codes.OK


def test_workers_are_one_service(service: tuple[str, psutil.Process]) -> None:
    url, first = service
    before = answered(url)
    ask(url, 30)
    assert answered(url) - before == 30, "each worker alone has counted some of them"

    killed, frozen = workers_of(first)
    killed.kill()
    until(lambda: len(workers_of(first)) == WORKERS and killed not in workers_of(first))
    ask(url, 10)  # those for the killed one wait until it is back
    assert answered(url) - before == 40, "what an ended worker counted stays in the sum"

    frozen.send_signal(signal.SIGSTOP)
    until(lambda: frozen not in workers_of(first) and len(workers_of(first)) == WORKERS)
    ask(url, 10)

    running = workers_of(first)
    first.terminate()
    until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in running)


def test_an_address_in_use_is_one_sentence(service: tuple[str, psutil.Process], tmp_path: Path) -> None:
    url, first = service  # noqa: RUF059
    again = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-m", "gadfly.service"], env=first.environ(), capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 3
    assert again.stderr.strip().splitlines()[-1].startswith("gadfly service: it cannot listen on 127.0.0.1:")
