"""Hot swaps on real engines: done, refused for every reason, under load, across replicas and restarts.

The text shows which critic answered: each version's greedy text is known beforehand, and no two are equal.
"""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from gadfly import exchange, prompts, store
from gadfly.adapters import CONFIG, MARKER, PROBE, WEIGHTS, AdapterFolder
from gadfly.cli.exchange import take_in
from gadfly.engine_client import Engine, Sampling
from gadfly.grading import Grade
from gadfly.records import Interaction, SwapKind, new_id
from gadfly.service import health
from gadfly.service.critics import shadow, upkeep
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.interactions import insert_records
from gadfly.store.tables import ShadowVerdictRow
from gadfly.verdict import Verdict, parse_critique
from tests.service.conftest import RIGHT, make_settings
from tests.support.adapters import (
    PROMPTS,
    PublishedAdapter,
    change_last_token,
    change_prompt,
    insert_version,
    make_wider,
    make_zero,
    publish_adapter,
    publish_again,
    shift_record,
)
from tests.support.engines import RunningEngine, SpareEngine
from tests.support.postgres import PostgresServer
from tests.support.records import make_critique, make_interaction
from tests.support.services import free_port, service_process, serving, until_ready

ASK = {**RIGHT, "max_tokens": 24}

pytestmark = pytest.mark.timeout(600)  # the first test waits for two engines to start


class Engines:
    """Two engines; a test may kill `b`, which the next use of `b` starts again."""

    def __init__(self, critic: RunningEngine, spare: SpareEngine) -> None:
        self.a, self._spare = critic, spare

    @property
    def b(self) -> RunningEngine:
        return self._spare.running

    def forget(self) -> None:
        self.a.forget()
        self._spare.forget()


@pytest.fixture
def engines(critic_engine: RunningEngine, spare_engine: SpareEngine) -> Iterator[Engines]:
    engines = Engines(critic_engine, spare_engine)
    engines.forget()  # tests of other files have critics of the same names
    yield engines
    engines.forget()


@pytest.fixture(autouse=True)
def uncached_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive result of /readyz is valid for a second, which each look at it would wait for."""
    monkeypatch.setattr(health, "_READY_VALID_S", 0.0)


@pytest.fixture(scope="module")
def published(critic_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PublishedAdapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [publish_adapter(folder / f"adapter-{seed}", model=critic_model, seed=seed) for seed in (1, 3, 9)]


@pytest.fixture(scope="module")
def texts(critic_engine: RunningEngine, published: list[PublishedAdapter]) -> dict[int, str]:
    """Each version's answer to `ASK`, from an engine that serves it under a name unknown to the services."""
    prompt = prompts.load(PROMPTS).critique(question=ASK["question"], response=ASK["response"])

    async def ask(name: str) -> str:
        engine = Engine(critic_engine.url, timeout_s=60)
        [reply] = await engine.chat(prompt, model=name, sampling=Sampling(max_tokens=ASK["max_tokens"]))
        await engine.aclose()
        return prompt.opener + reply.text

    texts = {0: asyncio.run(ask("base"))}
    for version, adapter in enumerate(published, start=1):
        critic_engine.load_adapter(f"reference-{version}", adapter.folder)
        texts[version] = asyncio.run(ask(f"reference-{version}"))
    assert len(set(texts.values())) == 4
    critic_engine.forget()
    return texts


class World:
    """A deployment with versions 1, 2 and 3, version 0 live, and a client of its one service."""

    def __init__(
        self, settings: Settings, database: Database, client: httpx.AsyncClient, texts: dict[int, str]
    ) -> None:
        self.settings, self.database, self.client, self.texts = settings, database, client, texts

    async def text(self, **changes: Any) -> str:
        answer = await self.client.post("/critique", json={**ASK, **changes})
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["critique"]
        return text

    async def promote(self, version: int, **changes: Any) -> httpx.Response:
        return await self.client.post("/admin/promote", json={"version": version, **changes})

    async def promoted(self, version: int) -> dict[str, Any]:
        answer = await self.promote(version)
        assert answer.status_code == 200, answer.text
        swap: dict[str, Any] = answer.json()
        assert swap["status"] == "done"
        return swap

    async def ready(self, says: str) -> dict[str, Any]:
        """/readyz once it says this of the swap: a replica notices soon after the swap's row has its end."""
        deadline = time.monotonic() + 20
        while True:
            readiness: dict[str, Any] = (await self.client.get("/readyz")).json()
            if says in readiness["swap"]["detail"]:
                return readiness
            assert time.monotonic() < deadline, readiness
            await asyncio.sleep(0.05)

    async def receipts(self, version: int, *, count: int = 1) -> list[dict[str, Any]]:
        """The receipts of a version, once all requests on the previous critic have ended."""
        deadline = time.monotonic() + 20
        while True:
            receipts: list[dict[str, Any]] = (await self.client.get(f"/critics/{version}")).json()["receipts"]
            if len(receipts) >= count and all(item["details"]["times"]["drained_at"] for item in receipts):
                return receipts
            assert time.monotonic() < deadline, receipts
            await asyncio.sleep(0.1)


