"""OpenAPI descriptions of error responses and streams."""

from typing import Any

from fastapi import FastAPI

from gadfly.service.wire.common import Problem

_REASONS = {
    401: "The key is missing, unknown, expired or revoked.",
    403: "The key lacks the scope that this call requires.",
    404: "It does not exist, or the caller may not see it.",
    409: "The request conflicts with stored data.",
    413: "The body is too large.",
    422: "The input is invalid; `errors` names each field.",
    429: "A limit of the key, the address or the service is reached; see Retry-After.",
    502: "The engine's reply cannot be read.",
    503: "Engine or database unavailable; see Retry-After.",
    504: "The engine timed out.",
    507: "The disk has no room to store the answer; see Retry-After.",
}

ANSWERS_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result; with `stream`, server-sent events: `text` events, then one `result` or `error`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {"X-Gadfly-Critic": {"description": "The critic that answered.", "schema": {"type": "string"}}},
    }
}


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "The run is over, and there are no events after the last one seen."},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, each a problem document. A key that may be refused may also have limits."""
    if 401 in statuses:
        statuses = tuple(sorted({*statuses, 429}))
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _REASONS[status], "content": {"application/problem+json": {"schema": schema}}}
        for status in statuses
    }


def name_problems(app: FastAPI) -> None:
    """Add the schema that the error responses refer to, so that generated clients have one class for it.

    FastAPI names only models of responses in its own media type, and problem documents have theirs.
    """
    describe = app.openapi

    def described() -> dict[str, Any]:
        document = describe()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs", {}))
            schemas["Problem"] = problem
        return document

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend the document
