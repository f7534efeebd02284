"""The traces of requests: their spans, what these carry, and what an unavailable collector changes for callers."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gadfly import tracing
from gadfly.settings import LogFormat
from tests.service.conftest import QUESTION, RIGHT, make_settings
from tests.support.collectors import Collector, Received, children, collector
from tests.support.instant import instant_engine
from tests.support.services import free_port, read_events, service_process, serving, until_ready

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "order-7"}


@pytest.fixture
async def client(tmp_path: Path, database_url: str, traced: Collector) -> AsyncIterator[httpx.AsyncClient]:
    with instant_engine(tmp_path) as engine:
        async with serving(make_settings(tmp_path, database_url, engine)) as client:
            yield client


def _one(spans: list[Received], name: str) -> Received:
    [found] = [span for span in spans if span.name == name]
    return found


async def test_a_critique_continues_the_callers_trace(client: httpx.AsyncClient, traced: Collector) -> None:
    answer = (await client.post("/critique", json={**RIGHT, "reference": "7"}, headers=HEADERS)).json()
    tracing.stop()
    spans = traced.spans
    assert {span.trace_id for span in spans} == {TRACE}, "probes and readiness checks make no traces"
    root = _one(spans, "POST /critique")
    assert (root.parent_id, root.kind, root.service) == ("b7ad6b7169203331", "server", "gadfly-test")
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/critique",
        "http.response.status_code": 200,
        "gadfly.http_request_id": "order-7",
        "gadfly.task": "math",
        "gadfly.critic_version": 0,
        "gadfly.interaction_id": answer["id"],
        "gadfly.episode_id": answer["episode_id"],
        "gadfly.verdict": "correct",
        "gadfly.grade": "right",
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer["usage"]["completion_tokens"],
    }
    assert children(spans, root) == ["prepare", "critique", "grade", "record"]
    assert children(spans, _one(spans, "critique")) == ["chat base"]
    assert not any(QUESTION.encode() in body or RIGHT["response"].encode() in body for body in traced.bodies)


async def test_rounds_of_a_refinement(client: httpx.AsyncClient, traced: Collector) -> None:
    body = {**RIGHT, "rounds": 2, "samples": 2, "temperature": 0.7, "refine_temperature": 0.7, "reference": "7"}
    assert (await client.post("/refine", json=body)).status_code == 200
    tracing.stop()
    root = _one(traced.spans, "POST /refine")
    assert children(traced.spans, root) == ["prepare", *["round"] * 4, "vote", "grade", "record"]
    rounds = traced.named("round")
    places = [(span.attributes["gadfly.sample"], span.attributes["gadfly.round"]) for span in rounds]
    assert sorted(places) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for span in rounds:
        assert children(traced.spans, span) == ["critique", "rewrite"]
    for span in traced.named("rewrite"):
        assert children(traced.spans, span) == ["chat base"]


async def test_a_stream_and_a_chat_completion(client: httpx.AsyncClient, traced: Collector) -> None:
    await read_events(client, "/critique", RIGHT)
    turns = [{"role": "user", "content": QUESTION}]
    answer = await client.post("/v1/chat/completions", json={"model": "refined", "messages": turns})
    assert answer.status_code == 200, answer.text
    tracing.stop()
    stream = _one(traced.spans, "POST /critique")
    assert children(traced.spans, stream) == ["prepare", "critique", "record"]
    chat = _one(traced.spans, "POST /v1/chat/completions")
    assert chat.trace_id != stream.trace_id
    assert children(traced.spans, chat) == ["solve", "prepare", "round", "vote", "record", "record"]


async def test_refused_requests(client: httpx.AsyncClient, traced: Collector) -> None:
    await client.get("/nothing/42")
    await client.post("/critique", json={})
    await client.get("/healthz", headers=HEADERS)
    tracing.stop()
    named = {span.name: span for span in traced.spans}
    assert set(named) == {"GET unmatched", "POST /critique"}
    assert named["GET unmatched"].attributes["http.response.status_code"] == 404
    assert not named["POST /critique"].failed, "it is the caller's mistake"


async def test_the_last_spans_are_sent_when_the_service_ends(tmp_path: Path, database_url: str) -> None:
    with collector() as running, instant_engine(tmp_path) as engine, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
        settings = make_settings(tmp_path, database_url, engine, port=free_port())
        with service_process(settings, tmp_path / "log") as process:
            async with httpx.AsyncClient(base_url=settings.service_url, timeout=60) as client:
                await until_ready(client)
                await client.post("/critique", json=RIGHT, headers=HEADERS)
            process.terminate()
            process.wait(20)
        assert _one(running.spans, "POST /critique").service == "gadfly-service"


async def test_answers_do_not_wait_for_a_collector(tmp_path: Path, database_url: str) -> None:
    log = tmp_path / "log"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    with instant_engine(tmp_path) as engine:
        settings = make_settings(
            tmp_path, database_url, engine, port=free_port(), log_level="info", log_format=LogFormat.JSON
        )
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with service_process(settings, log) as process:
                async with httpx.AsyncClient(base_url=settings.service_url, timeout=60) as client:
                    await until_ready(client)
                    for number in range(40):
                        sent = await client.post(
                            "/critique", json=RIGHT | {"request_id": f"r{number}"}, headers=HEADERS
                        )
                        assert sent.status_code == 200
                    kept = (await client.get("/interactions", params={"limit": 100})).json()["items"]
                    assert len(kept) == 40
                began = time.monotonic()
                process.terminate()
                assert process.wait(20) is not None
                assert time.monotonic() - began < 10, "two seconds for the last spans"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    complaints = [event for event in events if "span" in event["event"]]
    assert 1 <= len(complaints) <= 3, complaints
    requests = [event for event in events if event.get("path") == "/critique"]
    assert {event["trace_id"] for event in requests} == {TRACE}, "the log names the trace"
