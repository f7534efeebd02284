"""POST /admin/promote, POST /admin/rollback and /admin/canaries."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from gadfly.errors import BadInput, Conflict
from gadfly.records import Canary, Swap, SwapKind, SwapStatus
from gadfly.service.container import Service
from gadfly.service.dependencies import AdminDep, ReaderDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.common import TaskName
from gadfly.service.wire.critics import CanaryView, PromoteRequest, RollbackRequest, SwapView, WidenRequest

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
    """Make a version live for its task once every engine has proven it. If the swap is refused, nothing changes.

    As a canary, the version answers a share of the requests first: each episode, and each question of a caller without
    one, keeps its critic. A rollback ends that at once; until its end no other version can be promoted.
    """
    service.require_started()
    if body.canary is not None and body.canary.share is None and not service.settings.canary_share:
        raise BadInput("a canary needs a share of the requests: GADFLY_CANARY_SHARE is 0", field="canary.share")
    swap = await service.critics.request_swap(
        version=body.version,
        task=_task_of(service, body.task),
        kind=SwapKind.PROMOTE,
        canary=service.settings.canary_terms(**(body.canary.model_dump() if body.canary else {})),
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


@router.get("/canaries", summary="List canaries", response_model=list[CanaryView])
async def list_canaries(
    reader: ReaderDep, service: ServiceDep, task: Annotated[TaskName | None, Query()] = None
) -> list[CanaryView]:
    """The 20 newest canaries, of a task or of all, the newest first. The first ones may run."""
    service.require_started()
    tasks = [line.task for line in service.critics.pointers] if task is None else [service.tasks.get(task).name]
    return [_shown(service, *each) for each in await service.critics.canaries.listed(tasks)]


@router.post("/canaries/widen", summary="End a canary: all requests", response_model=CanaryView)
async def widen_canary(body: WidenRequest, admin: AdminDep, service: ServiceDep) -> CanaryView:
    """Let the critic of a running canary answer all requests. `POST /admin/rollback` ends a canary the other way."""
    service.require_started()
    name = service.tasks.get(body.task).name
    ended = await service.critics.canaries.widen(name, version=body.version, reason=body.reason, key_id=admin.key_id)
    listed = await service.critics.canaries.listed([name])
    return next(_shown(service, *each) for each in listed if each[0].swap_id == ended.swap_id)


def _shown(service: Service, canary: Canary, answers: int, before: int) -> CanaryView:
    held = None if canary.ended_at else service.critics.canaries.held(canary.task)
    return CanaryView.of(canary, answers=answers, answers_before=before, held=held)


def _task_of(service: Service, name: str | None) -> str | None:
    return None if name is None else service.tasks.get(name).name


def _answer(swap: Swap, response: Response) -> SwapView:
    if swap.status is SwapStatus.REFUSED:
        raise Conflict(f"version {swap.version} was not made live: {swap.reason}")
    if swap.status is SwapStatus.PENDING:
        response.status_code = 202
    return SwapView.of(swap)
