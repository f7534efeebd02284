"""`gadfly demo`: the whole of Gadfly learns while you watch, in minutes, on two cores.

Database, engine, service and trainer are started as `gadfly up` starts them, on the lab's model. Simulated callers ask
for critiques of answers, right and wrong, and say what would have been right. A run learns from them, the gate decides,
the service swaps, and both critics then judge answers that neither has seen. Every number is measured in this run.
"""

import argparse
import asyncio
import base64
import contextlib
import html
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from core.concurrency import gather
from lab import world
from lab.world import Problem

mpl.use("Agg")

MODEL = Path(__file__).with_name("model")
CONFIG: dict[str, Any] = {
    "steps_stage_1": 16,
    "steps_stage_2": 8,
    "prompts_per_step": 16,
    "learning_rate": 2e-3,
    "max_critique_tokens": 128,
    "max_answer_tokens": 64,
    "pool_questions": 160,
    "pool_samples": 4,
    "validate_every": 4,
    "validation_items": 48,
    "evaluation_items": 240,
    "micro_batch_tokens": 8192,
    "warm_start": "never",
}
CALLERS = 6
LOGGED = 260  # questions that callers ask about before the run
JUDGED = 60  # fresh answers of either kind that both critics judge in the end
_READY_S = 240.0
_OVER = ("succeeded", "failed", "cancelled")


class DemoFailed(Exception):
    """What went wrong, in a sentence."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, an answer to it, and whether that is right."""

    problem: Problem
    response: str
    is_right: bool

    @classmethod
    def make(cls, rng: random.Random, *, wrong: bool) -> "Asked":
        while True:
            problem = world.problem(rng)
            answer = world.slip(rng, problem, share=0.4 if wrong else 0.0)
            if (answer[-1].result != problem.answer) is wrong:
                return cls(problem, world.solution(answer), not wrong)


@dataclass(slots=True)
class Traffic:
    """Callers, and what they were answered: for each version, how many verdicts were right."""

    client: httpx.AsyncClient
    judged: dict[int, list[bool]] = field(default_factory=dict)
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
        truth = "correct" if asked.is_right else "incorrect"
        self.judged.setdefault(said["critic"]["version"], []).append(said["verdict"] == truth)
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
    found: list[dict[str, Any]] = []
    kind = ""
    async with client.stream("GET", f"/admin/runs/{run_id}/events") as stream:
        async for line in stream.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                found.append({"kind": kind, "data": json.loads(value)})
    return found


async def until_live(client: httpx.AsyncClient, version: int) -> dict[str, Any]:
    """The critic's history once it is live and its receipt is complete; as it is after a minute otherwise."""
    deadline = time.monotonic() + 60
    while True:
        history: dict[str, Any] = (await client.get(f"/critics/{version}")).json()
        complete = history["receipts"] and history["receipts"][0]["details"]["lost"] is not None
        if ("live" in history["pointers"] and complete) or time.monotonic() > deadline:
            return history
        await asyncio.sleep(0.5)


@dataclass(frozen=True, slots=True)
class Compared:
    """One fresh answer and what each version made of it: verdict, critique, and whether the refined answer is right."""

    asked: Asked
    said: dict[int, dict[str, Any]]

    def is_verdict_right(self, version: int) -> bool:
        return bool(self.said[version]["verdict"] == ("correct" if self.asked.is_right else "incorrect"))

    def is_refined_right(self, version: int) -> bool:
        return bool(self.said[version]["grade"] == "right")


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


