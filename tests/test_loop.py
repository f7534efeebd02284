"""The whole loop on real parts: labelled rows come in, a run learns from them, the gate says promote, the service swaps
while callers send requests, and is rolled back on request.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from gadfly import tracing
from gadfly.errors import GadflyError
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.support import worlds
from tests.support.collectors import Collector, Received, children
from tests.support.services import iter_events, serving, until

CALLERS = 4
PAUSE_S = 0.3  # between two requests of one caller: while a caller waits, a run gets a tenth of the engine


class Load:
    """Callers that never stop asking, and everything they were answered."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.answers: list[tuple[str, int, str, str]] = []  # response judged, version, verdict, critique
        self.failures: list[str] = []
        self.more: dict[str, str] = {}  # fields of each request

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        callers = [asyncio.create_task(self._call(number)) for number in range(CALLERS)]
        try:
            yield
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)

    async def _call(self, number: int) -> None:
        response = (worlds.RIGHT, worlds.WRONG)[number % 2]
        while True:
            asked = {"question": "How many days has a week?", "response": response, "temperature": 0, "max_tokens": 48}
            body = asked | self.more
            try:
                answer = await self._client.post("/critique", json=body)
            except httpx.TransportError as error:
                self.failures.append(repr(error))
                continue
            if answer.status_code != 200:
                self.failures.append(answer.text)
                continue
            said = answer.json()
            self.answers.append((response, said["critic"]["version"], said["verdict"], said["critique"]))
            await asyncio.sleep(PAUSE_S)

    def by_version(self) -> dict[tuple[str, int], set[str]]:
        """Each version's critique of each answer: greedy, so one text each."""
        found: dict[tuple[str, int], set[str]] = defaultdict(set)
        for response, version, _, critique in self.answers:
            found[response, version].add(critique)
        return found


def tail(log: Path) -> str:
    return log.read_text()[-3000:]


def _live(versions: list[dict[str, Any]]) -> int:
    [live] = [item["version"] for item in versions if "live" in item["pointers"]]
    return int(live)


@pytest.mark.timeout(360)
async def test_the_loop(
    engine_url: str, critic_model: Path, database: Database, database_url: str, tmp_path: Path, traced: Collector
) -> None:
    settings = worlds.trainer_settings(
        home=tmp_path / "home", database_url=database_url, engine_urls=(engine_url,), model=critic_model
    )
    await worlds.fill(database, base_model=str(critic_model), questions=60)
    log = tmp_path / "trainer.log"
    trainer = worlds.start_trainer(settings, log=log)
    try:
        async with serving(settings) as client:
            load = Load(client)
            async with load.running():
                run = await _learn_and_swap(client, settings, log)
                await asyncio.sleep(2)
                rolled = await client.post("/admin/rollback", json={"reason": "as a test"})
                assert rolled.status_code == 200, rolled.text
                await asyncio.sleep(2)
            assert load.failures == []
            _check_answers(load)
            assert (await client.get("/critics/1")).json()["pointers"] == [], "no rollback comes back to it"
    finally:
        trainer.terminate()
        with suppress(GadflyError):
            trainer.wait(20)
    tracing.stop()
    _check_traces(traced.spans, run)


def _check_traces(spans: list[Received], run: str) -> None:
    """A run is one trace, whose id follows from that of the run; a swap is another one."""
    of_run = [span for span in spans if span.trace_id == tracing.trace_id_of(UUID(run))]
    [root] = [span for span in of_run if span.name == "run"]
    assert (root.parent_id, root.service, root.attributes["gadfly.run_status"]) == ("", "gadfly-trainer", "succeeded")
    assert children(of_run, root) == ["learn", "evaluate"]
    [learn] = [span for span in of_run if span.name == "learn"]
    assert children(of_run, learn) == ["select", "pool", "stage_1", "stage_2"]
    [evaluate] = [span for span in of_run if span.name == "evaluate" and span.parent_id == root.span_id]
    assert children(of_run, evaluate) == ["evaluate", "publish"]
    steps = [span for span in of_run if span.name == "step"]
    assert len(steps) == worlds.QUICK["steps_stage_1"] + worlds.QUICK["steps_stage_2"]
    for step in steps:
        assert children(of_run, step) == ["sample", "update"]
    assert {span.name for span in of_run} >= {"load_adapter", "validate", "checkpoint", "judge", "gate"}
    assert not [span for span in of_run if span.name.startswith("chat")], "a run has thousands of requests"
    [gate] = [span for span in of_run if span.name == "gate"]
    assert gate.attributes == {"gadfly.gate": "promote"}
    swaps = [span for span in spans if span.name == "swap"]
    assert [span.attributes["gadfly.swap_kind"] for span in swaps] == ["gate", "rollback"]
    assert all(span.attributes["gadfly.swap_status"] == "done" for span in swaps)
    assert children(spans, swaps[0])[-1] == "move_pointer"


async def _learn_and_swap(client: httpx.AsyncClient, settings: Settings, log: Path) -> str:
    """The id of the run."""
    asked = await client.post("/admin/retrain", json={"config": worlds.QUICK | {"examples": 2}})
    assert asked.status_code == 202, asked.text
    run = asked.json()["id"]
    events: list[tuple[str, dict[str, Any]]] = []
    async with client.stream("GET", f"/admin/runs/{run}/events", timeout=240) as stream:
        events.extend([event async for event in iter_events(stream)])
    document = (await client.get(f"/admin/runs/{run}")).json()
    assert document["status"] == "succeeded", (document, tail(log))
    assert document["outcome"] == "promote", document["gate"]
    assert document["version"] == 1
    kinds = [kind for kind, _ in events]
    assert kinds.count("step") == worlds.QUICK["steps_stage_1"] + worlds.QUICK["steps_stage_2"]
    assert [data["stage"] for kind, data in events if kind == "stage"] == [
        "select", "pool", "stage_1", "stage_2", "evaluate", "publish",
    ]  # fmt: skip
    await until(client, "/critics", lambda versions: _live(versions) == 1, limit_s=30)
    version = (await client.get("/critics/1")).json()
    assert version["gate"]["outcome"] == "promote"
    assert version["run_id"] == run
    attacks = version["gate"]["numbers"]["attacks"]
    assert set(attacks) == {"candidate", "live"}
    assert all(attack["plain"]["of"] > 0 for attack in attacks.values())
    alone = version["gate"]["numbers"]["examples_alone"]
    assert alone["examples"] == 2
    assert set(alone["from_live"]) == set(alone["to_candidate"]) == {"discriminability", "helpfulness"}
    wear = version["gate"]["numbers"]["wear"]
    assert (wear["looks_median"], wear["looks_most"], wear["retired"]) == (0, 0, 0)
    return str(run)


def _check_answers(load: Load) -> None:
    said = load.by_version()
    versions = {version for _, version in said}
    assert versions == {0, 1}
    for (response, version), texts in said.items():
        assert len(texts) == 1, (response, version, texts)  # no answer is a mixture, and none carries another's name
    for response in (worlds.RIGHT, worlds.WRONG):
        assert said[response, 0] != said[response, 1]
    verdicts = {(response, version): verdict for response, version, verdict, _ in load.answers}
    assert verdicts == {
        (worlds.RIGHT, 0): "incorrect",
        (worlds.WRONG, 0): "correct",
        (worlds.RIGHT, 1): "correct",
        (worlds.WRONG, 1): "incorrect",
    }
    order = [version for _, version, _, _ in load.answers]
    assert order[0] == 0
    assert order[-1] == 0  # rolled back
