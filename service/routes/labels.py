"""/admin/labels and /admin/acts: disputes about labels, decisions of admins, and their audit."""

from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from gadfly.service.dependencies import AdminDep, ReaderDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.labels import (
    ActPage,
    ActQuery,
    ActView,
    DisputePage,
    DisputeQuery,
    LabelRequest,
    LabelView,
    vote_views,
)
from gadfly.store.disputes import JudgedAnswer

router = APIRouter(
    route_class=StrictJsonRoute, prefix="/admin", tags=["labels"], responses=problems(401, 403, 422, 503)
)

_HASH_HEX = 64  # digits of one hash in a cursor


@router.get("/labels/conflicts", summary="List conflicting labels", response_model=DisputePage)
async def list_conflicts(
    query: Annotated[DisputeQuery, Query()], reader: ReaderDep, service: ServiceDep
) -> DisputePage:
    """Answers that have no label because their votes differ. `POST /admin/labels/{interaction_id}` decides one."""
    after = None
    if query.cursor is not None:
        after = (bytes.fromhex(query.cursor[:_HASH_HEX]), bytes.fromhex(query.cursor[_HASH_HEX:]))
    found = await service.labels.disputes(
        only_conflicts=not query.disputed, limit=query.limit + 1, after=after, task=query.task
    )
    shown, names = found[: query.limit], await service.labels.key_names()
    last = "".join(part.hex() for part in shown[-1][0]) if len(found) > query.limit else None
    return DisputePage(items=[_view(answer, names) for _, answer in shown], next_cursor=last)


@router.get("/labels/{interaction_id}", summary="Read a label", response_model=LabelView, responses=problems(404))
async def read_label(interaction_id: UUID, reader: ReaderDep, service: ServiceDep) -> LabelView:
    """The label of the answer that an interaction is about, and all votes about it."""
    return _view(await service.labels.read(interaction_id), await service.labels.key_names())


@router.post(
    "/labels/{interaction_id}", summary="Decide a label", response_model=LabelView, responses=problems(404, 413)
)
async def set_label(interaction_id: UUID, body: LabelRequest, admin: AdminDep, service: ServiceDep) -> LabelView:
    """Decide the label of the answer that an interaction is about, also where it is frozen. The act is recorded."""
    answer = await service.labels.rule(admin, interaction_id, body.label, reason=body.reason)
    return _view(answer, await service.labels.key_names())


@router.get("/acts", summary="List acts of admins", response_model=ActPage)
async def list_acts(query: Annotated[ActQuery, Query()], admin: AdminDep, service: ServiceDep) -> ActPage:
    """Decisions about labels, keys and critics: who, when, what and why; the newest first."""
    acts = await service.labels.acts(limit=query.limit + 1, before=query.cursor)
    shown = acts[: query.limit]
    return ActPage(
        items=[ActView.of(act) for act in shown], next_cursor=shown[-1].id if len(acts) > query.limit else None
    )


def _view(answer: JudgedAnswer, names: Mapping[UUID, str]) -> LabelView:
    return LabelView.of(
        answer,
        correct=answer.is_right,
        votes=vote_views(answer.votes, names),
        voted=answer.voted_right,
        decided=answer.ruling,
    )
