"""Overhead of the service over the bare engine: `python -m bench.overhead [--model FOLDER]`.

The same prompts with the same sampling go to the engine alone and through /critique, in turns, at 1, 8 and 32 callers.
Every figure is a ratio or a difference within one round, shown with its spread over the rounds. Durable logging is on.
Three paths are timed:

    generation  the engine generates the critique
    engine      the same, and the one-token request for the verdict's probabilities that follows every critique
    service     POST /critique, which makes those two requests, grades, and commits the record

The goal refers to service against engine, which make the same requests; generation shows the cost of the confidence.
Prompts start with different numbers, so that the prefix cache holds none of them.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import orjson
from rich.console import Console
from rich.table import Table

from bench.deployment import RESPONSE, deployment, question, running
from gadfly import prompts
from gadfly.critique import critique
from gadfly.engine_client import ACTOR, LabelWords, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.grading import Grade
from gadfly.records import Critique, Interaction, Kind, Usage, new_id, now
from gadfly.service.recording.recorder import Recorder
from gadfly.settings import DEFAULT_MODEL, Settings
from gadfly.store.database import Database
from gadfly.verdict import Verdict

Call = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One path at one number of callers: latencies in seconds, and requests per second over the whole run."""

    latencies: list[float]
    throughput: float

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def run(call: Call, *, callers: int, requests: int) -> Measurement:
    """Make `requests` calls from `callers` concurrent callers; each starts its next call when its previous one ends."""
    numbers = iter(range(requests))
    latencies: list[float] = []

    async def caller() -> None:
        for number in numbers:
            started = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return Measurement(latencies, requests / (time.perf_counter() - started))


class Raw:
    """The engine without Gadfly: the request bodies of its client, sent with a plain HTTP client."""

    def __init__(self, uds: Path, *, max_tokens: int, prompt_set: prompts.PromptSet) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(uds), limits=httpx.Limits(max_connections=None)),
            base_url="http://engine",
            timeout=600,
        )
        self._prompts = prompt_set
        self._max_tokens = max_tokens

    async def _post(self, body: dict[str, object]) -> dict[str, object]:
        answer = await self._client.post(
            "/v1/chat/completions", content=orjson.dumps(body), headers={"content-type": "application/json"}
        )
        answer.raise_for_status()
        parsed: dict[str, object] = orjson.loads(answer.content)
        return parsed

    def _messages(self, asked_question: str) -> list[dict[str, str]]:
        prompt = self._prompts.critique(question=asked_question, response=RESPONSE)
        messages = [{"role": item.role, "content": item.content} for item in prompt.messages]
        return [*messages, {"role": "assistant", "content": prompt.opener}] if prompt.opener else messages

    async def generation(self, number: int) -> tuple[list[dict[str, str]], str]:
        messages = self._messages(question())
        body: dict[str, object] = {
            "model": ACTOR,
            "messages": messages,
            "n": 1,
            "temperature": 0.7,
            "seed": number,
            "max_tokens": self._max_tokens,
            "priority": 0,
        }
        if messages[-1]["role"] == "assistant":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        answer = await self._post(body)
        return messages, answer["choices"][0]["message"]["content"]  # type: ignore[index]

    async def both(self, number: int, labels: tuple[int, int]) -> None:
        messages, text = await self.generation(number)
        opener = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        prefix = f"{(opener + text).rstrip()}\nCorrectness of the final answer:"
        await self._post(
            {
                "model": ACTOR,
                "messages": [*messages, {"role": "assistant", "content": prefix}],
                "continue_final_message": True,
                "add_generation_prompt": False,
                "max_tokens": 1,
                "temperature": 0,
                "n": 1,
                "priority": 0,
                "logprobs": True,
                "logprob_token_ids": list(labels),
                "return_tokens_as_token_ids": True,
            }
        )

    async def aclose(self) -> None:
        await self._client.aclose()


async def write_costs(settings: Settings, sample: Interaction) -> list[tuple[str, list[float]]]:
    """Latencies of durable writes in seconds: one at a time, and 32 concurrent ones that share commits."""
    assert settings.database_url is not None
    costs: list[tuple[str, list[float]]] = []
    async with (
        Database.of(settings, settings.database_url.get_secret_value()) as database,
        Recorder(database, settings.home / "bench-spool", heldout_share=0.2, spool_max_bytes=2**30) as recorder,
    ):

        async def write(_: int) -> None:
            critiques = tuple(replace(item, id=new_id()) for item in sample.critiques)
            fresh = replace(sample, id=new_id(), episode_id=new_id(), question=question(), critiques=critiques)
            await recorder.record(fresh)

        for callers in (1, 32):
            await run(write, callers=callers, requests=50)
            costs.append((f"{callers} concurrent", (await run(write, callers=callers, requests=500)).latencies))
    return costs


async def measure(options: argparse.Namespace, settings: Settings, console: Console) -> None:
    async with running(settings) as client:
        await compare(options, settings, client, Path(settings.engine_urls[0].removeprefix("unix://")), console)


