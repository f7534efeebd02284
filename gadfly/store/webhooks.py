"""Webhooks: endpoints, and the outbox of announcements, which is written in the transaction of each event.

Deliveries have no foreign key to their endpoint: the deletion of an endpoint must not make an event's transaction fail.
Deliveries of a deleted endpoint are not sent, and removed later.
"""

import json
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, Text, any_, delete, exists, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import NotFound
from gadfly.records import new_id, now
from gadfly.store.mapping import record_of, values_of
from gadfly.store.tables import WebhookDeliveryRow, WebhookEndpointRow
from gadfly.webhooks import TEST_EVENT, DeliveryStatus, WebhookDelivery, WebhookEndpoint, WebhookEvent

# ----------------------------------------------------------------------------------------------------------- the outbox


async def wanting(session: AsyncSession, event: WebhookEvent) -> list[UUID]:
    """The endpoints that want this event. Training code may call it too: it cannot read their secrets."""
    wanted = literal(event.value, Text) == any_(WebhookEndpointRow.events)
    return list(await session.scalars(select(WebhookEndpointRow.id).where(wanted)))


async def announce(session: AsyncSession, event: WebhookEvent, data: dict[str, Any]) -> None:
    """Put an event into the outbox, once for each endpoint that wants it, in this transaction.

    `data` is JSON; it names rows and holds no texts of callers.
    """
    endpoints = await wanting(session, event)
    if endpoints:
        await session.execute(_new_deliveries(endpoints, event.value, data))


async def announce_test(session: AsyncSession, endpoint_id: UUID) -> WebhookDelivery:
    """Put the event `test` into the outbox for one endpoint.

    Raises:
        NotFound: there is no such endpoint.
    """
    if await session.get(WebhookEndpointRow, endpoint_id) is None:
        raise NotFound(f"there is no webhook {endpoint_id}")
    statement = _new_deliveries([endpoint_id], TEST_EVENT, {"webhook_id": endpoint_id})
    return record_of(WebhookDelivery, (await session.scalars(statement.returning(WebhookDeliveryRow))).one())


def _new_deliveries(endpoints: Sequence[UUID], event: str, data: dict[str, Any]) -> Insert:
    body = json.dumps({"type": event, "timestamp": now().isoformat(), "data": data}, default=str)
    at = func.clock_timestamp()
    return insert(WebhookDeliveryRow).values(
        [
            {
                "id": new_id(),
                "endpoint_id": endpoint,
                "event": event,
                "body": body,
                "created_at": at,
                "status": DeliveryStatus.PENDING,
                "attempts": 0,
                "next_at": at,
            }
            for endpoint in endpoints
        ]
    )


async def due_endpoints(session: AsyncSession) -> list[WebhookEndpoint]:
    """The endpoints for which an attempt is due now."""
    is_due = exists().where(WebhookDeliveryRow.endpoint_id == WebhookEndpointRow.id, *_due())
    rows = await session.scalars(select(WebhookEndpointRow).where(is_due).order_by(WebhookEndpointRow.id))
    return [record_of(WebhookEndpoint, row) for row in rows]


async def claim(session: AsyncSession, endpoint_id: UUID, *, lease_s: float) -> WebhookDelivery | None:
    """The next delivery to an endpoint that is due, counted as an attempt; None if there is none.

    Other processes do not get it for `lease_s` seconds. If this process dies, it is tried again after that.
    """
    due = (
        select(WebhookDeliveryRow.id)
        .where(WebhookDeliveryRow.endpoint_id == endpoint_id, *_due())
        .order_by(WebhookDeliveryRow.next_at, WebhookDeliveryRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = await session.scalar(
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.id == due.scalar_subquery())
        .values(attempts=WebhookDeliveryRow.attempts + 1, next_at=_in(lease_s))
        .returning(WebhookDeliveryRow)
    )
    return None if row is None else record_of(WebhookDelivery, row)


async def end_attempt(
    session: AsyncSession, delivery: WebhookDelivery, *, problem: str | None, again_in_s: float | None
) -> None:
    """Store what became of a claimed delivery.

    Without a problem it is delivered, else it is tried again in `again_in_s` seconds, or dead with None. A delivery
    that was claimed or sent again in the meantime is left as it is.
    """
    values: dict[str, Any] = {} if problem is None else {"problem": problem}
    if problem is not None and again_in_s is not None:
        values["next_at"] = _in(again_in_s)
    else:
        values["status"] = DeliveryStatus.DELIVERED if problem is None else DeliveryStatus.DEAD
        values["ended_at"] = func.clock_timestamp()
    await session.execute(
        update(WebhookDeliveryRow)
        .where(
            WebhookDeliveryRow.id == delivery.id,
            WebhookDeliveryRow.status == DeliveryStatus.PENDING,
            WebhookDeliveryRow.attempts == delivery.attempts,
        )
        .values(values)
        .execution_options(synchronize_session=False)
    )


async def give_up(session: AsyncSession, *, most: int) -> None:
    """End the oldest pending deliveries of each endpoint that has more than so many of them."""
    place = func.row_number().over(partition_by=WebhookDeliveryRow.endpoint_id, order_by=WebhookDeliveryRow.id.desc())
    pending = WebhookDeliveryRow.status == DeliveryStatus.PENDING
    each = select(WebhookDeliveryRow.id, place.label("place")).where(pending).subquery()
    await session.execute(
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.id.in_(select(each.c.id).where(each.c.place > most)), pending)
        .values(
            status=DeliveryStatus.DEAD,
            ended_at=func.clock_timestamp(),
            problem=f"more than {most:,} later events waited for this endpoint",
        )
        .execution_options(synchronize_session=False)
    )


