"""`gadfly demo`: a complete cycle of learning, in minutes on two cores.

Starts database, engine, service and trainer as `gadfly up` does, with the lab's model. Simulated callers request
critiques of right and wrong answers and then send the right answer. A run learns from that, the gate decides, the
service swaps, and both critics judge answers that neither has seen. Every reported number is measured in this run.
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
from gadfly.lab.picture import picture
from gadfly.lab.story import Case, Comparison, Story, page, show

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
    "pool_temperature": 1.0,  # the actor makes errors at this temperature
    "validate_every": 4,
    "validation_items": 48,
    "evaluation_items": 160,
    "micro_batch_tokens": 8192,
    "warm_start": "never",
}
CALLERS = 6
LOGGED = 320  # questions that callers send before the run
JUDGED = 60  # fresh answers of each class for the comparison at the end
_READY_S = 240.0
_OVER = ("succeeded", "failed", "cancelled")


class DemoFailed(Exception):
    """The demo cannot continue; the message says why."""


@dataclass(slots=True)
class SimulatedTraffic:
    """The simulated callers: the number of their requests, and their failures."""

    client: httpx.AsyncClient
    requests: int = 0
    failures: list[str] = field(default_factory=list)

    async def send(self, case: Case) -> None:
        """Send one caller's request, and the right answer as feedback."""
        body = {"question": case.problem.text, "response": case.response, "temperature": 0, "max_tokens": 128}
        self.requests += 1
        response = await self.client.post("/critique", json=body)
        if response.status_code != httpx.codes.OK:
            self.failures.append(response.text)
            return
        feedback = {"interaction_id": response.json()["id"], "reference": str(case.problem.answer)}
        (await self.client.post("/feedback", json=feedback)).raise_for_status()

    @contextlib.asynccontextmanager
    async def in_background(self, *, pause_s: float) -> AsyncIterator[None]:
        """Callers that send requests during the block, each with a pause between two requests."""

        async def caller(number: int) -> None:
            rng = random.Random(f"caller {number}")
            while True:
                await self.send(Case.make(rng, wrong=rng.random() < 0.5))
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
    """`gadfly up` with the lab's model, during the block."""
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
        "GADFLY_SPLIT_BLOCKS": "exact",  # the questions of this world are few sentences with other numbers
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
    """Wait until the service, its engine and its database are ready.

    Raises:
        DemoFailed: they ended, or were not ready in time.
    """
    deadline = time.monotonic() + _READY_S
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoFailed(f"`gadfly up` did not become ready; see {log}")
        with contextlib.suppress(httpx.TransportError):
            if (await client.get("/readyz")).status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.5)


async def log_traffic(traffic: SimulatedTraffic, progress: Progress) -> None:
    """Send `LOGGED` questions with feedback, half of them with a wrong answer."""
    rng = random.Random("traffic")
    task = progress.add_task("requests and feedback of callers", total=LOGGED)
    waiting = [Case.make(rng, wrong=number % 2 == 1) for number in range(LOGGED)]

    async def caller() -> None:
        while waiting:
            await traffic.send(waiting.pop())
            progress.advance(task)

    await gather(*(caller() for _ in range(2 * CALLERS)))


async def learn(client: httpx.AsyncClient, progress: Progress) -> dict[str, Any]:
    """Request a run and follow it to its end; the ended run.

    Raises:
        DemoFailed: the run was refused, or failed.
    """
    requested = await client.post("/admin/retrain", json={"config": CONFIG})
    if requested.status_code != httpx.codes.ACCEPTED:
        raise DemoFailed(f"the run was refused: {requested.text}")
    path = f"/admin/runs/{requested.json()['id']}"
    task = progress.add_task("the run", total=CONFIG["steps_stage_1"] + CONFIG["steps_stage_2"])
    while True:
        run: dict[str, Any] = (await client.get(path)).json()
        stage = (run["progress"]["stage"] or "queued").replace("_", " ")
        progress.update(task, completed=run["progress"]["step"], description=f"the run: {stage}")
        if run["status"] in _OVER:
            break
        await asyncio.sleep(0.5)
    if run["status"] != "succeeded":
        raise DemoFailed(f"the run {run['status']}: {run['error']}")
    return run


