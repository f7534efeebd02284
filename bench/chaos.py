"""Faults under load: `python -m bench.chaos`.

Starts `gadfly up` on the tiny model of the tests, and callers that critique and give feedback without pause. Meanwhile
processes are killed (-9) or frozen (SIGSTOP), one after the other. The table, one row for each kind of fault:

    answers     median and longest time from the fault to the first answer to a request that was sent after it
    whole       longest time until every process runs again and /readyz is 200
    refused     requests that got an error document, most with Retry-After
    broken      requests whose connection broke

In the end the books are closed: every acknowledged answer and every acknowledged feedback is in Postgres, once.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from bench.deployment import question
from gadfly.cli.processes import tail
from gadfly.cli.up_state import UpState, marked
from gadfly.store.database import Database
from gadfly.store.embedded import EmbeddedPostgres
from tests.support.services import free_port
from tests.support.tiny_models import critic_model

_START_LIMIT_S = 300.0
_WHOLE_LIMIT_S = 240.0
_CALM_S = 2.0  # between two faults
_POSTMASTER = "postmaster"
_UP = "up"


@dataclass(frozen=True, slots=True)
class Fault:
    """A signal to one process; `frozen` processes are ended by the supervisor and never continued."""

    victim: str  # a role of `up`, the postmaster, or `up` itself
    number: signal.Signals

    def __str__(self) -> str:
        return f"{'kill -9' if self.number is signal.SIGKILL else 'freeze'} {self.victim}"


KILLS = tuple(
    Fault(victim, signal.SIGKILL) for victim in ("service", _POSTMASTER, "trainer", "database", "engine", _UP)
)
FREEZES = tuple(Fault(victim, signal.SIGSTOP) for victim in ("service", _POSTMASTER, "engine", "trainer"))


@dataclass
class Books:
    """What callers experienced. Times are monotonic seconds."""

    interactions: set[str] = field(default_factory=set)
    feedback: set[str] = field(default_factory=set)
    answers: list[tuple[float, float]] = field(default_factory=list)  # (sent, received)
    errors: list[tuple[float, str]] = field(default_factory=list)
    second_answers: list[str] = field(default_factory=list)

    def first_answer_after(self, at: float) -> float | None:
        """Seconds from `at` to the first answer to a request that was sent later."""
        times = [received - at for sent, received in self.answers if sent >= at]
        return min(times, default=None)

    def errors_between(self, begin: float, end: float) -> Counter[str]:
        return Counter(kind for at, kind in self.errors if begin <= at < end)


@dataclass
class Outcome:
    """The result of one fault."""

    fault: Fault
    answers_s: float | None
    whole_s: float
    errors: Counter[str]


class Callers:
    """Callers that repeat what failed under the same ids, as a careful client does."""

    def __init__(self, url: str, books: Books) -> None:
        self._url = url
        self._books = books
        self.done = asyncio.Event()

    async def run(self, callers: int) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=30, limits=limits) as client:
            await asyncio.gather(*(self._call(client) for _ in range(callers)))

    async def _call(self, client: httpx.AsyncClient) -> None:
        while not self.done.is_set():
            body = {
                "question": question(),
                "response": "12 * 5 - 17 = 43. The answer is 43.",
                "reference": "43",
                "request_id": uuid4().hex,
                "max_tokens": 24,
            }
            answer = await self._until_answered(client, "/critique", body)
            if answer is None:
                return
            self._books.interactions.add(answer["id"])
            feedback = {"feedback_id": str(uuid4()), "interaction_id": answer["id"], "correct": True}
            given = await self._until_answered(client, "/feedback", feedback)
            if given is None:
                return
            self._books.feedback.add(given["id"])
            again = await self._until_answered(client, "/critique", body)
            if again is not None and again["id"] != answer["id"]:
                self._books.second_answers.append(str(body["request_id"]))

    async def _until_answered(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any]
    ) -> dict[str, Any] | None:
        while not self.done.is_set():
            sent = time.monotonic()
            try:
                response = await client.post(path, json=body)
            except httpx.TransportError:
                self._books.errors.append((sent, "broken"))
            else:
                if response.is_success:
                    self._books.answers.append((sent, time.monotonic()))
                    result: dict[str, Any] = response.json()
                    return result
                self._books.errors.append((sent, "refused"))
            await asyncio.sleep(0.1)
        return None


class Deployment:
    """One `gadfly up` on a folder, which is started again when it is killed."""

    def __init__(self, home: Path, flags: Sequence[str]) -> None:
        self.home = home
        self.port = free_port()
        self._flags = flags
        self._up: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "gadfly.cli.main", "up", "--home", str(self.home), "--port", str(self.port)]
        with (self.home / "up.log").open("ab") as log:
            self._up = subprocess.Popen([*command, *self._flags], stdout=log, stderr=log)

    def pid(self, victim: str) -> int | None:
        assert self._up is not None
        if victim == _UP:
            return self._up.pid
        if victim == _POSTMASTER:
            with contextlib.suppress(OSError, ValueError):
                return int((self.home / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])
            return None
        state = UpState.read(self.home)
        processes = state.processes if state is not None else []
        return next((process.pid for process in processes if process.role == victim), None)

    def strike(self, fault: Fault) -> None:
        pid = self.pid(fault.victim)
        assert pid is not None, fault
        os.kill(pid, fault.number)
        if fault.victim == _UP:
            assert self._up is not None
            self._up.wait()
            self.start()

    async def until_whole(self, *, but: int | None = None, victim: str = "service", limit_s: float) -> None:
        """Wait until the service is ready and the victim has another process id than `but`."""
        deadline = time.monotonic() + limit_s
        async with httpx.AsyncClient(base_url=self.url, timeout=5) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    is_ready = (await client.get("/readyz")).is_success
                    if is_ready and self.pid(victim) not in (None, but):
                        return
                if time.monotonic() > deadline or (self._up is not None and self._up.poll() is not None):
                    raise SystemExit(f"not whole after {limit_s:.0f} s:\n{chr(10).join(tail(self.home / 'up.log'))}")
                await asyncio.sleep(0.1)

    async def until_replayed(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            deadline = time.monotonic() + 60
            while (await client.get("/state")).json()["spool"]["records"]:
                assert time.monotonic() < deadline, "the spool is not replayed"
                await asyncio.sleep(0.2)

    def stop(self) -> None:
        assert self._up is not None
        self._up.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._up.wait(90)
        state = UpState.read(self.home)
        for left in marked(state.mark) if state is not None else []:
            left.kill()
        self._up.kill()
        self._up.wait()


async def storm(deployment: Deployment, faults: Sequence[Fault], *, callers: int) -> tuple[Books, list[Outcome]]:
    """Run the faults under load, one after the other."""
    books = Books()
    load = Callers(deployment.url, books)
    running = asyncio.create_task(load.run(callers))
    outcomes = []
    try:
        await asyncio.sleep(_CALM_S)
        for fault in faults:
            before, began = deployment.pid(fault.victim), time.monotonic()
            await asyncio.to_thread(deployment.strike, fault)
            await deployment.until_whole(but=before, victim=fault.victim, limit_s=_WHOLE_LIMIT_S)
            whole_s = time.monotonic() - began
            await asyncio.sleep(_CALM_S)
            errors = books.errors_between(began, time.monotonic())
            outcomes.append(Outcome(fault, books.first_answer_after(began), whole_s, errors))
        await deployment.until_replayed()
    finally:
        load.done.set()
        await running
    return books, outcomes


async def close_books(deployment: Deployment, books: Books) -> list[str]:
    """What is wrong with the records in Postgres; nothing, if all acknowledged ones are there once."""
    async with Database(EmbeddedPostgres(deployment.home).url) as database, database.session() as session:
        interactions = {str(id) for id in await session.scalars(text("SELECT id FROM interactions"))}
        feedback = {str(id) for id in await session.scalars(text("SELECT id FROM feedback"))}
        ids = await session.scalar(text("SELECT count(*) - count(DISTINCT request_id) FROM interactions"))
    problems = {
        "acknowledged answers are missing": len(books.interactions - interactions),
        "acknowledged feedback is missing": len(books.feedback - feedback),
        "interactions share a request id or have lost it": ids or 0,
        "request ids got a second answer": len(books.second_answers),
    }
    return [f"{count} {problem}" for problem, count in problems.items() if count]


def report(books: Books, outcomes: Sequence[Outcome], problems: Sequence[str]) -> Table:
    table = Table(title=f"{len(outcomes)} faults under load; {platform.machine()}, {os.cpu_count()} cores")
    for heading in ("fault", "times", "answers again", "longest", "whole", "refused", "broken"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for fault in dict.fromkeys(outcome.fault for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.fault == fault]
        times = [outcome.answers_s for outcome in rows if outcome.answers_s is not None]
        errors = sum((outcome.errors for outcome in rows), start=Counter[str]())
        table.add_row(
            str(fault),
            str(len(rows)),
            f"{statistics.median(times):.1f} s" if times else "never",
            f"{max(times):.1f} s" if times else "never",
            f"{max(outcome.whole_s for outcome in rows):.1f} s",
            str(errors["refused"]),
            str(errors["broken"]),
        )
    table.caption = (
        f"acknowledged: {len(books.interactions)} answers, {len(books.feedback)} feedbacks; "
        f"{'; '.join(problems) or 'all of them are in Postgres, once'}"
    )
    return table


async def main(arguments: argparse.Namespace) -> int:
    faults = [fault for fault in (*KILLS, *FREEZES) if not arguments.only or str(fault) in arguments.only]
    faults *= arguments.rounds
    random.Random(arguments.seed).shuffle(faults)
    with tempfile.TemporaryDirectory(prefix="gadfly-chaos-") as folder:
        flags = ("--model", str(critic_model()), "--engine-kv-cache-bytes", str(2**26), "--log-level", "warning")
        deployment = Deployment(Path(folder), flags)
        deployment.start()
        try:
            await deployment.until_whole(limit_s=_START_LIMIT_S)
            books, outcomes = await storm(deployment, faults, callers=arguments.callers)
            problems = await close_books(deployment, books)
        finally:
            deployment.stop()
    Console(width=120).print(report(books, outcomes, problems))
    return 1 if problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="times that each fault happens")
    parser.add_argument("--only", nargs="+", metavar="FAULT", help="some of the faults, such as 'freeze engine'")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order")
    sys.exit(asyncio.run(main(parser.parse_args())))
