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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import httpx
import orjson
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
_QUANTILES = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What is kept of a phase without swaps and the one with swaps after it. All times in seconds."""

    quiet: dict[str, float]  # quantiles of the latency, by their name
    busy: dict[str, float]
    answered: int
    lost: list[str]
    mixed: list[str]
    to_move: list[float]  # of each swap
    to_answer: list[float]

    @classmethod
    def of(cls, quiet: "SwapTraffic", busy: "SwapTraffic", swaps: Sequence[tuple[float, float]]) -> Self:
        return cls(
            quiet={name: quiet.run.quantile(share) for name, share in _QUANTILES.items()},
            busy={name: busy.run.quantile(share) for name, share in _QUANTILES.items()},
            answered=len(quiet.latencies) + len(busy.latencies),
            lost=quiet.lost + busy.lost,
            mixed=quiet.mixed + busy.mixed,
            to_move=[to_move for to_move, _ in swaps],
            to_answer=[to_answer for _, to_answer in swaps],
        )


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
    rounds = read_rounds(options.results)
    per_round = options.swaps // options.rounds
    try:
        await swap(database, callers, 1)
        version = 1
        for number in range(len(rounds), options.rounds):
            quiet = callers.traffic = SwapTraffic()
            await asyncio.sleep(options.spacing * per_round)
            busy = callers.traffic = SwapTraffic()
            durations = []
            for _ in range(per_round):
                began = time.perf_counter()
                version = 3 - version
                durations.append(await swap(database, callers, version))
                await asyncio.sleep(max(0.0, options.spacing - (time.perf_counter() - began)))
            rounds.append(Round.of(quiet, busy, durations))
            if options.results:
                with options.results.open("ab") as file:
                    file.write(orjson.dumps(asdict(rounds[-1]), option=orjson.OPT_APPEND_NEWLINE))
            console.print(f"round {number + 1} of {options.rounds}: {rounds[-1].answered} requests", style="dim")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    show(options, rounds, console)


def read_rounds(results: Path | None) -> list[Round]:
    """The rounds of earlier calls."""
    if results is None or not results.exists():
        return []
    return [Round(**orjson.loads(line)) for line in results.read_bytes().splitlines()]


def show(options: argparse.Namespace, rounds: Sequence[Round], console: Console) -> None:
    swaps = [each for one in rounds for each in one.to_move]
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    table = Table(title=f"{len(swaps)} swaps, {options.callers} callers, {options.tokens} tokens, medians [range]")
    for column in ("", "without swaps", "with swaps", "ratio"):
        table.add_column(column, justify="right")
    for name in _QUANTILES:
        quiet = [one.quiet[name] * 1000 for one in rounds]
        busy = [one.busy[name] * 1000 for one in rounds]
        ratios = [b / a for a, b in zip(quiet, busy, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(quiet):.0f} ms",
            f"{statistics.median(busy):.0f} ms",
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
        )
    console.print(table)
    for name, seconds in (("to move", swaps), ("to answer", [each for one in rounds for each in one.to_answer])):
        run = Measurement(seconds, 0.0)
        console.print(f"{name}: p50 {1000 * run.quantile(0.5):.0f} ms, p99 {1000 * run.quantile(0.99):.0f} ms")
    lost = [text for one in rounds for text in one.lost]
    mixed = [text for one in rounds for text in one.mixed]
    answered = sum(one.answered for one in rounds)
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
    parser.add_argument("--results", type=Path, help="file of finished rounds: a later call with it continues there")
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
                    "adapter_slots": 8,  # both versions are read by their numbers before either is live
                    "model": str(critic_model()),
                    "port": free_port(),
                    "log_level": "warning",
                }
            )
            asyncio.run(measure(options, settings, console))


if __name__ == "__main__":
    main()
