"""Webhooks: the events that a deployment announces, and how an announcement is signed.

Signatures follow Standard Webhooks (https://www.standardwebhooks.com), so receivers can check them with its libraries.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

_PREFIX = "whsec_"
_SECRET_BYTES = 32


class WebhookEvent(StrEnum):
    """What is announced."""

    LABEL_CHANGED = "label.changed"
    RUN_ENDED = "run.ended"
    RUN_ALARM = "run.alarm"
    CRITIC_PROMOTED = "critic.promoted"
    CRITIC_ROLLED_BACK = "critic.rolled_back"


TEST_EVENT = "test"
"""The event that an admin sends to one endpoint to try it. An endpoint gets it even if it wants other events only."""


class DeliveryStatus(StrEnum):
    PENDING = "pending"  # not delivered yet; it is tried again
    DELIVERED = "delivered"  # the endpoint answered with a status of 200 to 299
    DEAD = "dead"  # the last attempt failed; an admin can send it again


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookEndpoint:
    """Where announcements are sent. The secret is kept as it is, because each signature needs it."""

    id: UUID
    url: str
    events: tuple[str, ...]  # values of `WebhookEvent`
    secret: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookDelivery:
    """One announcement to one endpoint."""

    id: UUID  # the header webhook-id, the same at each attempt
    endpoint_id: UUID
    event: str
    body: str  # JSON, sent as it is
    created_at: datetime
    status: DeliveryStatus
    attempts: int
    next_at: datetime  # of the next attempt, while it is pending
    ended_at: datetime | None
    problem: str | None  # of the last attempt that failed


def new_secret() -> str:
    """The secret of a new endpoint: 32 random bytes in base64, with the prefix of Standard Webhooks."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(secret: str, *, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of an announcement that is sent at `timestamp`, in Unix seconds."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    digest = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
