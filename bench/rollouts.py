"""Cost of a training run for live traffic: `python -m bench.rollouts ROWS.jsonl [--model FOLDER]`.

Engine, service and trainer share this machine, as after `gadfly up`. One caller sends /critique requests one after the
other: before a run, while it samples and updates weights, and after it was cancelled. The figures are ratios of the
latencies with and without a run, measured minutes apart in the same processes. ROWS has one JSON object per line with
question, response (or solution) and reference.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bench.deployment import RESPONSE, process, question, until_up
from gadfly import store
from gadfly.grading import Grade
from gadfly.records import Interaction, Kind, Usage, new_id, now
from gadfly.settings import DEFAULT_MODEL, Settings
from gadfly.store.database import Database, migrate
from gadfly.store.embedded import EmbeddedPostgres

QUIET = "no run"


async def fill(settings: Settings, lines: list[dict[str, str]]) -> None:
    """Store the rows as an import would. Every second response is made wrong, so that both classes are present."""
    assert settings.database_url is not None
    interactions = []
    for number, row in enumerate(lines):
        response, is_right = row.get("response") or row["solution"], number % 2 == 0
        interactions.append(
            Interaction(
                id=new_id(), kind=Kind.IMPORT, created_at=now(), episode_id=new_id(), key_id=None, request_id=None,
                fingerprint=None, question=row["question"],
                response=response if is_right else f"{response}\nThe answer is 0.",
                reference=row["reference"], grade=Grade.RIGHT if is_right else Grade.WRONG, metadata={}, parameters={},
                model=None, prompt_set=None, critic_version=None, adapter_sha256=None, verdict=None,
                refined_response=None, stop_reason=None, usage=Usage(), latency_ms=None,
            )
        )  # fmt: skip
    async with (
        Database.of(settings, settings.database_url.get_secret_value()) as database,
        database.session() as session,
    ):
        await store.interactions.insert_interactions(
            session, interactions, heldout_share=settings.heldout_share, split_blocks=settings.split_blocks
        )


class LiveCaller:
    """One caller, and the latencies of its requests in seconds by phase."""

    def __init__(self, client: httpx.AsyncClient, *, tokens: int) -> None:
        self._client = client
        self._tokens = tokens
        self.seconds: dict[str, list[float]] = defaultdict(list)

    async def ask(self, phase: str) -> None:
        body = {"question": question(), "response": RESPONSE, "temperature": 0.7, "max_tokens": self._tokens}
        started = time.perf_counter()
        answer = await self._client.post("/critique", json=body)
        answer.raise_for_status()
        self.seconds[phase].append(time.perf_counter() - started)


async def measure(
    options: argparse.Namespace, settings: Settings, lines: list[dict[str, str]], console: Console
) -> None:
    environment, logs = settings.to_environment(), settings.home
    uds = settings.engine_urls[0].removeprefix("unix://")
    with process(["gadfly.engine", "--uds", uds], environment, logs / "engine.log") as engine:
        transport = httpx.AsyncHTTPTransport(uds=uds)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            await until_up(client, "/health", engine, logs / "engine.log")
        with (
            process(["gadfly.service"], environment, logs / "service.log") as service,
            process(["gadfly.trainer"], environment, logs / "trainer.log"),
        ):
            async with httpx.AsyncClient(base_url=settings.service_url, timeout=600) as client:
                await until_up(client, "/readyz", service, logs / "service.log")
                await fill(settings, lines)
                await compare(options, client, console)


async def compare(options: argparse.Namespace, client: httpx.AsyncClient, console: Console) -> None:
    caller = LiveCaller(client, tokens=options.tokens)
    for _ in range(3):
        await caller.ask("warm-up")
    for _ in range(options.requests):
        await caller.ask(QUIET)
    config = {
        "prompts_per_step": 8, "steps_stage_1": 1000, "minibatches": 2, "max_critique_tokens": 128,
        "max_answer_tokens": 128, "pool_questions": 4, "pool_samples": 2, "validate_every": 0, "warm_start": "never",
    }  # fmt: skip
    requested = await client.post("/admin/retrain", json={"config": config})
    requested.raise_for_status()
    run = f"/admin/runs/{requested.json()['id']}"
    deadline = time.monotonic() + options.limit
    steps = 0
    while time.monotonic() < deadline:
        state = (await client.get(run)).json()
        if state["status"] not in ("queued", "running"):
            raise SystemExit(f"the run ended: {state['error']}")
        steps = state["progress"]["step"]
        if state["progress"]["stage"] != "stage_1":
            await asyncio.sleep(0.5)
            continue
        await caller.ask("a run")
        if len(caller.seconds["a run"]) >= 3 * options.requests:
            break
    (await client.post(f"{run}/cancel")).raise_for_status()
    while (await client.get(run)).json()["status"] == "running":  # noqa: ASYNC110  # another process ends it
        await asyncio.sleep(0.2)
    for _ in range(options.requests):
        await caller.ask(f"{QUIET}, afterwards")
    table = Table(title=f"latency of /critique, {options.tokens} tokens, one caller; the run made {steps} steps")
    for column in ("phase", "requests", "p50", "p99", "p50 ratio", "p99 ratio"):
        table.add_column(column, justify="right")
    base = caller.seconds[QUIET]
    for name, seconds in caller.seconds.items():
        if name == "warm-up":
            continue
        table.add_row(
            name,
            str(len(seconds)),
            f"{1000 * statistics.median(seconds):.0f} ms",
            f"{1000 * _p99(seconds):.0f} ms",
            f"{statistics.median(seconds) / statistics.median(base):.2f}",
            f"{_p99(seconds) / _p99(base):.2f}",
        )
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    console.print(table)


def _p99(seconds: list[float]) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--count", type=int, default=64, help="rows to store")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the default model, or a folder")
    parser.add_argument("--models-home", type=Path, help="a GADFLY_HOME with the default model")
    parser.add_argument("--requests", type=int, default=20, help="requests without a run; three times as many with one")
    parser.add_argument("--tokens", type=int, default=16, help="longest critique")
    parser.add_argument("--limit", type=float, default=400, help="longest measurement during the run, in seconds")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    lines = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()[: options.count]]
    with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder:
        home = Path(folder)
        if options.models_home:
            (home / "models").symlink_to((options.models_home / "models").absolute())
        with EmbeddedPostgres(home) as postgres:
            migrate(postgres.url)
            settings = Settings.load(
                {
                    "home": home,
                    "database_url": postgres.url,
                    "engine_urls": f"unix://{home}/engine.sock",
                    "model": options.model,
                    "port": random.SystemRandom().randrange(20_000, 60_000),
                    "log_level": "warning",
                }
            )
            asyncio.run(measure(options, settings, lines, console))


if __name__ == "__main__":
    main()
