"""Training runs on the command line: over simulated answers, and over a real service that is killed."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from gadfly import store
from gadfly.cli.main import app
from gadfly.cli.request_input import read_train_options
from gadfly.cli.run_follow import find_run
from gadfly.cli.run_view import RunDisplay, show_plan, show_run, show_runs
from gadfly.client import Client, Event, ServiceError, ServiceUnavailable, clients
from gadfly.errors import BadInput
from gadfly.grading import Grade
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.training import EventKind, RunStatus, TrainConfig
from tests.support.records import make_interaction
from tests.support.services import free_port, service_process

RUN: dict[str, Any] = {
    "id": "01939b6a-0000-7000-8000-000000000001",
    "status": "running",
    "trigger": "admin",
    "created_at": "2030-01-01T12:00:00Z",
    "started_at": "2030-01-01T12:00:10Z",
    "finished_at": None,
    "request_id": None,
    "task": "math",
    "reproduces": None,
    "attempt": 1,
    "cancel_requested_at": None,
    "progress": {"stage": "stage_1", "step": 3, "steps": 40, "eta_s": 130.0},
    "outcome": None,
    "version": None,
    "error": None,
    "config": TrainConfig(seed=5).model_dump(mode="json"),
    "gate": None,
    "manifest": None,
}
GATE: dict[str, Any] = {
    "outcome": "promote",
    "numbers": {"items": 40},
    "reasons": ["Discriminability: 50.0 % live, 75.0 % candidate.", "The candidate is better in discriminability."],
}


# ----------------------------------------------------------------------------------------------------------- options

OPTIONS = [  # file, pairs, options, why this row exists
    (None, [], {}, "no options"),
    (None, ["seed=3", "learning_rate=1e-5"], {"seed": 3, "learning_rate": 1e-5}, "numbers"),
    (None, ["profile=released"], {"profile": "released"}, "a word needs no quotes"),
    (None, ["balance=false", "importance_cap=null"], {"balance": False, "importance_cap": None}, "JSON literals"),
    (None, ["alarms.kl=1.5", "alarms.no_gain=null"], {"alarms": {"kl": 1.5, "no_gain": None}}, "groups"),
    ('{"seed": 1, "alarms": {"kl": 3}}', ["seed=2"], {"seed": 2, "alarms": {"kl": 3}}, "pairs win"),
    ('{"alarms": {"kl": 3}}', ["alarms.no_gain=9"], {"alarms": {"kl": 3, "no_gain": 9}}, "groups are merged"),
]


@pytest.mark.parametrize(("content", "pairs", "options", "why"), OPTIONS)
def test_options(tmp_path: Path, content: str | None, pairs: list[str], options: dict[str, Any], why: str) -> None:
    file = None
    if content is not None:
        file = tmp_path / "train.json"
        file.write_text(content)
    assert read_train_options(file, pairs) == options, why


@pytest.mark.parametrize(
    ("content", "pairs", "sentence"),
    [
        (None, ["seed"], "use name=value"),
        (None, ["=3"], "use name=value"),
        (None, ["alarms.=3"], "use name=value"),
        (None, ["seed=1", "seed.x=3"], "seed is not a group"),
        ("[1]", [], "one JSON object"),
        ("{", [], "is not JSON"),
    ],
)
def test_malformed_options_are_refused(tmp_path: Path, content: str | None, pairs: list[str], sentence: str) -> None:
    file = None
    if content is not None:
        file = tmp_path / "train.json"
        file.write_text(content)
    with pytest.raises(BadInput, match=sentence):
        read_train_options(file, pairs)
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read_train_options(tmp_path / "none.json", [])


def fake(handler: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client.from_settings(Settings(), transport=httpx.MockTransport(handler))


IDS = ["0193aaaa-2", "0193aaaa-1", "0193bbbb-1"]


def pages(request: httpx.Request) -> httpx.Response:
    """Two runs on the first page, one on the second."""
    first = "cursor" not in request.url.params
    items = [{"id": id} for id in (IDS[:2] if first else IDS[2:])]
    return httpx.Response(200, json={"items": items, "next_cursor": IDS[1] if first else None})


def test_a_unique_prefix_of_an_id_is_enough() -> None:
    assert find_run(fake(pages), "0193AAAA-2") == IDS[0]
    assert find_run(fake(pages), "0193b") == IDS[2], "also on a later page"
    with pytest.raises(BadInput, match="2 training runs start with 0193aa: 0193aaaa-2, 0193aaaa-1"):
        find_run(fake(pages), "0193aa")
    with pytest.raises(BadInput, match="No training run starts with 77"):
        find_run(fake(pages), "77")
    with pytest.raises(BadInput, match="Which run"):
        find_run(fake(pages), " ")


# ----------------------------------------------------------------------------------------------------------- showing


def test_a_list_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    over = {**RUN, "status": "succeeded", "finished_at": "2030-01-01T12:10:10Z", "outcome": "promote", "version": 4}
    show_runs([{**RUN, "status": "queued", "started_at": None}, over])
    waiting, done = capsys.readouterr().out.splitlines()[1:]
    assert waiting.split() == [RUN["id"], "math", "2030-01-01", "12:00", "admin", "queued", "3/40"]
    assert done.split() == [
        *(RUN["id"], "math", "2030-01-01", "12:00", "admin", "succeeded", "3/40"),
        *("10", "min", "promote", "critic@4"),
    ]
    show_runs([])
    assert "gadfly retrain" in capsys.readouterr().out


def test_one_run_with_its_options_and_its_gate_report(capsys: pytest.CaptureFixture[str]) -> None:
    show_run(RUN)
    printed = capsys.readouterr().out
    assert "stage_1, step 3 of 40, 2 min left" in printed
    assert ["options", "seed", "5"] in [line.split() for line in printed.splitlines()], (
        "only options that differ from the defaults"
    )
    show_run(
        {
            **RUN,
            "status": "failed",
            "error": "the [alarm] kl\x1b[2J rang",
            "finished_at": "2030-01-01T12:10:10Z",
            "outcome": "promote",
            "gate": GATE,
            "version": 4,
            "attempt": 3,
        }
    )
    printed = capsys.readouterr().out
    for part in ("failed, attempt 3", "the [alarm] kl", *GATE["reasons"], "critic@4", "promote", "10 min"):
        assert part in printed
    assert "\x1b" not in printed


NEXT = {"next_step": "Import about 90 more labelled answers."}


def test_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    portion = {"answers": 7, "questions": 5, "right": 3, "wrong": 4, "by_source": {"person": 6, "reference": 1}}
    names = ("stage_1", "stage_2", "validation", "heldout", "heldout_with_reference")
    plan = dict.fromkeys(names, portion) | {"pool_answers": 8, "steps": 40, "seconds": 600.0}
    show_plan({**plan, "warnings": ["Nothing is held out."], "notes": ["A gain of 3 points would be proven."], **NEXT})
    printed = capsys.readouterr().out
    assert ["stage", "I", "learns", "from", "7", "5", "3", "4", "6", "1"] in [
        line.split() for line in printed.splitlines()
    ]
    for part in ("by person", "8 more answers", "40 steps, about 10 min", "Nothing is held out.", "3 points"):
        assert part in printed


# --------------------------------------------------------------------------------------------------------- following


def displayed(*events: tuple[str, dict[str, Any]], terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=150, soft_wrap=True, highlight=False)
    with RunDisplay(
        console, {**RUN, "status": "queued", "progress": {"stage": None, "step": 0, "steps": 4}}
    ) as display:
        for number, (name, data) in enumerate(events):
            display.show(Event(number + 1, name, {"at": "2030-01-01T12:00:00Z", **data}))
        display._progress.refresh()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_each_event_is_a_line() -> None:
    metrics = {
        "approximate_kl": 9.0,
        "kl": 0.0123,
        "reward_mean": 0.51239,
        "discrimination_balanced": 0.625,
        "tokens": 9.0,
    }
    lines = displayed(
        ("status", {"status": "queued"}),
        ("status", {"status": "running", "attempt": 2}),
        ("stage", {"stage": "stage_1", "step": 0, "cycle": 1}),
        ("step", {"step": 1, "seconds": 60.0, "metrics": metrics}),
        ("step", {"step": 2, "seconds": 100.0, "metrics": {}}),
        ("validation", {"step": 2, "metrics": {"balanced": 0.7}}),
        ("note", {"message": "answers to learn from", "logged": 12}),
        ("alarm", {"message": "KL is 3.1\x1b[2J nats", "evidence": {"kl": 3.1, "text": "x" * 1000}}),
        ("gate", GATE),
        ("published", {"version": 4, "adapter_sha256": "ab" * 32}),
        ("something", {"new": 1}),
        ("status", {"status": "failed", "error": "it stopped"}),
    ).splitlines()
    assert [line.rstrip() for line in lines] == [
        "status      queued",
        "status      running, attempt 2",
        "stage       stage_1, step 0, cycle 1",
        "step        stage_1 step 1/4, reward_mean 0.512  discrimination_balanced 0.625  kl 0.0123, 3 min left",
        "step        stage_1 step 2/4, 2 min left",  # 0.7 * 60 + 0.3 * 100 = 72 s a step
        "validation  before step 3: balanced 0.7",
        "note        answers to learn from, logged 12",
        f"alarm       KL is 3.1\N{REPLACEMENT CHARACTER}[2J nats, evidence.kl 3.1, evidence.text {'x' * 200}...",
        "gate        promote",
        f"            {GATE['reasons'][0]}",
        f"            {GATE['reasons'][1]}",
        "published   critic@4 (abababababab)",
        "something   new 1",
    ]


def test_in_a_terminal_steps_move_a_bar() -> None:
    shown = displayed(
        ("status", {"status": "running"}),
        ("stage", {"stage": "stage_2", "step": 0}),
        ("step", {"step": 3, "seconds": 60.0, "metrics": {"reward_mean": 0.5, "kl": 0.02}}),
        terminal=True,
    )
    last = shown.split("\r")[-2]
    for part in ("stage_2", "3/4", "60 s left", "reward_mean 0.5  kl 0.02"):
        assert part in last
    assert "step 3/4" not in shown, "no line for each step"


def stream(*events: tuple[int, str, dict[str, Any]], breaks: bool = False) -> httpx.Response:
    def content() -> Iterator[bytes]:
        for id, name, data in events:
            yield f"id: {id}\nevent: {name}\ndata: {json.dumps(data)}\n\n: heartbeat\n\n".encode()
        if breaks:
            raise httpx.ReadError("gone")

    return httpx.Response(200, content=content(), headers={"content-type": "text/event-stream"})


RUNNING = httpx.Response(200, json={**RUN, "status": "running"})


def test_events_continue_after_the_last_one_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_FOLLOW_EVERY_S", 0.0)
    last_ids: list[str] = []
    outages: list[ServiceUnavailable] = []
    answers: Iterator[httpx.Response | httpx.ConnectError] = iter(
        [
            stream((3, "status", {"status": "running"}), (5, "step", {"step": 1}), breaks=True),
            httpx.ConnectError("refused"),
            httpx.Response(502, text="<html>a proxy"),
            httpx.Response(503, json={"title": "Database unavailable", "status": 503, "detail": "wait"}),
            stream((8, "step", {"step": 2})),  # an orderly stop of the service
            stream((9, "status", {"status": "succeeded"}), (10, "note", {"message": "after the end"})),
        ]
    )

    def handler(request: httpx.Request) -> httpx.Response:
        last_ids.append(request.headers["last-event-id"])
        answer = next(answers)
        if isinstance(answer, httpx.ConnectError):
            raise answer
        return answer

    events = list(fake(handler).follow_events("R", on_unavailable=outages.append))
    assert [event.id for event in events] == [3, 5, 8, 9]
    assert last_ids == ["0", "5", "5", "5", "5", "8"]
    assert len(outages) == 1, "one message per outage"


def test_a_service_unavailable_at_first_or_for_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_FOLLOW_EVERY_S", 0.0)
    monkeypatch.setattr(clients, "_FOLLOW_PATIENCE_S", 0.05)

    def never(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServiceUnavailable, match="gadfly up"):
        list(fake(never).follow_events("R", on_unavailable=pytest.fail))
    first = iter([stream((1, "status", {"status": "running"}), breaks=True)])

    def once(request: httpx.Request) -> httpx.Response:
        for answer in first:
            return answer
        raise httpx.ConnectError("refused")

    with pytest.raises(ServiceUnavailable, match="gadfly up"):
        list(fake(once).follow_events("R"))


def test_a_refusal_is_not_retried() -> None:
    answers = iter(
        [
            stream((1, "status", {"status": "running"}), breaks=True),
            httpx.Response(403, json={"title": "Forbidden", "status": 403, "detail": "the key was revoked"}),
        ]
    )
    with pytest.raises(ServiceError, match="the key was revoked"):
        list(fake(lambda request: next(answers)).follow_events("R"))


# ------------------------------------------------------------------------------------------------------ real service


class World:
    """A database with an answer to learn from, and a service over it; requesting runs needs no engine."""

    def __init__(self, home: Path, database: Database) -> None:
        self.database = database
        self.settings = Settings(
            home=home,
            database_url=database.url,
            engine_urls="http://127.0.0.1:9",
            model="tiny",
            log_level="error",
            port=free_port(),
        )
        self._home = home

    @contextmanager
    def service(self) -> Iterator[subprocess.Popen[bytes]]:
        with service_process(self.settings, self._home / "service.log") as process:
            deadline = time.monotonic() + 90
            while True:
                try:
                    if httpx.get(f"{self.settings.service_url}/admin/runs").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert time.monotonic() < deadline, (self._home / "service.log").read_text()
                time.sleep(0.1)
            yield process

    async def gadfly(self, *arguments: str) -> Result:
        """Run a command in this process."""
        return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--url", self.settings.service_url])

    async def done(self, *arguments: str) -> str:
        result = await self.gadfly(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    async def refused(self, *arguments: str) -> str:
        return str((await self.gadfly(*arguments)).exception)

    def started(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "gadfly.cli.main", *arguments, "--url", self.settings.service_url],
            env=dict(os.environ),
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def write(self, run_id: str, kind: EventKind, **data: Any) -> None:
        async with self.database.session() as session:
            await store.runs.append_event(session, UUID(run_id), kind, data)

    async def finish(self, run_id: str, status: RunStatus, error: str | None = None) -> None:
        async with self.database.session() as session:
            await store.runs.finish_run(session, UUID(run_id), status, error=error)


@pytest.fixture
async def world(tmp_path: Path, database: Database) -> World:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        answer = make_interaction(reference="4", grade=Grade.WRONG)
        await store.interactions.insert_records(session, [answer], heldout_share=1e-9)
    return World(tmp_path, database)


async def _line(process: "subprocess.Popen[str]", containing: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        while containing not in (line := await asyncio.to_thread(process.stdout.readline)):
            assert line, f"no line with {containing!r}"
    return line


async def test_request_list_cancel(world: World) -> None:
    with world.service():
        assert "stage I learns from" in await world.done("retrain", "--dry-run")
        assert json.loads(await world.done("retrain", "--dry-run", "--json"))["stage_1"]["answers"] == 1
        assert "no training runs" in await world.done("runs")
        assert "config.learning_rat" in await world.refused("retrain", "--set", "learning_rat=1")
        options = ("--set", "seed=4", "--set", "alarms.kl=1.5", "--request-id", "a")
        run = json.loads(await world.done("retrain", *options, "--json"))
        assert (run["config"]["seed"], run["config"]["alarms"]["kl"], run["request_id"]) == (4, 1.5, "a")
        assert run["id"] in await world.done("retrain", *options), "a repeated request returns the same run"
        assert [item["id"] for item in json.loads(await world.done("runs", "--json"))] == [run["id"]]
        prefix = run["id"][:8]
        assert "seed 4, alarms.kl 1.5" in await world.done("runs", prefix)
        assert "no manifest yet" in await world.refused("reproduce", prefix)
        assert "is cancelled" in await world.done("cancel", prefix)
        assert "is over: cancelled" in await world.refused("cancel", prefix)
        assert "needs the id of a run" in await world.refused("runs", "--follow")


async def test_following_survives_a_killed_service_and_shows_each_step_once(world: World) -> None:
    with world.service() as service:
        process = world.started("retrain", "--follow")
        await _line(process, "queued")
        async with world.database.session() as session:
            [run] = await store.runs.list_runs(session, limit=2)
        run_id = str(run.id)
        await world.write(run_id, EventKind.STEP, step=1, seconds=1.0, metrics={"reward_mean": 0.5})
        await _line(process, "step 1/40, reward_mean 0.5")
        service.kill()
        service.wait()
        await world.write(run_id, EventKind.STEP, step=2, seconds=1.0, metrics={"reward_mean": 0.6})
        await _line(process, "waiting")
    with world.service():
        await _line(process, "step 2/40, reward_mean 0.6")
        await world.write(run_id, EventKind.GATE, **GATE)
        await world.finish(run_id, RunStatus.SUCCEEDED)
        rest, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, errors
    assert "step 1/40" not in rest
    assert "gate        promote" in rest
    assert f"run {run_id} succeeded" in rest


async def test_a_failed_run_is_exit_code_1_and_json_is_one_line_per_event(world: World) -> None:
    with world.service():
        run = json.loads(await world.done("retrain", "--json"))
        await world.finish(run["id"], RunStatus.FAILED, "out of memory")
        followed = await world.gadfly("runs", run["id"], "--follow")
        assert followed.exit_code == 1
        assert followed.stdout.splitlines()[-1] == f"run {run['id']} failed: out of memory"
        lines = await world.gadfly("runs", run["id"], "--follow", "--json")
        assert lines.exit_code == 1
        events = [json.loads(line) for line in lines.stdout.splitlines()]
        assert [(line["event"], line["status"]) for line in events] == [("status", "queued"), ("status", "failed")]
        assert events[0]["id"] < events[1]["id"]


async def test_ctrl_c_ends_the_following_and_not_the_run(world: World) -> None:
    with world.service():
        process = world.started("retrain", "--follow")
        await _line(process, "queued")
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode == 130
        assert "the run continues" in errors
        assert "Traceback" not in errors
        async with world.database.session() as session:
            [run] = await store.runs.list_runs(session, limit=2)
        assert (run.status, run.cancel_requested_at) == (RunStatus.QUEUED, None)
