"""Pointers, swaps, receipts, replicas and what live traffic says, in a real Postgres."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.errors import Conflict, NotFound
from gadfly.grading import Grade
from gadfly.records import Replica, SwapKind, SwapReceipt, SwapStatus, new_id, now
from gadfly.store.database import Database
from gadfly.verdict import Verdict
from tests.support.records import make_critique, make_feedback, make_interaction
from tests.support.versions import seed_versions


@pytest.fixture
async def seeded(database: Database) -> Database:
    """Versions 0 to 3, of which 0 is live."""
    await seed_versions(database)
    return database


async def pointers(seeded: Database) -> dict[Any, int]:
    async with seeded.session() as session:
        return dict(await store.critics.read_pointers(session))


async def swap_to(seeded: Database, version: int | None, kind: SwapKind = SwapKind.PROMOTE) -> store.swaps.Finished:
    async with seeded.session() as session:
        swap = await store.swaps.request_swap(session, version=version, kind=kind)
    async with seeded.session() as session:
        return await store.swaps.move_pointer(session, swap.id)


async def test_a_swap_moves_live_and_previous_in_one_step(seeded: Database) -> None:
    async with seeded.session() as session:
        await store.critics.set_candidate(session, 1)
    assert await pointers(seeded) == {"live": 0, "candidate": 1}
    finished = await swap_to(seeded, 1, SwapKind.GATE)
    assert finished.ended_here
    assert finished.swap.status is SwapStatus.DONE
    assert finished.swap.finished_at is not None
    assert await pointers(seeded) == {"live": 1, "previous": 0}, "a candidate that is live is none any more"
    async with seeded.session() as session:
        await store.critics.set_candidate(session, 3)
    await swap_to(seeded, 2)
    assert await pointers(seeded) == {"live": 2, "previous": 1, "candidate": 3}, "another candidate stays one"


async def test_a_second_rollback_does_not_bring_the_bad_version_back(seeded: Database) -> None:
    await swap_to(seeded, 1)
    await swap_to(seeded, 2)
    await swap_to(seeded, None, SwapKind.ROLLBACK)
    assert await pointers(seeded) == {"live": 1, "previous": 0}
    await swap_to(seeded, None, SwapKind.WATCH)
    assert await pointers(seeded) == {"live": 0}
    with pytest.raises(Conflict, match="no critic to go back to"):
        await swap_to(seeded, None, SwapKind.ROLLBACK)


async def test_a_rollback_passes_over_a_version_that_was_rolled_back_from(seeded: Database) -> None:
    await swap_to(seeded, 1)
    await swap_to(seeded, None, SwapKind.ROLLBACK)  # 1 is bad
    await swap_to(seeded, 1)  # a person tries it again, deliberately
    await swap_to(seeded, 2)
    await swap_to(seeded, 3)
    await swap_to(seeded, None, SwapKind.ROLLBACK)
    assert await pointers(seeded) == {"live": 2, "previous": 0}


@pytest.mark.parametrize(
    ("version", "kind", "error", "says"),
    [
        (0, SwapKind.PROMOTE, Conflict, "version 0 is live already"),
        (9, SwapKind.PROMOTE, NotFound, "no critic version 9"),
        (None, SwapKind.ROLLBACK, Conflict, "no critic to go back to"),
        (1, SwapKind.WATCH, Conflict, "no critic to go back to"),
        (None, SwapKind.GATE, NotFound, "needs a version"),
    ],
)
async def test_what_cannot_be_asked_for(
    seeded: Database, version: int | None, kind: SwapKind, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        async with seeded.session() as session:
            await store.swaps.request_swap(session, version=version, kind=kind)
    async with seeded.session() as session:
        assert await store.swaps.pending_swap(session) is None


async def test_a_rollback_goes_nowhere_else(seeded: Database) -> None:
    await swap_to(seeded, 1)
    with pytest.raises(Conflict, match="goes to version 0"):
        await swap_to(seeded, 2, SwapKind.WATCH)


async def test_one_swap_at_a_time(seeded: Database) -> None:
    async def ask(version: int) -> None:
        async with seeded.session() as session:
            await store.swaps.request_swap(session, version=version, kind=SwapKind.PROMOTE)

    outcomes = await asyncio.gather(*map(ask, (1, 2, 3)), return_exceptions=True)
    assert outcomes.count(None) == 1
    refusals = [outcome for outcome in outcomes if outcome is not None]
    assert [str(refusal) for refusal in refusals] == ["another swap is in progress"] * 2
    assert all(isinstance(refusal, Conflict) for refusal in refusals)


async def test_one_of_many_replicas_moves_the_pointer(seeded: Database) -> None:
    async with seeded.session() as session:
        swap = await store.swaps.request_swap(session, version=1, kind=SwapKind.PROMOTE, reason="why")

    async def move() -> store.swaps.Finished:
        async with seeded.session() as session:
            return await store.swaps.move_pointer(session, swap.id)

    finished = await asyncio.gather(*(move() for _ in range(5)))
    assert sorted(item.ended_here for item in finished) == [False] * 4 + [True]
    assert {item.swap.status for item in finished} == {SwapStatus.DONE}
    assert await pointers(seeded) == {"live": 1, "previous": 0}
    async with seeded.session() as session:
        late = await store.swaps.finish_swap(session, swap.id, SwapStatus.REFUSED, "too late")
    assert not late.ended_here
    assert (late.swap.status, late.swap.reason) == (SwapStatus.DONE, "why")


async def test_a_swap_from_what_is_not_live_any_more_is_refused(seeded: Database) -> None:
    async with seeded.session() as session:
        swap = await store.swaps.request_swap(session, version=1, kind=SwapKind.PROMOTE)
        await session.execute(text("UPDATE critic_pointers SET version = 2 WHERE name = 'live'"))
    async with seeded.session() as session:
        finished = await store.swaps.move_pointer(session, swap.id)
    assert finished.swap.status is SwapStatus.REFUSED
    assert "version 2 went live in the meantime" in (finished.swap.reason or "")
    assert (await pointers(seeded))["live"] == 2


async def test_swaps_are_listed_newest_first(seeded: Database) -> None:
    await swap_to(seeded, 1)
    await swap_to(seeded, 2)
    async with seeded.session() as session:
        swap = await store.swaps.request_swap(session, version=1, kind=SwapKind.PROMOTE)
        assert await store.swaps.pending_swap(session) == swap
        refused = (await store.swaps.finish_swap(session, swap.id, SwapStatus.REFUSED, "spoilt")).swap
        assert await store.swaps.last_swap(session) == refused
        done = await store.swaps.last_swap(session, done=True)
        assert done is not None
        assert done.version == 2
        assert [item.status for item in await store.swaps.list_swaps(session, 1)] == [
            SwapStatus.REFUSED,
            SwapStatus.DONE,
        ]
        with pytest.raises(NotFound):
            await store.swaps.read_swap(session, new_id())


async def test_a_receipt_says_last_what_it_says(seeded: Database) -> None:
    swap = (await swap_to(seeded, 1)).swap
    first = SwapReceipt(
        id=new_id(), swap_id=swap.id, replica_id=new_id(), version=1, created_at=now(), details={"lost": None}
    )
    other = SwapReceipt(id=new_id(), swap_id=swap.id, replica_id=new_id(), version=1, created_at=now(), details={})
    async with seeded.session() as session:
        for receipt in (first, other):
            await store.swaps.insert_receipt(session, receipt)
        later = SwapReceipt(
            id=new_id(),
            swap_id=swap.id,
            replica_id=first.replica_id,
            version=1,
            created_at=now(),
            details={"lost": 0},
        )
        await store.swaps.insert_receipt(session, later)
        found = await store.swaps.receipts(session, 1)
    assert [item.id for item in found] == [other.id, first.id]
    assert [item.details for item in found] == [{}, {"lost": 0}]


async def test_replicas_are_those_that_were_heard_of(seeded: Database) -> None:
    def replica(**fields: Any) -> Replica:
        values: dict[str, Any] = {
            "id": new_id(),
            "started_at": now(),
            "seen_at": now(),
            "live_version": 0,
            "leases": {},
            "engines": ("unix:///a",),
            "problem": None,
        }
        return Replica(**(values | fields))

    old, young = replica(started_at=now() - timedelta(hours=1)), replica(leases={1: 2, 2: 0}, problem="why")
    gone = replica(live_version=3)
    async with seeded.session() as session:
        for item in (young, old, gone):
            await store.replicas.upsert_replica(session, item)
        await session.execute(text("UPDATE replicas SET seen_at = now() - interval '6 seconds' WHERE live_version = 3"))
    async with seeded.session() as session:
        found = await store.replicas.fresh_replicas(session, within_s=5)
        assert [item.id for item in found] == [old.id, young.id], "the eldest first, the silent one not"
        assert found[1].leases == {1: 2, 2: 0}
        assert found[1].engines == ("unix:///a",)
        assert store.replicas.all_versions_in_use(found) == {0, 1, 2}
        await store.replicas.drop_replica(session, old.id)
        assert [item.id for item in await store.replicas.fresh_replicas(session, within_s=5)] == [young.id]


async def test_a_notice_comes_when_a_swap_is_asked_for_and_over(seeded: Database) -> None:
    heard: asyncio.Queue[None] = asyncio.Queue()

    async def listen() -> None:
        async for _ in seeded.notices(store.notices.CRITICS_CHANGED):
            heard.put_nowait(None)

    task = asyncio.create_task(listen())
    await asyncio.wait_for(heard.get(), 5)  # listening began
    async with seeded.session() as session:
        swap = await store.swaps.request_swap(session, version=1, kind=SwapKind.PROMOTE)
    await asyncio.wait_for(heard.get(), 5)
    async with seeded.session() as session:
        await store.swaps.move_pointer(session, swap.id)
    await asyncio.wait_for(heard.get(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --------------------------------------------------------------------------------------------------------- live traffic


async def test_outcomes_are_stated_verdicts_against_labels_in_the_order_of_labels(seeded: Database) -> None:
    start = now() - timedelta(hours=1)

    def said(minute: int, stated: Verdict, **fields: Any) -> Any:
        critique = make_critique(stated=stated, **fields.pop("critique", {}))
        return make_interaction(
            created_at=start + timedelta(minutes=minute),
            response=f"said at {minute}",
            critic_version=1,
            critiques=(critique,),
            **fields,
        )

    late = said(0, Verdict.CORRECT)  # labelled last, by a person: it was wrong
    graded = said(1, Verdict.INCORRECT, reference="4", grade=Grade.WRONG)  # at once: right
    overruled = said(2, Verdict.INCORRECT, reference="4", grade=Grade.WRONG)  # a person says it was right after all
    unsaid = said(3, Verdict.UNPARSED, reference="4", grade=Grade.WRONG)
    unlabelled = said(4, Verdict.CORRECT)
    supplied = said(5, Verdict.CORRECT, reference="4", grade=Grade.RIGHT, critique={"supplied": True})
    second = said(6, Verdict.CORRECT, reference="4", grade=Grade.RIGHT, critique={"sample": 1})
    other = make_interaction(created_at=start, critic_version=2, reference="4", grade=Grade.WRONG)
    before = said(-5, Verdict.CORRECT, reference="4", grade=Grade.RIGHT)
    stored = [before, late, graded, overruled, unsaid, unlabelled, supplied, second, other]
    feedback = [
        make_feedback(overruled.id, correct=True),
        make_feedback(late.id, correct=True),
        make_feedback(late.id, correct=False),
    ]
    for record in (*stored, *feedback):  # one transaction each: the database's clock gives the order
        async with seeded.session() as session:
            await store.interactions.insert_records(session, [record], heldout_share=1e-9)  # no label is frozen
    async with seeded.session() as session:

        async def verdicts(version: int, **options: Any) -> list[tuple[bool, bool]]:
            found = await store.watch.verdict_outcomes(session, version, **options)
            return [(outcome.was_right, outcome.is_verdict_right) for outcome in found]

        expected = [(False, True), (False, False), (True, False), (False, False)]
        assert await verdicts(1, since=start) == expected, "graded, unsaid, overruled, late"
        assert await verdicts(1) == [(True, True), *expected]
        assert await verdicts(1, limit=1) == [(True, True)]
        assert await verdicts(3) == []


async def test_one_replica_watches_at_a_time(seeded: Database) -> None:
    async with seeded.session() as one, seeded.session() as other:
        assert await store.watch.lock_watch(one)
        assert not await store.watch.lock_watch(other)
    async with seeded.session() as later:
        assert await store.watch.lock_watch(later)


# ------------------------------------------------------------------------------------ verdict-only critics, base models


async def mark(seeded: Database, version: int, **columns: Any) -> None:
    names = ", ".join(f"{name} = :{name}" for name in columns)
    async with seeded.session() as session:
        await session.execute(
            text(f"UPDATE critic_versions SET {names} WHERE version = :version"), {"version": version, **columns}
        )


async def refining(seeded: Database, canary: int | None = None) -> int:
    async with seeded.session() as session:
        return await store.critics.refining_version(session, canary=canary)


async def test_a_critic_that_learned_verdicts_only_does_not_refine(seeded: Database) -> None:
    for version in (1, 3):
        await mark(seeded, version, verdict_only=True)
    assert await refining(seeded) == 0
    await swap_to(seeded, 1)
    assert await refining(seeded) == 0, "2 has never been live"
    await swap_to(seeded, 2)
    assert await refining(seeded) == 2
    assert await refining(seeded, canary=2) == 0, "a canary answers its share alone"
    await swap_to(seeded, 3)
    assert await refining(seeded) == 2, "the newest that learned more"
    await swap_to(seeded, None, SwapKind.ROLLBACK)
    await swap_to(seeded, None, SwapKind.ROLLBACK)
    assert await pointers(seeded) == {"live": 1, "previous": 0}
    assert await refining(seeded) == 0, "2 was rolled back from"


async def serve(seeded: Database, base_model: str) -> int:
    """The number of the base model's own version, after a service that serves it has started."""
    async with seeded.session() as session:
        return (await store.critics.ensure_version_zero(session, base_model)).version


