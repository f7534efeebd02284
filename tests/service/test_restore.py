"""A deployment that was backed up and restored, on a real engine."""

from pathlib import Path

from sqlalchemy import make_url

from gadfly.store.backup import back_up, restore
from gadfly.store.database import Database
from tests.service.conftest import RIGHT, make_settings
from tests.support.adapters import insert_version, publish_adapter
from tests.support.engines import RunningEngine
from tests.support.postgres import PostgresServer
from tests.support.services import serving


async def test_it_serves_the_live_critic_and_the_interactions_of_the_backup(
    critic_engine: RunningEngine,
    critic_model: Path,
    tmp_path: Path,
    postgres: PostgresServer,
    database: Database,
    database_url: str,
) -> None:
    before = make_settings(tmp_path / "before", database_url, critic_engine.url)
    adapter = publish_adapter(before.adapters_folder / "one", model=critic_model, seed=1)
    async with serving(before) as client:
        critic = await insert_version(database, adapter, folder=Path("one"))
        assert (await client.post("/admin/promote", json={"version": critic.version})).json()["status"] == "done"
        said = (await client.post("/critique", json=RIGHT)).json()
        backup = tmp_path / "backup"
        back_up(database_url, backup, adapters=before.adapters_folder, tasks=tmp_path / "tasks", version="0")

    name = f"{make_url(database_url).database}_restored"
    postgres.execute(f"CREATE DATABASE {name}")
    after = make_settings(tmp_path / "after", postgres.url_of(name), critic_engine.url)
    restore(postgres.url_of(name), backup, adapters=after.adapters_folder, tasks=tmp_path / "restored-tasks")
    async with serving(after) as client:
        again = (await client.post("/critique", json=RIGHT)).json()
        assert again["critic"] == said["critic"]
        assert again["critic"]["version"] == critic.version
        assert again["critique"] == said["critique"]
        assert (await client.get(f"/interactions/{said['id']}")).json()["id"] == said["id"]


async def test_a_version_whose_number_the_engine_serves_for_another_adapter_is_served_as_published(
    critic_engine: RunningEngine,
    critic_model: Path,
    tmp_path: Path,
    postgres: PostgresServer,
    database: Database,
    database_url: str,
) -> None:
    """As after the restore of an older database beside a running engine: version 1 is trained again."""
    name = f"{make_url(database_url).database}_older"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {make_url(database_url).database}")
    older = Database(postgres.url_of(name))
    said = []
    for seed, (store, url) in enumerate([(database, database_url), (older, postgres.url_of(name))]):
        settings = make_settings(tmp_path / str(seed), url, critic_engine.url)
        adapter = publish_adapter(settings.adapters_folder / "one", model=critic_model, seed=seed)
        async with serving(settings) as client:
            critic = await insert_version(store, adapter, folder=Path("one"))
            assert critic.version == 1
            assert (await client.post("/admin/promote", json={"version": 1})).json()["status"] == "done"
            said.append((await client.post("/critique", json=RIGHT)).json())
    await older.close()
    assert [each["critic"]["version"] for each in said] == [1, 1]
    assert said[0]["critic"]["adapter_sha256"] != said[1]["critic"]["adapter_sha256"]
    assert said[0]["critique"] != said[1]["critique"]
