"""Monitoring: health, state, metrics, and logs with the request's id."""

import asyncio
import json
import re
from pathlib import Path

import httpx

from gadfly.settings import LogFormat, Settings
from tests.service.conftest import RIGHT, WRONG
from tests.support.services import free_port, service_process, until_ready


async def test_readiness_reports_its_checks(client: httpx.AsyncClient) -> None:
    ready = (await client.get("/readyz")).json()
    assert ready["ready"]
    assert "1 of 1 engines" in ready["engine"]["detail"]
    assert ready["critic"]["detail"] == "version 0 is served as base"
    assert ready["database"]["seconds"] < 5
    assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_state_shows_requests_in_flight(client: httpx.AsyncClient) -> None:
    body = {**WRONG, "rounds": 8, "samples": 8, "temperature": 1.0}
    task = asyncio.create_task(client.post("/refine", json=body))
    seen: list[dict[str, int]] = []
    while not task.done():
        seen.append((await client.get("/state")).json()["in_flight"])
        await asyncio.sleep(0.02)
    assert (await task).status_code == 200
    assert {"0": 1} in seen
    state = (await client.get("/state")).json()
    assert state["in_flight"] == {}
    assert state["live_critic"] == 0
    assert state["spool"] == {"records": 0, "bytes": 0, "rejected": 0}


async def test_metrics_count_by_critic(client: httpx.AsyncClient) -> None:
    await client.post("/critique", json={**RIGHT, "reference": "7"})
    await client.post("/refine", json={**WRONG, "reference": "7"})
    await client.post("/critique", json={})
    lines = (await client.get("/metrics")).text.splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert values['gadfly_verdicts_total{critic="0",source="stated",task="math",verdict="correct"}'] == 1
    assert values['gadfly_verdicts_total{critic="0",source="stated",task="math",verdict="incorrect"}'] == 1
    assert values['gadfly_grades_total{answer="first",critic="0",grade="wrong",task="math"}'] == 1
    assert values['gadfly_grades_total{answer="refined",critic="0",grade="right",task="math"}'] == 1
    assert values['gadfly_tokens_total{critic="0",role="completion",task="math"}'] > 20
    assert values['gadfly_http_requests_total{method="POST",route="/critique",status="200"}'] == 1
    assert values['gadfly_http_requests_total{method="POST",route="/critique",status="422"}'] == 1
    assert values['gadfly_http_request_duration_seconds_count{route="/critique"}'] == 2
    assert values["gadfly_record_duration_seconds_count"] == 2
    assert values["gadfly_spool_records"] == 0
    assert values['gadfly_critic_in_flight{critic="0"}'] == 0


async def test_unknown_paths_do_not_grow_the_metrics(client: httpx.AsyncClient) -> None:
    for number in range(5):
        answer = await client.get(f"/nothing/{number}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
    assert "/nothing" not in (await client.get("/metrics")).text


async def test_the_docs_page_loads_nothing_from_other_hosts(client: httpx.AsyncClient) -> None:
    page = (await client.get("/", follow_redirects=True)).text
    addresses = re.findall(r"""(?:src|href)="([^"]+)\"""", page)
    assert len(addresses) >= 3
    for address in addresses:
        assert (await client.get(address)).status_code == 200


async def test_a_request_id_reaches_the_log(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"port": free_port(), "log_level": "info", "log_format": LogFormat.JSON})
    log = tmp_path / "log"
    with service_process(settings, log):
        async with httpx.AsyncClient(base_url=settings.service_url, timeout=60) as client:
            await until_ready(client)
            answer = await client.post("/critique", json=RIGHT, headers={"x-request-id": "trace-7"})
            assert answer.headers["x-request-id"] == "trace-7"
            odd = await client.get("/healthz", headers={"x-request-id": "not plain {}"})
            assert odd.headers["x-request-id"] != "not plain {}"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    [request] = [event for event in events if event.get("http_request_id") == "trace-7" and event["event"] == "request"]
    assert request["path"] == "/critique"
    assert request["status"] == 200
    assert request["duration_ms"] > 0
    assert RIGHT["question"] not in log.read_text()  # texts are in the database, not in logs
