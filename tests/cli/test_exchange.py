"""`gadfly critics push` and `pull` on a real database, without an engine."""

import asyncio
import json
from pathlib import Path

import pytest

from gadfly import store
from gadfly.adapters import read_marker
from gadfly.base_model import base_sha256
from gadfly.errors import BadInput
from gadfly.store.database import Database
from gadfly.training import GateOutcome, TrainConfig, Trigger
from tests.cli.test_storage import done, run
from tests.support.postgres import PostgresServer
from tests.support.published import make_adapter

GATE = {"outcome": "promote", "numbers": {"evidence": {"units": [1]}, "candidate": {}}, "reasons": ["better"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What a base model's hash is over."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


async def publish(url: str, home: Path, model: Path) -> None:
    """A deployment with a trained critic and its gate report."""
    async with Database(url) as database, database.session() as session:
        await store.critics.ensure_version_zero(session, str(model))
        run_ = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        folder = make_adapter(
            home / "adapters" / str(run_.id), base_model=str(model), base_sha256=base_sha256(str(model))
        )
        await store.critics.insert_critic(
            session,
            run_id=run_.id,
            parent=0,
            base_model=str(model),
            prompt_set="stepwise@1",
            adapter_path=str(run_.id),
            adapter_sha256=read_marker(folder).sha256,
        )
        await store.runs.save_gate(session, run_.id, GateOutcome.PROMOTE, GATE)


def test_a_critic_goes_from_one_deployment_to_another(
    database_url: str, postgres: PostgresServer, tmp_path: Path, model: Path
) -> None:
    asyncio.run(publish(database_url, tmp_path / "first", model))
    here = ("--model", str(model), "--home")
    assert "version 1 written to" in done(
        database_url, "critics", "push", "1", str(tmp_path / "out"), *here, str(tmp_path / "first")
    )
    report = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert report == {"outcome": "promote", "numbers": {"candidate": {}}, "reasons": ["better"]}
    with pytest.raises(BadInput, match="version 0 is the base model"):
        raise run(database_url, "critics", "push", "0", str(tmp_path / "zero")).exception or AssertionError

    postgres.execute("CREATE DATABASE exchanged")
    second = postgres.url_of("exchanged")
    try:
        there = (*here, str(tmp_path / "second"))
        for _ in range(2):
            pulled = done(second, "critics", "pull", str(tmp_path / "out"), "--json", *there)
            assert json.loads(pulled)["version"] == 1
        assert "`gadfly promote 1`" in done(second, "critics", "pull", str(tmp_path / "out"), *there)

        async def stored() -> None:
            async with Database(second) as database, database.session() as session:
                critic = await store.critics.resolve_critic(session, "candidate")
                assert (critic.version, critic.parent, critic.run_id) == (1, None, None)
                assert critic.origin is not None
                assert (critic.origin["source"], critic.origin["gate"]) == (str(tmp_path / "out"), report)

        asyncio.run(stored())
        (model / "model.safetensors").write_bytes(b"other weights")
        with pytest.raises(BadInput, match="whose weights have the hash"):
            raise run(second, "critics", "pull", str(tmp_path / "out"), *there).exception or AssertionError
    finally:
        postgres.execute("DROP DATABASE exchanged WITH (FORCE)")
