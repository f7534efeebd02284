"""Load on one route from many callers: with `wrk` where it is installed, otherwise with aiohttp.

As a program, `python -m bench.load URL BODY --callers N --seconds S` is the second of the two, in a process of its own.
`{n}` in the body is replaced by a number that differs in every request.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

import aiohttp
import orjson
import uvloop

_SCRIPT = """
local n = math.random(0, 2^31) * 1000000
math.randomseed(os.time())
request = function()
  n = n + 1
  local body = BODY:gsub("{n}", string.format("%d", n))
  return wrk.format("POST", nil, {["content-type"] = "application/json"}, body)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, failed))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What the callers saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int


def generator() -> str:
    """The name of the program that makes the load."""
    return "wrk" if shutil.which("wrk") else "aiohttp"


def run(url: str, body: str, *, callers: int, seconds: float) -> Load:
    """Load from a process of its own."""
    if generator() == "wrk":
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(f"local BODY = {orjson.dumps(body).decode()}\n{_SCRIPT}")
            script.flush()
            command = ["wrk", "-t1", f"-c{callers}", f"-d{max(1, round(seconds))}", "--timeout", "60"]
            done = subprocess.run([*command, "-s", script.name, url], capture_output=True, text=True, check=True)
    else:
        command = [sys.executable, "-m", "bench.load", url, body, "--callers", str(callers), "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Load(**orjson.loads(done.stdout.strip().splitlines()[-1]))


async def _make(url: str, body: str, *, callers: int, seconds: float) -> Load:
    latencies: list[float] = []
    failed = number = 0
    base = time.time_ns()
    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def caller() -> None:
            nonlocal failed, number
            while time.perf_counter() - started < seconds:
                number += 1
                content = body.replace("{n}", str(base + number))
                began = time.perf_counter()
                async with session.post(url, data=content, headers={"content-type": "application/json"}) as answer:
                    await answer.read()
                    failed += answer.status != 200
                latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(caller() for _ in range(callers)))
    ordered = sorted(latencies)
    return Load(
        requests=len(ordered),
        seconds=time.perf_counter() - started,
        p50_ms=1000 * ordered[len(ordered) // 2],
        p99_ms=1000 * ordered[int(0.99 * len(ordered))],
        failed=failed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("body")
    parser.add_argument("--callers", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    load = uvloop.run(_make(options.url, options.body, callers=options.callers, seconds=options.seconds))
    print(orjson.dumps(asdict(load)).decode())


if __name__ == "__main__":
    main()
