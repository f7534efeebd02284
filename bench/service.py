"""What the service costs in front of an engine that answers at once: `python -m bench.service`.

POST /critique with a new question in every request, from 1 to 1,024 callers, with durable logging in an embedded
Postgres. The CPU time per request is that of the service's own process. In the same run, on the same engine:

    floor    bench/floor.py: one FastAPI route that makes the two requests of a critique and commits one row
    litellm  LiteLLM's proxy, one request, no database; with `--litellm PROGRAM`, or where `litellm` is installed

With two cores or more, the measured process has core 0 for itself, and engine, Postgres and load share the others, so
that requests per second are the limit of one process. Other programs on the machine disturb latencies and rates more
than CPU times. See docs/decisions/engine-client.md.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from bench import load
from bench.deployment import RESPONSE, deployment, free_port
from gadfly.settings import Settings

QUESTION = "{n}: A box holds 12 pens. Ann buys 5 boxes and gives 17 pens away. How many pens are left?"
_WARM_UP_S = 1.0
_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load."""

    name: str
    url: str
    body: str
    process: psutil.Process


@dataclass(frozen=True, slots=True)
class Cell:
    """One server under the load of some callers."""

    load: load.Load
    cpu_ms: float  # of its process, per request

    @property
    def rate(self) -> float:
        return self.load.requests / self.load.seconds


def measure(target: Target, *, callers: int, seconds: float) -> Cell:
    load.run(target.url, target.body, callers=callers, seconds=_WARM_UP_S)
    before = target.process.cpu_times()
    made = load.run(target.url, target.body, callers=callers, seconds=seconds)
    after = target.process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return Cell(made, 1000 * used / max(1, made.requests))  # none, where the machine is far too busy


@contextmanager
def started(
    command: Sequence[str], *, ready: str, log: Path, environment: dict[str, str], core: set[int]
) -> Iterator[psutil.Process]:
    """A program that may use these cores only, from the moment it answers 200 at `ready`."""
    own = os.sched_getaffinity(0)
    with log.open("wb") as output:
        os.sched_setaffinity(0, core)
        try:
            child = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=output)
        finally:
            os.sched_setaffinity(0, own)
        try:
            _wait(child, ready, log)
            yield psutil.Process(child.pid)
        finally:
            child.terminate()
            child.wait(60)


def _wait(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while True:
        if child.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a process did not start:\n{log.read_text()[-4000:]}")
        try:
            if httpx.get(url, timeout=10).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)


@contextmanager
def targets(options: argparse.Namespace, settings: Settings, core: set[int]) -> Iterator[list[Target]]:
    """The servers, running."""
    home = settings.home
    python = [sys.executable, "-m"]
    engine_port, floor_port, litellm_port = free_port(), free_port(), free_port()
    uds = settings.engine_urls[0].removeprefix("unix://")
    question = {"question": QUESTION, "response": RESPONSE, "max_tokens": 256}
    body = orjson.dumps(question | ({"stream": True} if options.stream else {})).decode()
    assert settings.database_url is not None
    database = make_url(settings.database_url.get_secret_value()).set(drivername="postgresql")
    everywhere = os.sched_getaffinity(0)
    with ExitStack() as stack:
        stack.enter_context(
            started(
                [*python, "bench.instant_engine", "--uds", uds, "--port", str(engine_port)],
                ready=f"http://127.0.0.1:{engine_port}/health",
                log=home / "engine.log",
                environment={},
                core=everywhere,
            )
        )
        service = stack.enter_context(
            started(
                [*python, "gadfly.service"],
                ready=f"{settings.service_url}/readyz",
                log=home / "service.log",
                environment=settings.to_environment(),
                core=core,
            )
        )
        found = [Target("service", f"{settings.service_url}/critique", body, service)]
        if not options.stream:
            floor = stack.enter_context(
                started(
                    [
                        *[*python, "bench.floor", "--uds", uds, "--port", str(floor_port)],
                        *["--database", database.render_as_string(hide_password=False)],
                    ],
                    ready=f"http://127.0.0.1:{floor_port}/readyz",
                    log=home / "floor.log",
                    environment={},
                    core=core,
                )
            )
            found.append(Target("floor", f"http://127.0.0.1:{floor_port}/critique", body, floor))
        if options.litellm and not options.stream:
            found.append(_litellm(stack, options.litellm, home, engine_port, litellm_port, core))
        yield found


def _litellm(stack: ExitStack, program: str, home: Path, engine_port: int, port: int, core: set[int]) -> Target:
    config = home / "litellm.yaml"
    parameters = {"model": "openai/base", "api_base": f"http://127.0.0.1:{engine_port}/v1", "api_key": "none"}
    config.write_bytes(orjson.dumps({"model_list": [{"model_name": "base", "litellm_params": parameters}]}))
    process = stack.enter_context(
        started(
            [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
            ready=f"http://127.0.0.1:{port}/health/liveliness",
            log=home / "litellm.log",
            environment={"LITELLM_LOG": "ERROR", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"},
            core=core,
        )
    )
    message = {"role": "user", "content": f"{QUESTION}\n{RESPONSE}"}
    body = orjson.dumps({"model": "base", "messages": [message], "max_tokens": 256}).decode()
    return Target("litellm", f"http://127.0.0.1:{port}/v1/chat/completions", body, process)


def compare(options: argparse.Namespace, settings: Settings, console: Console) -> None:
    cores = sorted(os.sched_getaffinity(0))
    core = set(cores[:1]) if options.pin and len(cores) > 1 else set(cores)
    os.sched_setaffinity(0, set(cores[1:]) if options.pin and len(cores) > 1 else set(cores))
    table = Table(title=f"load from {load.generator()}, {options.seconds:g} s a cell, {options.rounds} rounds")
    for column in ("server", "callers", "requests/s", "p50", "p99", "CPU per request", "failed"):
        table.add_column(column, justify="right")
    cpu_ms: dict[str, list[float]] = {}
    with targets(options, settings, core) as servers:
        for target in servers:
            for callers in options.callers:
                cells = [measure(target, callers=callers, seconds=options.seconds) for _ in range(options.rounds)]
                cpu_ms.setdefault(target.name, []).append(statistics.median(cell.cpu_ms for cell in cells))
                row = (
                    target.name,
                    str(callers),
                    _middle([cell.rate for cell in cells], 0),
                    _middle([cell.load.p50_ms for cell in cells], 1) + " ms",
                    _middle([cell.load.p99_ms for cell in cells], 1) + " ms",
                    _middle([cell.cpu_ms for cell in cells], 2) + " ms",
                    str(sum(cell.load.failed for cell in cells)),
                )
                table.add_row(*row)
                console.print(" | ".join(row), style="dim")
    console.print(f"{platform.machine()}, {len(cores)} cores, Python {platform.python_version()}")
    console.print(table)
    for name, values in cpu_ms.items():
        console.print(f"{name}: CPU per request at most {max(values) / min(values):.2f} times its least")


def _middle(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--callers", type=lambda text: [int(part) for part in text.split(",")], default=[1, 32, 256, 1024]
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of each cell")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stream", action="store_true", help="measure streamed critiques, of the service only")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="all processes share all cores")
    parser.add_argument("--litellm", default=shutil.which("litellm"), help="LiteLLM's program")
    options = parser.parse_args()
    console = Console(width=160)
    with deployment("bench", models_home=None) as settings:
        limits = {"max_in_flight": 2 * max(options.callers)}
        compare(options, settings.model_copy(update=limits), console)


if __name__ == "__main__":
    main()
