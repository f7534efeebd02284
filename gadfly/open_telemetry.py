"""Records traces with OpenTelemetry's SDK and sends them to a collector. `gadfly.tracing` imports this where it is on.

Spans are sent in batches by a thread of the SDK. While the collector is unavailable, the oldest spans that wait are
dropped (`OTEL_BSP_MAX_QUEUE_SIZE`, 2,048 by default); no request waits.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from types import TracebackType
from typing import Self
from uuid import UUID

from opentelemetry import context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from gadfly import tracing
from gadfly.tracing import Attributes, OpenSpan, SpanKind

_KINDS = {
    SpanKind.INTERNAL: trace.SpanKind.INTERNAL,
    SpanKind.SERVER: trace.SpanKind.SERVER,
    SpanKind.CLIENT: trace.SpanKind.CLIENT,
}
_STOP_S = 2.0
_COMPLAIN_EVERY_S = 60.0
_PROPAGATOR = TraceContextTextMapPropagator()


class OpenTelemetry:
    """The tracer of `gadfly.tracing`.

    Raises:
        ImportError: the packages of the protocol are not installed.
        ValueError: the protocol is not supported.
    """

    def __init__(self, process: str, environ: Mapping[str, str]) -> None:
        # What the environment says goes before these.
        resource = Resource(
            {
                "service.name": f"gadfly-{process}",
                "service.namespace": "gadfly",
                "service.version": version("gadfly"),
            }
        ).merge(_resource_of(environ))
        self._ids = _Ids()
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(environ)))
        self._tracer = self._provider.get_tracer("gadfly", version("gadfly"))
        for name, once_per_minute in _COMPLAINTS.items():
            logging.getLogger(name).addFilter(once_per_minute)

    def root(
        self, name: str, attributes: Attributes, *, kind: SpanKind, carrier: Mapping[str, str], trace_id: UUID | None
    ) -> AbstractContextManager[OpenSpan]:
        parent = _PROPAGATOR.extract(carrier, context=context.Context())
        with self._ids.given(trace_id):
            return _Recorded(self._tracer.start_span(name, parent, kind=_KINDS[kind], attributes=_plain(attributes)))

    def span(self, name: str, attributes: Attributes, *, kind: SpanKind) -> AbstractContextManager[OpenSpan]:
        if not trace.get_current_span().is_recording():
            return tracing.OFF
        return _Recorded(self._tracer.start_span(name, kind=_KINDS[kind], attributes=_plain(attributes)))

    def unrecorded(self) -> AbstractContextManager[OpenSpan]:
        own = trace.get_current_span().get_span_context()
        if not own.is_valid:
            return tracing.OFF
        silent = trace.SpanContext(own.trace_id, own.span_id, False, trace.TraceFlags(0), own.trace_state)
        return _Recorded(trace.NonRecordingSpan(silent))

    def annotate(self, attributes: Attributes) -> None:
        trace.get_current_span().set_attributes(_plain(attributes))

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        span = trace.get_current_span()
        own = span.get_span_context()
        # A task may outlive the span that it was started in: what it asks for belongs to no trace.
        has_ended = own.trace_flags.sampled and not span.is_recording()
        if own.is_valid and not has_ended:
            _PROPAGATOR.inject(carrier)
        else:
            carrier["traceparent"] = f"00-{self._ids.generate_trace_id():032x}-{self._ids.generate_span_id():016x}-00"
        return carrier

    def trace_id(self) -> str:
        span = trace.get_current_span()
        return trace.format_trace_id(span.get_span_context().trace_id) if span.is_recording() else ""

    def stop(self) -> None:
        # The SDK would wait for 30 s, and its exporter goes on trying to reach a collector.
        stopping = threading.Thread(target=self._provider.shutdown, daemon=True)
        stopping.start()
        stopping.join(_STOP_S)


class _Recorded:
    """A span that is the current one in its block."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __enter__(self) -> Self:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        context.detach(self._token)
        if isinstance(error, asyncio.CancelledError):
            self._span.set_attribute("gadfly.cancelled", True)
        elif error is not None:
            self.set({"error.type": type(error).__name__})  # its message may have a caller's text
        self._span.end()

    def set(self, attributes: Attributes) -> None:
        plain = _plain(attributes)
        self._span.set_attributes(plain)
        if "error.type" in plain:
            self._span.set_status(trace.StatusCode.ERROR)

    def rename(self, name: str) -> None:
        self._span.update_name(name)


class _Ids(RandomIdGenerator):
    """Random ids, but for a trace whose id is given."""

    def __init__(self) -> None:
        self._given: ContextVar[UUID | None] = ContextVar("given_trace_id", default=None)

    @contextmanager
    def given(self, trace_id: UUID | None) -> Generator[None]:
        """A trace that begins in this block has this id."""
        token = self._given.set(trace_id)
        try:
            yield
        finally:
            self._given.reset(token)

    def generate_trace_id(self) -> int:
        given = self._given.get()
        return super().generate_trace_id() if given is None else int(tracing.trace_id_of(given), 16)


class _OncePerMinute(logging.Filter):
    """Lets a logger complain about the collector once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last < _COMPLAIN_EVERY_S:
            return False
        self._last = now
        return True


_COMPLAINTS = {
    name: _OncePerMinute()
    for name in (
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.exporter.otlp.proto.grpc.exporter",
        "opentelemetry.sdk._shared_internal",
    )
}


def _resource_of(environ: Mapping[str, str]) -> Resource:
    """The resource that the variables describe, without the SDK's own `unknown_service`."""
    named = dict(Resource.create().attributes)
    is_named = environ.get(tracing.SERVICE_NAME) or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not is_named:
        named.pop("service.name", None)
    return Resource(named)


def _exporter(environ: Mapping[str, str]) -> SpanExporter:
    protocol, endpoint = tracing.protocol_of(environ), tracing.endpoint_of(environ)
    if protocol == tracing.HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        return OTLPSpanExporter(endpoint=endpoint)
    if protocol == tracing.GRPC:
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter  # noqa: PLC0415

        return trace_exporter.OTLPSpanExporter(endpoint=endpoint)
    raise ValueError(f"{tracing.TRACES_PROTOCOL} is {protocol}: set it to {tracing.HTTP} or {tracing.GRPC}")


def _plain(attributes: Attributes) -> dict[str, AttributeValue]:
    return {
        name: value if isinstance(value, str | bool | int | float | tuple) else str(value)
        for name, value in attributes.items()
        if value is not None
    }
