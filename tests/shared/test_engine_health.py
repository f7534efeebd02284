"""One broken engine beside a sound one, over real sockets: which gets the requests, and when both do again."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gadfly.engine_client import Reply, Sampling
from gadfly.engine_health import EngineHealth, EngineStanding, HealthLimits
from gadfly.engine_pool import EnginePool
from gadfly.errors import EngineError, EngineRefused, EngineTimeout, EngineUnavailable, MalformedReply
from gadfly.prompts import Message, Prompt
from tests.support.broken_engines import Fault, StandIn, standing_in

PROMPT = Prompt((Message("user", "2 + 2?"),))
ONE = Sampling(max_tokens=5)
QUICK = HealthLimits(first_ejection_s=0.2, longest_ejection_s=0.4, watch_every_s=0.1)


@asynccontextmanager
async def pool_over(
    *engines: StandIn, limits: HealthLimits = QUICK, timeout_s: float = 30
) -> AsyncIterator[EnginePool]:
    async with standing_in(*engines):
        pool = EnginePool.connect([engine.url for engine in engines], timeout_s=timeout_s, health=limits)
        try:
            yield pool
        finally:
            await pool.aclose()


async def ask(pool: EnginePool) -> tuple[Reply, ...]:
    return await pool.chat(PROMPT, model="base", sampling=ONE)


async def load(pool: EnginePool, *, requests: int, callers: int) -> list[str]:
    """The errors of `requests` requests from concurrent callers."""
    errors: list[str] = []
    numbers = iter(range(requests))

    async def call() -> None:
        for _ in numbers:
            try:
                await ask(pool)
            except EngineError as error:
                errors.append(str(error))

    await asyncio.gather(*(call() for _ in range(callers)))
    return errors


@pytest.mark.parametrize("fault", [Fault.STATUS_500, Fault.HALF_JSON, Fault.OTHER_JSON, Fault.WRONG_KEY, Fault.HTML])
async def test_what_fails_at_once_attracts_no_traffic(fault: Fault) -> None:
    broken, sound = StandIn(fault), StandIn(seconds=0.2)
    async with pool_over(broken, sound, limits=HealthLimits()) as pool:
        assert await load(pool, requests=80, callers=8) == []
    assert sound.asked == 80, "each request that failed was asked again of the sound engine"
    assert broken.asked <= 12, "the callers' first requests, and probes"


async def test_requests_that_a_frozen_engine_holds_are_answered_by_another() -> None:
    frozen, sound = StandIn(Fault.FROZEN), StandIn()
    async with pool_over(frozen, sound) as pool:
        started = time.monotonic()
        assert await load(pool, requests=20, callers=8) == []
        assert time.monotonic() - started < 5
        assert pool.members[0].in_flight == 0


async def test_a_slow_engine_that_answers_its_health_route_is_not_frozen() -> None:
    slow = StandIn(seconds=1.5)
    async with pool_over(slow) as pool:
        assert await load(pool, requests=2, callers=2) == []


async def test_the_only_engine_is_asked_whatever_its_health() -> None:
    engine = StandIn(Fault.STATUS_500)
    async with pool_over(engine) as pool:
        assert len(await load(pool, requests=5, callers=1)) == 5
        assert pool.members[0].health.standing is EngineStanding.EJECTED
        engine.fault = Fault.NONE
        await ask(pool)
        assert pool.members[0].health.standing is EngineStanding.SOUND


async def test_an_engine_that_recovers_gets_requests_again() -> None:
    broken, sound = StandIn(Fault.STATUS_500), StandIn(seconds=0.01)
    async with pool_over(broken, sound) as pool:
        await load(pool, requests=20, callers=8)
        assert pool.members[0].health.standing is EngineStanding.EJECTED
        broken.fault, before = Fault.NONE, broken.asked
        await asyncio.sleep(0.5)
        assert await load(pool, requests=60, callers=4) == []
        assert pool.members[0].health.standing is EngineStanding.SOUND
        assert broken.asked > before + 10


async def test_a_probe_alone_does_not_end_an_ejection_early() -> None:
    engine, sound = StandIn(Fault.STATUS_500), StandIn()
    async with pool_over(engine, sound, limits=HealthLimits(first_ejection_s=60)) as pool:
        await load(pool, requests=20, callers=8)
        engine.fault = Fault.NONE
        await pool.probe(pool.members[0])
        assert pool.members[0].health.standing is EngineStanding.EJECTED


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault.HALF_JSON, MalformedReply, "cannot be read"),
        (Fault.OTHER_JSON, MalformedReply, "cannot be read"),
        (Fault.HTML, MalformedReply, "cannot be read"),
        (Fault.STATUS_500, EngineUnavailable, "status 500"),
        (Fault.CUT, EngineUnavailable, "was cut"),
        (Fault.WRONG_KEY, EngineRefused, "GADFLY_ENGINE_KEY"),
    ],
)
async def test_each_fault_has_a_name(fault: Fault, error: type[Exception], words: str) -> None:
    async with pool_over(StandIn(fault)) as pool:
        with pytest.raises(error, match=words):
            await ask(pool)


async def test_a_reply_that_was_streamed_in_part_is_not_repeated() -> None:
    first, second = StandIn(Fault.CUT), StandIn()
    async with pool_over(first, second) as pool:
        with pytest.raises(EngineUnavailable):
            await ask(pool)
    assert second.asked == 0, "the first engine may have done the work, or the request may have ended it"


async def test_timeouts_count() -> None:
    frozen = StandIn(seconds=60)
    async with pool_over(frozen, timeout_s=0.05) as pool:
        for _ in range(3):
            with pytest.raises(EngineTimeout):
                await ask(pool)
        assert pool.members[0].health.standing is EngineStanding.EJECTED


def test_ejections_double_up_to_a_limit_and_a_success_ends_them() -> None:
    health = EngineHealth("http://e", HealthLimits(failures=2, first_ejection_s=1, longest_ejection_s=3))
    health.note_failure("x", begun=health.epoch, now=0.0)
    assert health.standing is EngineStanding.SOUND
    health.note_failure("x", begun=health.epoch, now=0.0)
    ends = [health.ejected_until]
    for now in (1.0, 3.0, 6.0):
        assert health.is_due(now)
        health.note_probe(None, now=now)
        assert health.standing is EngineStanding.TRIAL
        health.note_failure("x", begun=health.epoch, now=now)
        ends.append(health.ejected_until)
    assert ends == [1.0, 3.0, 6.0, 9.0]
    health.note_success(begun=health.epoch - 1)
    assert health.standing is EngineStanding.EJECTED, "a call that began before the ejection shows nothing"
    health.note_success(begun=health.epoch)
    assert health.standing is EngineStanding.SOUND


def test_failures_of_one_moment_are_one_ejection() -> None:
    health = EngineHealth("http://e", HealthLimits(failures=1, first_ejection_s=1, longest_ejection_s=8))
    begun = health.epoch
    for _ in range(8):
        health.note_failure("x", begun=begun, now=0.0)
    assert health.ejected_until == 1.0
