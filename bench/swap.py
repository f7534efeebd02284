"""Cost of a hot swap for its callers: `python -m bench.swap`.

Callers request greedy critiques of one answer without pause, through the service, from the tiny model of the tests.
Phases without swaps alternate with equally long phases in which the live critic alternates between two versions. Each
swap is requested in the database, as the trainer does it. The output:

    to move     seconds from the request of a swap to the moved pointer: the critic is loaded and proven
    to answer   seconds from the request of a swap to the first answer of the new critic to a caller
    p50, p99    latency with swaps, compared with the preceding phase without swaps: a ratio within one round
    lost        requests without an answer
    mixed       answers that differ from the known text of the version they name
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bench.deployment import running
from bench.overhead import Measurement
from gadfly import store
from gadfly.records import SwapKind, SwapStatus
from gadfly.settings import Settings
from gadfly.store.database import Database, migrate
from gadfly.store.embedded import EmbeddedPostgres
from tests.support.adapters import insert_version, publish_adapter
from tests.support.services import free_port
from tests.support.tiny_models import critic_model

_SEEDS = (1, 3)  # two adapters with different greedy texts
_PATIENCE_S = 60.0


@dataclass
class SwapTraffic:
    """The answers of one phase: latencies in seconds, errors, and texts of the wrong version."""

    latencies: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    @property
    def run(self) -> Measurement:
        return Measurement(self.latencies, 0.0)


class Callers:
    """Callers that send requests without pause and record the answers in `traffic`."""

    def __init__(self, client: httpx.AsyncClient, *, tokens: int, texts: dict[int, str]) -> None:
        self._client = client
        self._tokens = tokens
        self._texts = texts
        self.traffic = SwapTraffic()
        self._awaited: tuple[int, float, asyncio.Future[float]] | None = None

    async def first_answer_of(self, version: int) -> float:
        """The time (`perf_counter`) of the first answer of a version to a request sent from now on."""
        self._awaited = (version, time.perf_counter(), asyncio.get_running_loop().create_future())
        return await self._awaited[2]

    async def text(self, version: int) -> str:
        answer = await self._client.post("/critique", json=self._body(critic=version))
        answer.raise_for_status()
        return str(answer.json()["critique"])

    def _body(self, **fields: object) -> dict[str, object]:
        body = {"question": "What is 12 + 30?", "response": "12 + 30 = 42. The answer is 42.", "temperature": 0.0}
        return body | {"max_tokens": self._tokens} | fields

    async def call(self) -> None:
        while True:
            started = time.perf_counter()
            try:
                answer = await self._client.post("/critique", json=self._body())
            except httpx.TransportError as error:
                self.traffic.lost.append(repr(error))
                continue
            ended = time.perf_counter()
            if answer.status_code != httpx.codes.OK:
                self.traffic.lost.append(answer.text)
                continue
            self.traffic.latencies.append(ended - started)
            result = answer.json()
            version = result["critic"]["version"]
            if result["critique"] != self._texts[version]:
                self.traffic.mixed.append(result["critique"])
            # A request sent before the swap may be answered by this version's previous turn as live critic.
            if self._awaited is not None and version == self._awaited[0] and started >= self._awaited[1]:
                self._awaited[2].set_result(ended)
                self._awaited = None


async def swap(database: Database, callers: Callers, version: int) -> tuple[float, float]:
    """Make a version live; seconds from the request to the moved pointer, and to its first answer."""
    answered = asyncio.create_task(callers.first_answer_of(version))
    started = time.perf_counter()
    async with database.session() as session:
        requested = await store.swaps.request_swap(session, version=version, kind=SwapKind.GATE)
    async with asyncio.timeout(_PATIENCE_S):
        answered_at = await answered
    async with database.session() as session:
        finished = await store.swaps.read_swap(session, requested.id)
    if finished.status is not SwapStatus.DONE or finished.finished_at is None:
        raise SystemExit(f"version {version} answered before its swap was done: {finished}")
    return (finished.finished_at - finished.requested_at).total_seconds(), answered_at - started


async def measure(options: argparse.Namespace, settings: Settings, console: Console) -> None:
    assert settings.database_url is not None
    async with (
        Database.of(settings, settings.database_url.get_secret_value()) as database,
        running(settings, environ={"OMP_NUM_THREADS": "1"}) as client,
    ):
        await compare(options, settings, database, client, console)


async def compare(
    options: argparse.Namespace, settings: Settings, database: Database, client: httpx.AsyncClient, console: Console
) -> None:
    for seed in _SEEDS:
        folder = settings.adapters_folder / str(seed)
        adapter = publish_adapter(folder, model=Path(settings.model), seed=seed, base_model=settings.model)
        await insert_version(database, adapter)
    texts: dict[int, str] = {}
    callers = Callers(client, tokens=options.tokens, texts=texts)
    for version in range(len(_SEEDS) + 1):
        texts[version] = await callers.text(version)
    if len(set(texts.values())) != len(texts):
        raise SystemExit("two versions give the same answer, so their answers cannot be distinguished")

    tasks = [asyncio.create_task(callers.call()) for _ in range(options.callers)]
    durations: list[tuple[float, float]] = []
    rounds: list[tuple[SwapTraffic, SwapTraffic]] = []
    per_round = options.swaps // options.rounds
    try:
        await swap(database, callers, 1)
        for number in range(options.rounds):
            quiet = callers.traffic = SwapTraffic()
            await asyncio.sleep(options.spacing * per_round)
            busy = callers.traffic = SwapTraffic()
            for turn in range(per_round):
                began = time.perf_counter()
                durations.append(await swap(database, callers, 2 - (number * per_round + turn) % 2))
                await asyncio.sleep(max(0.0, options.spacing - (time.perf_counter() - began)))
            rounds.append((quiet, busy))
            console.print(f"round {number + 1} of {options.rounds}: {len(busy.latencies)} requests", style="dim")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    show(options, rounds, durations, console)


def show(
    options: argparse.Namespace,
    rounds: list[tuple[SwapTraffic, SwapTraffic]],
    durations: list[tuple[float, float]],
    console: Console,
) -> None:
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    table = Table(title=f"{len(durations)} swaps, {options.callers} callers, {options.tokens} tokens, medians [range]")
    for column in ("", "without swaps", "with swaps", "ratio"):
        table.add_column(column, justify="right")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        quiet = [one.run.quantile(share) * 1000 for one, _ in rounds]
        busy = [other.run.quantile(share) * 1000 for _, other in rounds]
        ratios = [b / a for a, b in zip(quiet, busy, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(quiet):.0f} ms",
            f"{statistics.median(busy):.0f} ms",
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
        )
    console.print(table)
    for name, seconds in zip(("to move", "to answer"), zip(*durations, strict=True), strict=True):
        run = Measurement(list(seconds), 0.0)
        console.print(f"{name}: p50 {1000 * run.quantile(0.5):.0f} ms, p99 {1000 * run.quantile(0.99):.0f} ms")
    answered = sum(len(each.latencies) for pair in rounds for each in pair)
    lost = [text for pair in rounds for each in pair for text in each.lost]
    mixed = [text for pair in rounds for each in pair for text in each.mixed]
    console.print(f"{answered} requests answered, {len(lost)} lost, {len(mixed)} mixed")
    for text in (lost + mixed)[:5]:
        console.print(text, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="longest critique")
    parser.add_argument("--spacing", type=float, default=1.0, help="shortest time between two swaps, in seconds")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)  # keeps tables in a log from wrapping
    with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder:
        home = Path(folder)
        with EmbeddedPostgres(home) as postgres:
            migrate(postgres.url)
            settings = Settings.load(
                {
                    "home": home,
                    "database_url": postgres.url,
                    "engine_urls": f"unix://{home}/engine.sock",
                    "engine_kv_cache_bytes": 64 * 2**20,
                    "model": str(critic_model()),
                    "port": free_port(),
                    "log_level": "warning",
                }
            )
            asyncio.run(measure(options, settings, console))


if __name__ == "__main__":
    main()
