"""GET /critics and GET /critics/{version}."""

from typing import Annotated

from fastapi import APIRouter, Path

from gadfly.records import Tier
from gadfly.service.dependencies import CallerDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.wire.critics import CriticHistoryView, CriticVersionView, history_view, version_view

router = APIRouter(tags=["critics"], responses=problems(401, 404, 422, 503))


@router.get("/critics", summary="List critics", response_model=list[CriticVersionView])
async def list_critics(caller: CallerDep, service: ServiceDep) -> list[CriticVersionView]:
    """All critic versions, newest first, with the pointers (live, candidate, previous) of each."""
    versions, pointers = await service.critics.pointers.read_all()
    return [version_view(critic, pointers, served=service.settings.model) for critic in versions]


@router.get("/critics/{version}", summary="Read a critic", response_model=CriticHistoryView)
async def read_critic(
    version: Annotated[int, Path(ge=0, lt=2**31)], caller: CallerDep, service: ServiceDep
) -> CriticHistoryView:
    """One critic: its parent, its training run, the gate's report, its calibration, its swaps and their receipts.

    The reasons of swaps and the addresses of engines are shown to admins only.
    """
    critic = await service.critics.pointers.resolve(version)
    history = await service.critics.pointers.history(critic)
    _, pointers = await service.critics.pointers.read_all()
    is_admin = caller.tier is Tier.ADMIN
    return history_view(critic, pointers, history, served=service.settings.model, for_admin=is_admin)
