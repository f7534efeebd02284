"""GET /critics and GET /critics/{version}."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from gadfly.records import Tier
from gadfly.service.dependencies import AnyKeyDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.wire.common import TaskName
from gadfly.service.wire.critics import CriticHistoryView, CriticVersionView, history_view, version_view

TaskQuery = Annotated[TaskName | None, Query(description="Only critics of this task.")]

router = APIRouter(tags=["critics"], responses=problems(401, 403, 404, 422, 503))


@router.get("/critics", summary="List critics", response_model=list[CriticVersionView])
async def list_critics(caller: AnyKeyDep, service: ServiceDep, task: TaskQuery = None) -> list[CriticVersionView]:
    """All critic versions, newest first, with the pointers (live, candidate, previous) of each.

    Versions are numbered over all tasks.
    """
    pointers = service.critics.pointers
    return [
        version_view(critic, pointers.names_of(critic), served=service.settings.model)
        for critic in await pointers.read_all()
        if task in (None, critic.task) and caller.may_use(critic.task)
    ]


@router.get("/critics/{version}", summary="Read a critic", response_model=CriticHistoryView)
async def read_critic(
    version: Annotated[int, Path(ge=0, lt=2**31)], caller: AnyKeyDep, service: ServiceDep
) -> CriticHistoryView:
    """One critic: its parent, its training run, the gate's report, its calibration, its scoreboard, its swaps and
    their receipts.

    The reasons of swaps and the addresses of engines are shown to admins only.
    """
    critic = await service.critics.pointers.resolve(version)
    caller.require_task(critic.task)
    history = await service.critics.pointers.history(critic)
    scores = await service.critics.scoreboards.read(critic)
    await service.critics.pointers.refresh()
    pointers = service.critics.pointers.names_of(critic)
    is_admin = caller.tier is Tier.ADMIN
    return history_view(critic, pointers, history, scores, served=service.settings.model, for_admin=is_admin)
