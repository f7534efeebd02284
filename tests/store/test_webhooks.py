"""The outbox: what each event puts into it, in which transaction, and what a claim does."""

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.errors import NotFound
from gadfly.records import CanaryTerms, Interaction, Ruling, SwapKind, SwapStatus, new_id, now
from gadfly.settings import SplitBlocks
from gadfly.store.database import Database
from gadfly.store.runs import TRAINING_ROLE
from gadfly.training import EventKind, RunStatus, TrainConfig, Trigger
from gadfly.webhooks import DeliveryStatus, WebhookDelivery, WebhookEndpoint, WebhookEvent, new_secret
from tests.support.records import make_feedback, make_interaction

EVERY = tuple(event.value for event in WebhookEvent)


async def endpoint(database: Database, *events: str) -> UUID:
    made = WebhookEndpoint(
        id=new_id(), url="http://127.0.0.1:9/", events=events or EVERY, secret=new_secret(), created_at=now()
    )
    async with database.session() as session:
        await store.webhooks.insert_endpoint(session, made)
    return made.id


async def outbox(database: Database) -> list[WebhookDelivery]:
    """All deliveries, the oldest first."""
    async with database.session() as session:
        found = await store.webhooks.list_deliveries(session, status=None, endpoint_id=None, limit=100, before=None)
    return found[::-1]


def told(delivery: WebhookDelivery) -> tuple[str, dict[str, Any]]:
    document = json.loads(delivery.body)
    assert document["type"] == delivery.event
    assert document["timestamp"][:10] == f"{delivery.created_at:%Y-%m-%d}"
    return document["type"], document["data"]


async def stored(session: AsyncSession, *records: Any) -> None:
    await store.interactions.insert_records(session, records, heldout_share=1e-9, split_blocks=SplitBlocks.EXACT)


async def add_interaction(database: Database) -> Interaction:
    interaction = make_interaction()
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    async with database.session() as session:
        await stored(session, interaction)
    return interaction


async def test_a_label_is_announced_with_its_vote_and_not_without_it(database: Database) -> None:
    interaction = await add_interaction(database)
    await endpoint(database)
    async with database.session() as session:
        await stored(session, make_feedback(interaction.id, correct=False))
        await session.rollback()
    assert await outbox(database) == [], "the vote was rolled back"
    async with database.session() as session:
        await stored(session, make_feedback(interaction.id, correct=False))
    label = {"interaction_id": str(interaction.id), "task": "math", "correct": False, "source": "person"}
    assert [told(each) for each in await outbox(database)] == [("label.changed", {"labels": [label]})]
    async with database.session() as session:
        await stored(session, make_feedback(interaction.id, correct=False))
    assert len(await outbox(database)) == 1, "the label is the same"
    async with database.session() as session:
        await store.disputes.rule(session, interaction.id, Ruling.RIGHT)
    assert told((await outbox(database))[-1])[1]["labels"][0]["correct"] is True


async def test_labels_of_a_key_that_is_distrusted_are_announced_together(database: Database) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        await session.execute(
            text(
                "INSERT INTO keys (id, name, tier, hint, digest, created_at)"
                " VALUES (gen_random_uuid(), 'k', 'caller', 'gf_', '\\x00', now())"
            )
        )
        [key] = await store.keys.list_keys(session)
    given = [make_interaction(question=f"How much is {number} + 5?") for number in range(3)]
    async with database.session() as session:
        await stored(session, *given)
        await stored(session, *(make_feedback(each.id, key_id=key.id, correct=True) for each in given))
    await endpoint(database, "label.changed")
    async with database.session() as session:
        await store.keys.set_trust(session, key.id, is_trusted=False)
    await store.labels.refresh(database)
    [delivery] = await outbox(database)
    labels = told(delivery)[1]["labels"]
    assert {label["interaction_id"] for label in labels} == {str(each.id) for each in given}
    assert {label["correct"] for label in labels} == {None}


async def test_runs_and_their_alarms_are_announced(database: Database, database_url: str) -> None:
    await endpoint(database, "run.ended", "run.alarm")
    async with database.session() as session:
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        await store.runs.begin_run(session, run.id)
    async with Database(database_url, role=TRAINING_ROLE) as walled:
        async with walled.session() as session:  # as training code, which reports alarms
            evidence = {"texts": ["a caller's text"]}
            alarm = {"message": "the verdict drifts", "evidence": evidence}
            await store.runs.append_event(session, run.id, EventKind.ALARM, alarm)
            await store.runs.append_event(session, run.id, EventKind.NOTE, {"message": "a note"})
        for statement in ("SELECT secret FROM webhook_endpoints", "SELECT body FROM webhook_deliveries"):
            with pytest.raises(ProgrammingError, match="permission denied"):
                async with walled.session() as session:
                    await session.execute(text(statement))
    async with database.session() as session:
        assert await store.runs.finish_run(session, run.id, RunStatus.FAILED, error="out of memory")
        assert not await store.runs.finish_run(session, run.id, RunStatus.FAILED, error="again")
    assert [told(each) for each in await outbox(database)] == [
        ("run.alarm", {"run_id": str(run.id), "message": "the verdict drifts"}),
        (
            "run.ended",
            {
                "run_id": str(run.id),
                "task": "math",
                "status": "failed",
                "outcome": None,
                "version": None,
            },
        ),
    ]