@pytest.fixture
async def settings(tmp_path: Path, database_url: str, engines: Engines) -> Settings:
    return make_settings(tmp_path, database_url, engines.a.url)


@asynccontextmanager
async def opened(
    settings: Settings, database: Database, published: list[PublishedAdapter], texts: dict[int, str]
) -> AsyncIterator[World]:
    async with serving(settings) as client:
        for adapter in published:
            await insert_version(database, adapter)
        yield World(settings, database, client, texts)


@pytest.fixture
async def world(
    settings: Settings, database: Database, published: list[PublishedAdapter], texts: dict[int, str]
) -> AsyncIterator[World]:
    async with opened(settings, database, published, texts) as world:
        yield world


# ----------------------------------------------------------------------------------------------- promotion and rollback


async def test_the_critic_before_judges_labelled_answers_too(
    settings: Settings,
    database: Database,
    published: list[PublishedAdapter],
    texts: dict[int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow, "_EVERY_S", 0.1)
    settings = settings.model_copy(update={"shadow_share": 1.0})
    async with opened(settings, database, published, texts) as world:
        await world.promoted(1)
        await world.promoted(2)
        answers = [(await world.client.post("/critique", json=ASK)).json() for _ in range(3)]
        for answer in answers[:2]:
            body = {"interaction_id": answer["id"], "correct": False}
            assert (await world.client.post("/feedback", json=body)).status_code == 200
        deadline = time.monotonic() + 20
        while True:
            async with database.session() as session:
                rows = (await session.scalars(select(ShadowVerdictRow))).all()
                pairs = await store.watch.paired_outcomes(session, 2, before=1)
            if len(rows) == 3:  # the third has the text of the others, and so their label
                break
            assert time.monotonic() < deadline, rows
            await asyncio.sleep(0.1)
    assert {str(row.interaction_id) for row in rows} == {answer["id"] for answer in answers}
    assert {(row.critic_version, row.stated) for row in rows} == {(1, parse_critique(texts[1]).verdict)}
    assert [before.was_right for before, _ in pairs] == [False, False, False]


async def test_a_promotion_and_a_rollback(world: World, published: list[PublishedAdapter]) -> None:
    assert await world.text() == world.texts[0]
    swap = await world.promoted(1)
    assert (swap["from_version"], swap["version"], swap["kind"]) == (0, 1, "promote")
    assert await world.text() == world.texts[1]
    await world.promoted(2)
    assert await world.text() == world.texts[2]

    back = await world.client.post("/admin/rollback", json={"reason": "worse"})
    assert back.status_code == 200
    assert (back.json()["version"], back.json()["reason"]) == (1, "worse")
    assert await world.text() == world.texts[1]
    critics = {item["version"]: item for item in (await world.client.get("/critics")).json()}
    assert critics[1]["pointers"] == ["live"]
    assert critics[2]["pointers"] == []
    assert critics[0]["pointers"] == ["previous"]
    again = await world.client.post("/admin/rollback", json={})
    assert again.json()["version"] == 0, "a second rollback does not bring the bad version back"
    await world.promoted(2)

    [receipt] = [item for item in await world.receipts(2, count=2) if item["details"]["from_version"] == 1][:1]
    details = receipt["details"]
    assert details["adapter_sha256"] == published[1].marker.sha256
    [proof] = details["engines"]
    assert proof["vllm"].startswith("0.")
    assert proof["probes"] == 2
    assert proof["deltas"]["tokens"] == sum(len(probe.tokens) for probe in published[1].record.probes)
    assert proof["deltas"]["from_trainer"] < 1e-3 < proof["deltas"]["from_base"]
    assert details["lost"] == 0
    assert details["mixed"] == {"probes": 4, "mixed": 0}
    ready = await world.ready("version 2 followed 0")
    assert ready["ready"]
    assert ready["swap"] == {"ok": True, "detail": "version 2 followed 0", "seconds": 0.0}
    metrics = (await world.client.get("/metrics")).text
    assert 'gadfly_swaps_total{kind="promote",outcome="done",task="math"} 3.0' in metrics
    assert 'gadfly_swaps_total{kind="rollback",outcome="done",task="math"} 2.0' in metrics
    assert 'gadfly_live_critic{task="math"} 2.0' in metrics


async def test_a_critic_is_pushed_and_proven_in_a_second_deployment(
    world: World, published: list[PublishedAdapter], postgres: PostgresServer, tmp_path: Path, engines: Engines
) -> None:
    """The second deployment has a database, adapters and an engine of its own."""
    adapter = AdapterFolder.read(published[1].folder, base_model="tiny", max_rank=64)
    async with world.database.session() as session:
        critic = await store.critics.resolve_critic(session, 2)
    target = str(tmp_path / "pushed")
    exchange.push(adapter, target, critic=critic, gate=None)
    postgres.execute("CREATE DATABASE second TEMPLATE template_gadfly")
    home = tmp_path / "second"
    home.mkdir()
    settings = make_settings(home, postgres.url_of("second"), engines.b.url)
    try:
        async with Database(postgres.url_of("second")) as database:
            pulled = await take_in(database, settings, target, base_sha256=adapter.marker.base_sha256)
            again = await take_in(database, settings, target, base_sha256=adapter.marker.base_sha256)
        assert (pulled, pulled.version, pulled.adapter_sha256) == (again, 1, adapter.marker.sha256)
        async with serving(settings) as client:
            seen = (await client.get("/critics/1")).json()
            assert (seen["pointers"], seen["run_id"], seen["origin"]["source"]) == (["candidate"], None, target)
            here = settings.adapters_folder / str(pulled.adapter_path)
            record = (here / PROBE).read_bytes()
            shift_record(here, by=0.5)
            refused = await client.post("/admin/promote", json={"version": 1})
            assert refused.status_code == 409, "a changed probe record is not the one that was pushed"
            (here / PROBE).write_bytes(record)
            promoted = await client.post("/admin/promote", json={"version": 1})
            assert (promoted.status_code, promoted.json()["status"]) == (200, "done")
            answered = (await client.post("/critique", json={**ASK, "temperature": 0})).json()
            assert answered["critic"] == {
                "version": 1,
                "adapter_sha256": adapter.marker.sha256,
                "status": "trained",
            }
            assert answered["critique"] == world.texts[2]
    finally:
        postgres.execute("DROP DATABASE second WITH (FORCE)")


async def test_a_swap_that_the_gate_requests_is_done(world: World) -> None:
    async with world.database.session() as session:
        await store.critics.set_candidate(session, 3)
        await store.swaps.request_swap(session, version=3, kind=SwapKind.GATE, reason="better on both axes")
    deadline = time.monotonic() + 10
    # The replica answers with the new critic a moment before it reads the pointers again.
    while (await world.client.get("/state")).json()["pointers"] != {"live": 3, "previous": 0}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert await world.text() == world.texts[3]
    state = (await world.client.get("/state")).json()
    assert state["live_critic"] == 3
    assert state["pointers"] == {"live": 3, "previous": 0}
    assert state["swap"]["status"] == "done"
    seen = (await world.client.get("/critics/3")).json()
    assert seen["swaps"][0]["reason"] == "better on both axes"
    assert seen["run_id"] is not None
    assert seen["parent"] == 0


async def test_illegal_moves_are_refused(world: World) -> None:
    for body, status, message in (
        ({"version": 0}, 409, "live already"),
        ({"version": 99}, 404, "no critic version 99"),
        ({"version": -1}, 422, "version"),
        ({"version": 1, "force": True}, 422, "force"),
    ):
        answer = await world.client.post("/admin/promote", json=body)
        assert answer.status_code == status
        assert message in answer.json()["detail"]
    back = await world.client.post("/admin/rollback", json={})
    assert back.status_code == 409
    assert "no critic to go back to" in back.json()["detail"]


async def test_a_critic_that_learned_verdicts_only_is_not_served_to_refine(
    world: World, database: Database, published: list[PublishedAdapter]
) -> None:
    client = world.client
    await world.promoted(1)
    verdict_only = await insert_version(database, published[2], verdict_only=True)
    await world.promoted(verdict_only.version)
    critic = (await client.get(f"/critics/{verdict_only.version}")).json()
    assert (critic["verdict_only"], critic["pointers"]) == (True, ["live"])
    judged = (await client.post("/critique", json=ASK)).json()
    assert judged["critic"]["version"] == verdict_only.version
    for episode in ({}, {"episode_id": judged["episode_id"]}):
        refined = (await client.post("/refine", json={**ASK, **episode})).json()
        assert (refined["critic"]["version"], refined["instead_of"]) == (1, verdict_only.version)
    named = (await client.post("/refine", json={**ASK, "critic": verdict_only.version})).json()
    assert (named["critic"]["version"], named["instead_of"]) == (verdict_only.version, None)
    await world.promoted(2)
    refined = (await client.post("/refine", json=ASK)).json()
    assert (refined["critic"]["version"], refined["instead_of"]) == (2, None)


async def test_version_0_needs_no_engine(world: World) -> None:
    await world.promoted(1)
    await world.promoted(0)
    assert await world.text() == world.texts[0]


# ------------------------------------------------------------------------------------------------------------- refusals


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _corrupt(folder: Path) -> None:
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)


