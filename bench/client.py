"""CPU time of clients of an engine: `python -m bench.client`.

The engine's client with aiohttp, the same with httpx as its transport, and the `openai` library send the same critique
to an engine that answers at once (bench/instant_engine.py), each from 1, 32 and 256 callers. The figures are
milliseconds of CPU time in this process per request, the least of several rounds. See docs/decisions/engine-client.md.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import uvloop
from openai import AsyncOpenAI

from bench.deployment import free_port
from gadfly import prompts
from gadfly.engine_client import ACTOR, Engine, Sampling
from gadfly.settings import Settings

TOKENS = 256

PROMPT = prompts.load(Settings().prompts).critique(question="How many? " * 30, response="As many. " * 30)
MESSAGES = [{"role": message.role, "content": message.content} for message in PROMPT.messages]

Call = Callable[[], Awaitable[object]]


@contextmanager
def instant_engine() -> Iterator[tuple[str, int]]:
    """The path of its socket, and its port."""
    with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder:
        uds, port = f"{folder}/engine.sock", free_port()
        command = [sys.executable, "-m", "bench.instant_engine", "--uds", uds, "--port", str(port)]
        with subprocess.Popen(command) as process:
            while not Path(uds).exists():
                time.sleep(0.05)
            time.sleep(0.2)  # until it listens on the port too
            try:
                yield uds, port
            finally:
                process.terminate()


async def cpu_ms(call: Call, *, callers: int, calls: int, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        left = iter(range(max(calls, callers)))

        async def caller() -> None:
            for _ in left:  # noqa: B023  # every caller of one round takes from the same numbers
                await call()

        started = time.process_time()
        await asyncio.gather(*(caller() for _ in range(callers)))
        best = min(best, (time.process_time() - started) / max(calls, callers) * 1000)
    return best


async def measure(options: argparse.Namespace) -> None:
    async def ignore_text(_: int, text: str) -> None:
        pass

    with instant_engine() as (uds, port):
        limits = httpx.Limits(max_connections=None)
        engines = {
            "aiohttp": Engine(f"unix://{uds}", timeout_s=60),
            "httpx": Engine("http://e", timeout_s=60, transport=httpx.AsyncHTTPTransport(uds=uds, limits=limits)),
        }
        client = AsyncOpenAI(
            api_key="none",
            base_url=f"http://127.0.0.1:{port}/v1",
            max_retries=0,
            http_client=httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None), timeout=60),
        )
        body: dict[str, Any] = {"model": ACTOR, "messages": MESSAGES, "n": 1, "temperature": 0, "max_tokens": TOKENS}
        body["extra_body"] = {"priority": 0, "continue_final_message": True, "add_generation_prompt": False}
        sampling = Sampling(max_tokens=TOKENS)

        async def openai_stream() -> None:
            stream = await client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
            async for chunk in stream:
                for choice in chunk.choices:
                    await ignore_text(0, choice.delta.content or "")

        whole: dict[str, Call] = {
            name: lambda engine=engine: engine.chat(PROMPT, model=ACTOR, sampling=sampling)  # type: ignore[misc]
            for name, engine in engines.items()
        }
        whole["openai"] = lambda: client.chat.completions.create(**body)
        streamed: dict[str, Call] = {
            name: lambda engine=engine: engine.chat(PROMPT, model=ACTOR, sampling=sampling, on_text=ignore_text)  # type: ignore[misc]
            for name, engine in engines.items()
        }
        streamed["openai"] = openai_stream
        print(f"{os.cpu_count()} cores; milliseconds of CPU time per request")
        for callers in options.callers:
            for what, calls in (("one critique", whole), ("a stream", streamed)):
                figures = []
                for name, call in calls.items():
                    figure = await cpu_ms(call, callers=callers, calls=options.calls, rounds=options.rounds)
                    figures.append(f"{name} {figure:.2f}")
                print(f"{callers} callers, {what}: {', '.join(figures)}", flush=True)
        for engine in engines.values():
            await engine.aclose()
        await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=lambda text: [int(part) for part in text.split(",")], default=[1, 32, 256])
    parser.add_argument("--calls", type=int, default=300, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
