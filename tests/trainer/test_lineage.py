"""From which critic a run starts, and whose evidence it adds to."""

from contextlib import nullcontext
from typing import Any

import pytest

from gadfly import store
from gadfly.adapters import ProbeRecord
from gadfly.errors import Conflict
from gadfly.prompts import Example
from gadfly.records import SwapKind
from gadfly.store.critic_examples import PromptExamples
from gadfly.store.database import Database
from gadfly.trainer.evaluate_and_publish import _best, _past
from gadfly.trainer.measure.gate import Evidence, Unit
from gadfly.trainer.selection import _check_base, _start
from gadfly.training import GateOutcome, TrainConfig, Trigger
from tests.support.records import make_interaction

RECORD = ProbeRecord(prompt_set="stepwise@1", tolerance=1e-3, probes=())


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
    assert _best({}, otherwise=4) == 4
    found = {1: report(0, merit=(0.8, 0.6)), 2: report(1, merit=(0.7, 0.8)), 3: report(2, merit=(0.7, 0.8))}
    assert _best(found, otherwise=0) == 2, "of equal ones the first"
    assert _best({1: report(0, merit=(0.8, None))}, otherwise=0) == 1


@pytest.fixture
async def seeded(database: Database) -> Database:
    """Version 0 live, and version 1 the candidate of a run that the gate has not decided about."""
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        await _publish(session, live=0, outcome=GateOutcome.NOT_ENOUGH_EVIDENCE)
    return database


async def test_a_run_under_a_critic_by_examples_trains_the_base_model(database: Database) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        row = make_interaction()
        await store.interactions.insert_interactions(session, [row], heldout_share=0.0)
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        version = await store.critics.insert_critic(
            session,
            run_id=run.id,
            parent=0,
            base_model="tiny",
            prompt_set="stepwise@1",
            examples=PromptExamples(items=(Example("q", "r", "c"),), interactions=(row.id,), probe=RECORD),
        )
        await store.critics.set_candidate(session, version.version)
        assert (await _start(session, "tiny", "math", continue_candidate=True)).version == 0, "it is made anew"
        await store.critics.set_pointer(session, "live", version.version)
        assert (await _start(session, "tiny", "math", continue_candidate=True)).version == 0
        assert (await _start(session, "tiny", "math", continue_candidate=True, trains=False)).version == 0


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
        return (await _start(session, "tiny", "math", continue_candidate=continue_candidate)).version


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
        assert list(await store.runs.promoted_reports(session, "tiny")) == [1]
        swap = await store.swaps.request_swap(session, kind=SwapKind.ROLLBACK)
        await store.swaps.move_pointer(session, swap.id)
    async with seeded.session() as session:
        assert await store.runs.promoted_reports(session, "tiny") == {}, (
            "a version that was rolled back from is no anchor"
        )


async def test_a_run_does_not_start_from_a_critic_of_another_base_model(database: Database) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        with pytest.raises(Conflict, match="set to the model other, and the service serves tiny"):
            await _start(session, "other", "math", continue_candidate=True)


async def test_the_base_that_the_newest_version_was_trained_on(seeded: Database) -> None:
    async with seeded.session() as session:
        assert await store.runs.published_base(session, "other") is None
        version = await _publish(session, live=0, outcome=GateOutcome.REJECT)
        run_id = (await store.critics.resolve_critic(session, version)).run_id
        assert run_id is not None
        await store.runs.save_manifest(session, run_id, {"base_sha256": "ab" * 32})
        assert await store.runs.published_base(session, "tiny") == (version, "ab" * 32)


@pytest.mark.parametrize(
    ("published", "is_refused", "why"),
    [
        (None, False, "nothing was trained on a model of this name"),
        ((3, "ab" * 32), False, "the same weights"),
        ((3, "cd" * 32), True, "other weights under the same name"),
    ],
)
def test_another_base_under_the_same_name_is_refused(
    published: tuple[int, str] | None, is_refused: bool, why: str
) -> None:
    with pytest.raises(Conflict, match="than when version 3 was") if is_refused else nullcontext():
        _check_base("tiny", "ab" * 32, published)