# --------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that the report tells, as it was measured."""

    seconds: float
    traffic: Traffic
    run: dict[str, Any]
    events: list[dict[str, Any]]
    history: dict[str, Any] | None  # of the new critic, when it went live
    compared: list[Compared]

    @property
    def version(self) -> int | None:
        return None if self.run["version"] is None else int(self.run["version"])

    def rates(self, version: int) -> list[tuple[str, float, int]]:
        """What a version made of the fresh answers: name, share, of how many."""
        right = [each for each in self.compared if each.asked.is_right]
        wrong = [each for each in self.compared if not each.asked.is_right]

        def share(found: Sequence[Compared], good: Callable[[Compared], bool]) -> float:
            return sum(good(each) for each in found) / len(found)

        def verdict(each: Compared) -> bool:
            return each.is_verdict_right(version)

        def refined(each: Compared) -> bool:
            return each.is_refined_right(version)

        return [
            ("verdict right (Acc@Dis)", share(self.compared, verdict), len(self.compared)),
            ("... of right answers", share(right, verdict), len(right)),
            ("... of wrong answers", share(wrong, verdict), len(wrong)),
            ("right after refinement (Acc@Refine)", share(self.compared, refined), len(self.compared)),
            ("... right answers kept", share(right, refined), len(right)),
            ("... wrong answers fixed", share(wrong, refined), len(wrong)),
        ]

    @property
    def side_by_side(self) -> list[Compared]:
        """Three wrong answers, first those that only the new critic sees through."""
        assert self.version is not None
        new = self.version
        wrong = [each for each in self.compared if not each.asked.is_right]
        return sorted(wrong, key=lambda each: (each.is_verdict_right(0), not each.is_verdict_right(new)))[:3]

    @property
    def receipt(self) -> dict[str, Any] | None:
        if self.history is None or not self.history["receipts"]:
            return None
        details: dict[str, Any] = self.history["receipts"][0]["details"]
        return details


def told(story: Story) -> list[tuple[str, str]]:
    """The swap as its receipt has it, a line each."""
    receipt = story.receipt
    if receipt is None:
        return [("swap", "there was none")]
    times = receipt["times"]
    lines = [
        ("from, to", f"critic@{receipt['from_version']} to critic@{story.version}"),
        ("adapter", f"sha256 {receipt['adapter_sha256']}"),
        ("asked, proven, moved", f"{times['requested_at']}, {times['proved_at']}, {times['moved_at']}"),
        ("in flight at the move", str(receipt["in_flight"])),
        ("lost", str(receipt["lost"])),
        ("mixed", json.dumps(receipt["mixed"])),
    ]
    return lines + [
        ("engine", ", ".join(f"{name} {value}" for name, value in each.items())) for each in receipt["engines"]
    ]


def show(story: Story, console: Console) -> None:
    """The report on a terminal."""
    version = story.version
    gate = story.run["gate"] or {}
    console.print(f"\n[bold]gate: {story.run['outcome'] or 'not asked'}[/bold]", *gate.get("reasons", []), sep="\n  ")
    if version is None:
        console.print("nothing was published: " + str(story.events[-1]["data"].get("message", "")))
        return
    table = Table(title=f"{len(story.compared)} fresh answers, the same for both", title_justify="left")
    for column in ("", "critic@0", f"critic@{version}", "of"):
        table.add_column(column, justify="left" if not column else "right")
    for (name, before, of), (_, after, _) in zip(story.rates(0), story.rates(version), strict=True):
        table.add_row(name, f"{before:.1%}", f"{after:.1%}", str(of))
    console.print(table)
    receipt = Table(title="receipt of the swap", title_justify="left", show_header=False)
    receipt.add_column(style="dim", no_wrap=True)
    receipt.add_column(overflow="fold")
    for name, value in told(story):
        receipt.add_row(name, value)
    console.print(receipt)
    for each in story.side_by_side:
        pair = Table(
            title=f"{each.asked.problem.text}\n{each.asked.response}  [dim](right: {each.asked.problem.answer})[/dim]",
            title_justify="left",
        )
        for number in (0, version):
            pair.add_column(f"critic@{number}: {each.said[number]['verdict']}", overflow="fold")
        pair.add_row(*(f"{each.said[n]['critique']}\n\n[dim]-> {each.said[n]['refined']}[/dim]" for n in (0, version)))
        console.print(pair)
    lost = f"{len(story.traffic.failures)} of {story.traffic.requests} requests of the callers failed"
    console.print(f"{lost}; {story.seconds:.0f} s in all")


