"""On a machine without a C or C++ compiler: critiques with a confidence, and an adapter swapped in and proven.

The fixture `critic_engine` runs without one, and checks at the end of the session that nothing was compiled.
"""

from pathlib import Path

from gadfly.store.database import Database
from tests.service.conftest import RIGHT, make_settings
from tests.support.adapters import insert_version, publish_adapter
from tests.support.engines import RunningEngine
from tests.support.services import serving


async def test_critiques_have_a_confidence(critic_engine: RunningEngine, tmp_path: Path, database_url: str) -> None:
    async with serving(make_settings(tmp_path, database_url, critic_engine.url)) as client:
        answer = await client.post("/critique", json=RIGHT)
        assert answer.status_code == 200, answer.text
        assert 0.5 <= answer.json()["confidence"] <= 1.0


async def test_an_adapter_is_swapped_in_and_proven(
    critic_engine: RunningEngine, critic_model: Path, tmp_path: Path, database_url: str, database: Database
) -> None:
    adapter = publish_adapter(tmp_path / "adapter", model=critic_model, seed=1)
    async with serving(make_settings(tmp_path, database_url, critic_engine.url)) as client:
        version = (await insert_version(database, adapter)).version
        swap = await client.post("/admin/promote", json={"version": version})
        assert (swap.status_code, swap.json()["status"]) == (200, "done"), swap.text
        answer = (await client.post("/critique", json=RIGHT)).json()
        assert answer["critic"]["version"] == version
        assert answer["confidence"] is not None