def _nothing(folder: Path) -> None:
    pass


Change = Callable[[Path], None]

REFUSALS = [  # how it is published, the change of the folder afterwards, and the error message
    ("good", "weights missing", "cannot be read"),
    ("good", "configuration missing", "cannot be read"),
    ("good", "marker missing", "not a published adapter"),
    ("good", "all missing", "not a published adapter"),
    ("good", "weights corrupt", "its hash differs"),
    ("another rank", "kept", "rank 32"),
    ("another base", "kept", "was trained on the model another"),
    ("another prompt", "kept", "the engine's prompt tokens differ from the trainer's"),
    ("another token", "kept", "the engine's reply differs from the trainer's"),
    ("other log-probabilities", "kept", "nats from the trainer's"),
    ("nothing learned", "kept", "answers like the base model"),
]

AFTERWARDS: dict[str, Change] = {
    "kept": _nothing,
    "weights missing": _without(WEIGHTS),
    "configuration missing": _without(CONFIG),
    "marker missing": _without(MARKER),
    "all missing": shutil.rmtree,
    "weights corrupt": _corrupt,
}


@pytest.mark.parametrize(("published_as", "then", "message"), REFUSALS)
async def test_an_adapter_that_differs_from_the_published_one_is_refused(
    world: World,
    engines: Engines,
    published: list[PublishedAdapter],
    critic_model: Path,
    tmp_path: Path,
    published_as: str,
    then: str,
    message: str,
) -> None:
    changes: dict[str, Change] = {
        "good": _nothing,
        "another base": _nothing,
        "another rank": partial(make_wider, model=critic_model),
        "another prompt": change_prompt,
        "another token": change_last_token,
        "other log-probabilities": partial(shift_record, by=0.01),
        "nothing learned": partial(make_zero, model=critic_model),
    }
    await world.promoted(1)
    spoilt = publish_again(
        published[2],
        tmp_path / "spoilt",
        changes[published_as],
        base_model="another" if published_as == "another base" else "tiny",
    )
    version = (await insert_version(world.database, spoilt, base_model="tiny")).version
    AFTERWARDS[then](spoilt.folder)
    await _is_refused(world, version, message)
    assert f"critic@{version}" not in _served(engines.a)
    answer = await world.client.post("/critique", json={**ASK, "critic": version})  # also when requested by its number
    assert answer.status_code == 409
    assert message in answer.json()["detail"]
    await world.promoted(2)  # a good one is still accepted, and /readyz no longer reports the refusal
    assert (await world.ready("version 2 followed 1"))["swap"]["ok"]


