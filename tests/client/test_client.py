"""Both clients over simulated answers: requests, repeats, streams, and one sentence for each error."""

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from gadfly.client import AsyncClient, Client, Event, ServiceError, ServiceUnavailable, TextDelta, calls, problem_text
from gadfly.client.methods import Api
from gadfly.refinement import Role
from gadfly.service.wire.answers import CritiqueRequest, RefineRequest
from gadfly.service.wire.feedback import FeedbackRequest, FeedbackView
from gadfly.service.wire.interactions import InteractionQuery, InteractionSummary
from gadfly.settings import Settings
from gadfly.training import EventKind

Handler = Callable[[httpx.Request], httpx.Response]
ID = "019ad3a1-7c40-7000-8000-000000000000"
RUN = {"id": ID, "status": "running"}
STREAM = {"content-type": "text/event-stream"}
FEEDBACK: dict[str, Any] = dict.fromkeys(FeedbackView.model_fields) | {
    "id": ID,
    "interaction_id": ID,
    "created_at": "2030-01-01T12:00:00Z",
    "source": "caller",
    "correct": False,
    "metadata": {},
    "added_in_a_later_release": 1,
}


def client(handler: Handler, **settings: Any) -> Client:
    return Client.from_settings(Settings(**settings), transport=httpx.MockTransport(handler))


def problem(status: int, title: str, detail: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"title": title, "status": status, "detail": detail}, headers=headers)


def fresh(response: httpx.Response) -> httpx.Response:
    """A response that was not read yet."""
    return httpx.Response(response.status_code, content=response.content, headers=response.headers)


def events(*sent: tuple[str, dict[str, Any]]) -> bytes:
    return b": heartbeat\n\n" + b"".join(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in sent)


Ask = Callable[[Client | AsyncClient], Any]


def blocking(handler: Handler, ask: Ask, **options: Any) -> Any:
    with Client("http://service", transport=httpx.MockTransport(handler), **options) as asking:
        answer = ask(asking)
        return list(answer) if isinstance(answer, Iterator) else answer


def asynchronous(handler: Handler, ask: Ask, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient("http://service", transport=httpx.MockTransport(handler), **options) as asking:
            answer = ask(asking)
            if isinstance(answer, AsyncIterator):
                return [item async for item in answer]
            assert isinstance(answer, Awaitable)
            return await answer

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("through", [blocking, asynchronous])
Through = Callable[..., Any]


def test_address_and_key_come_from_arguments_or_settings() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"url": str(request.url), "key": request.headers.get("authorization")})

    transport = httpx.MockTransport(handler)
    with Client("http://service:1", "gf_a", transport=transport) as direct:
        found = direct.document(calls.runs(limit=1))
        assert found == {"url": "http://service:1/admin/runs?limit=1", "key": "Bearer gf_a"}
    configured = client(handler, url="http://service:2", key="gf_b")
    assert configured.document(calls.feedback(ID, correct=True)) == {
        "url": "http://service:2/feedback",
        "key": "Bearer gf_b",
    }
    other = Client.from_settings(Settings(), url="http://service:3", transport=transport)
    assert other.document(calls.critics()) == {"url": "http://service:3/critics", "key": None}


# ----------------------------------------------------------------------------------------------------------- requests


@BOTH
def test_an_answer_is_typed_and_may_have_fields_of_a_later_release(through: Through) -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.url.path, json.loads(request.content)))
        return httpx.Response(200, json=FEEDBACK)

    given = through(handler, lambda asking: asking.feedback(UUID(ID), correct=False, comment="no"))
    assert sent == [("POST", "/feedback", {"interaction_id": ID, "correct": False, "comment": "no"})]
    assert given.id == UUID(ID)
    assert given.correct is False


