"""The way of a /critique or /refine through the service: once per request id, as JSON or as events."""

from collections.abc import Awaitable
from typing import Protocol, TypeVar

from fastapi import Request
from fastapi.responses import Response

from gadfly.records import Interaction
from gadfly.refinement import OnPiece
from gadfly.service.answering.answer import Prepared, fingerprint_of
from gadfly.service.answering.streaming import answer_events, answer_json
from gadfly.service.container import Service
from gadfly.service.keyring import Caller
from gadfly.service.wire.answers import CritiqueResult, Options, RefineResult, result_of

Body_contra = TypeVar("Body_contra", bound=Options, contravariant=True)
Body = TypeVar("Body", bound=Options)
Result = CritiqueResult | RefineResult


class Answer(Protocol[Body_contra]):
    """Does the work of one endpoint and returns the record of it, durable."""

    def __call__(
        self, body: Body_contra, prepared: Prepared, *, fingerprint: str | None, on_piece: OnPiece | None = None
    ) -> Awaitable[Interaction]: ...


async def ask(service: Service, caller: Caller, request: Request, body: Body, answer: Answer[Body]) -> Response:
    """Answer a request, or return the first answer again when its request id has one."""
    service.require_started()
    service.answerer.check_limits(body)
    fingerprint = None if body.request_id is None else fingerprint_of(body)
    headers: dict[str, str] = {}  # filled once it is known which critic answers

    async def work(on_piece: OnPiece | None) -> Interaction:
        prepared = await service.answerer.prepare(body, key_id=caller.key_id, scope=caller.scope)
        headers.update(_critic_header(prepared.critic.version))
        return await answer(body, prepared, fingerprint=fingerprint, on_piece=on_piece)

    async def result(on_piece: OnPiece | None = None) -> Result:
        if body.request_id is None or fingerprint is None:
            interaction = await work(on_piece)
        else:
            interaction = await service.requests.once(caller, body.request_id, fingerprint, lambda: work(on_piece))
        headers.update(_critic_header(interaction.critic_version))
        return result_of(interaction)

    if body.stream:
        return await answer_events(request, result, headers=headers)
    return await answer_json(request, result(), headers=headers)


def _critic_header(version: int | None) -> dict[str, str]:
    return {"x-gadfly-critic": f"critic@{version}"}
