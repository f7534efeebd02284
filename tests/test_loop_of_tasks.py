"""Two tasks on one engine: the live critic of one answers while a critic of the other is trained and swapped in."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gadfly import store
from gadfly.errors import GadflyError
from gadfly.records import Kind
from gadfly.store.database import Database
from gadfly.tasks import load_task
from tests.support import worlds
from tests.support.adapters import publish_adapter
from tests.support.services import serving
from tests.support.tasks import write_task
from tests.test_loop import Load, tail, until

WEEK = """
name = "week"
description = "Days of the week."
prompts = "stepwise@1"
"""


class TaskLoad(Load):
    """Callers of one task that never stop asking."""

    def __init__(self, client: httpx.AsyncClient, task: str) -> None:
        super().__init__(client)
        self.more = {"task": task}


@pytest.mark.timeout(360)
async def test_one_task_answers_while_another_trains_and_swaps(
    engine_url: str, critic_model: Path, database: Database, database_url: str, tmp_path: Path
) -> None:
    folder = write_task(
        tmp_path / "week", 'kind = "exact"\nignore_punctuation = true', head=WEEK,
        answer='form = "after"\nmarker = "The answer is"', prompts=None,
    )  # fmt: skip
    week = load_task(str(folder))
    settings = worlds.trainer_settings(
        home=tmp_path / "home",
        database_url=database_url,
        engine_urls=(engine_url,),
        model=critic_model,
        tasks=str(folder),
    )
    await worlds.fill(
        database, base_model=str(critic_model), questions=4
    )  # of mathematics: nothing to learn for `week`
    await worlds.fill(database, base_model=str(critic_model), questions=60, task=week.id)
    adapter = publish_adapter(tmp_path / "math", model=critic_model, seed=1, base_model=str(critic_model))
    async with database.session() as session:
        math = await store.critics.insert_pulled_critic(
            session,
            base_model=str(critic_model),
            prompt_set="stepwise@1",
            adapter_path=str(adapter.folder),
            adapter_sha256=adapter.marker.sha256,
            origin={},
        )
    log = tmp_path / "trainer.log"
    trainer = worlds.start_trainer(settings, log=log)
    try:
        async with serving(settings) as client:
            assert (await client.post("/admin/promote", json={"version": math.version})).status_code == 200
            of_math, of_week = TaskLoad(client, "math"), TaskLoad(client, "week")
            async with of_math.running(), of_week.running():
                run = await _learn(client, log)
                await asyncio.sleep(2)
            assert of_math.failures == of_week.failures == []
            await _check(client, run, of_math, of_week, math=math.version)
    finally:
        trainer.terminate()
        with suppress(GadflyError):
            trainer.wait(20)


async def _learn(client: httpx.AsyncClient, log: Path) -> dict[str, Any]:
    asked = await client.post("/admin/retrain", json={"config": worlds.QUICK | {"seed": 1}, "task": "week"})
    assert asked.status_code == 202, asked.text
    path = f"/admin/runs/{asked.json()['id']}"
    run: dict[str, Any] = await until(client, path, lambda found: found["finished_at"] is not None, limit_s=240)
    assert (run["status"], run["outcome"]) == ("succeeded", "promote"), (run, tail(log))
    await until(client, "/state", lambda state: state["tasks"][1]["live_critic"] == run["version"], limit_s=30)
    return run


async def _check(
    client: httpx.AsyncClient, run: dict[str, Any], of_math: TaskLoad, of_week: TaskLoad, *, math: int
) -> None:
    said = of_math.by_version()
    assert {version for _, version in said} == {math}
    assert all(len(texts) == 1 for texts in said.values()), "no answer is a mixture"
    said = of_week.by_version()
    assert {version for _, version in said} == {1, run["version"]}, "its own untrained critic, then the new one"
    assert all(len(texts) == 1 for texts in said.values())
    assert (run["task"], run["manifest"]["task"], run["manifest"]["start"]["version"]) == ("week", "week", 1)
    critic = (await client.get(f"/critics/{run['version']}")).json()
    assert (critic["task"], critic["pointers"], critic["gate"]["live"]) == ("week", ["live"], 1)
    state = (await client.get("/state")).json()
    assert (state["live_critic"], state["pointers"]) == (math, {"live": math, "previous": 0})
    assert state["tasks"][1]["pointers"] == {"live": run["version"], "previous": 1}
    [receipt] = critic["receipts"]
    assert receipt["details"]["lost"] == 0
    learned = (await client.get("/interactions", params={"task": "math", "kind": Kind.IMPORT, "limit": 200})).json()
    ids = {entry["id"].partition("/")[0] for entry in run["manifest"]["answers"]}
    assert ids.isdisjoint({item["id"] for item in learned["items"]}), "it learned from its own task alone"