def test_fields_of_a_later_release_are_left_out_at_any_depth() -> None:
    critic = {"version": 0, "adapter_sha256": None, "status": "untrained", "later": 1}
    item: dict[str, Any] = dict.fromkeys(InteractionSummary.model_fields)
    item |= {"kind": "critique", "question": "q", "response": "r", "task": "math", "label": "none", "standing": "none"}
    item |= {"id": ID, "episode_id": ID, "created_at": "2030-01-01T12:00:00Z", "critic": critic, "later": 2}
    page = {"items": [item], "next_cursor": None, "later": 3}
    [found] = blocking(lambda request: httpx.Response(200, json=page), lambda asking: asking.interactions())
    assert found.critic.status == "untrained"


@BOTH
def test_a_list_is_read_page_by_page(through: Through) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url.query, "ascii"))
        cursor = request.url.params.get("cursor")
        act = {"id": ID, "at": "2030-01-01T12:00:00Z", "key_id": None, "action": "set_label", "subject": cursor or "0"}
        following = {None: "019ad3a1-7c40-7000-8000-000000000001", "019ad3a1-7c40-7000-8000-000000000001": None}
        page = {"items": [act | {"reason": None, "details": {}}], "next_cursor": following[cursor]}
        return httpx.Response(200, json=page)

    subjects = [act.subject for act in through(handler, lambda asking: asking.acts(limit=1))]
    assert subjects == ["0", "019ad3a1-7c40-7000-8000-000000000001"]
    assert asked == ["limit=1", "limit=1&cursor=019ad3a1-7c40-7000-8000-000000000001"]


OPTIONS = [  # description, the API's shape of its body or query, parameters that the shape has and the method has not
    (calls.critique, CritiqueRequest, {"stream"}),
    (calls.refine, RefineRequest, {"stream"}),
    (calls.feedback, FeedbackRequest, set()),
    (calls.interactions, InteractionQuery, set()),
]


@pytest.mark.parametrize(("describe", "shape", "without"), OPTIONS)
def test_a_method_has_every_option_of_the_api(describe: Any, shape: Any, without: set[str]) -> None:
    assert set(inspect.signature(describe).parameters) == set(shape.model_fields) - without


def test_both_clients_have_every_method() -> None:
    names = {name for name in vars(Api) if not name.startswith("_")}
    assert len(names) > 20
    with Client("http://service") as one:
        for name in names:
            assert inspect.signature(getattr(one, name)) == inspect.signature(getattr(AsyncClient("http://a"), name))
            assert getattr(one, name).__doc__


def test_the_client_imports_neither_database_nor_models() -> None:
    heavy = ["sqlalchemy", "psycopg", "vllm", "torch", "transformers", "fastapi", "starlette", "typer", "numpy"]
    code = f"import sys, gadfly.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------ repeats

BUSY = problem(503, "Engine unavailable", "no engine", **{"retry-after": "0"})
FULL = problem(429, "Too many requests", "256 in flight", **{"retry-after": "0"})
TIMED_OUT = httpx.ReadTimeout("slow")
REFUSED = httpx.ConnectError("refused")
LOST = httpx.RemoteProtocolError("gone")
WRONG = problem(422, "Invalid input", "question: must not be empty")

REPEATS = [  # method, failures before the answer, requests sent, whether it answers, why this row exists
    (lambda c: c.feedback(ID, correct=False), [BUSY, LOST], 3, True, "the service stores equal feedback once"),
    (lambda c: c.feedback(ID, correct=False), [BUSY] * 4, 4, False, "three repeats are the default"),
    (lambda c: c.feedback(ID, correct=False), [TIMED_OUT], 1, False, "the time limit is the caller's"),
    (lambda c: c.feedback(ID, correct=False), [WRONG], 1, False, "a refusal stays one"),
    (lambda c: c.cancel(ID), [REFUSED, FULL, BUSY], 3, False, "503 may follow the work, 429 and no service never"),
    (lambda c: c.promote(1), [LOST], 1, False, "it may have been promoted"),
    (
        lambda c: c.stream_critique("q", "r"),
        [LOST, BUSY, WRONG],
        3,
        False,
        "a stream is repeated before its first event",
    ),
]


