"""The rollback watch: its test on constructed outcomes and in simulation, and the rollback that it requests."""

import asyncio
import random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.evidence import MeanTest
from gadfly.grading import Grade
from gadfly.records import Interaction, SwapKind, SwapStatus, Tier, new_id
from gadfly.service.critics import watch as watch_module
from gadfly.service.critics.pointers import CriticPointers
from gadfly.service.critics.watch import (
    ALPHA,
    LEAST_UNITS,
    Decision,
    Pair,
    RollbackWatch,
    _problem,
    compare,
    losses,
    measured_outcomes,
    paired_losses,
)
from gadfly.store.database import Database
from gadfly.store.labels import text_sha256
from gadfly.store.split import question_hash
from gadfly.store.watch import Outcome
from gadfly.training import GateOutcome, TrainConfig, Trigger
from gadfly.verdict import Verdict
from tests.support.records import make_critique, make_interaction

A, B, C = (new_id() for _ in range(3))


def outcomes(right: str, wrong: str, key: UUID | None = None) -> list[Outcome]:
    """One outcome a sign, `+` for a correct verdict, first on right answers, then on wrong ones."""
    return [
        Outcome(was_right=was_right, is_verdict_right=sign == "+", key_id=key)
        for was_right, signs in ((True, right), (False, wrong))
        for sign in signs
    ]


def test_pairs_are_within_a_class() -> None:
    before, after = outcomes("++-+", "+-+"), outcomes("+--", "--++")
    # Right: + +, + -, - -: 0, 1, 0. Wrong: + -, - -, + +: 1, 0, 0.
    assert losses(before, after) == [0.5, 0.5, 0.0]
    assert losses(before, outcomes("+++", "")) == [], "one class alone shows no balanced loss"


def test_a_worse_critic_is_found() -> None:
    before, after = outcomes("+" * 20, "+" * 20), outcomes("+" * 20, "-" * 20)
    evidence = compare(before, after, callers=0)
    assert evidence.decision is Decision.ROLL_BACK
    assert (evidence.units, evidence.wealth) == (20, pytest.approx(MeanTest.of([0.5] * 20).wealth))
    assert evidence.accuracy == {"right": 1.0, "wrong": 0.0}
    assert evidence.accuracy_before == {"right": 1.0, "wrong": 1.0}
    assert compare(after, before, callers=0).decision is Decision.UNDECIDED


def pairs(right: str, wrong: str, key: UUID | None = None) -> list[Pair]:
    """One answer a sign: `-` judged correctly by the critic before alone, `+` by the live one alone, `=` by both."""
    return [
        (
            Outcome(was_right=was_right, is_verdict_right=sign != "+", key_id=key),
            Outcome(was_right=was_right, is_verdict_right=sign != "-", key_id=key),
        )
        for was_right, signs in ((True, right), (False, wrong))
        for sign in signs
    ]


def test_answers_that_both_critics_judged_are_compared_in_pairs() -> None:
    assert paired_losses(pairs("-=+", "--=")) == [1.0, 0.5, -0.5]
    assert paired_losses(pairs("---", "")) == [], "one class alone shows no balanced loss"
    same = pairs("-" * 20, "=" * 20)
    after = [outcome for _, outcome in same]
    evidence = compare([], after, callers=0, pairs=same)
    assert evidence.decision is Decision.ROLL_BACK, "with nothing else known of the critic before"
    assert (evidence.units, evidence.wealth) == (20, pytest.approx(MeanTest.of([0.5] * 20).wealth / 2))
    assert evidence.accuracy == {"right": 0.0, "wrong": 1.0}
    assert evidence.accuracy_before == {"right": 1.0, "wrong": 1.0}
    assert compare([], after, callers=0, pairs=pairs("+" * 20, "=" * 20)).decision is Decision.UNDECIDED
    alone = compare(outcomes("+" * 30, "+" * 30), after, callers=0, pairs=same[:2])
    assert (alone.units, alone.wealth) == (20, pytest.approx(MeanTest.of([0.5] * 20).wealth / 2)), "not the two pairs"


