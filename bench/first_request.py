"""Latency of the first request after a start compared with the next ones: `python -m bench.first_request`.

Starts engine and service several times, sends critiques one after the other, and prints the first one's latency divided
by the median of the others. The goal is 1; the spread of the others is the noise of that ratio.
"""

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import httpx

from bench.deployment import REFERENCE, RESPONSE, deployment, question, running
from gadfly.settings import DEFAULT_MODEL, Settings


async def measure(settings: Settings, *, requests: int, tokens: int) -> None:
    """Measure one start and print the seconds to readiness, the latencies and their ratio."""
    started = time.monotonic()
    async with running(settings) as client:
        ready_s = time.monotonic() - started
        first, *others = [await critique_s(client, tokens=tokens) for _ in range(requests)]
    middle = statistics.median(others)
    print(
        f"ready after {ready_s:.1f} s; first critique {first:.2f} s, the next {len(others)}: median {middle:.2f} s "
        f"[{min(others):.2f}, {max(others):.2f}]; ratio {first / middle:.2f}",
        flush=True,
    )


async def critique_s(client: httpx.AsyncClient, *, tokens: int) -> float:
    """Latency of one graded critique in seconds."""
    body = {"question": question(), "response": RESPONSE, "reference": REFERENCE, "max_tokens": tokens}
    started = time.monotonic()
    answer = await client.post("/critique", json=body)
    answer.raise_for_status()
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the default model, or a folder")
    parser.add_argument("--models-home", type=Path, help="a GADFLY_HOME with the default model")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--requests", type=int, default=8, help="critiques after each start")
    parser.add_argument("--tokens", type=int, default=16, help="longest critique")
    options = parser.parse_args()
    for _ in range(options.starts):
        with deployment(options.model, models_home=options.models_home) as settings:
            asyncio.run(measure(settings, requests=options.requests, tokens=options.tokens))


if __name__ == "__main__":
    main()
