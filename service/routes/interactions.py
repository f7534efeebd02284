"""GET /interactions, GET and DELETE /interactions/{id}."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime

from core.grading import Grade
from core.queries import Filters
from core.records import Kind
from core.verdict import Verdict
from service.dependencies import CallerDep, ServiceDep
from service.routes.docs import problems
from service.wire import InteractionPage, InteractionSummary, InteractionView

router = APIRouter(tags=["interactions"], responses=problems(401, 404, 422, 503))


@router.get("/interactions", summary="List interactions", response_model=InteractionPage)
async def list_interactions(
    caller: CallerDep,
    service: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    kind: Kind | None = None,
    verdict: Verdict | None = None,
    grade: Grade | None = None,
    episode_id: UUID | None = None,
    critic_version: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    has_feedback: bool | None = None,
    since: Annotated[AwareDatetime | None, Query(description="Created at or after this time.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Created before this time.")] = None,
) -> InteractionPage:
    """A page of interactions, newest first: the caller's own, or everybody's for an admin."""
    filters = Filters(
        kind=kind,
        verdict=verdict,
        grade=grade,
        episode_id=episode_id,
        critic_version=critic_version,
        has_feedback=has_feedback,
        created_from=since,
        created_before=until,
    )
    page = await service.memory.page(caller, filters, cursor=cursor, limit=limit)
    return InteractionPage(
        items=[InteractionSummary.of(interaction) for interaction in page.interactions], next_cursor=page.next_cursor
    )


@router.get("/interactions/{interaction_id}", summary="Read an interaction", response_model=InteractionView)
async def read_interaction(interaction_id: UUID, caller: CallerDep, service: ServiceDep) -> InteractionView:
    """One interaction with its result and the feedback so far."""
    interaction, feedback = await service.memory.read(caller, interaction_id)
    return InteractionView.whole(interaction, feedback)


@router.delete("/interactions/{interaction_id}", summary="Forget an interaction", status_code=204)
async def delete_interaction(interaction_id: UUID, caller: CallerDep, service: ServiceDep) -> Response:
    """Forget one interaction: its texts, critiques, refinements and feedback are gone for good."""
    await service.memory.forget(caller, interaction_id)
    return Response(status_code=204)
