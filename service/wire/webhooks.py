"""Shapes of /admin/webhooks."""

from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from pydantic import ConfigDict, Field, JsonValue

from gadfly.fields import FilledText
from gadfly.service.wire.common import Wire
from gadfly.webhooks import DeliveryStatus, WebhookDelivery, WebhookEvent


class WebhookView(Wire):
    """An endpoint, without its secret."""

    id: UUID
    url: str
    events: list[WebhookEvent] = Field(description="The events that are announced to it.")
    created_at: datetime


class WebhookRequest(Wire):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"url": "https://example.com/hooks/gadfly", "events": ["run.ended", "critic.promoted"]}]
        }
    )

    url: FilledText = Field(
        max_length=2000, description="http or https, without user name, password or fragment. Redirects are failures."
    )
    events: list[WebhookEvent] = Field(
        default_factory=lambda: list(WebhookEvent),
        min_length=1,
        max_length=len(WebhookEvent),
        description="The events to announce. Without it: all.",
    )


class NewWebhook(WebhookView):
    secret: str = Field(description="Signs each announcement by the rules of Standard Webhooks. It is not shown again.")


class DeliveryQuery(Wire):
    """The query of GET /admin/webhooks/deliveries."""

    status: DeliveryStatus | None = None
    webhook: UUID | None = Field(None, description="Only deliveries to this endpoint.")
    cursor: UUID | None = Field(None, description="`next_cursor` of the previous page.")
    limit: int = Field(50, ge=1, le=200)


class DeliveryView(Wire):
    """One announcement to one endpoint."""

    id: UUID = Field(description="The header webhook-id, the same at each attempt.")
    webhook_id: UUID
    event: str
    payload: dict[str, JsonValue] = Field(description="What is sent: `type`, `timestamp` and `data`.")
    created_at: datetime
    status: DeliveryStatus = Field(description="dead: the last of nine attempts failed, after about two days.")
    attempts: int = Field(description="Attempts so far, with the one that runs now.")
    next_at: datetime | None = Field(description="The next attempt of a pending delivery, or the end of its lease.")
    ended_at: datetime | None
    problem: str | None = Field(description="Why the last attempt that failed did.")

    @classmethod
    def shown(cls, delivery: WebhookDelivery) -> "DeliveryView":
        payload: dict[str, Any] = orjson.loads(delivery.body)
        is_pending = delivery.status is DeliveryStatus.PENDING
        next_at = delivery.next_at if is_pending else None
        return cls.of(delivery, webhook_id=delivery.endpoint_id, payload=payload, next_at=next_at)


class DeliveryPage(Wire):
    items: list[DeliveryView]
    next_cursor: UUID | None = Field(description="Pass as `cursor` for the next page; null on the last page.")
