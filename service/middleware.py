"""The outermost layer: request ids, a log line and metrics per request, and a limit on bodies.

Plain ASGI: Starlette's BaseHTTPMiddleware copies every streamed chunk through a queue and hides disconnects.
"""

import re
import time
from uuid import uuid4

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gadfly import tracing
from gadfly.errors import BodyTooLarge
from gadfly.service.errors import describe, problem_response
from gadfly.service.metrics import Metrics
from gadfly.tracing import SpanKind

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")
_DROPPED_BYTES = 64 * 2**20
_QUIET = ("/healthz", "/readyz", "/metrics", "/state")
_TRACE_HEADERS = frozenset({b"traceparent", b"tracestate"})
_SERVER_ERROR = 500


class Edge:
    """Gives each request an id (the caller's X-Request-Id if it has a plain form), measures it, and logs its result."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = sent.decode() if _REQUEST_ID.fullmatch(sent) else uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(http_request_id=request_id)
        if tracing.is_on() and not scope["path"].endswith(_QUIET):
            await self._trace(scope, receive, send, request_id)
        else:
            await self._answer(scope, receive, send, request_id)

    async def _trace(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        """Answer in a span, which continues the caller's trace."""
        attributes = {"http.request.method": scope["method"], "gadfly.http_request_id": request_id}
        carrier = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_HEADERS}
        with tracing.root(scope["method"], attributes, kind=SpanKind.SERVER, carrier=carrier) as span:
            if trace_id := tracing.trace_id():
                structlog.contextvars.bind_contextvars(trace_id=trace_id)
            status = await self._answer(scope, receive, send, request_id)
            route = _route(scope)
            span.rename(f"{scope['method']} {route}")
            span.set({"http.route": route, "http.response.status_code": status})
            if status >= _SERVER_ERROR:
                span.set({"error.type": str(status)})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        """The status of the answer."""
        started = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            route = _route(scope)
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()
            self._metrics.latency.labels(route).observe(seconds)
            write = log.debug if route in _QUIET else log.info
            write(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                duration_ms=round(seconds * 1000, 2),
            )
        return status


def _route(scope: Scope) -> str:
    """The route's pattern: it has no ids of callers, so there are few."""
    return getattr(scope.get("route"), "path", "unmatched")


class BodyLimit:
    """Refuses bodies over `max_bytes` with 413: by their declared length, or as soon as more bytes have arrived."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        received = 0
        started = False

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise _TooLarge
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, limited, send_and_note)
        except _TooLarge:
            if not started:
                await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Clients read the response only after they have sent the body, so the rest is read and dropped, up to a limit.
        dropped = 0
        while dropped < _DROPPED_BYTES:
            message = await receive()
            dropped += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        document, headers = describe(BodyTooLarge(f"the body is larger than {self._max_bytes:,} bytes"))
        response = problem_response(document, {**headers, "connection": "close"}, path=scope["path"])
        await response(scope, receive, send)


class _TooLarge(BaseException):
    """Not an `Exception`, so that no handler of the app catches it before `BodyLimit` does."""