@BOTH
@pytest.mark.parametrize(("ask", "failures", "count", "answers", "why"), REPEATS)
def test_a_request_is_repeated_where_that_is_safe(
    through: Through,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
    failures: list[httpx.Response | Exception],
    count: int,
    answers: bool,
    why: str,
) -> None:
    monkeypatch.setattr("gadfly.client.clients._backoff", lambda state: 0.0)
    left, bodies = iter(failures), []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        failure = next(left, None)
        if isinstance(failure, Exception):
            raise failure
        return httpx.Response(200, json=FEEDBACK) if failure is None else fresh(failure)

    if answers:
        assert through(handler, ask).id == UUID(ID), why
    else:
        with pytest.raises(ServiceError):
            through(handler, ask)
    assert len(bodies) == count, why
    assert len(set(bodies)) == 1, "the same request, with the same request id"


def test_a_request_to_repeat_has_a_request_id_of_its_own() -> None:
    bodies = [describe("q", "r").body or {} for describe in (calls.critique, calls.critique, calls.refine)]
    assert len({body["request_id"] for body in bodies}) == 3
    assert calls.critique("q", "r", request_id="mine").body["request_id"] == "mine"  # type: ignore[index]
    assert calls.retrain().body["request_id"]  # type: ignore[index]
    assert not calls.answer("/critique", {"question": "q", "response": "r"}).is_repeatable
    assert calls.answer("/critique", {"question": "q", "response": "r", "request_id": "x"}).is_repeatable


# ------------------------------------------------------------------------------------------------------------- errors

REFUSALS = [  # answer, class, sentence, why this row exists
    (problem(401, "Unauthorized", "this service needs a key"), ServiceError, "--key or GADFLY_KEY", "how to send one"),
    (
        problem(503, "Engine unavailable", "no engine", **{"retry-after": "5"}),
        ServiceUnavailable,
        r"try again in 5 s",
        "when to retry",
    ),
    (problem(429, "Too many requests", "full"), ServiceUnavailable, "full", "the same call may succeed later"),
    (problem(422, "Invalid input", "question: must not be empty"), ServiceError, "question: must not be", "the detail"),
    (httpx.Response(404, text="<html>nginx"), ServiceError, "is not a Gadfly service", "another program answers"),
    (httpx.Response(502, text="<html>nginx"), ServiceUnavailable, "is not a Gadfly service", "a proxy without backend"),
    (httpx.Response(200, text="hello"), ServiceError, "is not a Gadfly service", "another program answers with 200"),
    (httpx.Response(200, json={"id": 1}), ServiceError, "of another release", "an answer without our fields"),
]


@BOTH
@pytest.mark.parametrize(("answer", "kind", "sentence", "why"), REFUSALS)
def test_a_refusal_is_one_sentence(
    through: Through, answer: httpx.Response, kind: type[ServiceError], sentence: str, why: str
) -> None:
    with pytest.raises(ServiceError, match=sentence) as caught:
        through(lambda request: fresh(answer), lambda asking: asking.critique("q", "r"), retries=0)
    assert type(caught.value) is kind, why


def test_an_error_carries_the_problem_document() -> None:
    document = {
        "type": "urn:gadfly:problem:invalid-input",
        "title": "Invalid input",
        "status": 422,
        "detail": "n: too large",
        "errors": [{"field": "n", "message": "too large"}],
    }
    answer = httpx.Response(422, json=document, headers={"x-request-id": "abc", "retry-after": "7"})
    with pytest.raises(ServiceError) as caught:
        blocking(lambda request: answer, lambda asking: asking.state())
    error = caught.value
    assert (error.status, error.type, error.title) == (422, "urn:gadfly:problem:invalid-input", "Invalid input")
    assert (error.detail, error.retry_after_s, error.request_id) == ("n: too large", 7.0, "abc")
    assert error.problem.fields == (("n", "too large"),)


