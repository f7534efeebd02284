"""The way of a /critique or /refine through the service: once per request id, as JSON or as events."""

from collections.abc import Awaitable
from typing import Protocol, TypeVar

from fastapi import Request
from fastapi.responses import Response

from core.records import Interaction
from core.refinement import OnPiece
from service.answering import Prepared, fingerprint_of
from service.keyring import Caller
from service.state import Service
from service.streaming import answer_events, answer_json
from service.wire import CritiqueResult, Options, RefineResult, result_of

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

    async def work(on_piece: OnPiece | None, prepared: Prepared | None = None) -> Interaction:
        if prepared is None:
            prepared = await service.answerer.prepare(body, key_id=caller.key_id, scope=caller.scope)
        return await answer(body, prepared, fingerprint=fingerprint, on_piece=on_piece)

    async def result(on_piece: OnPiece | None = None, prepared: Prepared | None = None) -> Result:
        if body.request_id is None or fingerprint is None:
            return result_of(await work(on_piece, prepared))
        once = service.requests.once(caller, body.request_id, fingerprint, lambda: work(on_piece, prepared))
        return result_of(await once)

    if not body.stream:
        return await answer_json(request, result())
    # What can be refused is refused before the stream begins, with a status code. A request id is looked up first: a
    # repeat is answered even if what it asked for could not be asked for any more.
    prepared = None
    if body.request_id is None:
        prepared = await service.answerer.prepare(body, key_id=caller.key_id, scope=caller.scope)
    return answer_events(lambda on_piece: result(on_piece, prepared))
