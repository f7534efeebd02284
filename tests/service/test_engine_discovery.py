"""Engines that join and leave while requests go on: they prove the live critic first, and no request is lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import orjson
import pytest

from gadfly.engine_client import Engine, Sampling
from gadfly.engine_fleet import EngineFleet
from gadfly.records import CriticVersion, new_id
from gadfly.service.critics.serving import CriticServing
from gadfly.service.metrics import Metrics
from gadfly.store.database import Database
from gadfly.tasks import load_tasks
from tests.service.conftest import RIGHT, make_settings
from tests.service.test_swap_faults import ASK, FakeEngine, _live, published  # noqa: F401
from tests.support.adapters import PublishedAdapter
from tests.support.instant import instant_engine
from tests.support.relays import relay
from tests.support.services import serving

NAME = "dns+http://engines.example:8000"


class PodEngine(FakeEngine):
    """A fake engine that also says that it loads adapters, and takes time to answer."""

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(404)
        if request.url.path == "/v1/load_lora_adapter" and "lora_name" not in orjson.loads(request.content):
            return httpx.Response(400, json={"error": {"message": "no name"}})
        if request.url.path == "/v1/chat/completions":
            await asyncio.sleep(0.01)
        return await super().answer(request)


class Cluster:
    """A deployment whose name leads to the pods that a test says; each pod is a new process."""

    def __init__(self, adapter: PublishedAdapter) -> None:
        self.hosts: list[str] = []
        self.pods: dict[str, PodEngine] = {}
        self._adapter = adapter
        self.fleet = EngineFleet([NAME], self._open, resolve=self._resolve)
        self.critics: CriticServing
        self.live: CriticVersion

    async def _resolve(self, name: str) -> frozenset[str]:
        return frozenset(f"http://{host}" for host in self.hosts)

    def _open(self, url: str, entry: str) -> Engine:
        self.pods[url.removeprefix("http://")] = pod = PodEngine(url.removeprefix("http://"), self._adapter)
        pod.process = str(new_id())
        return pod.engine

    async def move_to(self, *hosts: str) -> None:
        self.hosts = list(hosts)
        for _ in range(3):
            await self.fleet.look()

    def proven(self) -> set[str]:
        return {
            engine.url.removeprefix("http://")
            for engine in self.fleet
            if self.live.version in self.critics.loader.proven_on(engine)
        }

    async def ask(self) -> None:
        await self.critics.engines.chat(ASK, model=self.live.engine_name, sampling=Sampling(max_tokens=5))


@pytest.fixture
async def cluster(
    tmp_path: Path,
    database_url: str,
    database: Database,
    published: PublishedAdapter,  # noqa: F811
) -> AsyncIterator[Cluster]:
    cluster = Cluster(published)
    settings = make_settings(tmp_path, database_url, NAME)
    cluster.live = await _live(database, published)
    cluster.critics = CriticServing(
        settings=settings, tasks=load_tasks(settings), database=database, engines=cluster.fleet, metrics=Metrics()
    )
    await cluster.critics.start()
    cluster.critics.pointers.default.serving = cluster.live.version
    upkeep = asyncio.create_task(cluster.critics.upkeep.run())
    yield cluster
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)
    await cluster.critics.aclose()


async def until(holds: Callable[[], bool], *, limit_s: float = 15) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_engines_join_and_leave_under_load(cluster: Cluster) -> None:
    await cluster.move_to("a:1")
    await until(lambda: cluster.proven() == {"a:1"})
    end, failures, answered = asyncio.Event(), [], 0

    async def caller() -> None:
        nonlocal answered
        while not end.is_set():
            try:
                await cluster.ask()
                answered += 1
            except Exception as error:  # any fault is one too many
                failures.append(error)
            await asyncio.sleep(0.005)

    callers = [asyncio.create_task(caller()) for _ in range(4)]
    await cluster.move_to("a:1", "b:1")
    assert cluster.pods["b:1"].answered == [], "it has proven nothing yet"
    await until(lambda: cluster.proven() == {"a:1", "b:1"})
    await until(lambda: len(cluster.pods["b:1"].answered) > 20)
    first = cluster.pods["a:1"]
    await cluster.move_to("b:1")
    await asyncio.sleep(0.1)
    before = len(first.answered)
    await asyncio.sleep(0.5)
    assert len(first.answered) == before, "a removed engine gets no further request"
    await cluster.move_to("a:1", "b:1")
    second = cluster.pods["a:1"]
    assert second is not first
    await until(lambda: "a:1" in cluster.proven() and len(second.answered) > 20)
    end.set()
    await asyncio.gather(*callers)
    assert failures == []
    assert answered > 100
    assert second.names == {cluster.live.engine_name}, "the live critic was loaded there by itself"


async def test_an_address_that_is_used_again_has_to_prove_the_critic_again(cluster: Cluster) -> None:
    await cluster.move_to("a:1", "b:1")
    await until(lambda: cluster.proven() == {"a:1", "b:1"})
    await cluster.move_to("b:1")
    assert cluster.proven() == {"b:1"}
    await cluster.move_to("a:1", "b:1")
    assert cluster.proven() == {"b:1"}, "the proof was that of another process"
    cluster.pods["a:1"].is_wrong = True
    await asyncio.gather(*(cluster.ask() for _ in range(8)))
    assert cluster.pods["a:1"].answered == []


async def test_a_service_starts_with_engines_that_are_found_by_name(tmp_path: Path, database_url: str) -> None:
    with instant_engine(tmp_path) as url:
        async with (
            relay(url) as port,
            serving(make_settings(tmp_path, database_url, f"dns+http://localhost:{port}")) as client,
        ):
            assert (await client.post("/critique", json=RIGHT)).status_code == 200
            engines = {each["url"]: each for each in (await client.get("/state")).json()["engines"]}
            assert engines[f"http://127.0.0.1:{port}"]["reachable"]


async def test_a_service_without_any_address_says_so(tmp_path: Path, database_url: str) -> None:
    settings = make_settings(tmp_path, database_url, "dns+http://no-such-host.invalid:8000")
    async with serving(settings, ready=False) as client:
        answer = await client.post("/critique", json=RIGHT)
        assert answer.status_code == 503, answer.text
        ready = (await client.get("/readyz")).json()
        assert "lead to no address" in ready["engine"]["detail"]
        assert (await client.get("/state")).json()["engines"] == []
