"""Forgetting: rows with all that was derived from them, marks on critics, late replays, and deletion by age."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.errors import BadSettings
from gadfly.records import Interaction, Kind, TaskId, new_id, now
from gadfly.service import forgetting
from gadfly.service.container import Service
from gadfly.service.forgetting import batches, next_size
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings, SplitBlocks
from gadfly.store.database import Database
from gadfly.store.forgetting import DeletedRows, What
from gadfly.store.learning import RESPONSE, Learned
from gadfly.store.tables import AnswerRow
from gadfly.training import EventKind, Run, TrainConfig, Trigger
from tests.service.conftest import serving_without_engine
from tests.service.test_label_queue import TRAIN, judged, keep
from tests.support.records import make_feedback, make_key


async def a_run(database: Database, *, parent: int, manifest: Sequence[Interaction] = (), **ledger: Interaction) -> Run:
    """A run that published a critic, and learned from the interactions of its ledger or of its manifest."""
    async with database.session() as session:
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        await store.critics.insert_critic(
            session, run_id=run.id, parent=parent, base_model="tiny", prompt_set="stepwise@1", adapter_path="/none",
            adapter_sha256=run.id.hex,
        )  # fmt: skip
        await store.runs.save_manifest(session, run.id, {"answers": [{"id": str(each.id)} for each in manifest]})
        entries = [
            Learned(
                interaction_id=each.id, answer=RESPONSE, stage="stage_1", draws=1, critiques=4, mean_score=0.5,
                verdicts_right=2, first_step=1, last_step=1,
            )
            for each in ledger.values()
        ]  # fmt: skip
        await store.learning.save_learned(session, run.id, entries)
    return run


async def ids(database: Database) -> set[Any]:
    async with database.session() as session:
        page = await store.interactions.list_interactions(
            session, scope=None, filters=store.interactions.Filters(), limit=200
        )
    return {each.id for each in page.interactions}


async def test_an_episode_goes_with_its_lineage(engineless: Settings, database: Database) -> None:
    first = judged(1, 0.5)
    second = judged(1, 0.9, episode_id=first.episode_id)
    other = judged(2, 0.5)
    await keep(database, first, second, other, make_feedback(first.id, correct=True))
    run = await a_run(database, parent=0, one=first, other=other)  # critic 1
    await a_run(database, parent=1)  # critic 2 continues it
    await a_run(database, parent=0, manifest=[second])  # critic 3, of a release without a ledger
    await a_run(database, parent=0, other=other)  # critic 4
    async with database.session() as session:
        data = {"message": "long", "evidence": {"examples": [f"{second.id}: a secret"]}}
        await store.runs.append_event(session, run.id, EventKind.ALARM, data)
    body = {"episode_id": str(first.episode_id), "reason": "asked by the caller"}
    async with serving_without_engine(engineless) as client:
        planned = (await client.post("/admin/forget", json={**body, "dry_run": True})).json()
        assert await ids(database) == {first.id, second.id, other.id}
        done = (await client.post("/admin/forget", json=body)).json()
        assert {**done, "dry_run": True} == planned
        assert (done["interactions"], done["feedback"], done["remaining"]) == (2, 1, False)
        critics = [(critic["version"], critic["answers"]) for critic in done["critics"]]
        assert critics == [(1, 1), (2, 0), (3, 1)]
        assert done["runs"] == [str(run.id), *done["runs"][1:]]
        assert done["clean_version"] == 4
        assert (
            done["advice"] == "Critics 1, 2, 3 learned from these rows. The live critic 0 did not: POST /admin/retrain."
        )
        assert await ids(database) == {other.id}
        marked = [(await client.get(f"/critics/{version}")).json()["forgotten"] for version in range(5)]
        assert [None if mark is None else mark["answers"] for mark in marked] == [None, 1, 0, 1, None]
        [act, *_] = (await client.get("/admin/acts")).json()["items"]
        assert (act["action"], act["subject"], act["reason"]) == ("forget", body["episode_id"], body["reason"])
        again = (await client.post("/admin/forget", json=body)).json()
        assert (again["interactions"], again["critics"]) == (0, [])
    async with database.session() as session:
        events = await store.runs.events_of(session, run.id, [EventKind.ALARM], limit=9)
        assert events == [], "it quoted a critique"
        assert await store.learning.learned_from(session, first.id) == []


async def test_a_late_replay_brings_nothing_back(engineless: Settings, database: Database) -> None:
    key = new_id()
    async with database.session() as session:
        await store.keys.insert_key(session, make_key(id=key), b"k")
    stored, spooled, imported = judged(1, 0.5, key_id=key), judged(2, 0.5, key_id=key), judged(3, 0.5)
    await keep(database, stored)
    async with database.session() as session:
        await store.forgetting.order(session, store.forgetting.What(key_id=key))
        await store.forgetting.forget(session, [stored.id])
    later = judged(4, 0.5, key_id=key, created_at=now() + timedelta(seconds=1))
    await keep(database, stored, spooled, imported, later)
    assert await ids(database) == {imported.id, later.id}
    async with database.session() as session:
        await store.interactions.delete_interaction(session, imported.id, scope=None)
    again = judged(3, 0.5, id=imported.id, kind=Kind.IMPORT)
    async with database.session() as session:
        added = await store.interactions.insert_interactions(
            session, [again], heldout_share=TRAIN, split_blocks=SplitBlocks.EXACT
        )
    assert added == 1, "who imports a row again wants it"


async def until_gone(database: Database, row: Interaction) -> None:
    async with asyncio.timeout(20):
        while row.id in await ids(database):  # noqa: ASYNC110  # another task, and no event of it
            await asyncio.sleep(0.1)


BAD: list[dict[str, Any]] = [
    {},
    {"key_id": str(new_id()), "episode_id": str(new_id())},
    {"since": "2026-01-01T00:00:00Z"},
    {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
    {"kind": "chat"},
]


async def test_a_time_is_forgotten_and_nothing_by_mistake(engineless: Settings, database: Database) -> None:
    old, new = judged(1, 0.5, created_at=now() - timedelta(days=9)), judged(2, 0.5)
    await keep(database, old, new)
    async with serving_without_engine(engineless) as client:
        for body in BAD:
            assert (await client.post("/admin/forget", json=body)).status_code == 422, body
        span = {"since": "2020-01-01T00:00:00Z", "until": (now() - timedelta(days=7)).isoformat()}
        chats = (await client.post("/admin/forget", json={**span, "kind": "chat"})).json()
        assert chats["interactions"] == 0
        assert (await client.post("/admin/forget", json=span)).json()["interactions"] == 1
    assert await ids(database) == {new.id}


async def test_rows_are_deleted_by_age_and_kind(engineless: Settings, database: Database) -> None:
    ages = [(Kind.CRITIQUE, 40), (Kind.CRITIQUE, 20), (Kind.IMPORT, 400)]
    rows = [judged(n, 0.5, kind=kind, created_at=now() - timedelta(days=age)) for n, (kind, age) in enumerate(ages)]
    await keep(database, *rows)
    async with serving_without_engine(engineless) as client:
        assert (await client.get("/admin/retention")).json() == {"rules": []}
    settings = engineless.model_copy(update={"retention": ("critique=30d", "chat=1d")})
    service = await Service.open(settings, Metrics())
    try:
        rules = await service.forgetting.retention()
        assert [(kind, days, due) for kind, days, due, _ in rules] == [(Kind.CRITIQUE, 30, 1), (Kind.CHAT, 1, 0)]
        assert await ids(database) == {row.id for row in rows}, "a dry run"
    finally:
        await service.aclose()
    async with serving_without_engine(settings):
        await until_gone(database, rows[0])
    assert await ids(database) == {rows[1].id, rows[2].id}


async def test_a_deletion_goes_in_batches_that_shrink_and_grow_and_can_be_resumed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [judged(n, 0.5) for n in range(450)]
    await keep(database, *rows)
    sizes = []
    async for batch in batches(database, What(until=now()), skip_locked=False):
        sizes.append(len(batch.deleted))
        break
    assert sizes == [200]
    async with database.session() as session:
        assert await store.forgetting.count(session, What(until=now())) == (250, 0), "the first batch stays deleted"
    held_s = iter([1.0, 1.0, 0.0, 0.0])  # the first two hold their locks for too long
    forget = store.forgetting.forget

    async def forget_slowly(session: AsyncSession, ids: Sequence[UUID]) -> DeletedRows:
        return replace(await forget(session, ids), held_s=next(held_s))

    monkeypatch.setattr(store.forgetting, "forget", forget_slowly)
    async with asyncio.timeout(60):
        sizes = [len(batch.deleted) async for batch in batches(database, What(until=now()), skip_locked=True)]
    assert sizes == [200, 50]
    monkeypatch.setattr(forgetting, "_BATCH", 40)
    monkeypatch.setattr(forgetting, "_LEAST", 10)
    await keep(database, *(judged(n, 0.5) for n in range(1000, 1100)))
    held_s = iter([1.0, 1.0, 0.0, 0.0, 0.0])
    sizes = [len(batch.deleted) async for batch in batches(database, What(until=now()), skip_locked=True)]
    assert sizes == [40, 20, 10, 20, 10]


def test_a_slow_batch_makes_the_next_one_smaller() -> None:
    assert [next_size(200, held_s=held_s) for held_s in (0.1, 0.3)] == [200, 100]
    assert [next_size(50, held_s=held_s) for held_s in (0.1, 0.3)] == [100, 25]
    assert next_size(25, held_s=9.0) == 25, "the fixed part of a transaction must not take over"


async def test_labels_of_what_is_left_are_counted_again(database: Database) -> None:
    key, other = make_key(), make_key()
    async with database.session() as session:
        await store.keys.insert_key(session, key, b"1")
        await store.keys.insert_key(session, other, b"2")
    first, second, alone = judged(1, 0.5), judged(1, 0.5), judged(2, 0.5)
    said = [
        make_feedback(first.id, correct=True, key_id=key.id),
        make_feedback(second.id, correct=False, key_id=other.id),
    ]
    await keep(database, first, second, alone, *said, make_feedback(alone.id, correct=True))

    async def answers() -> list[tuple[bool | None, int]]:
        async with database.session() as session:
            rows = await session.scalars(select(AnswerRow).order_by(AnswerRow.is_right.nulls_first()))
            return [(row.is_right, len(row.votes)) for row in rows]

    assert await answers() == [(None, 2), (True, 1)], "two keys contradict each other"
    async with database.session() as session:
        await store.forgetting.forget(session, [first.id, alone.id])
    assert await answers() == [(False, 1)], "one vote is left, and nothing is about the other answer"


async def test_announced_conversations_of_a_key_are_forgotten(database: Database) -> None:
    mine, other = make_key(), make_key()
    kept = timedelta(minutes=15)
    async with database.session() as session:
        for key in (mine, other):
            await store.guarded.keep(session, "call", [{"role": "user", "content": "?"}], key_id=key.id, keep_for=kept)
        await store.forgetting.order(session, What(key_id=mine.id, since=now() - timedelta(days=1)))
        assert await store.guarded.read(session, "call", key_id=mine.id) is None
        assert await store.guarded.read(session, "call", key_id=other.id) is not None
        await store.forgetting.order(session, What(episode_id=new_id()))
        assert await store.guarded.read(session, "call", key_id=other.id) is not None


async def test_the_clean_critic_is_of_the_same_task(database: Database) -> None:
    async with database.session() as session:
        for task in ("math", "sql"):
            await store.critics.ensure_version_zero(session, "tiny", task=TaskId(task, "abc"))
        assert await store.forgetting.clean_version(session, base_model="tiny", without=[]) == 1
    await a_run(database, parent=0)
    async with database.session() as session:
        assert await store.forgetting.clean_version(session, base_model="tiny", without=[2]) == 0


def test_a_wrong_age_is_named() -> None:
    with pytest.raises(BadSettings, match="'chats=3d' is not an origin with an age"):
        Settings.load({"retention": "chats=3d"})
