"""Hot swaps while engines, callers or the database misbehave.

Engines that misbehave are fakes behind the real client: they answer from an adapter's probe record, or as a test sets.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import randrange
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.adapters import BadAdapter
from gadfly.api_keys import issue_key
from gadfly.engine_client import Engine, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import AdapterRefused, Conflict, EngineTimeout, EngineUnavailable, NoSlot, TooBusy
from gadfly.prompts import Message, Prompt
from gadfly.records import CriticVersion, SwapKind, SwapReceipt, SwapStatus, Tier, new_id, now
from gadfly.service.critics import loader
from gadfly.service.critics.leases import Leases
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.pointers import CriticPointers
from gadfly.service.critics.replicas import Replicas
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.tasks import load_tasks
from tests.service.conftest import RIGHT, make_settings
from tests.support.adapters import PublishedAdapter, change_last_token, insert_version, publish_adapter, publish_again
from tests.support.services import serving
from tests.support.tasks import write_task

ASK = Prompt((Message("user", "2 + 2?"),))


@pytest.fixture(scope="module")
def published(critic_model: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedAdapter:
    return publish_adapter(tmp_path_factory.mktemp("adapters") / "good", model=critic_model, seed=1)


class FakeEngine:
    """Serves names and answers an adapter's probes as recorded, unless a test changes that."""

    def __init__(self, name: str, adapter: PublishedAdapter) -> None:
        self.names: set[str] = set()
        self.answered: list[str] = []  # the model of each request that is not a probe
        self.loads_with = 200
        self.is_healthy = True
        self.is_wrong = False  # serves other weights under the name
        self.fault: Exception | None = None
        self.process = ""  # its name; empty: it gives none
        self.probed = 0
        self.hang = asyncio.Event()
        self.hang.set()
        self._probes = {probe.question: probe for probe in adapter.record.probes}
        self.engine = Engine(f"http://{name}", timeout_s=5, transport=httpx.MockTransport(self.answer))

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if self.fault is not None:
            raise self.fault
        match request.url.path:
            case "/health":
                return httpx.Response(200 if self.is_healthy else 503)
            case "/version":
                return httpx.Response(200, json={"version": "0.32"})
            case "/gadfly/engine":
                return httpx.Response(200 if self.process else 404, json={"process": self.process})
            case "/v1/models":
                return httpx.Response(200, json={"data": [{"id": name} for name in self.names | {"base"}]})
        body = orjson.loads(request.content)
        if request.url.path == "/v1/unload_lora_adapter":
            self.names.discard(body["lora_name"])
            return httpx.Response(200)
        if request.url.path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"])
        await self.hang.wait()
        if body["model"] not in self.names | {"base"}:
            return httpx.Response(404, json={"error": {"message": "no such model", "param": "model"}})
        return httpx.Response(200, json=self._chat(body))

    def _load(self, name: str) -> httpx.Response:
        if self.loads_with != 200:
            return httpx.Response(self.loads_with, json={"error": {"message": "cannot add"}})
        if name in self.names:
            return httpx.Response(400, json={"error": {"message": f"{name} has already been loaded"}})
        self.names.add(name)
        return httpx.Response(200)

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = " ".join(message["content"] for message in body["messages"])
        probe = next((probe for question, probe in self._probes.items() if question in prompt), None)
        choice: dict[str, Any] = {"index": 0, "message": {"content": "4"}, "finish_reason": "stop"}
        if probe is None:
            self.answered.append(body["model"])
            return {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        self.probed += 1
        shift = 1.0 if self.is_wrong else 0.0
        choice["token_ids"] = probe.tokens
        choice["logprobs"] = {"content": [{"logprob": value + shift} for value in probe.logprobs]}
        count = len(probe.tokens)
        return {
            "choices": [choice],
            "prompt_token_ids": probe.prompt_tokens,
            "usage": {"prompt_tokens": len(probe.prompt_tokens), "completion_tokens": count},
        }


class Fleet:
    """Two fake engines, a pool over them, and a loader that knows one version with an adapter."""

    def __init__(
        self, a: FakeEngine, b: FakeEngine, pool: EnginePool, loader: Loader, pointers: CriticPointers
    ) -> None:
        self.a, self.b, self.pool, self.loader, self.pointers = a, b, pool, loader, pointers
        self.critic: CriticVersion

    @property
    def name(self) -> str:
        return self.critic.engine_name

    async def ask(self) -> None:
        await self.pool.chat(ASK, model=self.name, sampling=Sampling(max_tokens=5))


@pytest.fixture
async def fleet(
    tmp_path: Path, database_url: str, database: Database, published: PublishedAdapter
) -> AsyncIterator[Fleet]:
    a, b = FakeEngine("a", published), FakeEngine("b", published)
    pointers, metrics = CriticPointers(database), Metrics()
    settings = make_settings(tmp_path, database_url, "http://a", "http://b")
    engines = (a.engine, b.engine)
    tasks = load_tasks(settings)
    loader = Loader(
        settings=settings,
        tasks=tasks,
        database=database,
        engines=engines,
        pointers=pointers,
        leases=Leases(limit=100, metrics=metrics),
        replicas=Replicas(database),
        metrics=metrics,
    )
    pool = EnginePool(engines, router=loader)
    fleet = Fleet(a, b, pool, loader, pointers)
    await pointers.start(base_model="tiny", tasks=[tasks.default.id])
    fleet.critic = await insert_version(database, published)
    await pointers.refresh()
    yield fleet
    await pool.aclose()


@asynccontextmanager
async def another_replica(fleet: Fleet, tmp_path: Path, database_url: str) -> AsyncIterator[Loader]:
    """The loader of a second replica, with connections of its own to the engines of the fleet."""
    settings, metrics = make_settings(tmp_path, database_url, "http://a", "http://b"), Metrics()
    tasks = load_tasks(settings)
    engines = [
        Engine(each.engine.url, timeout_s=5, transport=httpx.MockTransport(each.answer)) for each in (fleet.a, fleet.b)
    ]
    async with Database(database_url) as database:
        pointers = CriticPointers(database)
        await pointers.start(base_model="tiny", tasks=[tasks.default.id])
        yield Loader(
            settings=settings,
            tasks=tasks,
            database=database,
            engines=engines,
            pointers=pointers,
            leases=Leases(limit=100, metrics=metrics),
            replicas=Replicas(database),
            metrics=metrics,
        )
    for engine in engines:
        await engine.aclose()


# ------------------------------------------------------------------------------------------------------- shared proofs


async def test_a_replica_relies_on_what_another_proved_about_the_same_process(
    fleet: Fleet, tmp_path: Path, database_url: str
) -> None:
    fleet.a.process, fleet.b.process = "first", "second"
    proofs = await fleet.loader.prove(fleet.critic, share=1.0)
    assert [proof.proved_by for proof in proofs] == [None, None]
    probes = fleet.a.probed
    async with another_replica(fleet, tmp_path, database_url) as other:
        shared = await other.prove(fleet.critic, share=0.0)
        assert (fleet.a.probed, fleet.b.probed) == (probes, probes), "no probe was sent again"
        assert [proof.deltas for proof in shared] == [proof.deltas for proof in proofs]
        assert {proof.proved_by for proof in shared} == {str(fleet.loader._replicas.id)}
        assert other.is_proven(fleet.critic.version)
        again = await other.prove(fleet.critic, share=1.0)
        assert [proof.proved_by for proof in again] == [None, None], "a promotion is proven by its own probes"
        assert fleet.a.probed == 2 * probes


NOT_SHARED: list[tuple[Callable[[FakeEngine], object], str]] = [
    (lambda engine: setattr(engine, "process", "another"), "the engine was restarted"),
    (lambda engine: setattr(engine, "process", ""), "the engine gives its process no name"),
    (lambda engine: engine.names.clear(), "the adapter was unloaded"),
]


@pytest.mark.parametrize(("change", "why"), NOT_SHARED)
async def test_a_proof_of_another_replica_is_not_enough_when(
    fleet: Fleet, tmp_path: Path, database_url: str, change: Callable[[FakeEngine], object], why: str
) -> None:
    fleet.a.process, fleet.b.process = "first", "second"
    await fleet.loader.prove(fleet.critic, share=1.0)
    probes = fleet.a.probed
    for engine in (fleet.a, fleet.b):
        change(engine)
        engine.is_wrong = True
    async with another_replica(fleet, tmp_path, database_url) as other:
        with pytest.raises(BadAdapter, match="nats from the trainer"):
            await other.prove(fleet.critic, share=0.0)
        assert fleet.a.probed == 2 * probes, why


async def test_a_proof_is_withdrawn_by_failed_probes_and_when_the_adapter_is_unloaded(
    fleet: Fleet, tmp_path: Path, database_url: str
) -> None:
    fleet.a.process, fleet.b.process = "first", "second"
    async with another_replica(fleet, tmp_path, database_url) as other:
        await fleet.loader.prove(fleet.critic, share=1.0)
        fleet.a.is_wrong = fleet.b.is_wrong = True
        with pytest.raises(BadAdapter):
            await other.prove(fleet.critic, share=1.0)  # a promotion
        with pytest.raises(BadAdapter):
            await other.prove(fleet.critic, share=0.0)  # a request, for which the earlier proof would be enough
        fleet.a.is_wrong = fleet.b.is_wrong = False
        await fleet.loader.prove(fleet.critic, share=1.0)
        await fleet.loader.unload_everywhere(fleet.critic)
        for engine in (fleet.a, fleet.b):  # loaded by a third replica, which has not proven it yet
            engine.names.add(fleet.critic.engine_name)
        proofs = await other.prove(fleet.critic, share=0.0)
        assert [proof.proved_by for proof in proofs] == [None, None]


async def test_an_old_proof_is_not_enough(fleet: Fleet, tmp_path: Path, database_url: str, database: Database) -> None:
    fleet.a.process, fleet.b.process = "first", "second"
    await fleet.loader.prove(fleet.critic, share=1.0)
    async with database.session() as session:
        await session.execute(text("UPDATE engine_proofs SET proved_at = proved_at - interval '11 minutes'"))
    async with another_replica(fleet, tmp_path, database_url) as other:
        proofs = await other.prove(fleet.critic, share=0.0)
        assert [proof.proved_by for proof in proofs] == [None, None]
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM engine_proofs")) == 2, "the old ones were replaced"


# ----------------------------------------------------------------------------------------------------- unproven critics


async def test_an_engine_that_did_not_prove_a_critic_gets_no_request_for_it(fleet: Fleet) -> None:
    fleet.b.names.add(fleet.name)  # the right name with other weights
    fleet.b.is_wrong = True
    await fleet.loader.ready(fleet.critic)
    await asyncio.gather(*(fleet.ask() for _ in range(8)))
    assert fleet.a.answered == [fleet.name] * 8
    assert fleet.b.answered == []
    await fleet.pool.chat(ASK, model="base", sampling=Sampling(max_tokens=5))  # the base model needs no proof
    assert (fleet.a.answered + fleet.b.answered)[-1] == "base" or "base" in fleet.b.answered

    fleet.b.is_wrong = False
    await asyncio.sleep(loader._REFUSAL_VALID_S)
    fleet.a.fault = httpx.ConnectError("gone")  # the other engine must prove the critic before it answers
    await fleet.ask()
    assert fleet.b.answered[-1] == fleet.name
    assert fleet.loader.proven_on(fleet.b.engine) == [fleet.critic.version]


async def test_a_failed_connection_ends_a_proof(fleet: Fleet) -> None:
    await fleet.loader.prove(fleet.critic, share=1.0)
    assert fleet.loader.proven_on(fleet.a.engine) == [fleet.critic.version]
    fleet.a.fault = httpx.ReadError("reset")
    with pytest.raises(EngineUnavailable):
        await fleet.a.engine.models()
    fleet.a.fault = None
    assert fleet.loader.proven_on(fleet.a.engine) == [], "the next process there may serve other weights by that name"
    assert fleet.loader.proven_on(fleet.b.engine) == [fleet.critic.version]


async def test_an_adapter_unloaded_again_before_the_call_is_restored_once_more(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.loader.prove(fleet.critic, share=1.0)
    restore = fleet.loader.restore
    restored: list[str] = []

    async def restore_and_lose_the_first(engine: Engine, name: str) -> None:
        restored.append(engine.url)
        await restore(engine, name)
        if len(restored) == 1:
            await engine.unload_adapter(name)

    monkeypatch.setattr(fleet.loader, "restore", restore_and_lose_the_first)
    fleet.a.names.clear()
    fleet.b.names.clear()
    await fleet.ask()
    assert len(restored) == 2


@pytest.mark.parametrize("was_there", [False, True])
async def test_a_failed_proof_unloads_only_what_it_loaded(fleet: Fleet, was_there: bool) -> None:
    fleet.a.is_wrong = fleet.b.is_wrong = True
    if was_there:
        fleet.a.names.add(fleet.name)  # another replica uses it
    with pytest.raises(BadAdapter, match="nats from the trainer's"):
        await fleet.loader.prove(fleet.critic, share=1.0)
    assert (fleet.name in fleet.a.names) is was_there
    assert fleet.name not in fleet.b.names


async def test_a_proof_that_takes_too_long_leaves_nothing_loaded(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_PATIENCE_S", 0.3)
    fleet.a.hang.clear()
    fleet.b.hang.clear()
    with pytest.raises(EngineTimeout):
        await fleet.loader.prove(fleet.critic, share=1.0)
    assert fleet.name not in fleet.a.names | fleet.b.names


# ------------------------------------------------------------------------------------------------------- a dying engine


@pytest.mark.parametrize(("is_healthy", "error"), [(True, AdapterRefused), (False, EngineUnavailable)])
async def test_a_dead_engine_does_not_refuse_an_adapter(fleet: Fleet, is_healthy: bool, error: type[Exception]) -> None:
    fleet.a.loads_with, fleet.a.is_healthy = 500, is_healthy
    with pytest.raises(error):
        await fleet.a.engine.load_adapter("critic@1", Path("folder"))


@pytest.mark.parametrize("is_healthy", [True, False])
async def test_one_engine_is_enough_for_a_rollback(fleet: Fleet, is_healthy: bool) -> None:
    fleet.a.loads_with, fleet.a.is_healthy = 500, is_healthy
    [proof] = await fleet.loader.prove(fleet.critic, share=0.0)
    assert proof.engine == fleet.b.engine.url
    with pytest.raises((AdapterRefused, EngineUnavailable), match="http://a"):
        await fleet.loader.prove(fleet.critic, share=1.0)


QUORUMS = [(0.0, True), (0.5, True), (0.51, False), (1.0, False)]  # share, whether one engine of two is enough


@pytest.mark.parametrize(("share", "is_enough"), QUORUMS)
async def test_a_quorum_of_engines_proves_a_critic(fleet: Fleet, share: float, is_enough: bool) -> None:
    fleet.a.is_wrong = True
    if is_enough:
        [proof] = await fleet.loader.prove(fleet.critic, share=share)
        assert proof.engine == fleet.b.engine.url
        assert not fleet.loader.may_serve(fleet.a.engine, fleet.name)
    else:
        with pytest.raises(BadAdapter):
            await fleet.loader.prove(fleet.critic, share=share)


async def test_one_engine_that_hangs_does_not_delay_a_rollback(fleet: Fleet) -> None:
    fleet.a.hang.clear()
    started = time.monotonic()
    [proof] = await fleet.loader.prove(fleet.critic, share=0.0)
    assert proof.engine == fleet.b.engine.url
    assert time.monotonic() - started < 20


# ---------------------------------------------------------------------------------------------------------- old critics


async def test_the_number_of_old_critics_served_is_limited(
    fleet: Fleet, database: Database, published: PublishedAdapter
) -> None:
    others = [await insert_version(database, published) for _ in range(2)]
    await fleet.pointers.refresh()
    await fleet.loader.ready(fleet.critic)  # four slots: one beside live, previous and candidate
    with pytest.raises(TooBusy) as refusal:
        await fleet.loader.ready(others[0])
    assert refusal.value.retry_after_s > 1
    async with database.session() as session:
        await store.critics.set_candidate(session, others[0].version)
    await fleet.pointers.refresh()
    await fleet.loader.ready(others[0])
    await fleet.loader.ready(fleet.critic)


# ------------------------------------------------------------------------------------------------------- adapter slots


async def make_tasks(
    tmp_path: Path, database_url: str, database: Database, published: PublishedAdapter, *names: str
) -> tuple[Fleet, list[CriticVersion], Leases]:
    """A fleet with two adapter slots, and a live critic of each of these tasks, whose default is mathematics."""
    head = 'name = "{}"\ndescription = "A test."\nprompts = "stepwise@1"'
    folders = [write_task(tmp_path / name, head=head.format(name), prompts=None) for name in names]
    settings = make_settings(
        tmp_path, database_url, "http://a", "http://b", adapter_slots=2, tasks=",".join(map(str, folders))
    )
    tasks = load_tasks(settings)
    a, b = FakeEngine("a", published), FakeEngine("b", published)
    pointers, metrics, engines = CriticPointers(database, tasks.names), Metrics(), (a.engine, b.engine)
    leases = Leases(limit=100, metrics=metrics)
    loader = Loader(
        settings=settings,
        tasks=tasks,
        database=database,
        engines=engines,
        pointers=pointers,
        leases=leases,
        replicas=Replicas(database),
        metrics=metrics,
    )
    await pointers.start(base_model="tiny", tasks=[task.id for task in tasks])
    critics = []
    for task in tasks:
        critics.append(await insert_version(database, published, task=task.id))
        async with database.session() as session:
            await store.critics.set_pointer(session, "live", critics[-1].version, task=task.name)
    await pointers.refresh()
    return Fleet(a, b, EnginePool(engines, router=loader), loader, pointers), critics, leases


async def test_a_cold_critic_gets_the_slot_of_the_one_used_longest_ago(
    tmp_path: Path, database_url: str, database: Database, published: PublishedAdapter
) -> None:
    fleet, (math, birds, towns), _ = await make_tasks(tmp_path, database_url, database, published, "birds", "towns")
    for critic in (math, birds, towns):
        await fleet.loader.ready(critic)
    assert fleet.a.names == fleet.b.names == {math.engine_name, towns.engine_name}, "the default task keeps its slot"
    await fleet.loader.ready(birds)
    assert fleet.a.names == {math.engine_name, birds.engine_name}
    assert not fleet.loader.is_proven(towns.version)
    await fleet.pool.aclose()


async def test_busy_tasks_keep_their_slots_and_the_others_wait(
    tmp_path: Path, database_url: str, database: Database, published: PublishedAdapter
) -> None:
    fleet, (math, birds, towns), leases = await make_tasks(
        tmp_path, database_url, database, published, "birds", "towns"
    )
    await fleet.loader.ready(math)
    await fleet.loader.ready(birds)
    fleet.pointers.line("birds").note_use()
    started = time.monotonic()
    with pytest.raises(NoSlot, match="GADFLY_ADAPTER_SLOTS") as refusal:
        await fleet.loader.ready(towns)
    assert refusal.value.retry_after_s > 1
    assert time.monotonic() - started > 2, "it waits for a slot first"
    assert fleet.a.names == {math.engine_name, birds.engine_name}
    fleet.pointers.line("birds")._used_at = -float("inf")
    with leases.take(birds.version, is_pinned=False):
        waiting = asyncio.create_task(fleet.loader.ready(towns))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "a request in flight keeps the slot"
    await waiting
    assert fleet.a.names == {math.engine_name, towns.engine_name}
    await fleet.pool.aclose()


async def test_two_cold_critics_do_not_wait_for_each_other(
    tmp_path: Path, database_url: str, database: Database, published: PublishedAdapter
) -> None:
    fleet, critics, leases = await make_tasks(tmp_path, database_url, database, published, "birds", "towns")
    math, birds, towns = critics
    await fleet.loader.ready(math)

    async def request(critic: CriticVersion) -> None:
        with leases.take(critic.version, is_pinned=False):
            await fleet.loader.ready(critic)

    await asyncio.gather(request(birds), request(towns))
    assert len(fleet.a.names) == 2
    await fleet.pool.aclose()


# ------------------------------------------------------------------------------------------------------------- readings


async def test_concurrent_readings_end_in_order(fleet: Fleet, database: Database) -> None:
    async with database.session() as session:
        for _ in range(3):
            await session.execute(text("UPDATE critic_pointers SET version = 0 WHERE name = 'live'"))

    async def move(version: int) -> None:
        async with database.session() as session:
            await session.execute(
                text("UPDATE critic_pointers SET version = :version WHERE name = 'live'"), {"version": version}
            )
        await fleet.pointers.refresh()
        assert fleet.pointers.default.current["live"] == version

    for number in range(10):
        earlier = [asyncio.create_task(fleet.pointers.refresh()) for _ in range(5)]
        await asyncio.sleep(0)
        await move(number % 2)
        await asyncio.gather(*earlier)
        assert fleet.pointers.default.current["live"] == number % 2, "an older reading does not replace a newer one"


# ------------------------------------------------------------------------------------------------------------- rollback


async def _promote(database: Database, version: int) -> None:
    async with database.session() as session:
        swap = await store.swaps.request_swap(session, version=version, kind=SwapKind.PROMOTE)
    async with database.session() as session:
        await store.swaps.move_pointer(session, swap.id)


async def test_a_repeated_rollback_does_not_go_forward(fleet: Fleet, database: Database) -> None:
    await _promote(database, 1)
    async with database.session() as session:
        swap = await store.swaps.request_swap(session, kind=SwapKind.ROLLBACK, from_version=1)
        await store.swaps.move_pointer(session, swap.id)
    with pytest.raises(Conflict, match="version 0 is live, and not 1"):
        async with database.session() as session:
            await store.swaps.request_swap(session, kind=SwapKind.ROLLBACK, from_version=1)
    async with database.session() as session:
        assert (await store.critics.read_pointers(session))["live"] == 0


@pytest.mark.parametrize("kind", [SwapKind.ROLLBACK, SwapKind.WATCH])
async def test_a_rollback_refuses_the_pending_promotion(
    fleet: Fleet, database: Database, published: PublishedAdapter, kind: SwapKind
) -> None:
    await insert_version(database, published)
    async with database.session() as session:
        first = await store.swaps.request_swap(session, version=1, kind=SwapKind.GATE)
    with pytest.raises(Conflict, match=r"no critic to go back to.*the swap to version 1 is still in progress"):
        async with database.session() as session:
            await store.swaps.request_swap(session, kind=kind)
    async with database.session() as session:
        await store.swaps.move_pointer(session, first.id)
    async with database.session() as session:
        promotion = await store.swaps.request_swap(session, version=2, kind=SwapKind.PROMOTE)
    async with database.session() as session:
        back = await store.swaps.request_swap(session, kind=kind)
        assert (back.version, back.from_version) == (0, 1)
    async with database.session() as session:
        over = await store.swaps.read_swap(session, promotion.id)
        assert (over.status, over.reason) == (SwapStatus.REFUSED, "superseded by a rollback")
        assert await store.swaps.pending_swap(session) == back
    with pytest.raises(Conflict, match="another swap is in progress"):  # one way back does not end another
        async with database.session() as session:
            await store.swaps.request_swap(session, kind=kind)


# --------------------------------------------------------------------------------------------------------- live traffic


# ------------------------------------------------------------------------------------------------------ a whole service


@pytest.fixture
async def spoilt(settings: Settings, database: Database, critic_model: Path, tmp_path: Path) -> CriticVersion:
    """A live critic whose probe record differs from the tokens that an engine answers."""
    good = publish_adapter(tmp_path / "good", model=critic_model, seed=5)
    return await _live(database, publish_again(good, tmp_path / "spoilt", change_last_token))


async def _live(database: Database, adapter: PublishedAdapter) -> CriticVersion:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        # The engine may be shared: a name that no other test uses.
        await session.execute(
            text("INSERT INTO critic_versions (version, base_model, created_at) VALUES (:version, 'tiny', now())"),
            {"version": randrange(10**6, 10**9)},
        )
    critic = await insert_version(database, adapter)
    await _promote(database, critic.version)
    return critic


async def test_an_unproven_live_critic_makes_the_service_unready_and_requests_get_503(
    settings: Settings, spoilt: CriticVersion, tmp_path: Path
) -> None:
    async with serving(settings, ready=False) as client:
        deadline = time.monotonic() + 30
        while True:
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            if f"the live critic {spoilt.version} is not served here" in ready.text:
                break
            assert time.monotonic() < deadline, ready.text
            await asyncio.sleep(0.2)
        assert f"no engine serves the live critic {spoilt.engine_name}" in ready.json()["critic"]["detail"]
        for path, body in (
            ("/critique", RIGHT),
            ("/refine", RIGHT),
            ("/critique", {**RIGHT, "critic": spoilt.version}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            assert "tokens" not in answer.json()["detail"]
        assert (await client.post("/critique", json={**RIGHT, "critic": 0})).status_code == 200


async def test_without_a_key_no_reasons_are_shown(
    settings: Settings, database: Database, spoilt: CriticVersion, tmp_path: Path
) -> None:
    secret_text = "a customer's name"
    async with database.session() as session:
        _, caller = await issue_key(session, name="caller", tier=Tier.CALLER)
        _, admin = await issue_key(session, name="admin", tier=Tier.ADMIN)
        swap = await store.swaps.request_swap(session, version=0, kind=SwapKind.PROMOTE)
        await store.swaps.finish_swap(session, swap.id, SwapStatus.REFUSED, f"{secret_text}: {tmp_path}/x")
        proof = {"engine": "unix:///secret/engine.sock", "vllm": "0.32"}
        await store.swaps.insert_receipt(
            session,
            SwapReceipt(
                id=new_id(),
                swap_id=swap.id,
                replica_id=new_id(),
                version=0,
                created_at=now(),
                details={"engines": [proof], "lost": 0},
            ),
        )
    async with serving(settings, ready=False) as client:
        problem = f"the live critic {spoilt.version} is not served here (see the log)"
        await _until(client, lambda state: [item["problem"] for item in state["replicas"]] == [problem])
        refusal = "the last swap was refused; see GET /critics/0"
        for path, message in (("/readyz", problem), ("/state", refusal)):
            shown = (await client.get(path)).text
            assert message in shown
            assert secret_text not in shown
            assert str(tmp_path) not in shown
        history = {}
        for tier, secret in (("caller", caller), ("admin", admin)):
            answer = await client.get("/critics/0", headers={"authorization": f"Bearer {secret}"})
            history[tier] = answer.json()
        assert secret_text in history["admin"]["swaps"][0]["reason"]
        assert history["admin"]["receipts"][0]["details"]["engines"] == [proof]
        assert history["caller"]["swaps"][0]["reason"] is None
        assert history["caller"]["receipts"][0]["details"] == {"engines": [{"vllm": "0.32"}], "lost": 0}


@asynccontextmanager
async def _hanging(path: Path) -> AsyncIterator[str]:
    """An engine that accepts every connection and never answers."""
    end = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await end.wait()
        writer.close()

    server = await asyncio.start_unix_server(hang, path)
    try:
        yield f"unix://{path}"
    finally:
        end.set()
        server.close()


async def test_a_rollback_does_not_wait_for_a_promotion(
    settings: Settings, database: Database, published: PublishedAdapter, tmp_path: Path
) -> None:
    live = await _live(database, published)
    other = await insert_version(database, published)
    async with _hanging(tmp_path / "hanging.sock") as url:
        settings = settings.model_copy(update={"engine_urls": (*settings.engine_urls, url)})
        async with serving(settings, ready=False) as client:
            await _until(client, lambda state: (state["status"], state["live_critic"]) == ("running", live.version))
            promoting = asyncio.create_task(client.post("/admin/promote", json={"version": other.version}))
            await _until(client, lambda state: state["swap"]["status"] == "pending")
            await asyncio.sleep(1)
            started = time.monotonic()
            back = await client.post("/admin/rollback", json={"from_version": live.version})
            assert (back.status_code, back.json()["status"]) == (200, "done")
            assert time.monotonic() - started < 30
            assert back.json()["version"] == 0
            promotion = await promoting
            assert promotion.status_code == 409
            assert "superseded by a rollback" in promotion.json()["detail"]
            again = await client.post("/admin/rollback", json={"from_version": live.version})
            assert again.status_code == 409


async def _until(client: httpx.AsyncClient, holds: Callable[[dict[str, Any]], bool], *, limit_s: float = 40) -> None:
    deadline = time.monotonic() + limit_s
    while not holds(state := (await client.get("/state")).json()):
        assert time.monotonic() < deadline, state
        await asyncio.sleep(0.1)


async def test_an_episode_in_the_spool_stays_on_its_critic(settings: Settings, database: Database) -> None:
    async with serving(settings) as client:
        await _accept_interactions(database, are_accepted=False)
        first = (await client.post("/critique", json=RIGHT)).json()
        assert (await client.get("/state")).json()["spool"]["records"] == 1
        episode = {"episode_id": first["episode_id"], "max_tokens": 4}
        again = await client.post("/critique", json={**RIGHT, **episode})
        assert again.status_code == 200
        assert again.json()["critic"]["version"] == 0
        other = await client.post("/critique", json={**RIGHT, **episode, "question": "Another?"})
        assert other.status_code == 422
        unknown = await client.post("/critique", json={**RIGHT, "episode_id": str(new_id())})
        assert unknown.status_code == 503
        assert "may not be stored yet" in unknown.json()["detail"]
        await _accept_interactions(database, are_accepted=True)
        deadline = time.monotonic() + 20
        while (await client.get("/state")).json()["spool"]["records"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert (await client.post("/critique", json={**RIGHT, "episode_id": str(new_id())})).status_code == 200


async def _accept_interactions(database: Database, *, are_accepted: bool) -> None:
    """Make Postgres accept interactions, or refuse them; all other tables stay available."""
    old, new = ("interactions_away", "interactions") if are_accepted else ("interactions", "interactions_away")
    async with database.session() as session:
        await session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
