"""Idempotency: requests with the same request id share one run and its first result."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from gadfly.errors import Conflict
from gadfly.records import Interaction, Tier
from gadfly.service.answering.idempotency import Idempotency
from gadfly.service.answering.recent import RecentResults
from gadfly.service.keyring import Caller
from gadfly.service.recording.recorder import Recorder
from gadfly.settings import Settings
from gadfly.store.critics import ensure_version_zero
from gadfly.store.database import Database
from tests.service.conftest import RIGHT, WRONG
from tests.support.records import make_interaction
from tests.support.services import free_port, read_events, service_process, serving, until_ready

SAMPLED = {**RIGHT, "temperature": 1.0, "request_id": "one"}  # unseeded: two runs would differ


async def test_a_repeat_returns_the_first_result(client: httpx.AsyncClient) -> None:
    first = (await client.post("/critique", json=SAMPLED)).json()
    assert (await client.post("/critique", json=SAMPLED)).json() == first
    [(name, streamed)] = await read_events(client, "/critique", SAMPLED)
    assert (name, streamed) == ("result", first)
    assert len((await client.get("/interactions")).json()["items"]) == 1


async def test_concurrent_repeats_share_one_run(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post("/refine", json=SAMPLED) for _ in range(8)))
    assert len({answer.text for answer in answers}) == 1
    assert len((await client.get("/interactions")).json()["items"]) == 1


async def test_another_request_under_the_same_id_is_refused(client: httpx.AsyncClient) -> None:
    await client.post("/critique", json=SAMPLED)
    for path, body in [
        ("/critique", {**SAMPLED, "response": "6"}),
        ("/critique", {**SAMPLED, "n": 2}),
        ("/refine", SAMPLED),
    ]:
        answer = await client.post(path, json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "request_id"
    running = asyncio.create_task(client.post("/critique", json={**SAMPLED, "request_id": "two"}))
    await asyncio.sleep(0.05)
    meanwhile = await client.post("/critique", json={**WRONG, "request_id": "two"})
    assert {(await running).status_code, meanwhile.status_code} == {200, 422}


async def test_a_failed_request_can_be_repeated(client: httpx.AsyncClient) -> None:
    long = {**RIGHT, "response": "word " * 3000, "request_id": "again"}
    assert (await client.post("/critique", json=long)).status_code == 422
    assert (await client.post("/critique", json=long)).status_code == 422  # checked again, not stuck on a claim
    assert (await client.post("/critique", json={**RIGHT, "request_id": "again"})).status_code == 200


async def test_two_replicas_do_the_work_once(settings: Settings, tmp_path: Path) -> None:
    other = settings.model_copy(update={"home": tmp_path / "other"})
    async with serving(settings) as one, serving(other) as two:
        answers = await asyncio.gather(*(client.post("/refine", json=SAMPLED) for client in (one, two) * 3))
        assert [answer.status_code for answer in answers] == [200] * 6
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len({answer.json()["refined_response"] for answer in answers}) == 1
        assert len((await one.get("/interactions")).json()["items"]) == 1


async def test_of_two_results_the_first_stored_one_counts(database: Database, tmp_path: Path) -> None:
    """Two replicas answered, because Postgres was unavailable when they tried to claim the request id."""
    async with database.session() as session:
        await ensure_version_zero(session, "tiny")
    first = make_interaction(request_id="one", fingerprint="same")
    caller = Caller(key_id=None, tier=Tier.ADMIN)
    async with Recorder(database, tmp_path, heldout_share=0.2, spool_max_bytes=2**20) as recorder:
        requests = Idempotency(database, recorder)

        async def work() -> Interaction:
            await recorder.record(first)
            second = make_interaction(request_id="one", fingerprint="same")
            await recorder.record(second)
            return second

        assert await requests.once(caller, "one", "same", work) == first

        async def refused() -> Interaction:
            raise Conflict("there is no candidate critic now")

        with pytest.raises(Conflict, match="candidate"):
            await requests.once(caller, "two", "same", refused)


def test_recent_results_are_bounded_and_know_what_they_lack() -> None:
    recent = RecentResults(keep_s=0.2, max_characters=1000)
    assert not recent.is_complete, "what earlier processes answered is missing"
    time.sleep(0.25)
    assert recent.is_complete
    first, second = make_interaction(question="x" * 600), make_interaction(question="y" * 600)
    recent.put((None, "first"), first)
    assert recent.get((None, "first")) is first
    assert recent.get((first.id, "first")) is None, "another caller's id of the same name"
    recent.put((None, "second"), second)
    assert recent.get((None, "first")) is None
    assert not recent.is_complete
    recent.forget(second.id)
    assert recent.get((None, "second")) is None
    recent.put((None, "third"), make_interaction())
    time.sleep(0.25)
    assert recent.get((None, "third")) is None, "too old"
    assert recent.is_complete, "what is too old is not missing"


async def test_a_repeat_survives_kill_dash_nine(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"port": free_port()})
    async with httpx.AsyncClient(base_url=settings.service_url, timeout=60) as client:
        with service_process(settings, tmp_path / "service.log"):
            await until_ready(client)
            first = (await client.post("/critique", json=SAMPLED)).json()
        with service_process(settings, tmp_path / "service.log"):
            await until_ready(client)
            assert (await client.post("/critique", json=SAMPLED)).json() == first
            assert (await client.get(f"/interactions/{first['id']}")).json()["result"] == first
