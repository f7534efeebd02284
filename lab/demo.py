"""`gadfly demo`: the whole of Gadfly learns while you watch, in minutes, on two cores.

Database, engine, service and trainer are started as `gadfly up` starts them, on the lab's model. Simulated callers ask
for critiques of answers, right and wrong, and say what would have been right. A run learns from them, the gate decides,
the service swaps, and both critics then judge answers that neither has seen. Every number is measured in this run.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import EventSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gadfly.concurrency import gather
from gadfly.lab.story import Asked, Compared, Story, page, show

MODEL = Path(__file__).with_name("model")
CONFIG: dict[str, Any] = {
    "steps_stage_1": 10,
    "steps_stage_2": 10,
    "prompts_per_step": 16,
    "learning_rate": 5e-4,
    "max_critique_tokens": 128,
    "max_answer_tokens": 64,
    "pool_questions": 128,
    "pool_samples": 4,
    "pool_temperature": 1.0,  # at which the actor slips
    "validate_every": 4,
    "validation_items": 48,
    "evaluation_items": 160,
    "micro_batch_tokens": 8192,
    "warm_start": "never",
}
CALLERS = 6
LOGGED = 320  # questions that callers ask about before the run
JUDGED = 60  # fresh answers of either kind that both critics judge in the end
_READY_S = 240.0
_OVER = ("succeeded", "failed", "cancelled")


class DemoFailed(Exception):
    """What went wrong, in a sentence."""


@dataclass(slots=True)
class Traffic:
    """Callers: how many requests they sent, and what went wrong."""

    client: httpx.AsyncClient
    requests: int = 0
    failures: list[str] = field(default_factory=list)

    async def ask(self, asked: Asked) -> None:
        """One caller's request, and a little later what that caller knows of the answer."""
        body = {"question": asked.problem.text, "response": asked.response, "temperature": 0, "max_tokens": 128}
        self.requests += 1
        answer = await self.client.post("/critique", json=body)
        if answer.status_code != httpx.codes.OK:
            self.failures.append(answer.text)
            return
        said = answer.json()
        feedback = {"interaction_id": said["id"], "reference": str(asked.problem.answer)}
        (await self.client.post("/feedback", json=feedback)).raise_for_status()

    @contextlib.asynccontextmanager
    async def going_on(self, *, pause_s: float) -> AsyncIterator[None]:
        """Callers who go on asking meanwhile, each with a pause between two requests."""

        async def caller(number: int) -> None:
            rng = random.Random(f"caller {number}")
            while True:
                await self.ask(Asked.make(rng, wrong=rng.random() < 0.5))
                await asyncio.sleep(pause_s * (0.5 + rng.random()))

        callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
        try:
            yield
        finally:
            for task in callers:
                task.cancel()
            ended = await asyncio.gather(*callers, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                self.failures.append(repr(error))


@contextlib.contextmanager
def stack(home: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`gadfly up` on the lab's model, ended when the block is left."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")} | {
        "GADFLY_HOME": str(home),
        "GADFLY_PORT": str(port),
        "GADFLY_MODEL": str(MODEL),
        "GADFLY_PROMPTS": "bare@1",
        "GADFLY_ENGINE_MAX_MODEL_LEN": "512",
        "GADFLY_MAX_TOKENS": "128",
        "GADFLY_ENGINE_MAX_NUM_SEQS": "96",
        "GADFLY_ENGINE_KV_CACHE_BYTES": str(256 * 2**20),
        "GADFLY_AUTO_PROMOTE": "true",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("gadfly")), "up"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def until_ready(client: httpx.AsyncClient, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the service answers, its engine and its database with it."""
    deadline = time.monotonic() + _READY_S
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoFailed(f"`gadfly up` did not become ready; {log} says why")
        with contextlib.suppress(httpx.TransportError):
            if (await client.get("/readyz")).status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.5)


async def log_traffic(traffic: Traffic, progress: Progress) -> None:
    """So many labelled questions, half of the answers wrong."""
    rng = random.Random("traffic")
    task = progress.add_task("callers ask and say what was right", total=LOGGED)
    waiting = [Asked.make(rng, wrong=number % 2 == 1) for number in range(LOGGED)]

    async def caller() -> None:
        while waiting:
            await traffic.ask(waiting.pop())
            progress.advance(task)

    await gather(*(caller() for _ in range(2 * CALLERS)))


async def learn(client: httpx.AsyncClient, progress: Progress) -> dict[str, Any]:
    """Ask for a run and watch it to its end; the run.

    Raises:
        DemoFailed: it was refused, or failed.
    """
    asked = await client.post("/admin/retrain", json={"config": CONFIG})
    if asked.status_code != httpx.codes.ACCEPTED:
        raise DemoFailed(f"the run was refused: {asked.text}")
    path = f"/admin/runs/{asked.json()['id']}"
    task = progress.add_task("the run", total=CONFIG["steps_stage_1"] + CONFIG["steps_stage_2"])
    while True:
        run: dict[str, Any] = (await client.get(path)).json()
        stage = (run["progress"]["stage"] or "waits").replace("_", " ")
        progress.update(task, completed=run["progress"]["step"], description=f"the run: {stage}")
        if run["status"] in _OVER:
            break
        await asyncio.sleep(0.5)
    if run["status"] != "succeeded":
        raise DemoFailed(f"the run {run['status']}: {run['error']}")
    return run


async def events(client: httpx.AsyncClient, run_id: str) -> list[dict[str, Any]]:
    """Everything that a run which is over told: `{"kind": ..., "data": ...}`."""
    async with client.stream("GET", f"/admin/runs/{run_id}/events") as stream:
        return [
            {"kind": event.event, "data": json.loads(event.data)}
            async for event in EventSource(stream).aiter_sse()
            if event.data  # a comment that keeps the connection open comes as an event without data
        ]


async def until_live(client: httpx.AsyncClient, version: int) -> dict[str, Any]:
    """The critic's history once it is live and its receipt is complete; as it is after a minute otherwise."""
    deadline = time.monotonic() + 60
    while True:
        history: dict[str, Any] = (await client.get(f"/critics/{version}")).json()
        complete = history["receipts"] and history["receipts"][0]["details"]["lost"] is not None
        if ("live" in history["pointers"] and complete) or time.monotonic() > deadline:
            return history
        await asyncio.sleep(0.5)


async def compare(client: httpx.AsyncClient, versions: Sequence[int], progress: Progress) -> list[Compared]:
    """Both critics on the same fresh answers, each refined with what the critic said; greedy."""
    rng = random.Random("fresh")
    fresh = [Asked.make(rng, wrong=number % 2 == 1) for number in range(2 * JUDGED)]
    task = progress.add_task("both critics judge fresh answers", total=len(fresh) * len(versions))
    turn = asyncio.Semaphore(24)

    async def one(asked: Asked, version: int) -> dict[str, Any]:
        body = {
            "question": asked.problem.text,
            "response": asked.response,
            "reference": str(asked.problem.answer),
            "critic": version,
            "temperature": 0,
            "max_tokens": 128,
            "metadata": {"demo": "comparison"},
        }
        async with turn:
            answer = await client.post("/refine", json=body)
        answer.raise_for_status()
        progress.advance(task)
        result = answer.json()
        [critique] = [each["critique"] for each in result["samples"][0]["rounds"]]
        return {
            "verdict": critique["verdict"],
            "critique": critique["text"],
            "refined": result["refined_response"],
            "grade": result["refined_grade"],
        }

    said = await gather(*(gather(*(one(asked, version) for version in versions)) for asked in fresh))
    return [Compared(asked, dict(zip(versions, each, strict=True))) for asked, each in zip(fresh, said, strict=True)]


async def tell(home: Path, console: Console) -> Story:
    """The whole story, from start to report.

    Raises:
        DemoFailed: a part of it did not come about.
    """
    began = time.monotonic()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    log = home / "up.log"
    columns = (TextColumn("{task.description:34}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress, stack(home, port, log) as process:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            task = progress.add_task("database, engine, service, trainer", total=1)
            await until_ready(client, process, log)
            progress.advance(task)
            traffic = Traffic(client)
            await log_traffic(traffic, progress)
            history = None
            async with traffic.going_on(pause_s=4.0):
                run = await learn(client, progress)
                version = run["version"]
                if run["outcome"] == "promote":
                    history = await until_live(client, version)
            compared = [] if version is None else await compare(client, (0, version), progress)
            told_events = await events(client, run["id"])
    return Story(
        seconds=time.monotonic() - began,
        callers=2 * CALLERS,
        requests=traffic.requests,
        failures=len(traffic.failures),
        run=run,
        events=told_events,
        history=history,
        compared=compared,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="gadfly demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gadfly-demo.html"), help="where the page is written")
    asked = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="gadfly-demo-") as folder:
        try:
            story = asyncio.run(tell(Path(folder), console))
        except (DemoFailed, httpx.HTTPError) as error:
            console.print(f"[red]The demo ended early:[/red] {error}", soft_wrap=True)
            log = Path(folder) / "up.log"
            if log.exists():
                console.print(log.read_text(errors="replace")[-1500:], markup=False)
            return 1
        except KeyboardInterrupt:
            return 130
    show(story, console)
    asked.out.write_text(page(story), encoding="utf-8")
    console.print(f"the same as a page: {asked.out.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
