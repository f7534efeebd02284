"""The Python client over simulated answers: events, and one sentence for each error."""

import json
from typing import Any

import httpx
import pytest

from gadfly.client import Client, Event, ServiceError, ServiceUnavailable, problem_text
from gadfly.settings import Settings


def client(handler: Any, **settings: Any) -> Client:
    return Client.from_settings(Settings(**settings), transport=httpx.MockTransport(handler))


def problem(status: int, title: str, detail: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"title": title, "status": status, "detail": detail}, headers=headers)


def test_address_and_key_come_from_arguments_or_settings() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"url": str(request.url), "key": request.headers.get("authorization")})

    transport = httpx.MockTransport(handler)
    with Client("http://service:1", "gf_a", transport=transport) as direct:
        assert direct.get("/critics", {"limit": 1}) == {"url": "http://service:1/critics?limit=1", "key": "Bearer gf_a"}
    configured = client(handler, url="http://service:2", key="gf_b")
    assert configured.post("/feedback", {}) == {"url": "http://service:2/feedback", "key": "Bearer gf_b"}
    other = Client.from_settings(Settings(), url="http://service:3", transport=transport)
    assert other.get("/critics") == {"url": "http://service:3/critics", "key": None}


REFUSALS = [  # answer, class, sentence, why this row exists
    (problem(401, "Unauthorized", "this service needs a key"), ServiceError, "--key or GADFLY_KEY", "how to send one"),
    (
        problem(503, "Engine unavailable", "no engine", **{"retry-after": "5"}),
        ServiceUnavailable,
        r"try again in 5 s",
        "when to retry",
    ),
    (problem(422, "Invalid input", "question: must not be empty"), ServiceError, "question: must not be", "the detail"),
    (httpx.Response(404, text="<html>nginx"), ServiceError, "is not a Gadfly service", "another program answers"),
    (httpx.Response(502, text="<html>nginx"), ServiceUnavailable, "is not a Gadfly service", "a proxy without backend"),
    (httpx.Response(200, text="hello"), ServiceError, "is not a Gadfly service", "another program answers with 200"),
]


@pytest.mark.parametrize(("answer", "kind", "sentence", "why"), REFUSALS)
def test_a_refusal_is_one_sentence(answer: httpx.Response, kind: type[ServiceError], sentence: str, why: str) -> None:
    with pytest.raises(ServiceError, match=sentence) as caught:
        client(lambda request: answer).post("/critique", {})
    assert type(caught.value) is kind, why


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (httpx.ConnectError("refused"), "start one with `gadfly up`"),
        (httpx.ReadTimeout("slow"), "did not answer in time"),
        (httpx.RemoteProtocolError("gone"), "was lost"),
    ],
)
def test_an_unreachable_service_is_one_sentence(error: httpx.HTTPError, sentence: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    unreachable = client(handler)
    with pytest.raises(ServiceUnavailable, match=sentence):
        unreachable.get("/critics")
    with pytest.raises(ServiceUnavailable, match=sentence):
        unreachable.post("/feedback", {})
    with pytest.raises(ServiceUnavailable, match=sentence):
        list(unreachable.events("/critique", {}))
    with pytest.raises(ServiceUnavailable, match=sentence):
        list(unreachable.follow("/admin/runs/R/events", after=0))


def test_a_followed_stream_starts_after_an_event_and_may_be_over() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.headers["last-event-id"] == "9":
            return httpx.Response(204)
        content = f": heartbeat\n\nid: 9\nevent: step\ndata: {json.dumps({'step': 1})}\n\n"
        return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})

    following = client(handler)
    assert list(following.follow("/admin/runs/R/events", after=0)) == [Event(9, "step", {"step": 1})]
    assert list(following.follow("/admin/runs/R/events", after=9)) == []


def test_a_problem_without_detail_repeats_its_title() -> None:
    assert problem_text({"title": "Internal error", "status": 500}) == "Internal error: Internal error"
    assert problem_text({"title": "Forbidden", "status": 403, "detail": "admins only"}).endswith("GADFLY_KEY)")
