"""Wald's test with numbers worked out by hand, and the rollback that it requests."""

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
    ([], Decision.UNDECIDED, 0, "nothing seen"),
    ([False] * 11, Decision.UNDECIDED, 11, "11 x 0.405465 = 4.460120 is below 4.499810"),
    ([False] * 12, Decision.ROLL_BACK, 12, "12 x 0.405465 = 4.865581 is above it"),
    ([False] * 40, Decision.ROLL_BACK, 12, "outcomes after the decision are not read"),
    ([True] * 17, Decision.UNDECIDED, 17, "17 x -0.133531 = -2.270033 is above -2.292535"),
    ([True] * 18, Decision.KEEP, 18, "18 x -0.133531 = -2.403565 is below it"),
    ([True] * 18 + [False] * 99, Decision.KEEP, 18, "a decision to keep is final"),
    (
        [False, True, True, True] * 100,
        Decision.UNDECIDED,
        400,
        "3 x -0.133531 + 0.405465 = 0.004871 a round: undecided",
    ),
    ([False, True, True] * 34, Decision.ROLL_BACK, 91, "a third wrong: 0.138402 a round, and 0.405465 at its first"),
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
def test_refuses_invalid_hypotheses(p0: float, p1: float) -> None:
    with pytest.raises(ValueError, match="0 < p1 < p0 < 1"):
        sequential_test([], p0=p0, p1=p1)


# The gate report of version 1, from when version 0 was live.
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


def judged(version: int, *, is_right: bool) -> Interaction:
    critique = make_critique(stated=Verdict.CORRECT if is_right else Verdict.INCORRECT)
    return make_interaction(critic_version=version, reference="4", grade=Grade.RIGHT, critiques=(critique,))


async def pending(seeded: Database) -> Any:
    async with seeded.session() as session:
        return await store.swaps.pending_swap(session)


async def test_too_few_outcomes_decide_nothing(seeded: Database) -> None:
    evidence = await check(seeded, *(judged(1, is_right=False) for _ in range(11)))
    assert (evidence.decision, evidence.outcomes) == (Decision.UNDECIDED, 11)
    assert await pending(seeded) is None


async def test_a_worse_critic_is_rolled_back_by_the_gates_accuracy_of_the_previous_one(seeded: Database) -> None:
    evidence = await check(seeded, *(judged(1, is_right=False) for _ in range(12)))
    assert evidence.decision is Decision.ROLL_BACK
    swap = await pending(seeded)
    assert (swap.kind, swap.version, swap.status) == (SwapKind.WATCH, 0, SwapStatus.PENDING)
    assert "0 of 12 verdicts of version 1" in swap.reason
    assert "80.0% right (on the gate's held-out items): log-likelihood ratio 4.87 of 70.0% to 80.0%" in swap.reason
    assert await check(seeded) is None, "requested once"


async def test_the_previous_critics_own_traffic_counts_before_the_gate(seeded: Database) -> None:
    own = [judged(0, is_right=number % 2 == 0) for number in range(50)]  # 50 %: 12 wrong ones are no proof against 40 %
    evidence = await check(seeded, *own, *(judged(1, is_right=False) for _ in range(12)))
    # 12 x ln(0.6 / 0.5) = 2.187859
    assert evidence.decision is Decision.UNDECIDED
    assert evidence.log_ratio == pytest.approx(2.187859, abs=1e-6)


async def test_a_rollback_is_not_tested(seeded: Database) -> None:
    async with seeded.session() as session:
        await _move(session, 0, SwapKind.ROLLBACK)
    assert await check(seeded, *(judged(0, is_right=False) for _ in range(100))) is None
    assert await pending(seeded) is None


async def test_only_one_replica_tests_at_a_time(seeded: Database) -> None:
    async with seeded.session() as session:
        assert await store.watch.lock_watch(session)
        assert await check(seeded, *(judged(1, is_right=False) for _ in range(12))) is None


async def test_without_an_accuracy_to_compare_with_nothing_is_tested(seeded: Database) -> None:
    async with seeded.session() as session:
        await session.execute(text("UPDATE training_runs SET gate = NULL"))
    assert await check(seeded, *(judged(1, is_right=False) for _ in range(12))) is None