async def test_a_critic_of_another_base_model_is_archived(world: World, published: list[PublishedAdapter]) -> None:
    version = (await insert_version(world.database, published[2], base_model="another")).version
    answers = await world.promote(version), await world.client.post("/critique", json={**ASK, "critic": version})
    for answer in answers:
        assert answer.status_code == 409
        assert "is archived: it is based on the model another" in answer.json()["detail"]
    assert (await world.client.get(f"/critics/{version}")).json()["archived"] is True


async def _is_refused(world: World, version: int, message: str) -> None:
    answer = await world.promote(version)
    assert answer.status_code == 409, answer.text
    assert message in answer.json()["detail"]
    assert await world.text() == world.texts[1]
    ready = await world.ready(f"version {version} was refused")  # the reason may hold people's texts: not here
    assert ready["ready"]
    assert not ready["swap"]["ok"]
    [swap] = (await world.client.get(f"/critics/{version}")).json()["swaps"]
    assert swap["status"] == "refused"
    assert message in swap["reason"]
    assert (await world.client.get("/state")).json()["pointers"] == {"live": 1, "previous": 0}
    assert (
        'gadfly_swaps_total{kind="promote",outcome="refused",task="math"} 1.0'
        in (await world.client.get("/metrics")).text
    )


def _served(engine: RunningEngine) -> dict[str, str]:
    """The names that an engine serves, by what comes before the adapter's hash (`critic@1`)."""
    with engine.client() as client:
        names = [item["id"] for item in client.get("/v1/models").json()["data"]]
    return {name.partition("-")[0]: name for name in names}


