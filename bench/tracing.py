"""The processor time that the spans of one critique take in the service, without engine and database.

python -m bench.tracing

While tracing is on, the spans go to a collector that does not answer. The sending thread's time counts too.
"""

import os
from functools import partial

from bench.processor_time import microseconds
from gadfly import tracing
from gadfly.engine_client import Engine, Sampling
from gadfly.tracing import SpanKind

_ROUNDS = 20_000
_microseconds = partial(microseconds, rounds=_ROUNDS)
_COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


def critique(engine: Engine, parent: dict[str, str]) -> None:
    """The calls that a request to /critique makes, with a reference and a verdict that is read separately."""
    if tracing.is_on():
        with tracing.root("POST", {"http.request.method": "POST"}, kind=SpanKind.SERVER, carrier=parent) as span:
            _answer(engine)
            span.rename("POST /critique")
            span.set({"http.route": "/critique", "http.response.status_code": 200})
    else:
        _answer(engine)


def _answer(engine: Engine) -> None:
    with tracing.span("prepare"):
        pass
    if tracing.is_on():
        tracing.annotate({"gadfly.task": "math", "gadfly.critic_version": 3})
    with tracing.span("critique", {"gadfly.critic": "critic@3", "gadfly.round": 0, "gadfly.sample": 0}):
        for operation in ("chat", "read_verdict"):
            with engine._span(operation, "critic@3", Sampling()):
                tracing.headers()
    with tracing.span("grade", {"gadfly.task": "math", "gadfly.texts": 1}):
        pass
    with tracing.span("record", {"gadfly.interaction_id": "0"}):
        pass


def main() -> None:
    engine = Engine("http://engine", timeout_s=1)
    sampled = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    unsampled = {"traceparent": sampled["traceparent"][:-1] + "0"}
    print(f"off: {_microseconds(lambda: critique(engine, sampled)):.1f} us")
    os.environ |= _COLLECTOR
    tracing.start("bench", os.environ)
    print(f"on, not sampled: {_microseconds(lambda: critique(engine, unsampled)):.1f} us")
    print(f"on: {_microseconds(lambda: critique(engine, sampled)):.1f} us")
    tracing.stop()


if __name__ == "__main__":
    main()
