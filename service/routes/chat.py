"""GET /v1/models, GET /v1/models/{model} and POST /v1/chat/completions: OpenAI's API."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import Response

from gadfly.errors import NotFound
from gadfly.service.dependencies import OpenAICallerDep, ServiceDep
from gadfly.service.front.models import Writer, model_of
from gadfly.service.front.respond import respond
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.chat import ChatCompletion, ChatRequest, ModelCard, ModelList, OpenAIErrorBody
from gadfly.service.wire.common import RequestId

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is refused.", "model": OpenAIErrorBody},
    "5XX": {"description": "Engine, actor or database failed.", "model": OpenAIErrorBody},
}
_COMPLETIONS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completion; with `stream`, server-sent events with chunks.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {
            "X-Gadfly-Interaction-Id": {
                "description": "The interaction of the first choice, for /feedback.",
                "schema": {"type": "string"},
            },
            "X-Gadfly-Critic": {"description": "The critic, if one answered.", "schema": {"type": "string"}},
        },
    }
}

router = APIRouter(route_class=StrictJsonRoute, prefix="/v1", tags=["openai"], responses=_ERRORS)

IdempotencyKey = Annotated[
    RequestId | None,
    Header(alias="Idempotency-Key", description="The caller's idempotency key: a repeat returns the first answer."),
]


@router.get("/models", summary="List models", response_model=ModelList)
async def list_models(caller: OpenAICallerDep, service: ServiceDep) -> ModelList:
    """The models `actor`, `refined` and `critic`, and `critic@N` for every critic."""
    return ModelList(data=await _cards(service))


@router.get("/models/{model}", summary="Read a model", response_model=ModelCard)
async def read_model(
    model: Annotated[str, Path(max_length=200)], caller: OpenAICallerDep, service: ServiceDep
) -> ModelCard:
    """One model."""
    model_of(model)
    for card in await _cards(service):
        if card.id == model:
            return card
    raise NotFound(f"there is no model {model!r}: no such critic")


@router.post(
    "/chat/completions", summary="Answer, refine or critique", response_model=ChatCompletion, responses=_COMPLETIONS
)
async def complete_chat(
    body: ChatRequest,
    caller: OpenAICallerDep,
    service: ServiceDep,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """OpenAI's chat completions. Every answer is stored as an interaction, whose id is in `gadfly`.

    `actor` gives the actor's answer as it is, `refined` the answer after critique and rewrite, and `critic` a critique
    of the last assistant turn.
    """
    return await respond(service, caller, request, body, request_id=body.gadfly.request_id or idempotency_key)


async def _cards(service: ServiceDep) -> list[ModelCard]:
    versions, _ = await service.critics.pointers.read_all()
    oldest = min(int(version.created_at.timestamp()) for version in versions)
    cards = [ModelCard(id=role.value, created=oldest) for role in Writer]
    return cards + [
        ModelCard(id=f"critic@{version.version}", created=int(version.created_at.timestamp())) for version in versions
    ]
