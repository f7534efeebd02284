"""Status codes of the named errors; every error response is an RFC 9457 problem document.

An error missing from the table is a bug here: 500.
"""

import math
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from gadfly import errors
from gadfly.adapters import BadAdapter
from gadfly.service.front.errors import PREFIX, openai_error_response
from gadfly.service.wire.common import FieldProblem, Problem

log = structlog.get_logger(__name__)

# The first class that matches decides, so subclasses come first.
STATUS: tuple[tuple[type[errors.GadflyError], int, str], ...] = (
    (errors.PromptTooLong, 422, "Text does not fit the model"),
    (errors.BadInput, 422, "Invalid input"),
    (errors.NotFound, 404, "Not found"),
    (errors.Conflict, 409, "Conflict"),
    (errors.TooBusy, 429, "Too many requests"),
    (errors.AdapterRefused, 409, "Adapter refused"),
    (BadAdapter, 409, "Adapter refused"),
    (errors.EngineRefused, 503, "Engine refused"),
    (errors.EngineTimeout, 504, "Engine timed out"),
    (errors.NoSlot, 503, "No adapter slot"),
    (errors.EngineUnavailable, 503, "Engine unavailable"),
    (errors.EngineError, 502, "Engine failed"),
    (errors.SpoolFull, 507, "No room to store"),
    (errors.NoRoom, 507, "No room to store"),
    (errors.StoreUnavailable, 503, "Database unavailable"),
    (errors.BodyTooLarge, 413, "Body too large"),
)


def problem(
    status: int, title: str, detail: str, *, instance: str | None = None, fields: Sequence[dict[str, Any]] | None = None
) -> Problem:
    slug = title.casefold().replace(" ", "-")
    return Problem(
        type=f"urn:gadfly:problem:{slug}",
        title=title,
        status=status,
        detail=detail,
        instance=instance,
        errors=[FieldProblem(**field) for field in fields] if fields else None,
    )


def problem_response(document: Problem, headers: dict[str, str] | None = None, *, path: str) -> Response:
    """The response with an error: a problem document, and for OpenAI's routes a body in OpenAI's shape."""
    if path.startswith(PREFIX):
        return openai_error_response(document, headers or {})
    return Response(
        document.model_dump_json(exclude_none=True),
        status_code=document.status,
        headers=headers,
        media_type="application/problem+json",
    )


def describe(error: Exception) -> tuple[Problem, dict[str, str]]:
    """The problem document of an error, and its response headers."""
    headers: dict[str, str] = {}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if isinstance(error, errors.NotAllowed):
        if error.authenticated:
            return problem(403, "Forbidden", str(error)), headers
        return problem(401, "Unauthorized", str(error)), {"www-authenticate": "Bearer"}
    for kind, status, title in STATUS:
        if isinstance(error, kind):
            field = getattr(error, "field", None)
            fields = [{"field": field, "message": str(error)}] if field else None
            return problem(status, title, str(error), fields=fields), headers
    return problem(
        500, "Internal error", "An error in the service; its log has the details under X-Request-Id."
    ), headers


def _lacks_json_header(request: Request, error: RequestValidationError) -> bool:
    """Whether the body was not read as JSON because of its content type (curl -d sends a form's by default)."""
    content_type = request.headers.get("content-type", "").partition(";")[0]
    return not content_type.endswith("json") and any(item["loc"] == ("body",) for item in error.errors())


def install(app: FastAPI) -> None:
    """Make the app answer every error with a problem document."""

    async def on_known(request: Request, error: Exception) -> Response:
        document, headers = describe(error)
        path = request.url.path
        return problem_response(document.model_copy(update={"instance": path}), headers, path=path)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fields = [
            {"field": "body", "message": f"not valid JSON: {item['ctx']['error']} at character {item['loc'][-1]}"}
            if item["type"] == "json_invalid"
            else {
                "field": ".".join(str(part) for part in item["loc"] if part != "body") or "body",
                "message": item["msg"].removeprefix("Value error, "),
            }
            for item in error.errors()
        ]
        if _lacks_json_header(request, error):
            fields = [{"field": "body", "message": "send the header content-type: application/json"}]
        detail = "; ".join(f"{item['field']}: {item['message']}" for item in fields[:5])
        path = request.url.path
        return problem_response(problem(422, "Invalid input", detail, instance=path, fields=fields[:50]), path=path)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = {404: "Not found", 405: "Method not allowed"}.get(error.status_code, "Refused")
        path = request.url.path
        document = problem(error.status_code, title, str(error.detail), instance=path)
        return problem_response(document, dict(error.headers or {}), path=path)

    async def on_unknown(request: Request, error: Exception) -> Response:
        log.error("request_failed", path=request.url.path, exc_info=error)
        document, headers = describe(error)
        # Starlette sends this response outside `Edge`, which adds the header to all others.
        headers |= {"x-request-id": str(structlog.contextvars.get_contextvars().get("http_request_id", ""))}
        path = request.url.path
        return problem_response(document.model_copy(update={"instance": path}), headers, path=path)

    app.add_exception_handler(errors.GadflyError, on_known)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_unknown)
