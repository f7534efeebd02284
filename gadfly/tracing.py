"""Traces: what a request, a run or a swap spends its time on, for OpenTelemetry.

Tracing is off until `start` finds the address of a collector in the standard variables `OTEL_*`. While it is off, a
span is one shared object, and no package of OpenTelemetry is imported. A trace begins at a `root`; a `span` outside of
one is not recorded, so background work makes no traces of its own. Spans carry ids, versions, counts and names, and
never a caller's text: of an error they have the type alone.
"""

import hashlib
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
SERVICE_NAME = "OTEL_SERVICE_NAME"

HTTP = "http/protobuf"
GRPC = "grpc"

Attributes = Mapping[str, object]
"""Attributes by name. None is left out; what is no number, truth value or tuple of strings is stored as text."""

_NO_HEADERS: dict[str, str] = {}

log = logging.getLogger(__name__)


class SpanKind(StrEnum):
    """The part that a process has in a span."""

    INTERNAL = "internal"
    SERVER = "server"  # answers a request of another process
    CLIENT = "client"  # waits for another process


class OpenSpan(Protocol):
    """A part of a trace. Its end is that of the block."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes. `error.type` marks the span as failed."""

    def rename(self, name: str) -> None:
        """Change the name that was given at the start."""


class Tracer(Protocol):
    """What records spans."""

    def root(
        self, name: str, attributes: Attributes, *, kind: SpanKind, carrier: Mapping[str, str], trace_id: UUID | None
    ) -> AbstractContextManager[OpenSpan]:
        """See `root`."""

    def span(self, name: str, attributes: Attributes, *, kind: SpanKind) -> AbstractContextManager[OpenSpan]:
        """See `span`."""

    def unrecorded(self) -> AbstractContextManager[OpenSpan]:
        """See `unrecorded`."""

    def annotate(self, attributes: Attributes) -> None:
        """See `annotate`."""

    def headers(self) -> dict[str, str]:
        """See `headers`."""

    def trace_id(self) -> str:
        """See `trace_id`."""

    def stop(self) -> None:
        """See `stop`."""


class _Off:
    """A span that is not recorded."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def set(self, attributes: Attributes) -> None:
        pass

    def rename(self, name: str) -> None:
        pass


OFF = _Off()

_tracer: Tracer | None = None


def endpoint_of(environ: Mapping[str, str]) -> str | None:
    """The address that traces go to, with the path for traces if the protocol has one; None: tracing is off.

    Source: OpenTelemetry's specification, "OpenTelemetry Protocol Exporter" and "SDK environment variables".
    """
    is_off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_off or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() not in ("", "otlp"):
        return None
    if own := environ.get(TRACES_ENDPOINT, "").strip():
        return own
    base = environ.get(ENDPOINT, "").strip()
    if not base:
        return None
    return base if protocol_of(environ) == GRPC else f"{base.rstrip('/')}/v1/traces"


def protocol_of(environ: Mapping[str, str]) -> str:
    """The protocol that traces are sent with: `http/protobuf` unless a variable names another one."""
    named = environ.get(TRACES_PROTOCOL, "").strip() or environ.get(PROTOCOL, "").strip()
    return named or HTTP


def start(process: str, environ: Mapping[str, str]) -> None:
    """Record traces of this process if the environment has the address of a collector, until `stop`.

    `process`: `service` or `trainer`. A fault in the variables or the installation is a warning in the log:
    traces are no reason not to serve.
    """
    global _tracer  # noqa: PLW0603  # one for each process, as the log is
    if endpoint_of(environ) is None:
        return
    try:
        from gadfly.open_telemetry import OpenTelemetry  # noqa: PLC0415  # an extra, which takes 0.3 s to import

        _tracer = OpenTelemetry(process, environ)
    except ImportError as error:
        log.warning("no traces: %s; install gadfly[otel]", error)
    except Exception as error:  # each exporter has exceptions of its own for bad variables
        log.warning("no traces: %s: %s", type(error).__name__, error)


def stop() -> None:
    """Send the last spans, for two seconds at most, and record no more."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        tracer.stop()


def is_on() -> bool:
    return _tracer is not None


def root(
    name: str,
    attributes: Attributes = _NO_HEADERS,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    carrier: Mapping[str, str] = _NO_HEADERS,
    trace_id: UUID | None = None,
) -> AbstractContextManager[OpenSpan]:
    """The first span of a trace in this process, around a block.

    It continues the trace that `carrier` names with `traceparent`. Otherwise it begins one, whose id follows from
    `trace_id`.
    """
    if _tracer is None:
        return OFF
    return _tracer.root(name, attributes, kind=kind, carrier=carrier, trace_id=trace_id)


def span(
    name: str, attributes: Attributes = _NO_HEADERS, *, kind: SpanKind = SpanKind.INTERNAL
) -> AbstractContextManager[OpenSpan]:
    """A span around a block, below the one that the block is in. It is not recorded outside of a recorded one."""
    return OFF if _tracer is None else _tracer.span(name, attributes, kind=kind)


def unrecorded() -> AbstractContextManager[OpenSpan]:
    """A block whose spans are not recorded, here and in the engines: thousands of rollouts would hide the steps."""
    return OFF if _tracer is None else _tracer.unrecorded()


def annotate(attributes: Attributes) -> None:
    """Add attributes to the span that this code is in."""
    if _tracer is not None:
        _tracer.annotate(attributes)


def headers() -> dict[str, str]:
    """The headers that continue the trace in the process that a request goes to; none while tracing is off.

    Outside of a trace they say that nothing is recorded, so that an engine begins no trace for a probe.
    """
    return _NO_HEADERS if _tracer is None else _tracer.headers()


def environment() -> dict[str, str]:
    """The variables that continue the trace in a child process."""
    return {name.upper(): value for name, value in headers().items()}


def trace_id_of(id: UUID) -> str:
    """The id of the trace of a run or a swap, 32 hex digits. All its bits are as good as random: samplers need that."""
    return hashlib.blake2b(id.bytes, digest_size=16).hexdigest()


def trace_id() -> str:
    """The id of the recorded trace that this code is in, 32 hexadecimal digits; empty outside of one."""
    return "" if _tracer is None else _tracer.trace_id()
