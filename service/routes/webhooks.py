"""/admin/webhooks: endpoints of announcements, and their deliveries."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from gadfly.service.dependencies import AdminDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.webhooks import (
    DeliveryPage,
    DeliveryQuery,
    DeliveryView,
    NewWebhook,
    WebhookRequest,
    WebhookView,
)

router = APIRouter(
    route_class=StrictJsonRoute, prefix="/admin/webhooks", tags=["admin"], responses=problems(401, 403, 422, 503)
)


@router.get("", summary="List webhooks", response_model=list[WebhookView])
async def list_webhooks(admin: AdminDep, service: ServiceDep) -> list[WebhookView]:
    """The endpoints that events are announced to, the oldest first."""
    return [WebhookView.of(endpoint) for endpoint in await service.webhooks.endpoints()]


@router.post("", summary="Create a webhook", status_code=201, response_model=NewWebhook, responses=problems(409, 413))
async def create_webhook(body: WebhookRequest, admin: AdminDep, service: ServiceDep) -> NewWebhook:
    """Announce events to an address from now on. The secret that signs them is in this answer only.

    An admin can thereby make the service send requests to addresses in its network: see "Webhooks" in the
    operator's guide.
    """
    return NewWebhook.of(await service.webhooks.create(admin, body.url, body.events))


@router.delete("/{webhook_id}", summary="Delete a webhook", status_code=204, responses=problems(404))
async def delete_webhook(webhook_id: UUID, admin: AdminDep, service: ServiceDep) -> None:
    """Delete an endpoint with its deliveries."""
    await service.webhooks.delete(admin, webhook_id)


@router.post(
    "/{webhook_id}/test",
    summary="Send a test event",
    status_code=202,
    response_model=DeliveryView,
    responses=problems(404),
)
async def try_webhook(webhook_id: UUID, admin: AdminDep, service: ServiceDep) -> DeliveryView:
    """Send the event `test` to an endpoint, even if it wants other events only: signed and repeated as all are."""
    return DeliveryView.shown(await service.webhooks.send_test(webhook_id))


@router.get("/deliveries", summary="List deliveries of webhooks", response_model=DeliveryPage)
async def list_deliveries(
    query: Annotated[DeliveryQuery, Query()], admin: AdminDep, service: ServiceDep
) -> DeliveryPage:
    """Announcements and their attempts, the newest first. Delivered ones are kept for a week, dead ones for 30 days."""
    found = await service.webhooks.deliveries(
        status=query.status, endpoint_id=query.webhook, limit=query.limit + 1, before=query.cursor
    )
    shown = found[: query.limit]
    return DeliveryPage(
        items=[DeliveryView.shown(delivery) for delivery in shown],
        next_cursor=shown[-1].id if len(found) > query.limit else None,
    )


@router.post(
    "/deliveries/{delivery_id}/resend",
    summary="Send a delivery again",
    response_model=DeliveryView,
    responses=problems(404),
)
async def resend_delivery(delivery_id: UUID, admin: AdminDep, service: ServiceDep) -> DeliveryView:
    """Attempt a delivery now, with nine attempts as a new one. It keeps its id, so receivers can tell repeats."""
    return DeliveryView.shown(await service.webhooks.send_again(delivery_id))