def test_no_caller_among_several_decides_alone_by_pairs() -> None:
    one = pairs("-" * 20, "-" * 20, A)
    two = one + pairs("-" * 9, "-" * 9, B)
    decisions = [compare([], [new for _, new in same], callers=2, pairs=same).decision for same in (one, two)]
    assert decisions == [Decision.ONE_KEY, Decision.ROLL_BACK]


def test_few_pairs_decide_nothing() -> None:
    few = LEAST_UNITS - 1
    evidence = compare(outcomes("+" * 50, "+" * few), outcomes("-" * 50, "-" * few), callers=0)
    assert (evidence.units, evidence.decision) == (few, Decision.UNDECIDED)
    assert evidence.wealth < 1 / ALPHA, "even the greatest possible losses need one pair more"
    assert compare(outcomes("+" * 50, "+" * 10), outcomes("-" * 50, "-" * 10), callers=0).decision is Decision.ROLL_BACK


KEYS = [  # outcomes of the live critic, active callers, decision, why
    (outcomes("-" * 20, "-" * 20, A), 1, Decision.ROLL_BACK, "the only caller there is"),
    (outcomes("-" * 20, "-" * 20, A), 0, Decision.ROLL_BACK, "the only caller there was: its key is revoked"),
    (outcomes("-" * 20, "-" * 20, A), 3, Decision.ONE_KEY, "one caller of three"),
    (
        outcomes("-" * 20, "-" * 20, A) + outcomes("+" * 20, "+" * 20, B),
        1,
        Decision.ONE_KEY,
        "the other disagreed, and its key is revoked",
    ),
    (outcomes("-" * 20, "-" * 20), 0, Decision.ROLL_BACK, "a service without keys"),
    (outcomes("-" * 20, "-" * 20, A) + outcomes("+" * 20, "+" * 20, B), 2, Decision.ONE_KEY, "the other disagrees"),
    (outcomes("-" * 20, "-" * 20, A) + outcomes("-" * 9, "-" * 9, B), 2, Decision.ROLL_BACK, "the other agrees"),
    (outcomes("-" * 8, "-" * 8, A) + outcomes("-" * 8, "-" * 8, B), 2, Decision.ROLL_BACK, "neither alone is needed"),
]


@pytest.mark.parametrize(("after", "callers", "decision", "why"), KEYS)
def test_no_caller_among_several_decides_alone(
    after: list[Outcome], callers: int, decision: Decision, why: str
) -> None:
    assert compare(outcomes("+" * 60, "+" * 60), after, callers=callers).decision is decision, why


def test_the_evidence_without_a_key_is_the_least_one_of_several_keys() -> None:
    before, one = outcomes("+" * 60, "+" * 60), outcomes("-" * 20, "-" * 20, A)
    both_keys = compare(before, one + outcomes("-" * 9, "-" * 9, B), callers=2)
    assert both_keys.wealth_without_a_key == pytest.approx(MeanTest.of([1.0] * 9).wealth)
    assert compare(before, one, callers=1).wealth_without_a_key is None, "with one key"
    good = outcomes("+" * 20, "+" * 20, A) + outcomes("+" * 9, "+" * 9, B)
    assert compare(before, good, callers=2).wealth_without_a_key is None, "before a loss shows"


PROBLEMS = [  # right and wrong labelled answers, units, whether pairs are judged, words, why
    (9, 0, 0, False, None, "too few labels to say anything"),
    (10, 0, 0, False, "10 right and 0 wrong labelled answers are too few", "enough labels, of one class"),
    (30, 9, 9, False, "30 right and 9 wrong labelled answers are too few", "of either class"),
    (9, 30, 9, True, "9 right and 30 wrong labelled answers are too few", "also where pairs are judged"),
    (10, 10, 10, False, None, "just enough"),
    (60, 60, 40, False, "for 40 pairs and the live one for 60", "the critic before has fewer"),
    (60, 60, 40, True, None, "what it lacks is being judged"),
    (30, 12, 12, False, None, "it has as many of the rare class"),
]


