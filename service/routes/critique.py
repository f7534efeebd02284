"""POST /critique and POST /refine."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gadfly.service.answering.respond import respond
from gadfly.service.dependencies import CallerDep, ServiceDep
from gadfly.service.routes.docs import ANSWERS_OR_EVENTS, problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.answers import CritiqueRequest, CritiqueResult, RefineRequest, RefineResult

router = APIRouter(
    route_class=StrictJsonRoute,
    tags=["critique"],
    responses=problems(401, 403, 404, 409, 413, 422, 429, 502, 503, 504, 507),
)


@router.post("/critique", summary="Judge an answer", response_model=CritiqueResult, responses=ANSWERS_OR_EVENTS)
async def post_critique(body: CritiqueRequest, caller: CallerDep, service: ServiceDep, request: Request) -> Response:
    """Judge an answer step by step, give a verdict, and say what to fix."""
    return await respond(service, caller, request, body)


@router.post("/refine", summary="Rewrite an answer", response_model=RefineResult, responses=ANSWERS_OR_EVENTS)
async def post_refine(body: RefineRequest, caller: CallerDep, service: ServiceDep, request: Request) -> Response:
    """Rewrite an answer with a critique: the caller's, an earlier one, or a new one."""
    return await respond(service, caller, request, body)
