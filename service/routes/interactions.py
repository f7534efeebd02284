"""GET /interactions, GET and DELETE /interactions/{id}."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from gadfly.service.dependencies import CallerDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.wire.interactions import InteractionPage, InteractionQuery, InteractionView, summary_of, view_of
from gadfly.store.interactions import Filters

router = APIRouter(tags=["interactions"], responses=problems(401, 404, 422, 503))


@router.get("/interactions", summary="List interactions", response_model=InteractionPage)
async def list_interactions(
    query: Annotated[InteractionQuery, Query()], caller: CallerDep, service: ServiceDep
) -> InteractionPage:
    """A page of interactions, newest first: the caller's own, or those of all callers for an admin."""
    page = await service.history.page(caller, _filters(query), cursor=query.cursor, limit=query.limit)
    return InteractionPage(
        items=[summary_of(interaction) for interaction in page.interactions], next_cursor=page.next_cursor
    )


@router.get("/interactions/{interaction_id}", summary="Read an interaction", response_model=InteractionView)
async def read_interaction(interaction_id: UUID, caller: CallerDep, service: ServiceDep) -> InteractionView:
    """One interaction with its result and its feedback so far."""
    interaction, feedback = await service.history.read(caller, interaction_id)
    return view_of(interaction, feedback)


@router.delete("/interactions/{interaction_id}", summary="Delete an interaction", status_code=204)
async def delete_interaction(interaction_id: UUID, caller: CallerDep, service: ServiceDep) -> Response:
    """Permanently delete one interaction with its texts, critiques, refinements and feedback."""
    await service.history.forget(caller, interaction_id)
    return Response(status_code=204)


def _filters(query: InteractionQuery) -> Filters:
    return Filters(
        kind=query.kind,
        verdict=query.verdict,
        grade=query.grade,
        episode_id=query.episode_id,
        critic_version=query.critic_version,
        task=query.task,
        has_feedback=query.has_feedback,
        created_from=query.since,
        created_before=query.until,
    )
