"""Who may call: keys, tiers, and the refusal to stand open."""

import asyncio
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.records import Tier, now
from gadfly.service import keyring
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.service.conftest import RIGHT
from tests.support.services import free_port, service_process, serving, until_ready


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_callers_see_their_own_rows_and_admins_all(settings: Settings, database: Database) -> None:
    async with database.session() as session:
        _, ann = await issue_key(session, name="ann", tier=Tier.CALLER)
        _, bob = await issue_key(session, name="bob", tier=Tier.CALLER)
        _, root = await issue_key(session, name="root", tier=Tier.ADMIN)
    async with serving(settings) as client:
        asked = {**RIGHT, "request_id": "same"}
        hers = (await client.post("/critique", json=asked, headers=bearer(ann))).json()
        his = (await client.post("/critique", json=asked, headers=bearer(bob))).json()
        assert hers["id"] != his["id"]  # a request id is the caller's own
        for secret, seen in ((ann, {hers["id"]}), (bob, {his["id"]}), (root, {hers["id"], his["id"]})):
            listed = (await client.get("/interactions", headers=bearer(secret))).json()["items"]
            assert {item["id"] for item in listed} == seen
        theirs = f"/interactions/{hers['id']}"
        assert (await client.get(theirs, headers=bearer(bob))).status_code == 404
        assert (await client.delete(theirs, headers=bearer(bob))).status_code == 404
        said = {"interaction_id": hers["id"], "correct": True}
        assert (await client.post("/feedback", json=said, headers=bearer(bob))).status_code == 404
        joined = {**RIGHT, "episode_id": hers["episode_id"]}
        assert (await client.post("/critique", json=joined, headers=bearer(bob))).status_code == 404
        assert (await client.post("/critique", json=joined, headers=bearer(ann))).status_code == 200
        stolen = {**RIGHT, "critique_id": hers["critiques"][0]["id"]}
        assert (await client.post("/refine", json=stolen, headers=bearer(bob))).status_code == 404
        assert (await client.get(theirs, headers=bearer(root))).status_code == 200


async def test_a_key_is_needed_once_there_is_one(settings: Settings, database: Database) -> None:
    async with database.session() as session:
        _, secret = await issue_key(session, name="a", tier=Tier.ADMIN)
    async with serving(settings) as client:
        for headers in ({}, bearer("gf_wrong"), bearer(secret + "x"), {"authorization": f"Basic {secret}"}):
            answer = await client.post("/critique", json=RIGHT, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await client.post("/critique", json=RIGHT, headers=bearer(secret))).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_expired_and_revoked_keys_end(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "_FRESH_S", 0.1)
    async with database.session() as session:
        _, expired = await issue_key(session, name="a", tier=Tier.CALLER, expires_at=now() - timedelta(seconds=1))
        key, revoked = await issue_key(session, name="b", tier=Tier.CALLER)
    async with serving(settings) as client:
        assert (await client.get("/interactions", headers=bearer(expired))).status_code == 401
        assert (await client.get("/interactions", headers=bearer(revoked))).status_code == 200
        async with database.session() as session:
            await store.keys.revoke_key(session, key.id)
        await asyncio.sleep(0.2)
        assert (await client.get("/interactions", headers=bearer(revoked))).status_code == 401


async def test_without_keys_only_loopbacks_own_names_are_answered(client: httpx.AsyncClient) -> None:
    """A page whose name was pointed at this machine sends that name; its browser would let it read the answer."""
    for host, status in [("localhost", 200), ("127.0.0.1:8400", 200), ("[::1]:8400", 200), ("evil.example", 401)]:
        assert (await client.get("/interactions", headers={"host": host})).status_code == status


def test_refuses_to_stand_open_to_others(settings: Settings, tmp_path: Path) -> None:
    open_to_all = settings.model_copy(update={"host": "0.0.0.0"})
    log = tmp_path / "service.log"
    with service_process(open_to_all, log) as process:
        assert process.wait(timeout=60) == 2
    assert "without keys" in log.read_text()


async def test_says_aloud_that_loopback_is_open(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"port": free_port(), "log_level": "info"})
    log = tmp_path / "service.log"
    with service_process(settings, log):
        async with httpx.AsyncClient(base_url=settings.service_url) as client:
            await until_ready(client)
            assert (await client.get("/interactions")).status_code == 200
    assert "without keys" in log.read_text()
