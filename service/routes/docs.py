"""What the OpenAPI description says about refusals and streams."""

from typing import Any

from gadfly.service.wire.common import Problem

_REASONS = {
    401: "No key, or one that is unknown, expired or revoked.",
    403: "A key of the wrong tier.",
    404: "There is no such thing, or it is not the caller's to see.",
    409: "The request contradicts what is stored.",
    413: "The body is too large.",
    422: "The input cannot be used; `errors` names each field.",
    429: "Too many requests at work; see Retry-After.",
    503: "Engine or database unavailable; see Retry-After.",
    504: "The engine took too long.",
}

ANSWERS_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result; with `stream`, server-sent events: `text`s, then one `result` or `error`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {"X-Gadfly-Critic": {"description": "The critic that answered.", "schema": {"type": "string"}}},
    }
}


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "The run is over, and nothing happened after the last event seen."},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, each a problem document."""
    schema = Problem.model_json_schema()
    return {
        status: {"description": _REASONS[status], "content": {"application/problem+json": {"schema": schema}}}
        for status in statuses
    }
