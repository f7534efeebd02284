"""GET /v1/models, POST /v1/chat/completions and POST /v1/completions: OpenAI's API."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import Response

from gadfly.errors import NotFound
from gadfly.service.container import Service
from gadfly.service.dependencies import OpenAICallerDep, ServiceDep
from gadfly.service.front.models import Writer, model_of, name_of
from gadfly.service.front.respond import respond
from gadfly.service.keyring import Caller
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.chat import ChatCompletion, ChatRequest, ModelCard, ModelList, OpenAIErrorBody
from gadfly.service.wire.common import RequestId
from gadfly.service.wire.completions import Completion, CompletionRequest

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
    """The models `actor`, `refined` and `critic`, and `critic@N` for every critic, for each task that the key may use.

    Those of the default task have no task in their name.
    """
    return ModelList(data=await _cards(service, caller))


@router.get("/models/{model}", summary="Read a model", response_model=ModelCard)
async def read_model(
    model: Annotated[str, Path(max_length=200)], caller: OpenAICallerDep, service: ServiceDep
) -> ModelCard:
    """One model."""
    wanted = model_of(model)
    for card in await _cards(service, caller):
        if model_of(card.id) == replace(wanted, task=_short(service, wanted.task)):
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


@router.post("/completions", summary="Answer a prompt", response_model=Completion, responses=_COMPLETIONS)
async def complete(
    body: CompletionRequest,
    caller: OpenAICallerDep,
    service: ServiceDep,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """OpenAI's completions for programs that send a prompt instead of turns: the same answers, and the same records.

    The prompt is a user's turn for the actor's chat template. `actor` gives the actor's answer as it is, `refined` the
    answer after critique and rewrite.
    """
    key = body.gadfly.request_id or idempotency_key
    return await respond(service, caller, request, body.to_chat(), request_id=key, as_text=True)


async def _cards(service: Service, caller: Caller) -> list[ModelCard]:
    versions = await service.critics.pointers.read_all()
    oldest = min(int(version.created_at.timestamp()) for version in versions)
    tasks = [task for task in service.tasks.names if caller.may_use(task)]
    cards = [
        ModelCard(id=name_of(role.value, task=_short(service, task)), created=oldest)
        for task in tasks
        for role in Writer
    ]
    return cards + [
        ModelCard(
            id=name_of(f"critic@{version.version}", task=_short(service, version.task)),
            created=int(version.created_at.timestamp()),
        )
        for version in versions
        if version.task in tasks
    ]


def _short(service: Service, task: str | None) -> str | None:
    """None for the default task, which names of models leave out."""
    return None if task == service.tasks.default.name else task
