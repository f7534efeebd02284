"""A critic by examples on real parts: made and measured by a run, served when promoted, rolled back like any other, and
never served again after one of its examples was deleted.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from gadfly.errors import GadflyError
from gadfly.store.database import Database
from tests.support import worlds
from tests.support.services import serving, until

ASK = {"question": "How many days has a week?", "response": worlds.RIGHT, "temperature": 0, "max_tokens": 48}
CONFIG = {**worlds.GLANCE, "recipe": "examples", "examples": 2, "evaluation_items": 16, "gate_attacks": 4}


def _tail(log: Path) -> str:
    return log.read_text()[-3000:]


@pytest.mark.timeout(300)
async def test_examples_make_a_critic(
    engine_url: str, critic_model: Path, database: Database, database_url: str, tmp_path: Path
) -> None:
    settings = worlds.trainer_settings(
        home=tmp_path / "home",
        database_url=database_url,
        engine_urls=(engine_url,),
        model=critic_model,
        auto_promote=False,
    )
    await worlds.fill(database, base_model=str(critic_model), questions=30)
    log = tmp_path / "trainer.log"
    trainer = worlds.start_trainer(settings, log=log)
    try:
        async with serving(settings) as client:
            await _make(client, log)
            plain = await _answer(client)
            assert plain["critic"] == {"version": 0, "adapter_sha256": None, "status": "untrained"}
            await _promote(client)
            shown = await _answer(client)
            assert shown["critic"] == {"version": 1, "adapter_sha256": None, "status": "examples"}
            assert shown["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 20
            stored = (await client.get(f"/interactions/{shown['id']}")).json()
            assert stored["critic"]["status"] == "examples"
            named = await _answer(client, critic=0)
            assert named["critique"] == plain["critique"]
            assert named["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
            refined = await client.post("/refine", json=ASK)
            assert refined.json()["critic"]["version"] == 1

            back = await client.post("/admin/rollback", json={})
            assert back.json()["status"] == "done", back.text
            assert (await _answer(client))["critic"]["version"] == 0
            await _promote(client)
            await _delete_an_example(client, database)
    finally:
        trainer.terminate()
        with suppress(GadflyError):
            trainer.wait(20)


async def _make(client: httpx.AsyncClient, log: Path) -> None:
    asked = await client.post("/admin/retrain", json={"config": CONFIG})
    assert asked.status_code == 202, asked.text
    path = f"/admin/runs/{asked.json()['id']}"
    run = await until(client, path, lambda run: run["status"] not in ("queued", "running"), limit_s=150)
    assert run["status"] == "succeeded", (run, _tail(log))
    assert run["version"] == 1
    assert run["progress"]["steps"] == 0
    numbers = run["gate"]["numbers"]
    assert numbers["examples"] == 2
    assert numbers["examples_alone"] is None, "the candidate is this critic"
    assert numbers["candidate"]["discrimination_balanced"]["of"] > 0
    version = (await client.get("/critics/1")).json()
    assert (version["parent"], version["adapter_sha256"], version["examples"]) == (0, None, 2)
    assert version["status"] == "examples"


async def _promote(client: httpx.AsyncClient) -> None:
    swap = await client.post("/admin/promote", json={"version": 1})
    assert swap.json()["status"] == "done", swap.text
    receipt = (await client.get("/critics/1")).json()["receipts"][0]["details"]
    assert receipt["adapter_sha256"] is None
    assert len(receipt["examples_sha256"]) == 64
    [proof] = receipt["engines"]
    assert proof["probes"] > 0
    assert proof["deltas"]["from_trainer"] < 1e-3


async def _answer(client: httpx.AsyncClient, **changes: Any) -> Any:
    answer = await client.post("/critique", json={**ASK, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def _delete_an_example(client: httpx.AsyncClient, database: Database) -> None:
    async with database.session() as session:
        example = await session.scalar(text("SELECT interaction_id FROM critic_examples WHERE version = 1 LIMIT 1"))
    assert (await client.delete(f"/interactions/{example}")).status_code == 204

    def base_is_live(versions: list[dict[str, Any]]) -> bool:
        return any("live" in each["pointers"] and each["version"] == 0 for each in versions)

    await until(client, "/critics", base_is_live, limit_s=20)
    assert (await _answer(client))["critic"]["version"] == 0
    swaps = (await client.get("/critics/0")).json()["swaps"]
    assert "was deleted" in swaps[0]["reason"]
    refused = await client.post("/admin/promote", json={"version": 1})
    assert refused.status_code == 409
    assert "cannot be served any more" in refused.json()["detail"]
    named = await client.post("/critique", json={**ASK, "critic": 1})
    assert named.status_code == 409, named.text
    assert "cannot be served any more" in named.json()["detail"]
