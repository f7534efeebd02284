"""A short run of `bench/chaos.py` in front of a stand-in engine: kills and freezes under load, and closed books."""

import signal
from pathlib import Path

import pytest

from bench.chaos import Deployment, Fault, close_books, storm
from tests.support.broken_engines import StandIn, standing_in

pytestmark = [pytest.mark.database, pytest.mark.timeout(300)]

FAULTS = (
    Fault("service", signal.SIGKILL),
    Fault("postmaster", signal.SIGSTOP),
)


async def test_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    engine = StandIn(seconds=0.05)
    async with standing_in(engine):
        deployment = Deployment(tmp_path, ("--engine-urls", engine.url, "--model", "tiny", "--train", "false"))
        deployment.start()
        try:
            await deployment.until_whole(limit_s=90)
            books, outcomes = await storm(deployment, FAULTS, callers=3)
            problems = await close_books(deployment, books)
        finally:
            deployment.stop()
    assert problems == []
    assert len(books.interactions) > 20
    assert [outcome.fault for outcome in outcomes] == list(FAULTS)
    assert all(outcome.answers_s is not None for outcome in outcomes)
