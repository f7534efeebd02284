"""Webhooks: endpoints and deliveries as admins see them, and the process that delivers.

The outbox is in Postgres (`gadfly.store.webhooks`). The eldest replica delivers, at least once: a receiver recognises
repeats by the header webhook-id. Deliveries to one endpoint are sent one after the other, those to several endpoints at
the same time, so that a slow endpoint delays only its own.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import structlog

from gadfly import store
from gadfly.errors import BadInput, Conflict, StoreUnavailable
from gadfly.records import AdminAction, new_id, now
from gadfly.repeating import repeat
from gadfly.service.keyring import Caller
from gadfly.service.metrics import Metrics
from gadfly.store.database import Database
from gadfly.webhooks import (
    DeliveryStatus,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    new_secret,
    signed_headers,
)

DELAYS_S = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 86_400.0)
"""The waits between the attempts: nine in two days, and then the delivery is dead."""

_EVERY_S = 1.0
_TIMEOUT_S = 15.0
_LEASE_S = 60.0  # longer than an attempt with its two transactions
_MOST_ENDPOINTS = 20
_PRUNE_EVERY_S = 3600.0
_MAX_URL_CHARS = 2000
_PLAIN = re.compile(r"[!-~]+")  # visible ASCII
_DELIVERED_S = 7 * 86_400.0
_DEAD_S = 30 * 86_400.0
_MOST_PENDING = 100_000  # deliveries of an endpoint: one that hangs takes four attempts a minute

log = structlog.get_logger(__name__)


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


class Webhooks:
    """Creates, lists and deletes endpoints, and lists and repeats deliveries. Changes of endpoints are recorded."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def endpoints(self) -> list[WebhookEndpoint]:
        """All endpoints, the oldest first."""
        async with self._database.session() as session:
            return await store.webhooks.list_endpoints(session)

    async def create(self, admin: Caller, url: str, events: Sequence[WebhookEvent]) -> WebhookEndpoint:
        """A new endpoint with its secret.

        Raises:
            BadInput: the URL is not one that can be used.
            Conflict: there are 20 endpoints already.
        """
        endpoint = WebhookEndpoint(
            id=new_id(),
            url=checked_url(url),
            events=tuple(event.value for event in WebhookEvent if event in events),
            secret=new_secret(),
            created_at=now(),
        )
        async with self._database.session() as session:
            if len(await store.webhooks.list_endpoints(session)) >= _MOST_ENDPOINTS:
                raise Conflict(f"there are {_MOST_ENDPOINTS} webhooks already: delete one first")
            await store.webhooks.insert_endpoint(session, endpoint)
            await store.acts.record_act(
                session,
                AdminAction.CREATE_WEBHOOK,
                endpoint.id,
                key_id=admin.key_id,
                reason=None,
                details={"url": endpoint.url, "events": list(endpoint.events)},
            )
        return endpoint

    async def delete(self, admin: Caller, id: UUID) -> None:
        """Delete an endpoint with its deliveries.

        Raises:
            NotFound: there is no such endpoint.
        """
        async with self._database.session() as session:
            deleted = await store.webhooks.delete_endpoint(session, id)
            await store.acts.record_act(
                session,
                AdminAction.DELETE_WEBHOOK,
                id,
                key_id=admin.key_id,
                reason=None,
                details={"url": deleted.url},
            )

    async def send_test(self, id: UUID) -> WebhookDelivery:
        """Put the event `test` into the outbox for one endpoint.

        Raises:
            NotFound: there is no such endpoint.
        """
        async with self._database.session() as session:
            return await store.webhooks.announce_test(session, id)

    async def deliveries(
        self, *, status: DeliveryStatus | None, endpoint_id: UUID | None, limit: int, before: UUID | None
    ) -> list[WebhookDelivery]:
        """Deliveries, the newest first; see `gadfly.store.webhooks.list_deliveries`."""
        async with self._database.session() as session:
            return await store.webhooks.list_deliveries(
                session, status=status, endpoint_id=endpoint_id, limit=limit, before=before
            )

    async def send_again(self, id: UUID) -> WebhookDelivery:
        """Let a delivery be attempted now, with the full number of attempts.

        Raises:
            NotFound: there is no such delivery, or its endpoint was deleted.
        """
        async with self._database.session() as session:
            return await store.webhooks.send_again(session, id)