@pytest.mark.parametrize(("right", "wrong", "units", "is_paired", "words", "why"), PROBLEMS)
def test_why_the_watch_cannot_decide(
    right: int, wrong: int, units: int, is_paired: bool, words: str | None, why: str
) -> None:
    after = outcomes("+" * right, "+" * wrong)
    evidence = compare(outcomes("+" * units, "+" * units), after, callers=0)
    assert evidence.units == min(units, right, wrong)
    problem = _problem(evidence, after, is_paired=is_paired)
    assert (problem is None) if words is None else words in (problem or ""), why


def test_what_the_gate_measured_of_the_critic_before() -> None:
    gate = {
        "numbers": {
            "samples": 4,
            "live": {
                "discrimination_right": {"of": 160, "value": 0.75},
                "discrimination_wrong": {"of": 80, "value": 0.5},
            },
        }
    }
    found = measured_outcomes(gate, seed=1)
    assert sum(outcome.was_right for outcome in found) == 40
    assert sum(outcome.was_right and outcome.is_verdict_right for outcome in found) == 30
    assert [outcome.is_verdict_right for outcome in found if not outcome.was_right].count(True) == 10
    assert measured_outcomes(gate, seed=1) == found, "in the same order at every look"
    assert measured_outcomes(None, seed=1) == measured_outcomes({"numbers": {"live": None}}, seed=1) == []


def simulated(rng: random.Random, count: int, *, share: float, right: float, wrong: float) -> list[Outcome]:
    """Labelled traffic: this share of answers is right, and of each class this share is judged correctly."""
    found = []
    for _ in range(count):
        was_right = rng.random() < share
        is_verdict_right = rng.random() < (right if was_right else wrong)
        found.append(Outcome(was_right=was_right, is_verdict_right=is_verdict_right))
    return found


def rolled_back(before: tuple[float, float], after: tuple[float, float], *, own: int, share: float) -> float:
    """The share of 100 deployments that roll back within 1,500 labels, looked at after every 50."""
    rng = random.Random(f"{before}{after}{own}{share}")
    count = 0
    for _ in range(100):
        old = simulated(rng, own, share=share, right=before[0], wrong=before[1])
        new = simulated(rng, 1500, share=share, right=after[0], wrong=after[1])
        count += any(
            compare(old, new[:labels], callers=0).decision is Decision.ROLL_BACK for labels in range(50, 1501, 150)
        )
    return count / 100


def test_an_equal_critic_stays_whatever_is_known_of_the_one_before() -> None:
    assert rolled_back((0.9, 0.7), (0.9, 0.7), own=50, share=0.5) <= 0.03
    assert rolled_back((0.9, 0.7), (0.9, 0.7), own=600, share=0.95) <= 0.03


def test_traffic_that_is_mostly_right_hides_nothing() -> None:
    assert rolled_back((0.9, 0.7), (1.0, 0.0), own=1500, share=0.95) >= 0.95, "a critic that calls everything correct"
    assert rolled_back((0.97, 0.45), (0.85, 0.8), own=1500, share=0.95) <= 0.02, "a better one in balance stays"


# -------------------------------------------------------------------------------------------------------- the rollback

# The gate report of version 1, from when version 0 was live: 40 answers of each class, judged 4 times each.
GATE = {
    "outcome": "promote",
    "numbers": {
        "samples": 4,
        "live": {
            "discrimination_right": {"of": 160, "value": 0.9},
            "discrimination_wrong": {"of": 160, "value": 0.9},
        },
    },
}


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


async def watch(seeded: Database, *records: Interaction, shadow_share: float = 0.0) -> RollbackWatch:
    async with seeded.session() as session:
        await store.interactions.insert_records(session, records, heldout_share=0.2)
    pointers = CriticPointers(seeded)
    await pointers.refresh()
    return RollbackWatch(seeded, pointers, is_on=True, shadow_share=shadow_share)


async def check(seeded: Database, *records: Interaction) -> Any:
    return await (await watch(seeded, *records)).check()