async def compare(
    options: argparse.Namespace, settings: Settings, client: httpx.AsyncClient, uds: Path, console: Console
) -> None:
    prompt_set = prompts.load(settings.prompts)
    raw = Raw(uds, max_tokens=options.tokens, prompt_set=prompt_set)
    pool = EnginePool.connect(settings.engine_urls, timeout_s=600)
    tokens = await pool.members[0].label_tokens(LabelWords(":", prompt_set.correct, prompt_set.incorrect))
    labels = (tokens.first, tokens.second)
    sampling = Sampling(temperature=0.7, max_tokens=options.tokens)
    critiques = await critique(pool, prompt_set, model=ACTOR, question=question(), response=RESPONSE, sampling=sampling)

    async def generation(number: int) -> None:
        await raw.generation(number)

    async def engine(number: int) -> None:
        await raw.both(number, labels)

    async def service(number: int) -> None:
        body = {
            "question": question(),
            "response": RESPONSE,
            "reference": "43",
            "temperature": 0.7,
            "seed": number,
            "max_tokens": options.tokens,
        }
        answer = await client.post(
            "/critique", content=orjson.dumps(body), headers={"content-type": "application/json"}
        )
        answer.raise_for_status()

    paths: dict[str, Call] = {"generation": generation, "engine": engine, "service": service}
    table = Table(title=f"{settings.model}, {options.tokens} tokens, {options.rounds} rounds, medians [least, most]")
    for column in (
        "callers",
        "requests",
        "engine p50",
        "service p50",
        "added p50",
        "added p99",
        "throughput",
        "cost of confidence",
    ):
        table.add_column(column, justify="right")
    for callers in options.callers:
        requests = max(options.requests, 2 * callers)
        for path in paths.values():
            await run(path, callers=callers, requests=callers + 2)
        rounds: list[dict[str, Measurement]] = []
        for turn in range(options.rounds):
            order = list(paths) if turn % 2 == 0 else list(paths)[::-1]
            rounds.append({name: await run(paths[name], callers=callers, requests=requests) for name in order})
            console.print(f"{callers} callers, round {turn + 1} of {options.rounds}", style="dim")
        engine_ms = [item["engine"].quantile(0.5) * 1000 for item in rounds]
        service_ms = [item["service"].quantile(0.5) * 1000 for item in rounds]
        added50 = [b - a for a, b in zip(engine_ms, service_ms, strict=True)]
        added99 = [(item["service"].quantile(0.99) - item["engine"].quantile(0.99)) * 1000 for item in rounds]
        share = [item["service"].throughput / item["engine"].throughput for item in rounds]
        read = [item["engine"].quantile(0.5) / item["generation"].quantile(0.5) for item in rounds]
        row = (
            str(callers),
            str(requests),
            f"{statistics.median(engine_ms):.1f} ms",
            f"{statistics.median(service_ms):.1f} ms",
            _spread(added50, "ms"),
            _spread(added99, "ms"),
            _spread([100 * value for value in share], "%"),
            _spread(read, "x", digits=2),
        )
        table.add_row(*row)
        console.print(" | ".join(row))  # printed now, in case a later round is interrupted
    await raw.aclose()
    await pool.aclose()
    writes = await write_costs(settings, _interaction(critiques))
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    console.print(table)
    for name, seconds in writes:
        ordered = sorted(seconds)
        console.print(
            f"durable write, {name}: p50 {1000 * ordered[len(ordered) // 2]:.2f} ms, "
            f"p99 {1000 * ordered[int(len(ordered) * 0.99)]:.2f} ms"
        )


def _interaction(critiques: tuple[Critique, ...]) -> Interaction:
    return Interaction(
        id=new_id(),
        kind=Kind.CRITIQUE,
        created_at=now(),
        episode_id=new_id(),
        key_id=None,
        request_id=None,
        fingerprint=None,
        question=question(),
        response=RESPONSE,
        reference="43",
        grade=Grade.RIGHT,
        metadata={},
        parameters={"n": 1, "temperature": 0.7, "max_tokens": 64, "seed": 1},
        model="bench",
        prompt_set="stepwise@1",
        critic_version=0,
        adapter_sha256=None,
        verdict=Verdict.CORRECT,
        refined_response=None,
        stop_reason=None,
        usage=Usage(prompt_tokens=300, completion_tokens=64),
        latency_ms=1.0,
        critiques=critiques,
    )


def _spread(values: list[float], unit: str, *, digits: int = 1) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} {unit} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the default model, or a folder")
    parser.add_argument("--models-home", type=Path, help="a GADFLY_HOME with the default model")
    parser.add_argument("--callers", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=24, help="requests in each round, at least two per caller")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="longest critique")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)  # keeps tables in a log from wrapping
    with deployment(options.model, models_home=options.models_home) as settings:
        asyncio.run(measure(options, settings, console))


if __name__ == "__main__":
    main()
