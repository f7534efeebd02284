"""Traces: when they are on, what a span carries, and what an unavailable collector costs."""

import asyncio
import json
import logging
import subprocess
import sys
import time
from uuid import UUID

import httpx
import pytest

from gadfly import open_telemetry, tracing
from gadfly.engine_client import Engine, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.prompts import Message, Prompt
from tests.support.collectors import Collector, children

CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLERS_SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"
PROMPT = Prompt(messages=(Message("user", "What is 2 + 2?"),), opener="")

ENDPOINTS = [  # environment, where traces go, why this row exists
    ({}, None, "off by default"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None, "an empty variable counts as unset"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces", "the base of three signals"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/x/"}, "http://c:4318/x/v1/traces", "below a path"),
    (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        "http://c:4317",
        "gRPC has no paths",
    ),
    (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/in"},
        "http://t/in",
        "the own address of traces is used as it is",
    ),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, None, "the standard switch"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, None, "metrics or logs only"),
]


@pytest.mark.parametrize(("environment", "endpoint", "why"), ENDPOINTS)
def test_the_standard_variables_switch_traces_on(environment: dict[str, str], endpoint: str | None, why: str) -> None:
    assert tracing.endpoint_of(environment) == endpoint, why


def test_while_off_a_span_is_one_shared_object_and_no_package_is_imported() -> None:
    program = (
        "import sys\n"
        "from gadfly import tracing\n"
        "tracing.start('service', {})\n"
        "with tracing.root('a') as root, tracing.span('b', {'c': 1}) as span, tracing.unrecorded():\n"
        "    assert root is span is tracing.OFF and tracing.headers() == {} and tracing.trace_id() == ''\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_span_carries_names_and_numbers_and_of_an_error_the_type(traced: Collector) -> None:
    secret = "a caller's text"

    def fail() -> None:
        with tracing.root("request", {"a": 1, "b": None, "c": UUID(int=7)}):
            with tracing.span("part", {"words": ("x", "y"), "share": 0.5}, kind=tracing.SpanKind.CLIENT):
                tracing.annotate({"later": True})
            raise ValueError(secret)

    with pytest.raises(ValueError, match=secret):
        fail()
    tracing.stop()
    part, root = traced.spans
    assert (root.name, root.attributes, root.failed) == (
        "request",
        {"a": 1, "c": str(UUID(int=7)), "error.type": "ValueError"},
        True,
    )
    assert (part.parent_id, part.kind, part.failed) == (root.span_id, "client", False)
    assert part.attributes == {"words": ["x", "y"], "share": 0.5, "later": True}
    assert root.service == "gadfly-test"
    assert not any(secret.encode() in body for body in traced.bodies)


def test_a_callers_trace_is_continued_and_a_given_id_begins_one(traced: Collector) -> None:
    with tracing.root("request", carrier={"traceparent": TRACEPARENT}):
        assert tracing.trace_id() == CALLERS_TRACE
    with tracing.root("run", trace_id=UUID(int=12)):
        pass
    with tracing.root("other"):
        pass
    with tracing.root("request", carrier={"traceparent": TRACEPARENT[:-1] + "0"}), tracing.span("part"):
        assert tracing.trace_id() == "", "the caller does not record it"
    tracing.stop()
    request, run, other = traced.spans
    assert (request.trace_id, request.parent_id) == (CALLERS_TRACE, CALLERS_SPAN)
    assert (run.trace_id, run.parent_id) == (tracing.trace_id_of(UUID(int=12)), "")
    assert other.trace_id not in (CALLERS_TRACE, run.trace_id)


async def test_concurrent_work_keeps_its_own_span(traced: Collector) -> None:
    async def work(number: int) -> None:
        with tracing.span(f"outer {number}"):
            await asyncio.sleep(0.01)
            with tracing.span(f"inner {number}"):
                await asyncio.sleep(0.01)

    with tracing.root("root"):
        await asyncio.gather(*(work(number) for number in range(5)))
    tracing.stop()
    for number in range(5):
        [outer] = traced.named(f"outer {number}")
        assert children(traced.spans, outer) == [f"inner {number}"]


async def test_a_task_that_outlives_its_trace_belongs_to_none(traced: Collector) -> None:
    has_ended = asyncio.Event()

    async def work() -> dict[str, str]:
        await has_ended.wait()
        with tracing.span("late"):
            return tracing.headers()

    with tracing.root("request"):
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
    has_ended.set()
    parent = (await task)["traceparent"]
    tracing.stop()
    [request] = traced.spans
    assert parent.endswith("-00")
    assert request.trace_id not in parent


def _engine(sent: list[httpx.Request]) -> Engine:
    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        if request.url.path == "/tokenizer_info":
            return httpx.Response(404)
        choice = {"index": 0, "message": {"content": "4"}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})

    return Engine("http://engine", timeout_s=5, transport=httpx.MockTransport(answer))


