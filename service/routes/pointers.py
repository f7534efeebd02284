"""POST /admin/promote and POST /admin/rollback."""

from typing import Any

from fastapi import APIRouter, Response

from gadfly.errors import Conflict
from gadfly.records import Swap, SwapKind, SwapStatus
from gadfly.service.container import Service
from gadfly.service.dependencies import AdminDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.critics import PromoteRequest, RollbackRequest, SwapView

_PATIENCE_S = 60.0

_PENDING: dict[int | str, dict[str, Any]] = {
    202: {"model": SwapView, "description": "The swap is still in progress; GET /state shows its result."}
}

router = APIRouter(
    route_class=StrictJsonRoute,
    prefix="/admin",
    tags=["admin"],
    responses=problems(401, 403, 404, 409, 413, 422, 503) | _PENDING,
)


@router.post("/promote", summary="Make a critic live", response_model=SwapView)
async def promote(body: PromoteRequest, admin: AdminDep, service: ServiceDep, response: Response) -> SwapView:
    """Make a version live for its task once every engine has proven it. If the swap is refused, nothing changes."""
    service.require_started()
    swap = await service.critics.request_swap(
        version=body.version,
        task=_task_of(service, body.task),
        kind=SwapKind.PROMOTE,
        key_id=admin.key_id,
        reason=body.reason,
        patience_s=_PATIENCE_S,
    )
    return _answer(swap, response)


@router.post("/rollback", summary="Return to the previous critic", response_model=SwapView)
async def rollback(body: RollbackRequest, admin: AdminDep, service: ServiceDep, response: Response) -> SwapView:
    """Make the previous version of a task live again. A pending promotion is refused in its favour.

    A second rollback goes one version further back; it never returns to a version that was rolled back from. With
    `from_version`, the version to roll back from, the request can be repeated: it gets 409 once another one is live.
    """
    service.require_started()
    swap = await service.critics.request_swap(
        version=None,
        task=_task_of(service, body.task),
        kind=SwapKind.ROLLBACK,
        from_version=body.from_version,
        key_id=admin.key_id,
        reason=body.reason,
        patience_s=_PATIENCE_S,
    )
    return _answer(swap, response)


def _task_of(service: Service, name: str | None) -> str | None:
    return None if name is None else service.tasks.get(name).name


def _answer(swap: Swap, response: Response) -> SwapView:
    if swap.status is SwapStatus.REFUSED:
        raise Conflict(f"version {swap.version} was not made live: {swap.reason}")
    if swap.status is SwapStatus.PENDING:
        response.status_code = 202
    return SwapView.of(swap)
