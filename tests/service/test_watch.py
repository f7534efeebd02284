"""Wald's test with numbers worked out by hand, and the way back that it asks for."""

import math
from typing import Any

import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.grading import Grade
from gadfly.records import Interaction, SwapKind, SwapStatus
from gadfly.service.critics.pointers import CriticPointers
from gadfly.service.critics.watch import Decision, RollbackWatch, sequential_test
from gadfly.store.database import Database
from gadfly.training import GateOutcome, TrainConfig, Trigger
from gadfly.verdict import Verdict
from tests.support.records import make_critique, make_interaction

# With p0 = 0.8, p1 = 0.7: a right verdict adds ln(7/8) = -0.133531, a wrong one ln(0.3/0.2) = 0.405465.
# Bounds for alpha = 0.01, beta = 0.1: ln(0.9/0.01) = 4.499810 and ln(0.1/0.99) = -2.292535.
CASES = [  # outcomes, decision, after how many, why
    ([], Decision.GO_ON, 0, "nothing seen"),
    ([False] * 11, Decision.GO_ON, 11, "11 x 0.405465 = 4.460120 is below 4.499810"),
    ([False] * 12, Decision.GO_BACK, 12, "12 x 0.405465 = 4.865581 is above it"),
    ([False] * 40, Decision.GO_BACK, 12, "what comes after the decision is not looked at"),
    ([True] * 17, Decision.GO_ON, 17, "17 x -0.133531 = -2.270033 is above -2.292535"),
    ([True] * 18, Decision.KEEP, 18, "18 x -0.133531 = -2.403565 is below it"),
    ([True] * 18 + [False] * 99, Decision.KEEP, 18, "kept is kept"),
    ([False, True, True, True] * 100, Decision.GO_ON, 400, "3 x -0.133531 + 0.405465 = 0.004871 a round: undecided"),
    ([False, True, True] * 34, Decision.GO_BACK, 91, "a third wrong: 0.138402 a round, and 0.405465 at its first"),
]


@pytest.mark.parametrize(("outcomes", "decision", "count", "why"), CASES)
def test_decides_as_wald_does(outcomes: list[bool], decision: Decision, count: int, why: str) -> None:
    evidence = sequential_test(outcomes, p0=0.8, p1=0.7, alpha=0.01, beta=0.1)
    assert evidence.decision is decision, why
    assert evidence.outcomes == count, why
    right = sum(outcomes[:count])
    assert evidence.right == right
    assert evidence.log_ratio == pytest.approx(right * math.log(7 / 8) + (count - right) * math.log(1.5))


@pytest.mark.parametrize(("p0", "p1"), [(0.7, 0.8), (1.0, 0.9), (0.1, 0.0), (0.5, 0.5)])
def test_refuses_hypotheses_that_are_none(p0: float, p1: float) -> None:
    with pytest.raises(ValueError, match="0 < p1 < p0 < 1"):
        sequential_test([], p0=p0, p1=p1)


# What the gate of version 1 measured, when version 0 was live.
GATE = {"outcome": "promote", "numbers": {"discriminability": {"live": 0.8, "candidate": 0.9}}}


@pytest.fixture
async def seeded(database: Database) -> Database:
    """Version 1 of a run with a gate report, promoted after version 0."""
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        await store.runs.save_gate(session, run.id, GateOutcome.PROMOTE, GATE)
        await store.critics.insert_critic(
            session,
            run_id=run.id,
            parent=0,
            base_model="tiny",
            prompt_set="stepwise@1",
            adapter_path="folder",
            adapter_sha256="hash",
        )
        await _move(session, 1, SwapKind.GATE)
    return database


async def _move(session: Any, version: int, kind: SwapKind) -> None:
    swap = await store.swaps.request_swap(session, version=version, kind=kind)
    await store.swaps.move_pointer(session, swap.id)


async def check(seeded: Database, *records: Interaction) -> Any:
    async with seeded.session() as session:
        await store.interactions.insert_records(session, records, heldout_share=0.2)
    pointers = CriticPointers(seeded)
    await pointers.refresh()
    return await RollbackWatch(seeded, pointers, is_on=True).check()


def said(version: int, *, is_right: bool) -> Interaction:
    critique = make_critique(stated=Verdict.CORRECT if is_right else Verdict.INCORRECT)
    return make_interaction(critic_version=version, reference="4", grade=Grade.RIGHT, critiques=(critique,))


async def pending(seeded: Database) -> Any:
    async with seeded.session() as session:
        return await store.swaps.pending_swap(session)


async def test_too_little_is_no_reason(seeded: Database) -> None:
    evidence = await check(seeded, *(said(1, is_right=False) for _ in range(11)))
    assert (evidence.decision, evidence.outcomes) == (Decision.GO_ON, 11)
    assert await pending(seeded) is None


async def test_a_worse_critic_is_left_by_what_the_gate_knew_of_the_one_before(seeded: Database) -> None:
    evidence = await check(seeded, *(said(1, is_right=False) for _ in range(12)))
    assert evidence.decision is Decision.GO_BACK
    swap = await pending(seeded)
    assert (swap.kind, swap.version, swap.status) == (SwapKind.WATCH, 0, SwapStatus.PENDING)
    assert "0 of 12 verdicts of version 1" in swap.reason
    assert "80.0% right (on the gate's held-out items): log-likelihood ratio 4.87 of 70.0% to 80.0%" in swap.reason
    assert await check(seeded) is None, "asked for once"


async def test_the_critic_before_is_known_better_by_its_own_traffic(seeded: Database) -> None:
    own = [said(0, is_right=number % 2 == 0) for number in range(50)]  # 50 %: 12 wrong ones are no proof against 40 %
    evidence = await check(seeded, *own, *(said(1, is_right=False) for _ in range(12)))
    # 12 x ln(0.6 / 0.5) = 2.187859
    assert evidence.decision is Decision.GO_ON
    assert evidence.log_ratio == pytest.approx(2.187859, abs=1e-6)


async def test_what_was_gone_back_to_is_not_left_by_itself(seeded: Database) -> None:
    async with seeded.session() as session:
        await _move(session, 0, SwapKind.ROLLBACK)
    assert await check(seeded, *(said(0, is_right=False) for _ in range(100))) is None
    assert await pending(seeded) is None


async def test_another_replica_that_looks_is_enough(seeded: Database) -> None:
    async with seeded.session() as session:
        assert await store.watch.lock_watch(session)
        assert await check(seeded, *(said(1, is_right=False) for _ in range(12))) is None


async def test_nothing_to_compare_with_is_no_test(seeded: Database) -> None:
    async with seeded.session() as session:
        await session.execute(text("UPDATE training_runs SET gate = NULL"))
    assert await check(seeded, *(said(1, is_right=False) for _ in range(12))) is None
