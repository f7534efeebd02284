"""Webhooks: over HTTP, to receivers that fail in every way, and around the death of a service."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from gadfly import store
from gadfly.cli.main import app
from gadfly.records import Tier
from gadfly.service.keyring import Caller
from gadfly.service.metrics import Metrics
from gadfly.service.webhooks import DELAYS_S, Webhooks, WebhookSender
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.webhooks import DeliveryStatus, WebhookDelivery, WebhookEndpoint, WebhookEvent
from tests.service.conftest import serving_without_engine
from tests.support.receivers import Received, Receiver, Reply
from tests.support.services import free_port, service_process, until

_TOLERANCE_S = 300


def verified(received: Received, secret: str) -> dict[str, Any]:
    """The document of an announcement, checked as a receiver does."""
    id, timestamp = received.headers["webhook-id"], received.headers["webhook-timestamp"]
    assert abs(time.time() - int(timestamp)) < _TOLERANCE_S
    key = base64.b64decode(secret.split("_", 1)[1])
    signature = base64.b64encode(hmac.digest(key, f"{id}.{timestamp}.".encode() + received.body, hashlib.sha256))
    assert received.headers["webhook-signature"] == f"v1,{signature.decode()}"
    assert received.headers["content-type"] == "application/json"
    document: dict[str, Any] = json.loads(received.body)
    return document


async def announce(database: Database, count: int = 1) -> None:
    for number in range(count):
        async with database.session() as session:
            await store.webhooks.announce(session, WebhookEvent.RUN_ENDED, {"number": number})


async def deliveries(database: Database) -> list[WebhookDelivery]:
    async with database.session() as session:
        found = await store.webhooks.list_deliveries(session, status=None, endpoint_id=None, limit=100, before=None)
    return found[::-1]


async def until_ended(database: Database, *, limit_s: float = 20) -> list[WebhookDelivery]:
    deadline = time.monotonic() + limit_s
    while True:
        found = await deliveries(database)
        if all(each.status is not DeliveryStatus.PENDING for each in found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


async def created(database: Database, url: str) -> WebhookEndpoint:
    return await Webhooks(database).create(Caller(key_id=None, tier=Tier.ADMIN), url, list(WebhookEvent))


@asynccontextmanager
async def sending(
    database: Database, *, delays_s: Sequence[float] = (0.05, 0.05), timeout_s: float = 0.5
) -> AsyncIterator[Metrics]:
    """A sender that looks for work all the time."""
    metrics = Metrics()
    sender = WebhookSender(
        database, is_eldest=lambda: True, metrics=metrics, delays_s=delays_s, timeout_s=timeout_s, lease_s=5
    )

    async def check() -> None:
        while True:
            await sender.check()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(check())
    try:
        yield metrics
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await sender.aclose()


FAULTS: list[tuple[list[Reply], str, int, str | None, str]] = [
    # replies, outcome, attempts, the last problem, why this row exists
    ([204], "delivered", 1, None, "any status from 200 to 299 will do"),
    ([500, 503, 200], "delivered", 3, "status 503", "a receiver that recovers"),
    ([500], "dead", 3, "status 500", "one that does not"),
    ([404], "dead", 3, "status 404", "a wrong address is tried again too: a deployment may follow"),
    ([302], "dead", 3, "status 302, a redirect, which is not followed", "it may lead to an internal address"),
    (["hang", 200], "delivered", 2, "no answer within 0.5 s", "a receiver that accepts and is silent"),
    (["drip", 200], "delivered", 2, "no answer within 0.5 s", "one that always sends a little more"),
    (["drop", "drop", 200], "delivered", 3, "no answer: RemoteProtocolError", "lost connections"),
]


@pytest.mark.parametrize(("replies", "outcome", "attempts", "problem", "why"), FAULTS, ids=[row[4] for row in FAULTS])
async def test_what_becomes_of_a_delivery(
    database: Database, replies: list[Reply], outcome: str, attempts: int, problem: str | None, why: str
) -> None:
    async with Receiver(replies).listening() as receiver, sending(database) as metrics:
        endpoint = await created(database, receiver.url)
        await announce(database)
        [ended] = await until_ended(database)
        counted = metrics.registry.get_sample_value("gadfly_webhook_attempts_total", {"outcome": outcome})
    assert (ended.status.value, ended.attempts, ended.problem) == (outcome, attempts, problem), why
    assert counted == 1
    assert len(receiver.received) == attempts
    assert {each.path for each in receiver.received} == {"/hook"}
    assert {each.headers["webhook-id"] for each in receiver.received} == {str(ended.id)}
    for each in receiver.received:
        assert verified(each, endpoint.secret)["data"] == {"number": 0}


async def test_a_receiver_that_starts_later_gets_everything(database: Database) -> None:
    receiver = Receiver(port=free_port())
    async with sending(database, delays_s=[0.1] * 100):
        await created(database, receiver.url)
        await announce(database, 5)
        await asyncio.sleep(0.3)
        assert {each.status for each in await deliveries(database)} == {DeliveryStatus.PENDING}
        async with receiver.listening():
            ended = await until_ended(database)
    assert all(each.attempts > 1 and each.problem == "no answer: ConnectError" for each in ended)
    assert receiver.most_at_once == 1
    assert sorted(json.loads(each.body)["data"]["number"] for each in receiver.received) == list(range(5))


async def test_a_slow_receiver_delays_no_other(database: Database) -> None:
    async with Receiver(["hang"]).listening() as slow, Receiver().listening() as quick:
        await created(database, slow.url)
        await created(database, quick.url)
        async with sending(database, timeout_s=30):
            await announce(database, 10)
            received = await quick.until(10, limit_s=10)
    assert [json.loads(each.body)["data"]["number"] for each in received] == list(range(10))
    assert len(slow.received) == 1


async def test_two_senders_do_not_send_twice(database: Database) -> None:
    async with Receiver().listening() as receiver:
        await created(database, receiver.url)
        await announce(database, 40)
        async with sending(database), sending(database):
            ended = await until_ended(database)
    ids = [each.headers["webhook-id"] for each in receiver.received]
    assert sorted(ids) == sorted(str(each.id) for each in ended)


def test_attempts_go_on_for_about_two_days() -> None:
    assert 1.5 * 86_400 < sum(DELAYS_S) < 2.5 * 86_400
    assert list(DELAYS_S) == sorted(DELAYS_S)


async def test_admins_manage_webhooks_over_http(engineless: Settings, database: Database) -> None:
    async with Receiver([500, 200]).listening() as receiver, serving_without_engine(engineless) as client:
        body = {"url": receiver.url, "events": ["run.ended"]}
        answer = await client.post("/admin/webhooks", json=body)
        assert answer.status_code == 201
        made = answer.json()
        secret = made.pop("secret")
        assert secret.startswith("whsec_")
        assert (await client.get("/admin/webhooks")).json() == [made]
        assert made["events"] == ["run.ended"]
        for bad in ({"url": "ftp://example.com"}, {"url": receiver.url, "events": []}, {"url": receiver.url, "a": 1}):
            assert (await client.post("/admin/webhooks", json=bad)).status_code == 422, bad
        await announce(database)
        first = (await receiver.until(1))[0]
        assert verified(first, secret)["type"] == "run.ended"
        page = await until(
            client, "/admin/webhooks/deliveries", lambda page: page["items"][0]["problem"] is not None, limit_s=10
        )
        [delivery] = page["items"]
        assert (delivery["status"], delivery["attempts"], delivery["problem"]) == ("pending", 1, "status 500")
        assert delivery["payload"] == json.loads(first.body)
        assert delivery["next_at"] is not None
        again = await client.post(f"/admin/webhooks/deliveries/{delivery['id']}/resend")
        assert again.status_code == 200, again.text
        second = (await receiver.until(2))[1]
        assert second.headers["webhook-id"] == delivery["id"]
        await until_ended(database)
        assert [each["status"] for each in await _listed(client, status="delivered", webhook=made["id"])] == [
            "delivered"
        ]
        assert await _listed(client, status="dead") == []
        scraped = (await client.get("/metrics")).text
        assert 'gadfly_webhook_attempts_total{outcome="failed"} 1.0' in scraped
        assert (await client.delete(f"/admin/webhooks/{made['id']}")).status_code == 204
        assert (await client.delete(f"/admin/webhooks/{made['id']}")).status_code == 404
        assert await _listed(client) == []
        acts = (await client.get("/admin/acts")).json()["items"]
        assert [(act["action"], act["subject"]) for act in acts] == [
            ("delete_webhook", made["id"]),
            ("create_webhook", made["id"]),
        ]
        assert secret not in json.dumps(acts)


async def test_admins_manage_webhooks_by_the_command_line(engineless: Settings, database: Database) -> None:
    async with Receiver().listening() as receiver, serving_without_engine(engineless) as client:

        async def gadfly(*arguments: str) -> str:
            command = ["webhooks", *arguments, "--url", str(client.base_url)]
            result = await asyncio.to_thread(CliRunner().invoke, app, command)
            assert result.exit_code == 0, result.output
            return result.stdout  # with the log of the service, which is in this process

        assert "no webhooks" in await gadfly("list")
        secret = (await gadfly("create", receiver.url, "--event", "run.ended")).split()[-1]
        [made] = (await client.get("/admin/webhooks")).json()
        assert receiver.url in await gadfly("list")
        assert (made["url"], made["events"]) == (receiver.url, ["run.ended"])
        await announce(database)
        verified((await receiver.until(1))[0], secret)
        [delivery] = await until_ended(database)
        assert str(delivery.id) in await gadfly("deliveries", "--webhook", made["id"])
        assert "no deliveries" in await gadfly("deliveries", "--status", "dead")
        assert "is sent again" in await gadfly("resend", str(delivery.id))
        await receiver.until(2)
        assert "(test) is sent" in await gadfly("test", made["id"])
        assert verified((await receiver.until(3))[2], secret)["type"] == "test"
        assert f"deleted {made['id']}" in await gadfly("delete", made["id"])
        assert "no webhooks" in await gadfly("list")


async def test_an_admin_tries_one_webhook(engineless: Settings, database: Database) -> None:
    async with (
        Receiver().listening() as tried,
        Receiver().listening() as other,
        serving_without_engine(engineless) as client,
    ):
        body = {"url": tried.url, "events": ["run.ended"]}
        made = (await client.post("/admin/webhooks", json=body)).json()
        await client.post("/admin/webhooks", json={"url": other.url})
        answer = await client.post(f"/admin/webhooks/{made['id']}/test")
        assert answer.status_code == 202, answer.text
        queued = answer.json()
        assert (queued["event"], queued["status"], queued["attempts"]) == ("test", "pending", 0)
        document = verified((await tried.until(1))[0], made["secret"])
        assert document == queued["payload"]
        assert (document["type"], document["data"]) == ("test", {"webhook_id": made["id"]})
        [ended] = await until_ended(database)
        assert (str(ended.id), ended.status) == (queued["id"], DeliveryStatus.DELIVERED)
        assert other.received == [], "it is sent to one endpoint"
        assert (await client.post(f"/admin/webhooks/{queued['id']}/test")).status_code == 404


async def test_pages_of_deliveries_and_the_number_of_webhooks(engineless: Settings, database: Database) -> None:
    async with serving_without_engine(engineless) as client:
        for _ in range(20):
            assert (await client.post("/admin/webhooks", json={"url": "http://127.0.0.1:9/"})).status_code == 201
        full = await client.post("/admin/webhooks", json={"url": "http://127.0.0.1:9/"})
        assert full.status_code == 409
        await announce(database)
        seen: list[str] = []
        cursor = None
        while True:
            query = {"limit": 8} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/admin/webhooks/deliveries", params=query)).json()
            seen += [each["id"] for each in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == 20
        assert seen == sorted(seen, reverse=True)


async def _listed(client: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await client.get("/admin/webhooks/deliveries", params=query)).json()["items"]
    return items


async def test_a_service_that_is_killed_loses_no_event(
    engineless: Settings, database: Database, tmp_path: Path
) -> None:
    settings = engineless.model_copy(update={"port": free_port()})
    async with Receiver(["hang", 200]).listening() as receiver:
        await created(database, receiver.url)
        with service_process(settings, tmp_path / "log"):
            await announce(database)
            await receiver.until(1, limit_s=60)  # an attempt runs
            async with database.session() as session:
                await store.webhooks.announce(session, WebhookEvent.RUN_ENDED, {"number": "committed, not attempted"})
        # It is killed here.
        interrupted, untouched = await deliveries(database)
        assert (interrupted.status, interrupted.attempts) == (DeliveryStatus.PENDING, 1)
        assert (untouched.status, untouched.attempts) == (DeliveryStatus.PENDING, 0)
        with service_process(settings, tmp_path / "log"):
            await receiver.until(2, limit_s=60)
            assert UUID(receiver.received[1].headers["webhook-id"]) == untouched.id, "the other's lease has not ended"
            async with database.session() as session:
                await session.execute(text("UPDATE webhook_deliveries SET next_at = now() WHERE status = 'pending'"))
            ended = await until_ended(database, limit_s=60)
        ids = [UUID(each.headers["webhook-id"]) for each in receiver.received]
    assert ids == [interrupted.id, untouched.id, interrupted.id]
    assert {each.status for each in ended} == {DeliveryStatus.DELIVERED}