@BOTH
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (httpx.ConnectError("refused"), "start one with `gadfly up`"),
        (httpx.ReadTimeout("slow"), "did not answer in time"),
        (httpx.RemoteProtocolError("gone"), "was lost"),
    ],
)
def test_an_unreachable_service_is_one_sentence(through: Through, error: httpx.HTTPError, sentence: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    asks: list[Ask] = [
        lambda asking: asking.critics(),
        lambda asking: asking.feedback(ID, correct=True),
        lambda asking: asking.stream_refine("q", "r"),
        lambda asking: asking.follow(ID),
    ]
    for ask in asks:
        with pytest.raises(ServiceUnavailable, match=sentence):
            through(handler, ask, retries=0)


def test_a_problem_without_detail_repeats_its_title() -> None:
    assert problem_text({"title": "Internal error", "status": 500}) == "Internal error: Internal error"
    assert problem_text({"title": "Forbidden", "status": 403, "detail": "admins only"}).endswith("GADFLY_KEY)")


# ------------------------------------------------------------------------------------------------------------ streams


@BOTH
def test_a_stream_gives_pieces_and_ends_with_an_error_or_without_a_result(through: Through) -> None:
    piece = ("text", {"role": "critique", "round": 0, "sample": 1, "text": "Step 1"})
    failed = ("error", {"title": "Engine timed out", "status": 504, "detail": "it took longer than 300 s"})
    for sent, sentence in (((piece, failed), "longer than 300 s"), ((piece,), "ended without a result")):
        content = events(*sent)
        received: list[Any] = []
        with pytest.raises(ServiceError, match=sentence):
            through(
                lambda request, content=content: httpx.Response(200, content=content, headers=STREAM),
                lambda asking, received=received: _noting(asking.stream_critique("q", "r"), received),
            )
        assert received == [TextDelta(role=Role.CRITIQUE, round=0, sample=1, text="Step 1")]


def _noting(stream: Any, received: list[Any]) -> Any:
    """The same stream, which also appends its items to a list."""
    if isinstance(stream, Iterator):

        def noted() -> Iterator[Any]:
            for item in stream:
                received.append(item)
                yield item

        return noted()

    async def noted_later() -> AsyncIterator[Any]:
        async for item in stream:
            received.append(item)
            yield item

    return noted_later()


@BOTH
def test_a_run_is_followed_to_its_end_across_connections(through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gadfly.client.clients._FOLLOW_EVERY_S", 0.0)
    after = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == f"/admin/runs/{ID}":
            return httpx.Response(200, json=RUN)
        after.append(request.headers["last-event-id"])
        if len(after) == 2:
            return httpx.Response(204)  # a replica that has no more events yet
        data: dict[str, Any] = {"step": 1} if len(after) == 1 else {"status": "succeeded"}
        number, name = (3, "step") if len(after) == 1 else (9, "status")
        content = f"id: {number}\nevent: {name}\ndata: {json.dumps(data | {'at': '2030-01-01T12:00:00Z'})}\n\n"
        return httpx.Response(200, content=content, headers=STREAM)

    found = through(handler, lambda asking: asking.follow(ID))
    assert [(event.id, event.kind) for event in found] == [(3, EventKind.STEP), (9, EventKind.STATUS)]
    assert found[0].data == {"step": 1}
    assert after == ["0", "3", "3"]


def test_an_event_of_a_later_release_has_a_plain_kind() -> None:
    later = calls.run_event(Event(4, "weather", {"at": "2030-01-01T12:00:00Z", "wind": 3}))
    assert (later.kind, later.data) == ("weather", {"wind": 3})


def test_a_followed_stream_starts_after_an_event_and_may_be_over() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.headers["last-event-id"] == "9":
            return httpx.Response(204)
        content = f": heartbeat\n\nid: 9\nevent: step\ndata: {json.dumps({'step': 1})}\n\n"
        return httpx.Response(200, content=content, headers=STREAM)

    following = client(handler)
    assert list(following.events(calls.run_events("R", after=0))) == [Event(9, "step", {"step": 1})]
    assert list(following.events(calls.run_events("R", after=9))) == []
