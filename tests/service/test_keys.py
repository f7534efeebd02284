"""Keys, tiers, and the refusal to serve other machines without keys."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.records import Tier, new_id, now
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
        request = {**RIGHT, "request_id": "same"}
        hers = (await client.post("/critique", json=request, headers=bearer(ann))).json()
        his = (await client.post("/critique", json=request, headers=bearer(bob))).json()
        assert hers["id"] != his["id"]  # request ids are per caller
        for secret, seen in ((ann, {hers["id"]}), (bob, {his["id"]}), (root, {hers["id"], his["id"]})):
            listed = (await client.get("/interactions", headers=bearer(secret))).json()["items"]
            assert {item["id"] for item in listed} == seen
        theirs = f"/interactions/{hers['id']}"
        assert (await client.get(theirs, headers=bearer(bob))).status_code == 404
        assert (await client.delete(theirs, headers=bearer(bob))).status_code == 404
        feedback = {"interaction_id": hers["id"], "correct": True}
        assert (await client.post("/feedback", json=feedback, headers=bearer(bob))).status_code == 404
        joined = {**RIGHT, "episode_id": hers["episode_id"]}
        assert (await client.post("/critique", json=joined, headers=bearer(bob))).status_code == 404
        assert (await client.post("/critique", json=joined, headers=bearer(ann))).status_code == 200
        stolen = {**RIGHT, "critique_id": hers["critiques"][0]["id"]}
        assert (await client.post("/refine", json=stolen, headers=bearer(bob))).status_code == 404
        assert (await client.get(theirs, headers=bearer(root))).status_code == 200


async def test_once_a_key_exists_every_request_needs_one(settings: Settings, database: Database) -> None:
    async with database.session() as session:
        _, secret = await issue_key(session, name="a", tier=Tier.ADMIN)
    async with serving(settings) as client:
        for headers in (
            {},
            bearer("gf_wrong"),
            bearer(secret + "x"),
            {"authorization": f"Basic {secret}"},
            {"authorization": secret},
        ):
            answer = await client.post("/critique", json=RIGHT, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            another_form = "authorization" in headers and not headers["authorization"].startswith("Bearer")
            assert ("another form than `Bearer KEY`" in answer.json()["detail"]) is another_form
        assert (await client.post("/critique", json=RIGHT, headers=bearer(secret))).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_expired_and_revoked_keys_are_refused(
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


async def test_without_keys_only_loopback_host_names_are_answered(client: httpx.AsyncClient) -> None:
    """DNS rebinding: a page whose host name resolves to this machine sends that name and could read the answer."""
    for host, status in [("localhost", 200), ("127.0.0.1:8400", 200), ("[::1]:8400", 200), ("evil.example", 401)]:
        assert (await client.get("/interactions", headers={"host": host})).status_code == status


async def test_without_keys_nothing_that_a_proxy_forwarded_is_answered(client: httpx.AsyncClient) -> None:
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Proto"):
        answer = await client.get("/interactions", headers={header: "for=192.0.2.1"})
        assert answer.status_code == 401
        assert "gadfly keys create" in answer.json()["detail"]
    assert (await client.get("/healthz", headers={"X-Forwarded-For": "192.0.2.1"})).status_code == 200


async def test_with_a_key_requests_may_come_through_a_proxy(settings: Settings, database: Database) -> None:
    async with database.session() as session:
        _, secret = await issue_key(session, name="a", tier=Tier.CALLER)
    async with serving(settings) as client:
        headers = bearer(secret) | {"X-Forwarded-For": "192.0.2.1", "Origin": "https://console.example"}
        assert (await client.get("/interactions", headers=headers)).status_code == 200
        assert (await client.post("/feedback", headers=headers, json={})).status_code == 422, "authenticated"


async def test_without_keys_pages_of_other_hosts_change_nothing(client: httpx.AsyncClient) -> None:
    """A page in this machine's browser can send requests without a body to check, such as a cancellation."""
    path = f"/admin/runs/{new_id()}/cancel"
    for origin, status in [("https://evil.example", 401), ("null", 401), (str(client.base_url).rstrip("/"), 404)]:
        assert (await client.post(path, headers={"origin": origin})).status_code == status, origin
    assert (await client.get("/critics", headers={"origin": "https://evil.example"})).status_code == 200


def test_refuses_to_serve_other_machines_without_keys(settings: Settings, tmp_path: Path) -> None:
    open_to_all = settings.model_copy(update={"host": "0.0.0.0"})
    log = tmp_path / "service.log"
    with service_process(open_to_all, log) as process:
        assert process.wait(timeout=60) == 2
    assert "without keys" in log.read_text()


async def test_logs_that_loopback_is_open(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"port": free_port(), "log_level": "info"})
    log = tmp_path / "service.log"
    with service_process(settings, log):
        async with httpx.AsyncClient(base_url=settings.service_url) as client:
            await until_ready(client)
            assert (await client.get("/interactions")).status_code == 200
    assert "without keys" in log.read_text()


class Counted(Database):
    """A database that counts its transactions."""

    sessions = 0

    @asynccontextmanager
    async def session(self, *, limit_s: float | None = None, snapshot: bool = False) -> AsyncGenerator[AsyncSession]:
        self.sessions += 1
        async with super().session(limit_s=limit_s, snapshot=snapshot) as session:
            yield session


@pytest.mark.parametrize("has_key", [True, False])
async def test_callers_that_wait_for_a_reading_share_it(database_url: str, database: Database, has_key: bool) -> None:
    secret: str | None = None
    if has_key:
        async with database.session() as session:
            _, secret = await issue_key(session, name="ann", tier=Tier.CALLER)
    async with Counted(database_url) as counted:
        ring = keyring.Keyring(counted, open_without_keys=not has_key)
        origin = keyring.Origin(host="127.0.0.1")
        callers = await asyncio.gather(*(ring.authenticate(secret, origin=origin) for _ in range(32)))
    assert len(set(callers)) == 1
    assert callers[0].tier is (Tier.CALLER if has_key else Tier.ADMIN)
    assert counted.sessions == 1