async def test_the_engine_gets_the_span_of_its_request(traced: Collector) -> None:
    sent: list[httpx.Request] = []
    pool = EnginePool([_engine(sent)])
    with tracing.root("request"):
        await pool.chat(PROMPT, model="critic@3", sampling=Sampling(max_tokens=5))
    with tracing.root("step"), tracing.unrecorded():
        await pool.chat(PROMPT, model="critic@3", sampling=Sampling())
    await pool.chat(PROMPT, model="critic@3", sampling=Sampling())
    await pool.aclose()
    tracing.stop()
    assert [span.name for span in traced.spans] == ["chat critic@3", "request", "step"]
    chat = traced.spans[0]
    assert chat.kind == "client"
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "critic@3",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ["stop"],
        "gadfly.engine": "http://engine",
    }
    parents = [request.headers["traceparent"] for request in sent if request.method == "POST"]
    assert parents[0].startswith(f"00-{chat.trace_id}-{chat.span_id}-")
    assert [int(each[-2:], 16) & 1 for each in parents] == [1, 0, 0], "rollouts and work outside of a trace"
    assert parents[1][3:35] == traced.spans[2].trace_id


async def test_while_off_an_engine_gets_no_header() -> None:
    sent: list[httpx.Request] = []
    pool = EnginePool([_engine(sent)])
    await pool.chat(PROMPT, model="base", sampling=Sampling())
    await pool.aclose()
    assert all("traceparent" not in request.headers for request in sent)


def test_a_collector_that_does_not_answer_costs_no_time_and_one_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for once_per_minute in open_telemetry._COMPLAINTS.values():
        monkeypatch.setattr(once_per_minute, "_last", float("-inf"))  # an earlier test may have had its line
    tracing.start("test", environment)
    with caplog.at_level(logging.DEBUG, "opentelemetry"):
        began = time.monotonic()
        for _ in range(5_000):  # more than wait at most
            with tracing.root("request"), tracing.span("part"):
                pass
        assert time.monotonic() - began < 15
        time.sleep(1)
        began = time.monotonic()
        tracing.stop()
        assert time.monotonic() - began < 15
    by_logger = [record.name for record in caplog.records]
    assert 1 <= len(by_logger) == len(set(by_logger)) <= 2, caplog.text


MISTAKES = [  # environment, words of the warning
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "http/json: set it to http/protobuf or grpc"),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "install gadfly[otel]"),
]


@pytest.mark.parametrize(("given", "words"), MISTAKES)
def test_a_mistake_is_a_warning_and_no_reason_not_to_serve(
    given: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)  # as without the package
    tracing.start("test", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **given})
    assert not tracing.is_on()
    assert words in caplog.text


def test_a_service_may_have_another_name(traced: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    tracing.stop()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-critic")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    tracing.start("test", {**traced.environment, "OTEL_SERVICE_NAME": "shop-critic"})
    with tracing.root("request"):
        pass
    tracing.stop()
    assert traced.spans[0].service == "shop-critic"
    assert json.dumps("staging").strip('"').encode() in traced.bodies[0]
