"""Responses of /critique and /refine: one JSON document, or server-sent events."""

from functools import partial

from fastapi import Request
from fastapi.responses import Response

from gadfly.service.answering.streaming import (
    CLIENT_CLOSED_REQUEST,
    CritiqueStream,
    critic_header,
    stream_response,
    until_disconnect,
)
from gadfly.service.container import Service
from gadfly.service.keyring import Caller
from gadfly.service.wire.answers import Options, result_of


async def respond(service: Service, caller: Caller, request: Request, body: Options) -> Response:
    """Answer a request, or return the stored answer of its request id."""
    service.require_started()
    if body.store:
        service.room.require()
    if body.stream:
        return await stream_response(
            request, CritiqueStream(partial(service.answerer.answer, caller, body), brief=body.brief)
        )
    interaction = await until_disconnect(request, service.answerer.answer(caller, body))
    if interaction is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(
        result_of(interaction, brief=body.brief).model_dump_json(),
        media_type="application/json",
        headers=critic_header(interaction.critic_version),
    )