class WebhookSender:
    """Delivers what is in the outbox, in the eldest replica."""

    def __init__(
        self,
        database: Database,
        *,
        is_eldest: Callable[[], bool],
        metrics: Metrics,
        delays_s: Sequence[float] = DELAYS_S,
        timeout_s: float = _TIMEOUT_S,
        lease_s: float = _LEASE_S,
    ) -> None:
        """`is_eldest` says whether this replica delivers. A claim makes it safe that two do for a moment."""
        self._database = database
        self._is_eldest = is_eldest
        self._metrics = metrics
        self._delays_s = tuple(delays_s)
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        # A redirect is not followed: it could lead to an internal address that the admin did not name.
        self._client = httpx.AsyncClient(timeout=timeout_s, follow_redirects=False)
        self._sending: dict[UUID, asyncio.Task[None]] = {}
        self._pruned_at = -_PRUNE_EVERY_S

    async def run(self) -> None:
        """Look for due deliveries once a second, until cancelled."""
        try:
            await repeat(
                self.check, wait=partial(asyncio.sleep, _EVERY_S), failure="webhooks_not_sent", waits_first=False
            )
        finally:
            for task in self._sending.values():
                task.cancel()
            await asyncio.gather(*self._sending.values(), return_exceptions=True)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def check(self) -> None:
        """Begin to send to each endpoint for which a delivery is due, unless that goes on already."""
        self._sending = {id: task for id, task in self._sending.items() if not task.done()}
        if not self._is_eldest():
            self._metrics.webhooks_pending.set(0)
            return
        async with self._database.session() as session:
            due = await store.webhooks.due_endpoints(session)
            self._metrics.webhooks_pending.set(await store.webhooks.count_pending(session))
        for endpoint in due:
            if endpoint.id not in self._sending:
                self._sending[endpoint.id] = asyncio.create_task(self._send_all(endpoint))
        if time.monotonic() - self._pruned_at >= _PRUNE_EVERY_S:
            self._pruned_at = time.monotonic()
            async with self._database.session() as session:
                await store.webhooks.give_up(session, most=_MOST_PENDING)
                await store.webhooks.prune(session, delivered_s=_DELIVERED_S, dead_s=_DEAD_S)

    async def _send_all(self, endpoint: WebhookEndpoint) -> None:
        try:
            while self._is_eldest() and await self._send_next(endpoint):
                pass
        except StoreUnavailable as error:  # what was claimed is tried again after its lease
            log.warning("webhooks_not_sent", webhook=str(endpoint.id), reason=str(error))

    async def _send_next(self, endpoint: WebhookEndpoint) -> bool:
        """Attempt the next due delivery; whether there was one. No transaction is open meanwhile."""
        async with self._database.session() as session:
            delivery = await store.webhooks.claim(session, endpoint.id, lease_s=self._lease_s)
        if delivery is None:
            return False
        problem = await self._attempt(endpoint, delivery)
        is_last = delivery.attempts > len(self._delays_s)
        again_in_s = None if problem is None or is_last else self._delays_s[delivery.attempts - 1]
        async with self._database.session() as session:
            await store.webhooks.end_attempt(session, delivery, problem=problem, again_in_s=again_in_s)
        outcome = "delivered" if problem is None else "dead" if is_last else "failed"
        self._metrics.webhooks.labels(outcome).inc()
        if problem is not None:
            log.warning(
                "webhook_dead" if is_last else "webhook_failed",
                webhook=str(endpoint.id),
                delivery=str(delivery.id),
                attempt=delivery.attempts,
                reason=problem,
            )
        return True

    async def _attempt(self, endpoint: WebhookEndpoint, delivery: WebhookDelivery) -> str | None:
        """Send a delivery once; why it failed, or None. The body of the answer is not read."""
        body = delivery.body.encode()
        headers = signed_headers(endpoint.secret, id=str(delivery.id), timestamp=int(time.time()), body=body)
        headers |= {"content-type": "application/json", "user-agent": "gadfly"}
        try:
            async with (
                asyncio.timeout(self._timeout_s),  # httpx limits each read, and not the whole
                self._client.stream("POST", endpoint.url, content=body, headers=headers) as response,
            ):
                status, is_success, is_redirect = response.status_code, response.is_success, response.is_redirect
        except (TimeoutError, httpx.TimeoutException):
            return f"no answer within {self._timeout_s:g} s"
        except (httpx.HTTPError, ValueError, httpx.InvalidURL) as error:  # ValueError: a host that IDNA refuses
            return f"no answer: {type(error).__name__}"
        if is_success:
            return None
        return f"status {status}, a redirect, which is not followed" if is_redirect else f"status {status}"
