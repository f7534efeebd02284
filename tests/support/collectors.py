"""A collector of traces for tests: takes OTLP over HTTP and decodes it with OpenTelemetry's own messages."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """One span. Ids are in hexadecimal digits; times in seconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    failed: bool
    attributes: dict[str, Any]
    start: float
    end: float


@dataclass
class Collector:
    """What was sent to it so far. `environment` has the variables that send traces here."""

    port: int
    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def until(self, wanted: Callable[[list[Received]], bool], *, limit_s: float = 20) -> list[Received]:
        """The spans, once they are as wanted."""
        deadline = time.monotonic() + limit_s
        while not wanted(self.spans):
            assert time.monotonic() < deadline, outline(self.spans)
            time.sleep(0.05)
        return list(self.spans)

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.bodies.append(body)
        for resource in request.resource_spans:
            about = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_received(span, about) for span in scope.spans]


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            is_known = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if is_known:
                made.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if is_known else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Write nothing to standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def children(spans: list[Received], parent: Received) -> list[str]:
    """The names of the spans below one, in the order in which they began."""
    below = [span for span in spans if span.parent_id == parent.span_id]
    return [span.name for span in sorted(below, key=lambda span: span.start)]


def outline(spans: list[Received]) -> str:
    """The spans as a tree with their durations in milliseconds, for people."""
    known = {span.span_id for span in spans}
    lines: list[str] = []

    def add(span: Received, depth: int) -> None:
        lines.append(
            f"{'  ' * depth}{span.name:{40 - 2 * depth}} {span.service:16} {1000 * (span.end - span.start):9.1f}"
        )
        for child in sorted((each for each in spans if each.parent_id == span.span_id), key=lambda each: each.start):
            add(child, depth + 1)

    for root in sorted((span for span in spans if span.parent_id not in known), key=lambda span: span.start):
        add(root, 0)
    return "\n".join(lines)


def _received(span: Span, about: dict[str, Any]) -> Received:
    return Received(
        service=about["service.name"],
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        attributes=_values(span.attributes),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
    )


def _values(pairs: Any) -> dict[str, Any]:
    found: list[KeyValue] = list(pairs)
    return {pair.key: _value(pair.value) for pair in found}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)
