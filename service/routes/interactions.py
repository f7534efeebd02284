"""GET /interactions, GET and DELETE /interactions/{id}, its replay, and what runs learned from it."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from gadfly.errors import BadInput
from gadfly.service.answering.respond import respond
from gadfly.service.dependencies import CallerDep, ReaderDep, ServiceDep, TrafficDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.answers import CritiqueRequest, CritiqueResult
from gadfly.service.wire.interactions import (
    InteractionPage,
    InteractionQuery,
    InteractionView,
    LearningLedger,
    LearningView,
    ReplayRequest,
    summary_of,
    view_of,
)
from gadfly.store.interactions import Filters, InteractionFacts
from gadfly.store.learning import RESPONSE, SAMPLED, LedgerEntry

_UNKNOWN = InteractionFacts()

router = APIRouter(route_class=StrictJsonRoute, tags=["interactions"], responses=problems(401, 403, 404, 422, 503))


@router.get("/interactions", summary="List interactions", response_model=InteractionPage)
async def list_interactions(
    query: Annotated[InteractionQuery, Query()], caller: TrafficDep, service: ServiceDep
) -> InteractionPage:
    """A page of interactions, newest first: the caller's own, or all with the scope `read`."""
    page = await service.history.page(caller, _filters(query), cursor=query.cursor, limit=query.limit)
    return InteractionPage(
        items=[summary_of(each, page.facts.get(each.id, _UNKNOWN)) for each in page.interactions],
        next_cursor=page.next_cursor,
    )


@router.get("/interactions/{interaction_id}", summary="Read an interaction", response_model=InteractionView)
async def read_interaction(interaction_id: UUID, caller: TrafficDep, service: ServiceDep) -> InteractionView:
    """One interaction with its result and its feedback so far."""
    interaction, feedback, facts = await service.history.read(caller, interaction_id)
    return view_of(interaction, feedback, facts)


@router.post(
    "/interactions/{interaction_id}/replay",
    summary="Judge an answer again",
    response_model=CritiqueResult,
    responses=problems(409, 413, 429, 502, 504),
)
async def replay_interaction(
    interaction_id: UUID, body: ReplayRequest, caller: CallerDep, service: ServiceDep, request: Request
) -> Response:
    """How a critic judges the answer now. Nothing is stored, and the critique's ids name nothing."""
    interaction = await service.history.find(caller, interaction_id)
    if interaction.response is None:
        raise BadInput("this question has no response to judge", field="interaction_id")
    again = CritiqueRequest(
        question=interaction.question,
        response=interaction.response,
        critic=body.critic,
        temperature=body.temperature,
        store=False,
    )
    return await respond(service, caller, request, again)


@router.get(
    "/admin/interactions/{interaction_id}/learning",
    summary="Read what runs learned from an interaction",
    response_model=LearningLedger,
)
async def read_learning(interaction_id: UUID, reader: ReaderDep, service: ServiceDep) -> LearningLedger:
    """The learning ledger: which runs drew the answers of an interaction, and what their critiques earned."""
    entries, selected = await service.history.learning(reader, interaction_id)
    return LearningLedger(
        entries=[_learning_view(entry) for entry in entries],
        selected_by=[run for run in selected if run not in {entry.run_id for entry in entries}],
    )


def _learning_view(entry: LedgerEntry) -> LearningView:
    learned = entry.learned
    is_refinement = learned.answer not in (RESPONSE, SAMPLED)
    return LearningView.of(
        learned,
        run_id=entry.run_id,
        run_status=entry.run_status,
        version=entry.version,
        stage=entry.stage,
        refinement_id=UUID(learned.answer) if is_refinement else None,
        sampled=learned.answer == SAMPLED,
        verdict_right=learned.verdicts_right / max(learned.critiques, 1),
        created_at=entry.created_at,
    )


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
        label=query.label,
        key_id=query.key_id,
        confidence_from=query.confidence_from,
        confidence_to=query.confidence_to,
        words=query.q,
    )