def judged(version: int, *, is_verdict_right: bool, was_right: bool = True, **fields: Any) -> Interaction:
    agrees = Verdict.CORRECT if was_right else Verdict.INCORRECT
    disagrees = Verdict.INCORRECT if was_right else Verdict.CORRECT
    critique = make_critique(stated=agrees if is_verdict_right else disagrees)
    grade = Grade.RIGHT if was_right else Grade.WRONG
    fields = {"response": f"answer {new_id()}", **fields}  # texts of their own, which have labels of their own
    return make_interaction(critic_version=version, reference="4", grade=grade, critiques=(critique,), **fields)


def both(version: int, count: int, *, is_verdict_right: bool, **fields: Any) -> list[Interaction]:
    """So many labelled answers of either class."""
    return [
        judged(version, is_verdict_right=is_verdict_right, was_right=was_right, **fields)
        for _ in range(count)
        for was_right in (True, False)
    ]


async def pending(seeded: Database) -> Any:
    async with seeded.session() as session:
        return await store.swaps.pending_swap(session)


async def test_too_few_outcomes_decide_nothing(seeded: Database) -> None:
    evidence = await check(seeded, *both(1, LEAST_UNITS - 1, is_verdict_right=False))
    assert (evidence.decision, evidence.units) == (Decision.UNDECIDED, LEAST_UNITS - 1)
    assert await pending(seeded) is None


async def test_a_worse_critic_is_rolled_back(seeded: Database) -> None:
    evidence = await check(seeded, *both(1, 20, is_verdict_right=False))
    assert evidence.decision is Decision.ROLL_BACK
    swap = await pending(seeded)
    assert (swap.kind, swap.version, swap.status) == (SwapKind.WATCH, 0, SwapStatus.PENDING)
    assert "version 1 judges 0.0% of right answers and 0.0% of wrong answers correctly" in swap.reason
    assert "version 0 judged 90.0% of right answers and 90.0% of wrong answers" in swap.reason
    assert await check(seeded) is None, "requested once"


async def test_its_own_traffic_counts_for_the_critic_before(seeded: Database) -> None:
    own = [*both(0, 30, is_verdict_right=True), *both(0, 30, is_verdict_right=False)]  # 50 % on its own traffic
    evidence = await check(seeded, *own, *both(1, 20, is_verdict_right=False))
    assert evidence.accuracy_before["right"] == pytest.approx((30 + 36) / (60 + 40))


async def test_labels_that_were_asked_for_because_of_a_verdict_measure_no_critic(seeded: Database) -> None:
    """Where the queue chose answers of which the live critic was unsure, it is wrong more often than elsewhere."""
    unsure = both(1, 20, is_verdict_right=False)
    answers = [(question_hash(each.question), text_sha256(each.response or "")) for each in unsure]
    async with seeded.session() as session:
        await store.label_queue.note_chosen(session, answers)
    evidence = await check(seeded, *unsure, *both(1, 20, is_verdict_right=True))
    assert (evidence.decision, evidence.accuracy) == (Decision.UNDECIDED, {"right": 1.0, "wrong": 1.0})
    async with seeded.session() as session:
        await store.shadow.insert_verdicts(session, 0, [(each.id, each.critiques[0].stated) for each in unsure])
        assert await store.watch.paired_outcomes(session, 1, before=0) == []
        assert len(await store.shadow.unjudged(session, live=1, by=0, since=None, share=1.0, limit=99)) == 40
        assert await store.training_data.traffic_counts(session) == (20, 20)


async def test_a_label_from_before_the_queue_chose_the_answer_measures(seeded: Database) -> None:
    """A second opinion may be asked for, as long as the label stays."""
    given = both(1, 20, is_verdict_right=False)
    found = await watch(seeded, *given)
    async with seeded.session() as session:
        answers = [(question_hash(each.question), text_sha256(each.response or "")) for each in given]
        await store.label_queue.note_chosen(session, answers)
    assert (await found.check()).decision is Decision.ROLL_BACK


async def test_labels_of_one_class_are_reported_as_too_few(seeded: Database) -> None:
    found = await watch(seeded, *(judged(1, is_verdict_right=False) for _ in range(30)))
    assert (await found.check()).units == 0
    assert "30 right and 0 wrong labelled answers are too few" in found.problems["math"]