async def test_another_base_model_begins_a_lineage_of_its_own(seeded: Database) -> None:
    await swap_to(seeded, 1)
    await swap_to(seeded, 2)
    async with seeded.session() as session:
        await store.critics.set_candidate(session, 3)
        waiting = await store.swaps.request_swap(session, version=3, kind=SwapKind.GATE)
    assert await serve(seeded, "other") == 4
    assert await pointers(seeded) == {"live": 4}, "neither a candidate nor a way back to another base"
    async with seeded.session() as session:
        base = await store.critics.resolve_critic(session, "live")
        assert (base.base_model, base.adapter_path, base.engine_name) == ("other", None, "base")
        refused = await store.swaps.read_swap(session, waiting.id)
        assert (refused.status, refused.reason) == (SwapStatus.REFUSED, "the base model is now other")
        for move in (
            store.swaps.request_swap(session, version=2, kind=SwapKind.PROMOTE),
            store.critics.set_candidate(session, 2),
        ):
            with pytest.raises(Conflict, match="2 is archived: it is based on the model tiny, and other is served"):
                await move
    await mark(seeded, 3, base_model="other")
    await swap_to(seeded, 3)
    assert await pointers(seeded) == {"live": 3, "previous": 4}
    assert await serve(seeded, "other") == 4, "a restart changes nothing"
    assert await pointers(seeded) == {"live": 3, "previous": 4}
    assert await serve(seeded, "tiny") == 0
    assert await pointers(seeded) == {"live": 2}, "back to the version that was live last"
    assert await serve(seeded, "other") == 4
    assert await pointers(seeded) == {"live": 3}


async def test_another_base_model_waits_for_the_replicas_of_the_first(seeded: Database) -> None:
    replica = Replica(
        id=new_id(), started_at=now(), seen_at=now(), live_version=0, leases={}, engines=(), problem=None
    )  # fmt: skip
    async with seeded.session() as session:
        await store.replicas.upsert_replica(session, replica)
    with pytest.raises(Conflict, match="stop all replicas before other is served"):
        await serve(seeded, "other")
    assert await pointers(seeded) == {"live": 0}
    async with seeded.session() as session:
        await store.replicas.drop_replica(session, replica.id)
    assert await serve(seeded, "other") == 4