async def events(client: httpx.AsyncClient, run_id: str) -> list[dict[str, Any]]:
    """All events of an ended run, as `{"kind": ..., "data": ...}`."""
    async with client.stream("GET", f"/admin/runs/{run_id}/events") as stream:
        return [
            {"kind": event.event, "data": json.loads(event.data)}
            async for event in EventSource(stream).aiter_sse()
            if event.data  # a keep-alive comment arrives as an event without data
        ]


async def until_live(client: httpx.AsyncClient, version: int) -> dict[str, Any]:
    """The critic's history when it is live and its receipt is complete, or after a minute."""
    deadline = time.monotonic() + 60
    while True:
        history: dict[str, Any] = (await client.get(f"/critics/{version}")).json()
        complete = history["receipts"] and history["receipts"][0]["details"]["lost"] is not None
        if ("live" in history["pointers"] and complete) or time.monotonic() > deadline:
            return history
        await asyncio.sleep(0.5)


async def compare(client: httpx.AsyncClient, versions: Sequence[int], progress: Progress) -> list[Comparison]:
    """Have both critics judge the same fresh answers, and the actor refine each with each critique; greedy."""
    rng = random.Random("fresh")
    fresh = [Case.make(rng, wrong=number % 2 == 1) for number in range(2 * JUDGED)]
    task = progress.add_task("both critics judge fresh answers", total=len(fresh) * len(versions))
    slots = asyncio.Semaphore(24)

    async def one(case: Case, version: int) -> dict[str, Any]:
        body = {
            "question": case.problem.text,
            "response": case.response,
            "reference": str(case.problem.answer),
            "critic": version,
            "temperature": 0,
            "max_tokens": 128,
            "metadata": {"demo": "comparison"},
        }
        async with slots:
            response = await client.post("/refine", json=body)
        response.raise_for_status()
        progress.advance(task)
        result = response.json()
        [critique] = [each["critique"] for each in result["samples"][0]["rounds"]]
        return {
            "verdict": critique["verdict"],
            "confidence": critique["confidence"],
            "calibrated_confidence": critique["calibrated_confidence"],
            "critique": critique["text"],
            "refined": result["refined_response"],
            "grade": result["refined_grade"],
        }

    results = await gather(*(gather(*(one(case, version) for version in versions)) for case in fresh))
    return [Comparison(case, dict(zip(versions, each, strict=True))) for case, each in zip(fresh, results, strict=True)]


async def run_demo(home: Path, console: Console) -> Story:
    """Run the demo; its results.

    Raises:
        DemoFailed: a part of it failed.
    """
    started = time.monotonic()
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
            traffic = SimulatedTraffic(client)
            await log_traffic(traffic, progress)
            history = None
            async with traffic.in_background(pause_s=4.0):
                run = await learn(client, progress)
                version = run["version"]
                if run["outcome"] == "promote":
                    history = await until_live(client, version)
            calibration = None if version is None else (await client.get(f"/critics/{version}")).json()["calibration"]
            comparisons = [] if version is None else await compare(client, (0, version), progress)
            run_events = await events(client, run["id"])
    return Story(
        seconds=time.monotonic() - started,
        callers=2 * CALLERS,
        requests=traffic.requests,
        failures=len(traffic.failures),
        run=run,
        events=run_events,
        history=history,
        calibration=calibration,
        comparisons=comparisons,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="gadfly demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gadfly-demo.html"), help="file for the page")
    parser.add_argument("--picture", type=Path, help="file for an SVG of one answer before both critics")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="gadfly-demo-") as folder:
        try:
            story = asyncio.run(run_demo(Path(folder), console))
        except (DemoFailed, httpx.HTTPError) as error:
            console.print(f"[red]The demo ended early:[/red] {error}", soft_wrap=True)
            log = Path(folder) / "up.log"
            if log.exists():
                console.print(log.read_text(errors="replace")[-1500:], markup=False)
            return 1
        except KeyboardInterrupt:
            return 130
    show(story, console)
    options.out.write_text(page(story), encoding="utf-8")
    console.print(f"the same as a page: {options.out.absolute()}")
    if options.picture is not None and story.version is not None:
        options.picture.write_text(picture(story), encoding="utf-8")
        console.print(f"the picture: {options.picture.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