async def prune(session: AsyncSession, *, delivered_s: float, dead_s: float) -> int:
    """Remove deliveries that ended this long ago, and those of deleted endpoints; how many."""
    is_old = [
        (WebhookDeliveryRow.status == status) & (WebhookDeliveryRow.ended_at < _in(-age_s))
        for status, age_s in ((DeliveryStatus.DELIVERED, delivered_s), (DeliveryStatus.DEAD, dead_s))
    ]
    has_endpoint = exists().where(WebhookEndpointRow.id == WebhookDeliveryRow.endpoint_id)
    removed = await session.execute(
        delete(WebhookDeliveryRow).where(or_(*is_old, ~has_endpoint)).execution_options(synchronize_session=False)
    )
    return cast(CursorResult[Any], removed).rowcount


async def list_deliveries(
    session: AsyncSession,
    *,
    status: DeliveryStatus | None,
    endpoint_id: UUID | None,
    limit: int,
    before: UUID | None,
) -> list[WebhookDelivery]:
    """Deliveries, the newest first; those older than the delivery `before`, if given."""
    statement = select(WebhookDeliveryRow).order_by(WebhookDeliveryRow.id.desc()).limit(limit)
    if status is not None:
        statement = statement.where(WebhookDeliveryRow.status == status)
    if endpoint_id is not None:
        statement = statement.where(WebhookDeliveryRow.endpoint_id == endpoint_id)
    if before is not None:
        statement = statement.where(WebhookDeliveryRow.id < before)
    return [record_of(WebhookDelivery, row) for row in await session.scalars(statement)]


async def send_again(session: AsyncSession, id: UUID) -> WebhookDelivery:
    """Let a delivery be attempted now, with the full number of attempts, also if it was delivered.

    Raises:
        NotFound: there is no such delivery, or its endpoint was deleted.
    """
    has_endpoint = exists().where(WebhookEndpointRow.id == WebhookDeliveryRow.endpoint_id)
    row = await session.scalar(
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.id == id, has_endpoint)
        .values(status=DeliveryStatus.PENDING, attempts=0, next_at=func.clock_timestamp(), ended_at=None)
        .returning(WebhookDeliveryRow)
        .execution_options(populate_existing=True)
    )
    if row is None:
        raise NotFound(f"there is no delivery {id}, or its endpoint was deleted")
    return record_of(WebhookDelivery, row)


async def count_pending(session: AsyncSession) -> int:
    """Deliveries that are not ended."""
    statement = select(func.count()).where(WebhookDeliveryRow.status == DeliveryStatus.PENDING)
    return await session.scalar(statement) or 0


def _due() -> Sequence[Any]:
    return (
        WebhookDeliveryRow.status == DeliveryStatus.PENDING,
        WebhookDeliveryRow.next_at <= func.clock_timestamp(),
    )


def _in(seconds: float) -> Any:
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


# -------------------------------------------------------------------------------------------------------- the endpoints


async def insert_endpoint(session: AsyncSession, endpoint: WebhookEndpoint) -> None:
    session.add(WebhookEndpointRow(**values_of(WebhookEndpointRow, endpoint)))
    await session.flush()


async def list_endpoints(session: AsyncSession) -> list[WebhookEndpoint]:
    """All endpoints, the oldest first."""
    rows = await session.scalars(select(WebhookEndpointRow).order_by(WebhookEndpointRow.id))
    return [record_of(WebhookEndpoint, row) for row in rows]


async def delete_endpoint(session: AsyncSession, id: UUID) -> WebhookEndpoint:
    """Remove an endpoint, with its deliveries.

    Raises:
        NotFound: there is no such endpoint.
    """
    row = await session.scalar(
        delete(WebhookEndpointRow).where(WebhookEndpointRow.id == id).returning(WebhookEndpointRow)
    )
    if row is None:
        raise NotFound(f"there is no webhook {id}")
    endpoint = record_of(WebhookEndpoint, row)
    await session.execute(delete(WebhookDeliveryRow).where(WebhookDeliveryRow.endpoint_id == id))
    return endpoint
