"""From which critic a run starts, and whose evidence it adds to."""

from typing import Any

import pytest

from gadfly import store
from gadfly.records import SwapKind
from gadfly.store.database import Database
from gadfly.trainer.evaluate_and_publish import _best, _past
from gadfly.trainer.measure.gate import Evidence, Unit
from gadfly.trainer.selection import _start
from gadfly.training import GateOutcome, TrainConfig, Trigger


def report(
    live: int, *, nights: int | None = 1, lineage: int = 1, merit: tuple[float, float | None] = (0.5, 0.5)
) -> Any:
    evidence = Evidence(units=(Unit(0.5, 0.0, None),), nights=nights or 0, lineage=lineage, questions=frozenset("a"))
    refined = None if merit[1] is None else {"value": merit[1]}
    numbers: dict[str, Any] = {
        "candidate": {"discrimination_balanced": {"value": merit[0]}, "accuracy_refined": refined}
    }
    if nights is not None:
        numbers["evidence"] = evidence.to_json()
    return {"live": live, "numbers": numbers}


def test_a_run_from_the_live_critic_begins_a_lineage() -> None:
    assert _past({}, start=0, live=0) == Evidence(lineage=1)
    reports = {1: report(0), 2: report(0, nights=2), 3: report(0, lineage=2)}
    assert _past(reports, start=0, live=0) == Evidence(lineage=3), "versions 1 and 3 began one each"
    assert _past({1: report(0, nights=None)}, start=0, live=0) == Evidence(lineage=2), "of an earlier release"


def test_a_run_from_a_candidate_adds_to_its_evidence() -> None:
    reports = {1: report(0), 2: report(0, nights=2)}
    assert _past(reports, start=2, live=0) == Evidence.from_json(reports[2]["numbers"]["evidence"])
    assert _past(reports, start=7, live=0) == Evidence(lineage=2), "a version that was not measured against this one"


def test_the_anchor_is_the_version_that_was_measured_best() -> None:
    assert _best({}) == 0
    found = {1: report(0, merit=(0.8, 0.6)), 2: report(1, merit=(0.7, 0.8)), 3: report(2, merit=(0.7, 0.8))}
    assert _best(found) == 2, "of equal ones the first"
    assert _best({1: report(0, merit=(0.8, None))}) == 1


@pytest.fixture
async def seeded(database: Database) -> Database:
    """Version 0 live, and version 1 the candidate of a run that the gate has not decided about."""
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        await _publish(session, live=0, outcome=GateOutcome.NOT_ENOUGH_EVIDENCE)
    return database


async def _publish(session: Any, *, live: int, outcome: GateOutcome) -> int:
    run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
    await store.runs.save_gate(session, run.id, outcome, report(live))
    version = await store.critics.insert_critic(
        session,
        run_id=run.id,
        parent=live,
        base_model="tiny",
        prompt_set="stepwise@1",
        adapter_path=str(run.id),
        adapter_sha256="hash",
    )
    await store.critics.set_candidate(session, version.version)
    return version.version


async def start(seeded: Database, *, continue_candidate: bool = True) -> int:
    async with seeded.session() as session:
        return (await _start(session, continue_candidate=continue_candidate)).version


async def test_an_undecided_candidate_is_continued(seeded: Database) -> None:
    assert await start(seeded) == 1
    assert await start(seeded, continue_candidate=False) == 0


async def test_a_promotable_candidate_is_not_continued(seeded: Database) -> None:
    async with seeded.session() as session:
        await _publish(session, live=0, outcome=GateOutcome.PROMOTE)
    assert await start(seeded) == 0, "a person decides about it"


async def test_a_candidate_measured_against_another_critic_is_not_continued(seeded: Database) -> None:
    async with seeded.session() as session:
        other = await _publish(session, live=0, outcome=GateOutcome.PROMOTE)
        await _publish(session, live=0, outcome=GateOutcome.NOT_ENOUGH_EVIDENCE)
        swap = await store.swaps.request_swap(session, version=other, kind=SwapKind.GATE)
        await store.swaps.move_pointer(session, swap.id)
    assert await start(seeded) == other


async def test_reports_are_found_by_what_was_live(seeded: Database) -> None:
    async with seeded.session() as session:
        swap = await store.swaps.request_swap(session, version=1, kind=SwapKind.GATE)
        await store.swaps.move_pointer(session, swap.id)
        second = await _publish(session, live=1, outcome=GateOutcome.REJECT)
    async with seeded.session() as session:
        assert [version for version, _ in await store.runs.gate_reports(session, 0)] == [1]
        assert [version for version, _ in await store.runs.gate_reports(session, 1)] == [second]
        assert list(await store.runs.promoted_reports(session)) == [1]
        swap = await store.swaps.request_swap(session, kind=SwapKind.ROLLBACK)
        await store.swaps.move_pointer(session, swap.id)
    async with seeded.session() as session:
        assert await store.runs.promoted_reports(session) == {}, "a version that was rolled back from is no anchor"