def curve(story: Story) -> str:
    """The run's learning curve as a PNG in base64: validation by class, and the reward of each step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for name, title in (("discrimination_right", "right answers"), ("discrimination_wrong", "wrong answers")):
        points = [
            (each["data"]["step"], 100 * each["data"]["metrics"][name])
            for each in story.events
            if each["kind"] == "validation" and name in each["data"]["metrics"]
        ]
        left.plot([x for x, _ in points], [y for _, y in points], marker="o", label=title)
    left.set(title="verdicts right on validation answers, %", xlabel="rollout step", ylim=(0, 103))
    left.legend()
    steps = [each["data"] for each in story.events if each["kind"] == "step"]
    right.plot([each["step"] for each in steps], [each["metrics"]["reward_mean"] for each in steps], marker=".")
    right.set(title="mean reward of a step's critiques", xlabel="rollout step")
    for panel in (left, right):
        panel.axvline(CONFIG["steps_stage_1"], color="grey", linewidth=0.8, linestyle=":")
        panel.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(picture.getvalue()).decode()


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } tr { border-bottom: 1px solid #e4e4ea }
pre { white-space: pre-wrap; background: #f5f5f8; padding: .7rem; margin: 0; font-size: 13px } img { max-width: 100% }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem } .good { color: #0a7a3d } .bad { color: #b3261e }
td.fold { overflow-wrap: anywhere }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr } }
"""


def page(story: Story) -> str:
    """The report as one HTML page that needs nothing else."""
    version = story.version
    gate = story.run["gate"] or {}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Gadfly: a critic that learned</title><style>{_STYLE}</style>",
        "<h1>A critic that learned from its traffic</h1>",
        f"<p>{story.traffic.requests} requests of {CALLERS} and more simulated callers, "
        f"{len(story.traffic.failures)} of them failed; one training run; {story.seconds:.0f} seconds in all.</p>",
        f"<h2>The gate: {html.escape(str(story.run['outcome'] or 'not asked'))}</h2><ul>",
        *(f"<li>{html.escape(reason)}</li>" for reason in gate.get("reasons", [])),
        "</ul><h2>How it learned</h2>",
        f"<img alt='learning curve' src='data:image/png;base64,{curve(story)}'>",
        "<p>Left of the dotted line stage I pays for the right verdict; right of it stage II pays for a right "
        "refinement and the right verdict.</p>",
    ]
    if version is not None:
        rows = zip(story.rates(0), story.rates(version), strict=True)
        parts += [
            f"<h2>Before and after, on {len(story.compared)} fresh answers</h2><table>",
            f"<tr><th><th class=n>critic@0<th class=n>critic@{version}<th class=n>of",
            *(
                f"<tr><td>{name}<td class=n>{a:.1%}<td class=n>{b:.1%}<td class=n>{of}"
                for (name, a, of), (_, b, _) in rows
            ),
            "</table><h2>The swap's receipt</h2><table>",
            *(f"<tr><td>{html.escape(name)}<td class=fold>{html.escape(value)}" for name, value in told(story)),
            "</table><h2>Three wrong answers, two critics</h2>",
        ]
        for each in story.side_by_side:
            parts.append(
                f"<p><b>{html.escape(each.asked.problem.text)}</b><br>{html.escape(each.asked.response)} "
                f"(right: {each.asked.problem.answer})</p><div class=pair>"
            )
            for number in (0, version):
                said = each.said[number]
                kind = "good" if each.is_verdict_right(number) else "bad"
                parts.append(
                    f"<div><p class={kind}>critic@{number}: {html.escape(said['verdict'])}</p>"
                    f"<pre>{html.escape(said['critique'])}\n\n&rarr; {html.escape(said['refined'])}</pre></div>"
                )
            parts.append("</div>")
    return "\n".join(parts)


# ----------------------------------------------------------------------------------------------------------- the demo


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
    return Story(time.monotonic() - began, traffic, run, told_events, history, compared)


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