async def test_labels_of_one_key_among_several_are_reported(seeded: Database) -> None:
    async with seeded.session() as session:
        keys = [(await issue_key(session, name=name, tier=Tier.CALLER))[0].id for name in "ab"]
    found = await watch(seeded, *both(1, 20, is_verdict_right=False, key_id=keys[0]))
    assert (await found.check()).decision is Decision.ONE_KEY
    assert "needs a second key" in found.problems["math"]
    assert await pending(seeded) is None
    again = await watch(seeded, *both(1, 12, is_verdict_right=False, key_id=keys[1]))
    assert (await again.check()).decision is Decision.ROLL_BACK
    assert again.problems == {}


async def test_verdicts_of_the_critic_before_on_the_same_answers_count(seeded: Database) -> None:
    answers = {each.id: each for each in both(1, 80, is_verdict_right=False)}
    found = await watch(seeded, *answers.values(), shadow_share=0.5)
    opposite = {Verdict.CORRECT: Verdict.INCORRECT, Verdict.INCORRECT: Verdict.CORRECT}
    async with seeded.session() as session:
        await session.execute(text("UPDATE training_runs SET gate = NULL"))
        todo = await store.shadow.unjudged(session, live=1, by=0, since=None, share=0.5, limit=1000)
        assert len(todo) == pytest.approx(80, abs=35)
        right = [(each.interaction_id, opposite[answers[each.interaction_id].critiques[0].stated]) for each in todo]
        await store.shadow.insert_verdicts(session, 0, [*right, (new_id(), Verdict.CORRECT)])
        await store.shadow.insert_verdicts(session, 0, [(each.interaction_id, Verdict.UNPARSED) for each in todo])
        assert not await store.shadow.unjudged(session, live=1, by=0, since=None, share=0.5, limit=1000)
        compared = await store.watch.paired_outcomes(session, 1, before=0)
    assert all(before.is_verdict_right and not after.is_verdict_right for before, after in compared)
    assert len(compared) == len(todo), "the first verdict stays"
    evidence = await found.check()
    assert 0 < evidence.units <= len(todo) // 2
    assert evidence.decision is Decision.ROLL_BACK, "nothing else is known of the critic before"


async def test_a_rollback_is_not_tested(seeded: Database) -> None:
    async with seeded.session() as session:
        await _move(session, 0, SwapKind.ROLLBACK)
    assert await check(seeded, *both(0, 50, is_verdict_right=False)) is None
    assert await pending(seeded) is None


async def test_only_one_replica_tests_at_a_time(seeded: Database) -> None:
    async with seeded.session() as session:
        assert await store.watch.lock_watch(session)
        assert await check(seeded, *both(1, 20, is_verdict_right=False)) is None


async def test_without_outcomes_of_the_critic_before_nothing_is_decided(seeded: Database) -> None:
    async with seeded.session() as session:
        await session.execute(text("UPDATE training_runs SET gate = NULL"))
    evidence = await check(seeded, *both(1, 20, is_verdict_right=False))
    assert (evidence.decision, evidence.units) == (Decision.UNDECIDED, 0)


async def test_outcomes_that_have_no_counterpart_are_reported(seeded: Database) -> None:
    found = await watch(seeded, *both(1, 60, is_verdict_right=True))
    assert (await found.check()).units == 40, "the gate measured 40 answers of each class"
    assert "for 40 pairs and the live one for 60" in found.problems["math"]


async def test_a_watch_that_keeps_failing_says_so_until_it_works(
    seeded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_EVERY_S", 0.05)
    monkeypatch.setattr(watch_module, "_TOLERATED_S", 0.2)
    failing = await watch(seeded)
    running = asyncio.create_task(failing.run())

    async def until(reason: str | None) -> None:
        async with asyncio.timeout(30):
            while failing.failure != reason:  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0.05)

    async def rename(old: str, new: str) -> None:
        async with seeded.session() as session:
            await session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    assert failing.failure is None
    await rename("shadow_verdicts", "hidden")
    await until("ProgrammingError")
    await rename("hidden", "shadow_verdicts")
    await until(None)
    running.cancel()
