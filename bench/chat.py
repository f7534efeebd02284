"""Time that /v1/chat/completions adds to the engine's own route: `python -m bench.chat [--model FOLDER]`.

The same conversations with the same sampling go to the engine alone and through the service with the model `actor`, in
turns. Durable logging is on, and no answer is judged in the background. Every figure is a ratio or a difference within
one round, shown with its spread over the rounds.
"""

import argparse
import asyncio
import statistics
from pathlib import Path

import httpx
import orjson

from bench.deployment import deployment, question, running
from bench.overhead import Call, Measurement, run
from gadfly.engine_client import ACTOR
from gadfly.settings import DEFAULT_MODEL, Settings


async def measure(options: argparse.Namespace, settings: Settings) -> None:
    settings = settings.model_copy(update={"chat_critique_share": 0.0})
    uds = settings.engine_urls[0].removeprefix("unix://")
    transport = httpx.AsyncHTTPTransport(uds=uds, limits=httpx.Limits(max_connections=None))
    async with (
        running(settings) as service,
        httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=600) as engine,
    ):
        for callers in options.callers:
            await compare(
                asking(engine, ACTOR, tokens=options.tokens),
                asking(service, "actor", tokens=options.tokens),
                callers=callers,
                requests=max(options.requests, 2 * callers),
                rounds=options.rounds,
            )


def asking(client: httpx.AsyncClient, model: str, *, tokens: int) -> Call:
    """A call that asks a new question, and reads the whole answer."""

    async def ask(number: int) -> None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question()}],
            "temperature": 0.7,
            "seed": number,
            "max_tokens": tokens,
        }
        answer = await client.post(
            "/v1/chat/completions", content=orjson.dumps(body), headers={"content-type": "application/json"}
        )
        answer.raise_for_status()

    return ask


async def compare(engine: Call, service: Call, *, callers: int, requests: int, rounds: int) -> None:
    """Print medians over the rounds, each with the least and the most."""
    for call in (engine, service):
        await run(call, callers=callers, requests=callers + 2)
    pairs: list[tuple[Measurement, Measurement]] = []
    for turn in range(rounds):
        first, second = (engine, service) if turn % 2 == 0 else (service, engine)
        one = await run(first, callers=callers, requests=requests)
        two = await run(second, callers=callers, requests=requests)
        pairs.append((one, two) if turn % 2 == 0 else (two, one))
    medians = [(alone.quantile(0.5), through.quantile(0.5)) for alone, through in pairs]
    added = [1000 * (through - alone) for alone, through in medians]
    ratios = [through / alone for alone, through in medians]
    alone_ms = 1000 * statistics.median(alone for alone, _ in medians)
    print(
        f"{callers} callers, {rounds} rounds of {requests} requests: engine p50 {alone_ms:.1f} ms, "
        f"added p50 {statistics.median(added):.1f} ms "
        f"[{min(added):.1f}, {max(added):.1f}], ratio {statistics.median(ratios):.3f} "
        f"[{min(ratios):.3f}, {max(ratios):.3f}]",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the default model, or a folder")
    parser.add_argument("--models-home", type=Path, help="a GADFLY_HOME with the default model")
    parser.add_argument("--callers", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8])
    parser.add_argument("--requests", type=int, default=24, help="requests in each round, at least two per caller")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    options = parser.parse_args()
    with deployment(options.model, models_home=options.models_home) as settings:
        asyncio.run(measure(options, settings))


if __name__ == "__main__":
    main()