async def test_a_row_of_another_adapter_is_refused(world: World, published: list[PublishedAdapter]) -> None:
    await world.promoted(1)
    row = await insert_version(world.database, published[0], folder=published[1].folder)
    await _is_refused(world, row.version, "does not hold the adapter of version 4")


async def test_a_critic_trained_under_other_prompts_is_refused(
    settings: Settings, database: Database, published: list[PublishedAdapter]
) -> None:
    settings = settings.model_copy(update={"prompts": "critique-rl@1"})
    async with serving(settings) as client:
        row = await insert_version(database, published[0])
        answer = await client.post("/admin/promote", json={"version": row.version})
        assert answer.status_code == 409
        assert "trained under the prompts stepwise@1" in answer.json()["detail"]


# ----------------------------------------------------------------------------------------------------------- under load


async def test_fifty_swaps_under_load_lose_and_mix_nothing(world: World) -> None:
    await world.promoted(1)
    answers: list[tuple[int, str, str]] = []
    failures: list[str] = []
    done = asyncio.Event()

    async def call(number: int) -> None:
        while not done.is_set():
            if number % 4 == 0:
                answer = await world.client.post("/refine", json={**ASK, "max_tokens": 12, "rounds": 1})
            else:
                answer = await world.client.post("/critique", json={**ASK, "max_tokens": 12})
            if answer.status_code != 200:
                failures.append(answer.text)
                continue
            result = answer.json()
            text = result["critique"] if number % 4 else result["rounds"][0]["critique"]["text"]
            answers.append((result["critic"]["version"], text, answer.headers["x-gadfly-critic"]))

    expected = {version: await world.text(critic=version, max_tokens=12) for version in (1, 2)}
    assert expected[1] != expected[2]
    callers = [asyncio.create_task(call(number)) for number in range(8)]
    in_flight = 0
    try:
        for number in range(50):
            version = 2 if number % 2 == 0 else 1
            await world.promoted(version)
            assert await world.text(max_tokens=12) == expected[version], "a request after the swap gets the new critic"
    finally:
        done.set()
        await asyncio.gather(*callers)
    assert not failures
    assert len(answers) > 100
    for version, text, header in answers:
        assert text == expected[version]
        assert header == f"critic@{version}"
    assert {version for version, _, _ in answers} == {1, 2}
    receipts = [*await world.receipts(1, count=26), *await world.receipts(2, count=25)]
    assert len(receipts) == 51
    assert all(item["details"]["lost"] == 0 for item in receipts)
    assert all(item["details"]["mixed"]["mixed"] == 0 for item in receipts)
    in_flight = sum(item["details"]["in_flight"] for item in receipts)
    assert in_flight > 50, "requests were in flight at the moves"