async def test_moves_of_the_live_pointer_are_announced_and_refusals_are_not(database: Database) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        await session.execute(
            text(
                "INSERT INTO critic_versions (version, base_model, adapter_path, adapter_sha256, created_at)"
                " VALUES (1, 'tiny', 'folder', 'hash', now())"
            )
        )
    await endpoint(database)
    terms = CanaryTerms(share=0.1, for_s=60, for_requests=None)
    async with database.session() as session:
        refused = await store.swaps.request_swap(session, version=1, kind=SwapKind.PROMOTE)
        await store.swaps.finish_swap(session, refused.id, SwapStatus.REFUSED, "no engine")
        swap = await store.swaps.request_swap(session, version=1, kind=SwapKind.GATE, canary=terms)
        await store.swaps.move_pointer(session, swap.id)
        await store.swaps.move_pointer(session, swap.id)  # a second replica
    async with database.session() as session:
        back = await store.swaps.request_swap(session, kind=SwapKind.WATCH, reason="labels show a loss")
        await store.swaps.move_pointer(session, back.id)
    promoted, rolled_back = [told(each) for each in await outbox(database)]
    assert promoted == (
        "critic.promoted",
        {
            "swap_id": str(swap.id),
            "task": "math",
            "version": 1,
            "from_version": 0,
            "kind": "gate",
            "canary_share": 0.1,
            "reason": None,
        },
    )
    assert rolled_back[0] == "critic.rolled_back"
    assert rolled_back[1]["version"] == 0
    assert rolled_back[1]["reason"] == "labels show a loss"


async def announce(database: Database, count: int = 1) -> None:
    for number in range(count):
        async with database.session() as session:
            await store.webhooks.announce(session, WebhookEvent.RUN_ENDED, {"number": number})


async def claimed(database: Database, id: UUID, lease_s: float = 60) -> WebhookDelivery | None:
    async with database.session() as session:
        return await store.webhooks.claim(session, id, lease_s=lease_s)


async def test_each_endpoint_gets_the_events_that_it_wants(database: Database) -> None:
    wants, _ = await endpoint(database, "run.ended"), await endpoint(database, "run.alarm")
    await announce(database)
    assert [each.endpoint_id for each in await outbox(database)] == [wants]


async def test_a_claim_is_exclusive_until_its_lease_ends(database: Database) -> None:
    id = await endpoint(database)
    await announce(database, 3)
    found = await asyncio.gather(*(claimed(database, id) for _ in range(5)))
    claims = [each for each in found if each is not None]
    assert sorted(json.loads(each.body)["data"]["number"] for each in claims) == [0, 1, 2]
    assert {each.attempts for each in claims} == {1}
    async with database.session() as session:
        assert await store.webhooks.due_endpoints(session) == []
        await session.execute(text("UPDATE webhook_deliveries SET next_at = clock_timestamp()"))
        assert [each.id for each in await store.webhooks.due_endpoints(session)] == [id]
    again = await claimed(database, id)
    assert again is not None
    assert again.attempts == 2


async def test_an_attempt_that_was_overtaken_changes_nothing(database: Database) -> None:
    id = await endpoint(database)
    await announce(database)
    slow = await claimed(database, id, lease_s=0)
    fast = await claimed(database, id)
    assert slow is not None
    assert fast is not None
    async with database.session() as session:
        await store.webhooks.end_attempt(session, slow, problem="status 500", again_in_s=None)
    assert [(each.status, each.problem) for each in await outbox(database)] == [(DeliveryStatus.PENDING, None)]
    async with database.session() as session:
        await store.webhooks.end_attempt(session, fast, problem=None, again_in_s=None)
    [ended] = await outbox(database)
    assert ended.status is DeliveryStatus.DELIVERED
    assert ended.ended_at is not None


async def test_the_oldest_of_too_many_waiting_deliveries_are_given_up(database: Database) -> None:
    slow, quick = await endpoint(database), await endpoint(database)
    await announce(database, 5)
    async with database.session() as session:
        await session.execute(
            text("UPDATE webhook_deliveries SET status = 'delivered', ended_at = now() WHERE endpoint_id = :id"),
            {"id": quick},
        )
        await store.webhooks.give_up(session, most=3)
        left = await store.webhooks.list_deliveries(session, status=None, endpoint_id=slow, limit=9, before=None)
        others = await store.webhooks.list_deliveries(session, status=None, endpoint_id=quick, limit=9, before=None)
    assert [each.status.value for each in left] == ["pending"] * 3 + ["dead"] * 2
    assert {each.problem for each in left[3:]} == {"more than 3 later events waited for this endpoint"}
    assert {each.status.value for each in others} == {"delivered"}


async def test_old_deliveries_are_removed(database: Database) -> None:
    kept, gone = await endpoint(database), await endpoint(database)
    await announce(database, 3)
    statuses = ("delivered", "dead", "pending")
    async with database.session() as session:
        for number, status in enumerate(statuses):
            await session.execute(
                text(
                    "UPDATE webhook_deliveries SET status = :status, ended_at = now() - interval '10 days'"
                    " WHERE body::jsonb -> 'data' ->> 'number' = :number"
                ),
                {"status": status, "number": str(number)},
            )
        await session.execute(text("DELETE FROM webhook_endpoints WHERE id = :id"), {"id": gone})  # as in a race
        assert await store.webhooks.prune(session, delivered_s=7 * 86400, dead_s=30 * 86400) == 4
        left = await store.webhooks.list_deliveries(session, status=None, endpoint_id=None, limit=9, before=None)
        assert {(each.endpoint_id, each.status.value) for each in left} == {(kept, "dead"), (kept, "pending")}
        with pytest.raises(NotFound):
            await store.webhooks.send_again(session, new_id())
