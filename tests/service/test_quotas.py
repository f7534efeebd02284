"""Limits of keys: what each counts, what a refusal says, and that changes count within seconds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.errors import BadInput, NotAllowed, TooBusy
from gadfly.records import Key, KeyLimits, Tier, Usage, new_id, now
from gadfly.refinement import When
from gadfly.service import keyring
from gadfly.service.answering.limits import engine_calls
from gadfly.service.critics.leases import Leases
from gadfly.service.keyring import Caller, Keyring, Origin, caller_with
from gadfly.service.metrics import Metrics
from gadfly.service.quotas import Quotas
from gadfly.service.sessions import Sessions
from gadfly.service.strangers import Strangers
from gadfly.service.wire.answers import CritiqueRequest, RefineRequest
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.interactions import insert_records
from tests.service.conftest import RIGHT, make_settings, serving_without_engine
from tests.support.broken_engines import StandIn, standing_in
from tests.support.records import make_interaction
from tests.support.services import serving


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> float:
        return self.at.timestamp()

    def today(self) -> datetime:
        return self.at

    def pass_s(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock=clock, today=clock.today)


def caller(**limits: int) -> Caller:
    return caller_with(
        Key(
            id=new_id(), name="a", tier=Tier.CALLER, hint="gf_", created_at=now(), expires_at=None, revoked_at=None,
            **limits,
        )
    )  # fmt: skip


def refused(what: Any) -> TooBusy:
    with pytest.raises(TooBusy) as error:
        what()
    return error.value


def test_a_minute_of_requests_can_come_at_once_and_refills_evenly(quotas: Quotas, clock: Clock) -> None:
    ann = caller(requests_per_minute=6)
    for _ in range(6):
        quotas.admit(ann)
    error = refused(lambda: quotas.admit(ann))
    assert (str(error), error.retry_after_s) == ("this key is limited to 6 requests a minute", 10)
    quotas.admit(caller(requests_per_minute=6))  # another key has its own
    clock.pass_s(9.9)
    assert refused(lambda: quotas.admit(ann)).retry_after_s == 1
    clock.pass_s(0.2)
    quotas.admit(ann)
    refused(lambda: quotas.admit(ann))
    clock.pass_s(3600)
    for _ in range(6):
        quotas.admit(ann)
    refused(lambda: quotas.admit(ann))


def test_a_key_without_limits_is_not_counted(quotas: Quotas) -> None:
    free = caller()
    assert free.limits is None
    for _ in range(1000):
        quotas.admit(free)
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(quotas.work(free, calls=384))


COSTS = [
    (CritiqueRequest(question="q", response="r"), 2, "the critique and the read of its verdict"),
    (CritiqueRequest(question="q", response="r", n=4), 8, "for each sample"),
    (RefineRequest(question="q", response="r"), 3, "critique, read and rewrite"),
    (RefineRequest(question="q", response="r", rounds=8, samples=16), 384, "the most expensive request by default"),
    (RefineRequest(question="q", response="r", rounds=2, critique="wrong"), 4, "its first critique is given"),
    (RefineRequest(question="q", response="r", rounds=8, when=When.IF_INCORRECT), 24, "the most that it can need"),
]


@pytest.mark.parametrize(("body", "calls", "why"), COSTS, ids=[why for _, _, why in COSTS])
def test_a_request_costs_the_engine_calls_that_it_can_make(
    body: CritiqueRequest | RefineRequest, calls: int, why: str
) -> None:
    assert engine_calls(body) == calls


def test_engine_calls_are_counted_and_not_requests(quotas: Quotas, clock: Clock) -> None:
    ann = caller(engine_calls_per_minute=400)
    with quotas.work(ann, calls=384):
        pass
    error = refused(lambda: quotas.work(ann, calls=24).__enter__())
    assert (str(error), error.retry_after_s) == ("this key is limited to 400 engine calls a minute", 2)
    with quotas.work(ann, calls=2):
        pass
    with pytest.raises(BadInput, match="may need 401 calls of the engine, and its key may make 400 a minute"):
        quotas.work(ann, calls=401).__enter__()


def test_requests_in_flight_are_limited_until_they_end(quotas: Quotas) -> None:
    ann = caller(max_in_flight=2)
    with quotas.work(ann, calls=2):
        with ExitStack() as failing:
            failing.enter_context(quotas.work(ann, calls=2))
            error = refused(lambda: quotas.work(ann, calls=2).__enter__())
            assert str(error) == "this key is limited to 2 requests in flight"
        with quotas.work(ann, calls=2):
            pass


def test_tokens_count_until_midnight(quotas: Quotas, clock: Clock) -> None:
    ann = caller(tokens_per_day=100)
    with quotas.work(ann, calls=2):
        quotas.spend(ann, 150)
    error = refused(lambda: quotas.work(ann, calls=2).__enter__())
    assert (str(error), error.retry_after_s) == ("this key is limited to 100 tokens a day (UTC)", 12 * 3600)
    clock.pass_s(12 * 3600)
    with quotas.work(ann, calls=2):
        pass


def test_a_stream_that_its_caller_closes_costs_what_was_sent(quotas: Quotas) -> None:
    ann = caller(tokens_per_day=100)

    def stream() -> None:
        with quotas.work(ann, calls=1) as meter:
            meter.pieces = 150
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        stream()
    assert str(refused(lambda: quotas.work(ann, calls=1).__enter__())).endswith("100 tokens a day (UTC)")


async def test_tokens_of_other_processes_and_of_before_a_restart_count(
    quotas: Quotas, clock: Clock, database: Database
) -> None:
    async with database.session() as session:
        key, _ = await issue_key(session, name="ann", tier=Tier.CALLER, limits=KeyLimits(tokens_per_day=100))
        await store.critics.ensure_version_zero(session, "tiny")
        yesterday = make_interaction(key_id=key.id, created_at=clock.at - timedelta(hours=13))
        today = make_interaction(
            key_id=key.id, created_at=clock.at, usage=Usage(prompt_tokens=60, completion_tokens=20)
        )
        others = make_interaction(created_at=clock.at)
        await insert_records(session, [yesterday, today, others], heldout_share=0.2)
    ann = caller_with(key)
    with quotas.work(ann, calls=2):  # its first request of the day here: nothing was read yet
        quotas.spend(ann, 15)
    await quotas.read(database)  # what this process spent is not stored, so 80 and not 95 count now
    with quotas.work(ann, calls=2):
        quotas.spend(ann, 20)
    refused(lambda: quotas.work(ann, calls=2).__enter__())
    clock.pass_s(24 * 3600)
    await quotas.read(database)
    with quotas.work(ann, calls=2):
        pass


async def test_deleting_answers_gives_no_tokens_back(quotas: Quotas, clock: Clock, database: Database) -> None:
    moment = now()
    clock.at = moment
    async with database.session() as session:
        key, _ = await issue_key(session, name="ann", tier=Tier.CALLER, limits=KeyLimits(tokens_per_day=100))
        await store.critics.ensure_version_zero(session, "tiny")
        usage = Usage(prompt_tokens=30, completion_tokens=10)
        rows = [make_interaction(key_id=key.id, created_at=moment, usage=usage) for _ in range(3)]
        old = make_interaction(key_id=key.id, created_at=moment - timedelta(days=2), usage=usage)
        await insert_records(session, [*rows, old], heldout_share=0.2)
        midnight = datetime.combine(moment.date(), datetime.min.time(), UTC)
        for id in (rows[0].id, rows[1].id, old.id):
            await store.interactions.delete_interaction(session, id, scope=key.id)
            assert await store.keys.tokens_since(session, [key.id], midnight) == {key.id: 120}
    ann = caller_with(key)
    with quotas.work(ann, calls=2):
        pass
    await quotas.read(database)
    error = refused(lambda: quotas.work(ann, calls=2).__enter__())
    assert "100 tokens a day" in str(error)
    async with database.session() as session:
        tomorrow = midnight + timedelta(days=1)
        await store.keys.keep_usage(session, {key.id: 7}, tomorrow.date())
        assert await store.keys.tokens_since(session, [key.id], tomorrow) == {key.id: 7}
        assert await store.keys.tokens_since(session, [key.id], midnight) == {key.id: 47}, "older ones are removed"


async def test_an_address_that_invents_sessions_costs_no_more_readings(database: Database) -> None:
    sessions = Sessions(database, Strangers())
    async with database.session() as session:
        key, _ = await issue_key(session, name="ann", tier=Tier.CALLER)
    secret = await sessions.open(key)
    assert await sessions.find(secret, address="192.0.2.1") is not None
    for _ in range(100):
        assert await sessions.find("old", address="192.0.2.1") is None, "a browser that repeats an old cookie"
    for number in range(59):
        assert await sessions.find(f"invented {number}", address="192.0.2.1") is None
    with pytest.raises(TooBusy, match="unknown keys or sessions a minute"):
        await sessions.find("invented", address="192.0.2.1")
    assert await sessions.find(secret, address="192.0.2.1") is not None, "a session that is known still works"
    assert await sessions.find("invented", address="192.0.2.2") is None


def test_admission_counts_what_is_generated_at_the_same_time() -> None:
    leases = Leases(limit=20, metrics=Metrics())
    with leases.take(0, is_pinned=False, places=16):
        with leases.take(0, is_pinned=False, places=4):
            error = refused(lambda: leases.take(0, is_pinned=False).__enter__())
            assert "20 texts are being generated, and this service's limit is 20" in str(error)
        refused(lambda: leases.converse(places=5).__enter__())
        with leases.converse(places=4):
            pass
    with leases.take(0, is_pinned=False, places=64):  # more than the limit: alone, or it could never be answered
        refused(lambda: leases.take(0, is_pinned=False).__enter__())
    assert leases.counts == {}


def test_addresses_with_unknown_keys_are_limited(clock: Clock) -> None:
    strangers = Strangers(clock=clock)
    for _ in range(60):
        strangers.admit("192.0.2.1")
        strangers.note("192.0.2.1")
    error = refused(lambda: strangers.admit("192.0.2.1"))
    assert (str(error), error.retry_after_s) == ("this address sent more than 60 unknown keys or sessions a minute", 1)
    strangers.admit("192.0.2.2")
    clock.pass_s(1)
    strangers.admit("192.0.2.1")


async def test_an_address_that_guesses_keys_costs_no_more_readings(database: Database) -> None:
    async with database.session() as session:
        _, secret = await issue_key(session, name="ann", tier=Tier.CALLER)
    ring = Keyring(database, open_without_keys=False)
    here, there = Origin(host="gadfly", address="192.0.2.1"), Origin(host="gadfly", address="192.0.2.2")
    await ring.authenticate(secret, origin=here)
    for number in range(60):
        with pytest.raises(NotAllowed):
            await ring.authenticate(f"gf_{number}", origin=here)
    with pytest.raises(TooBusy, match="unknown keys or sessions a minute"):
        await ring.authenticate("gf_next", origin=here)
    assert (await ring.authenticate(secret, origin=here)).key_name == "ann", "a key that is known still works"
    with pytest.raises(NotAllowed):
        await ring.authenticate("gf_next", origin=there)


async def test_a_client_that_repeats_one_wrong_key_locks_no_neighbour_out(database: Database) -> None:
    async with database.session() as session:
        _, secret = await issue_key(session, name="ann", tier=Tier.CALLER)
    ring = Keyring(database, open_without_keys=False)
    here = Origin(host="gadfly", address="192.0.2.1")
    for _ in range(100):
        with pytest.raises(NotAllowed):
            await ring.authenticate("gf_wrong", origin=here)
    assert (await ring.authenticate(secret, origin=here)).key_name == "ann"


@pytest.fixture
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "_FRESH_S", 0.1)


async def test_limits_are_set_and_changed_over_http(engineless: Settings, database: Database, quick_keys: None) -> None:
    async with database.session() as session:
        _, root = await issue_key(session, name="root", tier=Tier.ADMIN)
    async with serving_without_engine(engineless) as client:
        admin = {"authorization": f"Bearer {root}"}
        made = (await client.post("/admin/keys", json={"name": "a", "requests_per_minute": 2}, headers=admin)).json()
        assert (made["requests_per_minute"], made["tokens_per_day"]) == (2, None)
        ann = {"authorization": f"Bearer {made['secret']}"}
        answers = [await client.get("/interactions", headers=ann) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].headers["retry-after"] == "30"
        assert answers[2].json()["detail"] == "this key is limited to 2 requests a minute"
        openai = await client.get("/v1/models", headers=ann)
        assert (openai.status_code, openai.json()["error"]["type"]) == (429, "rate_limit_error")
        path = f"/admin/keys/{made['id']}"
        change = {"requests_per_minute": None, "tokens_per_day": 5, "reason": "agreed"}
        changed = await client.patch(path, json=change, headers=admin)
        assert (changed.status_code, changed.json()["requests_per_minute"], changed.json()["tokens_per_day"]) == (
            200,
            None,
            5,
        )
        await asyncio.sleep(0.2)
        assert (await client.get("/interactions", headers=ann)).status_code == 200
        [act, *_] = (await client.get("/admin/acts", headers=admin)).json()["items"]
        assert (act["action"], act["reason"], act["details"]["tokens_per_day"]) == ("limit_key", "agreed", 5)
        assert (await client.patch(path, json={"tokens_per_day": 0}, headers=admin)).status_code == 422
        [own] = [key for key in (await client.get("/admin/keys", headers=admin)).json() if key["name"] == "root"]
        refusals = [
            await client.patch(f"/admin/keys/{own['id']}", json={"requests_per_minute": 1}, headers=admin),
            await client.post("/admin/keys", json={"name": "b", "tier": "admin", "max_in_flight": 1}, headers=admin),
        ]
        assert [(each.status_code, "an admin key has no limits" in each.text) for each in refusals] == [(422, True)] * 2
        lifted = await client.patch(f"/admin/keys/{own['id']}", json={"requests_per_minute": None}, headers=admin)
        assert lifted.status_code == 200, "one of an earlier release can be removed"
        assert (await client.patch(f"/admin/keys/{new_id()}", json={}, headers=admin)).status_code == 404
        assert (await client.patch(path, json={}, headers=ann)).status_code == 403


@pytest.fixture
async def settings(tmp_path: Path, database_url: str) -> AsyncIterator[Settings]:
    """A service in front of an engine that answers at once."""
    engine = StandIn()
    async with standing_in(engine):
        yield make_settings(tmp_path, database_url, engine.url)


async def test_work_on_the_engine_is_limited(settings: Settings, database: Database, quick_keys: None) -> None:
    async with database.session() as session:
        key, secret = await issue_key(
            session, name="ann", tier=Tier.CALLER, limits=KeyLimits(engine_calls_per_minute=5, tokens_per_day=10_000)
        )
    async with serving(settings) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        first = await client.post("/critique", json={**RIGHT, "request_id": "one"})
        assert first.status_code == 200, first.text
        too_dear = await client.post("/refine", json={**RIGHT, "rounds": 2})
        assert (too_dear.status_code, "may make 5 a minute" in too_dear.json()["detail"]) == (422, True)
        chat = {"model": "actor", "messages": [{"role": "user", "content": "What is 1 + 1?"}], "max_tokens": 4}
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
        assert (await client.post("/critique", json=RIGHT)).status_code == 200
        limited = await client.post("/critique", json=RIGHT)
        assert limited.status_code == 429
        assert limited.json()["detail"] == "this key is limited to 5 engine calls a minute"
        assert int(limited.headers["retry-after"]) >= 1
        streamed = await client.post("/critique", json={**RIGHT, "stream": True})
        assert streamed.status_code == 429
        again = await client.post("/critique", json={**RIGHT, "request_id": "one"})
        assert again.json()["id"] == first.json()["id"], "a repeat costs nothing"
        async with database.session() as session:
            await store.keys.set_limits(session, key.id, {"engine_calls_per_minute": None, "tokens_per_day": 1})
        await asyncio.sleep(0.2)
        spent = await client.post("/critique", json=RIGHT)
        assert (spent.status_code, spent.json()["detail"]) == (429, "this key is limited to 1 tokens a day (UTC)")
