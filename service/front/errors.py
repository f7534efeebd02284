"""Errors under /v1 in OpenAI's shape, made from the problem documents of all other routes."""

from collections.abc import Mapping

from fastapi.responses import Response

from gadfly.service.wire.chat import OpenAIError, OpenAIErrorBody
from gadfly.service.wire.common import Problem

PREFIX = "/v1/"

_STATUS = {422: 400}  # OpenAI's API answers invalid input with 400
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_CODES = {
    "urn:gadfly:problem:unauthorized": "invalid_api_key",
    "urn:gadfly:problem:not-found": "model_not_found",
    "urn:gadfly:problem:text-does-not-fit-the-model": "context_length_exceeded",
    "urn:gadfly:problem:too-many-requests": "rate_limit_exceeded",
}


def openai_error(document: Problem) -> tuple[int, OpenAIErrorBody]:
    """The status and the body of an error. `code` is OpenAI's where there is one, else the problem's own name."""
    status = _STATUS.get(document.status, document.status)
    field = document.errors[0].field if document.errors else None
    name = document.type.rpartition(":")[2].replace("-", "_")
    return status, OpenAIErrorBody(
        error=OpenAIError(
            message=document.detail or document.title,
            type=_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            param=None if field in (None, "body") else str(field),
            code=_CODES.get(document.type, name),
        )
    )


def openai_error_response(document: Problem, headers: Mapping[str, str]) -> Response:
    status, body = openai_error(document)
    return Response(body.model_dump_json(), status_code=status, headers=dict(headers), media_type="application/json")