async def test_a_canary_under_load_loses_nothing_and_each_episode_keeps_its_critic(
    world: World, tmp_path: Path
) -> None:
    await world.promoted(1)
    expected = {version: await world.text(critic=version, max_tokens=12) for version in (1, 2)}
    other = world.settings.model_copy(update={"home": tmp_path / "other"})
    episodes: dict[str, list[int]] = {str(new_id()): [] for _ in range(24)}
    answers: list[tuple[float, int, str]] = []
    failures: list[str] = []
    done = asyncio.Event()

    async def call(client: httpx.AsyncClient, number: int) -> None:
        """Ask under known episodes, and, one time in three, without one."""
        turn = number
        while not done.is_set():
            turn += 1
            began = time.monotonic()
            known = None if turn % 3 == 0 else list(episodes)[(turn // 3 + 5 * number) % len(episodes)]
            body = {**ASK, "max_tokens": 12} | ({} if known is None else {"episode_id": known})
            answer = await client.post("/critique", json=body)
            if answer.status_code != 200:
                failures.append(answer.text)
                continue
            version = answer.json()["critic"]["version"]
            assert answer.headers["x-gadfly-critic"] == f"critic@{version}"
            answers.append((began, version, answer.json()["critique"]))
            if known is not None and canary_began and began > canary_began[0]:
                episodes[known].append(version)

    async def running(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await client.get("/admin/canaries")).json()
        return [item for item in found if item["ended_at"] is None]

    canary_began: list[float] = []
    async with serving(other) as second:
        await asyncio.sleep(1.5)  # the other replica has adopted the live critic, and both have sent a heartbeat
        # Episodes that begin before the canary stay on critic 1, like those of any swap.
        before = str(new_id())
        assert await world.text(episode_id=before, max_tokens=12) == expected[1]
        callers: list[asyncio.Task[None]] = []
        try:
            swap = await world.promote(2, canary={"share": 0.5, "for_s": 600})
            assert swap.json()["status"] == "done", swap.text
            await asyncio.sleep(2.5)  # both replicas follow
            canary_began.append(time.monotonic())
            callers = [asyncio.create_task(call((world.client, second)[n % 2], n)) for n in range(8)]
            await asyncio.sleep(8)
            [canary] = await running(second)
            assert (canary["version"], canary["from_version"], canary["share"]) == (2, 1, 0.5)
            assert canary["answers"] > 0 < canary["answers_before"]
            assert await world.text(episode_id=before, max_tokens=12) == expected[1]
            refused = await world.promote(3)
            assert refused.status_code == 409
            assert "version 2 is a canary and answers 50% of the requests" in refused.json()["detail"]
            async with serving(world.settings.model_copy(update={"home": tmp_path / "third"})) as third:
                # A service that starts in the middle goes on with the canary.
                await asyncio.sleep(1.5)
                assert all(episodes.values()), "each was asked under"
                for episode, versions in list(episodes.items())[:6]:
                    answer = await third.post("/critique", json={**ASK, "max_tokens": 12, "episode_id": episode})
                    assert answer.json()["critic"]["version"] == versions[0]
            during = len(answers)
            back = await world.client.post("/admin/rollback", json={"from_version": 2, "reason": "too strict"})
            assert back.json()["version"] == 1, back.text
            ended = time.monotonic()
            await asyncio.sleep(3)
        finally:
            done.set()
            await asyncio.gather(*callers)
        assert not await running(second)
        [canary] = (await world.client.get("/admin/canaries")).json()
        assert (canary["outcome"], canary["reason"]) == ("rolled_back", "too strict")
        # New episodes, after the other replica has followed too, get the critic before.
        for client in (world.client, second):
            for _ in range(6):
                answer = await client.post("/critique", json={**ASK, "max_tokens": 12, "episode_id": str(new_id())})
                assert answer.json()["critic"]["version"] == 1
    assert not failures
    assert during > 100, "there was load"
    assert all(text == expected[version] for _, version, text in answers), "each answer names the critic that wrote it"
    assert all(len(set(versions)) == 1 for versions in episodes.values() if versions), episodes
    assert {versions[0] for versions in episodes.values() if versions} == {1, 2}
    assert any(began > ended for began, _, _ in answers)
    receipts = [*await world.receipts(2, count=2), *await world.receipts(1, count=3)]
    assert all(item["details"]["lost"] == 0 for item in receipts)


# --------------------------------------------------------------------------------------------------- automatic rollback


async def test_labelled_traffic_that_shows_a_worse_critic_brings_the_old_one_back(world: World) -> None:
    def judged(version: int, *, is_verdict_right: bool) -> list[Interaction]:
        """A right and a wrong answer with their labels."""
        return [
            make_interaction(
                critic_version=version,
                response=f"answer {new_id()}",
                reference="4",
                grade=grade,
                critiques=(make_critique(stated=said if is_verdict_right else other),),
            )
            for grade, said, other in (
                (Grade.RIGHT, Verdict.CORRECT, Verdict.INCORRECT),
                (Grade.WRONG, Verdict.INCORRECT, Verdict.CORRECT),
            )
        ]

    await world.promoted(1)
    records = [record for number in range(40) for record in judged(0, is_verdict_right=number % 5 > 0)]  # 80 % right
    records += [record for _ in range(30) for record in judged(1, is_verdict_right=False)]
    async with world.database.session() as session:
        await insert_records(session, records, heldout_share=0.2)
    await _until(lambda: httpx.get(f"{world.client.base_url}/state").json()["live_critic"] == 0, limit_s=30)
    assert await world.text() == world.texts[0]
    [swap] = (await world.client.get("/critics/0")).json()["swaps"]
    assert swap["kind"] == "watch"
    assert "version 1 judges 0.0% of right answers and 0.0% of wrong answers correctly" in swap["reason"]
    assert "version 0 judged 80.0% of right answers and 80.0% of wrong answers" in swap["reason"]


# ------------------------------------------------------------------------------------------ replicas, engines, restarts


async def test_two_engines_that_cannot_read_the_deployments_folders(
    tmp_path: Path,
    database: Database,
    database_url: str,
    engines: Engines,
    published: list[PublishedAdapter],
    texts: dict[int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process sees its own folder at /proc/self/cwd, as if it ran on a host of its own."""
    shutil.copytree(published[0].folder, tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    async with serving(make_settings(tmp_path, database_url, engines.a.url, engines.b.url)) as client:
        version = await insert_version(database, published[0], folder=Path("/proc/self/cwd/adapter"))
        promoted = await client.post("/admin/promote", json={"version": version.version})
        assert promoted.json()["status"] == "done", promoted.text
        answers = await asyncio.gather(*(client.post("/critique", json=ASK) for _ in range(8)))
        assert {answer.json()["critique"] for answer in answers} == {texts[1]}
    for engine in (engines.a, engines.b):
        with engine.client() as asking:
            cards = asking.get("/v1/models").json()["data"]
        [folder] = [card["root"] for card in cards if card["id"] == version.engine_name]
        assert "/gadfly-adapters-" in folder, "the engine has files of its own"


async def test_two_replicas_on_two_engines_both_swap(
    world: World, engines: Engines, tmp_path: Path, published: list[PublishedAdapter]
) -> None:
    other = world.settings.model_copy(update={"home": tmp_path / "other", "engine_urls": (engines.b.url,)})
    async with serving(other) as client:
        await asyncio.sleep(1.1)  # both have sent a heartbeat
        replica = World(other, world.database, client, world.texts)
        for target, version in ((world, 1), (replica, 2)):
            await target.promoted(version)
            receipts = await world.receipts(version, count=2)
            assert len({item["replica_id"] for item in receipts}) == 2
            engines_of = [proof["engine"] for item in receipts for proof in item["details"]["engines"]]
            assert sorted(engines_of) == sorted([engines.a.url, engines.b.url])
            assert await world.text() == await replica.text() == world.texts[version]
        async with asyncio.timeout(5):  # replicas send heartbeats once a second
            while await _live_critics(client) != [2, 2]:  # noqa: ASYNC110  # another replica sets it
                await asyncio.sleep(0.1)


async def _live_critics(client: httpx.AsyncClient) -> list[int]:
    """The live critic of each replica, as one of them knows it."""
    return [item["live_critic"] for item in (await client.get("/state")).json()["replicas"]]


async def test_a_replica_that_cannot_follow_reports_it_and_goes_on(
    world: World, engines: Engines, tmp_path: Path, published: list[PublishedAdapter]
) -> None:
    shared = world.settings.adapters_folder / "run"
    shutil.copytree(published[2].folder, shared)
    version = (await insert_version(world.database, published[2], folder=Path("run"))).version
    blind = world.settings.model_copy(update={"home": tmp_path / "blind", "engine_urls": (engines.b.url,)})
    async with serving(blind) as client:
        await asyncio.sleep(1.1)
        replica = World(blind, world.database, client, world.texts)
        await world.promoted(version)
        assert await world.text() == world.texts[3]
        ready = await replica.ready(f"the live critic {version} is not served here")
        assert ready["ready"]
        assert "still answering with 0" in ready["swap"]["detail"]
        assert await replica.text() == world.texts[0]
        shutil.copytree(shared, blind.adapters_folder / "run")  # fixed: it follows automatically
        deadline = time.monotonic() + 15
        while await replica.text() == world.texts[0]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        assert await replica.text() == await world.text()
        assert (await replica.ready(f"version {version} followed 0"))["swap"]["ok"]


async def test_an_episode_stays_on_its_critic(world: World, engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_UNUSED_S", 3.0)  # there is no other replica that may still use a critic
    await world.promoted(1)
    episode = str(new_id())
    assert await world.text(episode_id=episode) == world.texts[1]
    await world.promoted(2)
    await world.promoted(3)  # 1 is not even previous any more
    deadline = time.monotonic() + 20
    while "critic@1" in _served(engines.a):
        assert time.monotonic() < deadline, "an unused critic is to be unloaded"
        await asyncio.sleep(0.2)
    [receipt] = await world.receipts(2)
    assert receipt["details"]["from_version"] == 1
    assert receipt["details"]["times"]["unloaded_at"]
    assert await world.text(episode_id=episode) == world.texts[1]
    assert await world.text() == world.texts[3]
    await asyncio.sleep(5)
    assert "critic@1" in _served(engines.a), "the episode may have more requests"


async def test_an_engine_that_lost_an_adapter_gets_it_back_within_the_request(world: World, engines: Engines) -> None:
    await world.promoted(1)
    for _ in range(5):
        engines.a.unload_adapter(_served(engines.a)["critic@1"])
        texts = await asyncio.gather(*(world.text() for _ in range(6)))
        assert set(texts) == {world.texts[1]}


async def test_a_service_that_starts_loads_the_live_critic(world: World, engines: Engines, tmp_path: Path) -> None:
    await world.promoted(1)
    engines.forget()
    settings = world.settings.model_copy(update={"home": tmp_path / "new"})
    async with serving(settings) as client:
        assert await World(settings, world.database, client, world.texts).text() == world.texts[1]


async def test_an_engine_that_dies_in_a_swap_refuses_it_and_then_gets_the_live_critic(
    tmp_path: Path,
    database_url: str,
    database: Database,
    engines: Engines,
    published: list[PublishedAdapter],
    texts: dict[int, str],
) -> None:
    settings = make_settings(tmp_path, database_url, engines.a.url, engines.b.url)
    async with opened(settings, database, published, texts) as world:
        await world.promoted(1)
        await world.promoted(2)
        killed = engines.b
        os.killpg(killed.process.pid, signal.SIGSTOP)
        swapping = asyncio.create_task(world.promote(3))
        await _until(lambda: "critic@3" in _served(engines.a))
        await asyncio.sleep(0.5)
        assert not swapping.done()
        killed.kill()
        answer = await swapping
        assert answer.status_code == 409
        assert killed.url in answer.json()["detail"]
        assert await world.text() == world.texts[2]
        ready = await world.ready("version 3 was refused")
        assert ready["ready"]
        assert "1 of 2 engines" in ready["engine"]["detail"]
        assert "critic@3" not in _served(engines.a)
        back = await world.client.post("/admin/rollback", json={})  # does not need the dead engine
        assert back.json()["version"] == 1
        assert await world.text() == world.texts[1]
        assert engines.b is not killed, "started again"
        await _until(lambda: "critic@1" in _served(engines.b))
        engines.b.unload_adapter(_served(engines.b)["critic@1"])
        await _until(lambda: "critic@1" in _served(engines.b))
    alone = make_settings(tmp_path / "b", database_url, engines.b.url)
    async with serving(alone) as client:
        assert await World(alone, database, client, texts).text() == texts[1]


async def _until(holds: Callable[[], bool], *, limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_service_killed_in_a_swap_does_it_after_its_restart(
    tmp_path: Path,
    database_url: str,
    database: Database,
    engines: Engines,
    published: list[PublishedAdapter],
    texts: dict[int, str],
) -> None:
    settings = make_settings(tmp_path, database_url, engines.a.url, port=free_port())
    log = tmp_path / "log"
    async with httpx.AsyncClient(base_url=settings.service_url, timeout=60) as client:
        world = World(settings, database, client, texts)
        with service_process(settings, log) as process:
            await until_ready(client)
            for adapter in published:
                await insert_version(database, adapter)
            os.killpg(engines.a.process.pid, signal.SIGSTOP)
            async with database.session() as session:
                await store.swaps.request_swap(session, version=2, kind=SwapKind.GATE)
            await asyncio.sleep(1)
            process.kill()
            os.killpg(engines.a.process.pid, signal.SIGCONT)
        async with database.session() as session:
            assert await store.swaps.pending_swap(session) is not None
        with service_process(settings, log):
            await until_ready(client)
            await _until(lambda: httpx.get(f"{settings.service_url}/state").json()["live_critic"] == 2)
            assert await world.text() == world.texts[2]
        with service_process(settings, log):
            await until_ready(client)
            assert await world.text() == world.texts[2]
