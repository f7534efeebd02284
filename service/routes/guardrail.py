"""POST /beta/litellm_basic_guardrail_api: LiteLLM's generic guardrail API, whose path is fixed."""

from fastapi import APIRouter

from gadfly.service.dependencies import GuardCallerDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.guardrail import GuardrailRequest, GuardrailResponse

router = APIRouter(route_class=StrictJsonRoute, tags=["openai"])


@router.post(
    "/beta/litellm_basic_guardrail_api",
    summary="Guard what other models answer",
    responses=problems(401, 403, 404, 409, 413, 422, 429, 502, 503, 504, 507),
)
async def guard(body: GuardrailRequest, caller: GuardCallerDep, service: ServiceDep) -> GuardrailResponse:
    """LiteLLM's generic guardrail API: LiteLLM calls it before and after each call of a model.

    Each answer is stored as an interaction. `mode` in `additional_provider_specific_params` says what happens to one
    that the critic judges incorrect. The key comes as a Bearer token or in the header `x-api-key`.
    """
    service.require_started()
    service.room.require()
    return await service.guardrail.decide(caller, body)
