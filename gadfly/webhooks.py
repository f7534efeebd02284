"""Webhooks: the events that a deployment announces, and how an announcement is signed.

Signatures follow Standard Webhooks (https://www.standardwebhooks.com), so receivers can check them with its libraries.
"""

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from gadfly.errors import BadInput

_PREFIX = "whsec_"
_SECRET_BYTES = 32
_MAX_URL_CHARS = 2000
_PLAIN = re.compile(r"[!-~]+")  # visible ASCII


class WebhookEvent(StrEnum):
    """What is announced."""

    LABEL_CHANGED = "label.changed"
    RUN_ENDED = "run.ended"
    RUN_ALARM = "run.alarm"
    CRITIC_PROMOTED = "critic.promoted"
    CRITIC_ROLLED_BACK = "critic.rolled_back"


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


def checked_url(url: str) -> str:
    """The address of an endpoint.

    Internal addresses are not refused: a name may lead to another address at each look-up, so only the network can.

    Raises:
        BadInput: it is not an http or https address, or contains a user name, a password or a fragment.
    """
    if len(url) > _MAX_URL_CHARS or not _PLAIN.fullmatch(url):
        raise BadInput(
            f"the URL must be visible ASCII, at most {_MAX_URL_CHARS} characters: encode others as %XX", field="url"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        _ = httpx.URL(url).host  # decodes names that begin with `xn--`, as for sending
    except (ValueError, httpx.InvalidURL) as error:
        raise BadInput(f"the URL cannot be read: {error}", field="url") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise BadInput("the URL must begin with http:// or https:// and name a host", field="url")
    if "@" in parts.netloc:
        raise BadInput("the URL must not contain a user name or a password: receivers check signatures", field="url")
    if parts.fragment:
        raise BadInput("the URL must not have a fragment (#...)", field="url")
    return url
