"""Engines that are found by name: who joins, who leaves, and when nothing changes."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import httpx
import pytest

from gadfly.engine_client import ACTOR, Engine, Sampling
from gadfly.engine_fleet import EngineFleet, addressed, look_up
from gadfly.engine_pool import EnginePool
from gadfly.errors import EngineUnavailable
from gadfly.prompts import load
from gadfly.settings import Settings

NAME = "dns+http://engines.example:8000"
PROMPT = load("stepwise@1").solve(question="2 + 2?")
ANSWER = {
    "choices": [{"index": 0, "message": {"content": "4"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


class Names:
    """A resolver whose answer a test changes, and the engines that were opened by it."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.opened: list[tuple[str, str]] = []
        self.changed: list[str] = []
        self.fleet = EngineFleet(["http://fixed:1", NAME], self._open, resolve=self._resolve)
        self.fleet.on_change = lambda engine: self.changed.append(engine.url)

    async def _resolve(self, name: str) -> frozenset[str]:
        assert name == NAME
        return frozenset(f"http://{host}:8000" for host in self.hosts)

    def _open(self, url: str, entry: str) -> Engine:
        self.opened.append((url, entry))
        return Engine(url, timeout_s=5, transport=httpx.MockTransport(lambda _: httpx.Response(200, json=ANSWER)))

    async def look(self, *hosts: str, times: int = 1) -> list[str]:
        self.hosts = list(hosts)
        for _ in range(times):
            await self.fleet.look()
        return [engine.url.removeprefix("http://").partition(":")[0] for engine in self.fleet]


@pytest.fixture
async def names() -> AsyncIterator[Names]:
    names = Names()
    yield names
    await names.fleet.aclose()


LOOKS: list[tuple[list[tuple[Iterable[str], int]], list[str], str]] = [
    # hosts of each look and how often, the engines afterwards, why this row exists
    ([((), 1)], ["fixed"], "a name without addresses: the fixed engines serve"),
    ([(("a", "b"), 1)], ["fixed", "a", "b"], "all addresses of a name are engines"),
    ([(("a",), 1), (("a", "b"), 1)], ["fixed", "a", "b"], "one that joins is used at once"),
    ([(("a", "b"), 1), (("a",), 2)], ["fixed", "a", "b"], "servers of DNS may differ for moments"),
    ([(("a", "b"), 1), (("a",), 3)], ["fixed", "a"], "one that is gone leaves after three looks"),
    ([(("a", "b"), 1), (("a",), 2), (("a", "b"), 1), (("a",), 2)], ["fixed", "a", "b"], "its absences are in a row"),
    ([(("a", "b"), 1), ((), 9)], ["fixed", "a", "b"], "an outage of DNS removes no engine"),
    ([(("a",), 1), (("b",), 3)], ["fixed", "b"], "a pod that is replaced has another address"),
    ([(("a",), 1), (("b",), 3), (("a",), 3)], ["fixed", "a"], "and may get one that was in use before"),
]


@pytest.mark.parametrize(("looks", "engines", "why"), LOOKS, ids=[row[2] for row in LOOKS])
async def test_who_is_an_engine(
    names: Names, looks: list[tuple[Iterable[str], int]], engines: list[str], why: str
) -> None:
    found: list[str] = []
    for hosts, times in looks:
        found = await names.look(*hosts, times=times)
    assert found == engines, why
    assert len(names.fleet) == len(engines)


async def test_an_engine_that_returns_is_another_one(names: Names) -> None:
    await names.look("a")
    first = names.fleet[1]
    await names.look("b", times=3)
    await names.look("a", times=3)
    assert names.fleet[1] is not first, "another process may have the address: it has to prove itself"
    assert names.changed == [f"http://{host}:8000" for host in ("a", "b", "a", "a", "b")]
    assert names.opened == [("http://fixed:1", "http://fixed:1")] + [
        (f"http://{host}:8000", NAME) for host in ("a", "b", "a")
    ]


async def test_a_pool_follows_its_fleet(names: Names) -> None:
    empty = EngineFleet([NAME], names._open, resolve=names._resolve)
    pool = EnginePool(empty)
    with pytest.raises(EngineUnavailable, match="no engine"):
        await pool.chat(PROMPT, model=ACTOR, sampling=Sampling(max_tokens=1))
    names.hosts = ["a"]
    await empty.look()
    [reply] = await pool.chat(PROMPT, model=ACTOR, sampling=Sampling(max_tokens=1))
    assert reply.text == "4"
    assert pool.members == tuple(empty)
    await empty.aclose()


async def test_failures_at_the_same_time_are_one_look(names: Names) -> None:
    await names.look("a", "b")
    names.hosts = ["a"]
    names.fleet._looked_at -= 60
    for _ in range(3):
        await asyncio.gather(*(names.fleet.look_if_due() for _ in range(20)))
    assert len(names.fleet) == 3, "b was missing in one look"


async def test_the_system_resolves_names() -> None:
    assert "http://127.0.0.1:8000" in await look_up("dns+http://localhost:8000")
    assert await look_up("dns+http://localhost") >= {"http://127.0.0.1:80"}
    assert await look_up("dns+http://no-such-host.invalid:8000") == frozenset()
    assert await look_up(f"dns+http://{'a' * 80}.invalid") == frozenset(), "no name that DNS can have"


async def test_each_address_has_the_key_of_its_name() -> None:
    urls = "unix:///run/engine,dns+http://localhost:8000,dns+http://no-such-host.invalid:1"
    found = await addressed(Settings(engine_urls=urls, engine_key="one,two,three"))
    keys = {url: found.engine_access(url).key for url in found.engine_urls}
    assert keys["unix:///run/engine"] == "one"
    assert keys["http://127.0.0.1:8000"] == "two"
    assert keys["dns+http://no-such-host.invalid:1"] == "three", "a name that leads nowhere stays"
