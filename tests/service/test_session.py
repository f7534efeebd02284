"""Browsers' sessions: cookie, CSRF token, expiry; and the files of the console, also below a path."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from gadfly import store
from gadfly.api_keys import digest, issue_key
from gadfly.records import BrowserSession, Tier, new_id, now
from gadfly.service import sessions
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.service.conftest import serving_without_engine

ABSENT = f"/interactions/{new_id()}"


async def test_a_session_reads_at_once_and_changes_with_its_token(engineless: Settings, database: Database) -> None:
    async with database.session() as session:
        key, secret = await issue_key(session, name="ann", tier=Tier.CALLER)
    async with serving_without_engine(engineless) as client:
        assert (await client.get("/session")).status_code == 401
        assert (await client.post("/session", json={"key": "gf_wrong"})).status_code == 401
        answer = await client.post("/session", json={"key": secret})
        assert answer.status_code == 200
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert "Secure" not in cookie, "plain HTTP would drop the cookie"
        seen = (await client.get("/session")).json()
        assert seen == answer.json()
        assert (seen["tier"], seen["key_id"], seen["key_name"], seen["keyless"]) == (
            "caller",
            str(key.id),
            "ann",
            False,
        )
        token = seen["csrf_token"]
        assert (await client.get("/interactions")).status_code == 200
        for headers, status in [
            ({}, 403),
            ({"x-csrf-token": "0" * 64}, 403),
            ({"x-csrf-token": token}, 404),
            ({"x-csrf-token": token, "origin": "https://evil.example"}, 403),
            ({"x-csrf-token": token, "origin": str(client.base_url).rstrip("/")}, 404),
        ]:
            answer = await client.delete(ABSENT, headers=headers)
            assert answer.status_code == status, (headers, answer.text)
        assert (await client.get("/admin/runs")).status_code == 403, "the tier of its key"
        assert (await client.delete("/session")).status_code == 204
        assert (await client.get("/session")).status_code == 401
        assert (await client.delete("/session")).status_code == 204, "signed out already"


async def test_a_key_beside_a_cookie_counts_and_needs_no_token(engineless: Settings, database: Database) -> None:
    async with database.session() as session:
        _, ann = await issue_key(session, name="ann", tier=Tier.CALLER)
        _, root = await issue_key(session, name="root", tier=Tier.ADMIN)
    async with serving_without_engine(engineless) as client:
        await client.post("/session", json={"key": ann})
        headers = {"authorization": f"Bearer {root}"}
        seen = (await client.get("/session", headers=headers)).json()
        assert (seen["key_name"], seen["csrf_token"]) == ("root", None)
        assert (await client.delete(ABSENT, headers=headers)).status_code == 404


async def test_a_session_ends_with_its_time_and_with_its_key(
    engineless: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_FRESH_S", 0.05)
    async with database.session() as session:
        key, secret = await issue_key(session, name="a", tier=Tier.CALLER)
        past = BrowserSession(key=key, created_at=now() - timedelta(hours=13), expires_at=now() - timedelta(hours=1))
        await store.sessions.insert_session(session, past, digest("past"))
    async with serving_without_engine(engineless) as client:
        cookie = {"cookie": f"{sessions.COOKIE}=past"}
        assert (await client.get("/session", headers=cookie)).status_code == 401
        await client.post("/session", json={"key": secret})
        async with database.session() as session:
            assert await store.sessions.find_session(session, digest("past")) is None, "removed by the next sign-in"
            await store.keys.revoke_key(session, key.id)
        await asyncio.sleep(0.1)
        assert (await client.get("/session")).status_code == 401


async def test_without_keys_nobody_signs_in(engineless: Settings) -> None:
    async with serving_without_engine(engineless) as client:
        seen = (await client.get("/session")).json()
        assert (seen["keyless"], seen["tier"], seen["csrf_token"]) == (True, "admin", None)
        assert (await client.post("/session", json={"key": "gf_any"})).status_code == 401


async def test_the_cookie_is_secure_behind_tls_and_stays_below_the_path(
    engineless: Settings, database: Database
) -> None:
    async with database.session() as session:
        _, secret = await issue_key(session, name="a", tier=Tier.CALLER)
    forwarded = {"x-forwarded-proto": "https", "x-forwarded-prefix": "/tools/gadfly"}
    async with serving_without_engine(engineless) as client:
        cookie = (await client.post("/session", json={"key": secret}, headers=forwarded)).headers["set-cookie"]
        assert {"Secure", "Path=/tools/gadfly"} <= set(cookie.split("; "))
        crafted = forwarded | {"x-forwarded-prefix": "/a;domain=evil.example"}
        cookie = (await client.post("/session", json={"key": secret}, headers=crafted)).headers["set-cookie"]
        assert "evil" not in cookie
    untrusting = engineless.model_copy(update={"trusted_proxies": ("192.0.2.1",)})
    async with serving_without_engine(untrusting) as client:
        cookie = (await client.post("/session", json={"key": secret}, headers=forwarded)).headers["set-cookie"]
        assert "Secure" not in cookie


async def test_the_console_is_served_with_a_strict_policy(engineless: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "console"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>Gadfly</title>")
    (folder / "assets" / "app-1a2b.js").write_text("export {};")
    prefixed = engineless.model_copy(update={"root_path": "/tools"})
    for settings, prefix in ((engineless, ""), (prefixed, "/tools"), (prefixed, "")):
        async with serving_without_engine(settings, console=folder) as client:
            answer = await client.get(f"{prefix}/console")
            assert (answer.status_code, answer.headers["location"]) == (307, "console/")
            page = await client.get(f"{prefix}/console/")
            assert page.text.startswith("<!doctype html>")
            assert page.headers["cache-control"] == "no-cache"
            assert "script-src 'self';" in page.headers["content-security-policy"]
            assert "unsafe" not in page.headers["content-security-policy"]
            assert page.headers["x-content-type-options"] == "nosniff"
            again = await client.get(f"{prefix}/console/", headers={"if-none-match": page.headers["etag"]})
            assert again.status_code == 304
            script = await client.get(f"{prefix}/console/assets/app-1a2b.js")
            assert "immutable" in script.headers["cache-control"]
            assert "javascript" in script.headers["content-type"]
            assert (await client.get(f"{prefix}/console/assets/none.js")).status_code == 404
            assert (await client.get(f"{prefix}/console/..%2f..%2fsettings.py")).status_code == 404


async def test_a_console_that_is_not_built_says_so(engineless: Settings, tmp_path: Path) -> None:
    async with serving_without_engine(engineless, console=tmp_path / "none") as client:
        answer = await client.get("/console/")
        assert answer.status_code == 404
        assert answer.text.startswith("The console is not built: ")
