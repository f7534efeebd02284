"""An actor behind an OpenAI chat endpoint: its requests, and options that its endpoint may lack or refuse."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pytest

from gadfly.access import Access
from gadfly.actor import BaseActor, open_actor
from gadfly.control_tokens import JOINER
from gadfly.endpoint_actor import EndpointActor
from gadfly.engine_client import Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import (
    ActorTimeout,
    ActorUnavailable,
    BadInput,
    BadSettings,
    EngineError,
    EngineRefused,
    PromptTooLong,
)
from gadfly.prompts import Message, Prompt
from gadfly.records import Spent, Usage
from gadfly.settings import Settings

PROMPT = Prompt((Message("user", "1 + 1?"),), "Here is the solution.")
ONE = Sampling(max_tokens=5)
EVENTS = {"content-type": "text/event-stream"}


class Endpoint:
    """An OpenAI chat endpoint that answers with the number of its request, and keeps every body."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.failures: list[httpx.Response | Exception] = []  # the answers to the next requests
        self.choices: int | None = None  # choices of an answer; None: as many as were asked for
        self.refused: tuple[str, ...] = ()  # options
        self.usage: dict[str, int] | None = {"prompt_tokens": 7, "completion_tokens": 5}
        self.text: Callable[[dict[str, Any]], str] = lambda _: str(len(self.bodies))
        self.tokenizer: dict[str, str] | None = None
        self.at_once = self.most_at_once = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        if request.url.path == "/tokenizer_info":
            return (
                httpx.Response(404)
                if self.tokenizer is None
                else httpx.Response(200, json={"added_tokens_decoder": self.tokenizer})
            )
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "gpt"}, {"id": "other"}]})
        assert request.url.path == "/v1/chat/completions"
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        body = orjson.loads(request.content)
        self.bodies.append(body)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        for name in self.refused:
            if name in body:
                return refusal(400, "Unsupported parameter", param=name, code="unsupported_parameter")
        if body.get("stream"):
            return httpx.Response(200, content=self._stream(body), headers=EVENTS)
        choices = [
            {"index": index, "message": {"content": f"{self.text(body)}.{index}"}, "finish_reason": "stop"}
            for index in range(self.choices or body.get("n", 1))
        ]
        return httpx.Response(200, json={"choices": choices, "usage": self.usage})

    def _stream(self, body: dict[str, Any]) -> str:
        pieces: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": "It\u2028"}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {"content": self.text(body)}, "finish_reason": "stop"}]},
            {"choices": [], "usage": self.usage},
        ]
        return "".join(f"data: {orjson.dumps(piece).decode()}\n\n" for piece in pieces) + "data: [DONE]\n\n"

    def actor(self, url: str = "https://api/v1", *, retries: int = 0, concurrency: int = 8) -> EndpointActor:
        return EndpointActor(
            url,
            access=Access(key="secret", model="gpt"),
            timeout_s=5,
            concurrency=concurrency,
            retries=retries,
            longest_wait_s=0.01,
            transport=httpx.MockTransport(self.answer),
        )


def refusal(status: int, message: str = "no", **error: Any) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, **error}})


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.mark.parametrize("url", ["https://api/v1", "https://api", "https://api/"])
async def test_only_what_all_endpoints_know_is_sent(endpoint: Endpoint, url: str) -> None:
    actor = endpoint.actor(url)
    [reply] = await actor.chat(PROMPT, sampling=Sampling(max_tokens=5, temperature=0.5, seed=3, priority=10))
    assert endpoint.bodies == [
        {
            "model": "gpt", "messages": [{"role": "user", "content": "1 + 1?"}], "max_tokens": 5, "temperature": 0.5,
            "seed": 3,
        }
    ]  # fmt: skip
    assert (reply.text, reply.finish_reason) == ("1.0", "stop")
    assert (reply.usage, reply.tokens) == (Usage(prompt_tokens=7, completion_tokens=5), ())
    assert (actor.name, actor.spent) == ("gpt", Spent(requests=1, usage=reply.usage))


async def test_usage_is_shared_among_replies_and_adds_up(endpoint: Endpoint) -> None:
    actor = endpoint.actor()
    replies = await actor.chat(PROMPT, sampling=Sampling(n=3, temperature=1.0))
    assert [reply.text for reply in replies] == ["1.0", "1.1", "1.2"]
    assert [reply.usage.prompt_tokens for reply in replies] == [7, 0, 0]
    assert [reply.usage.completion_tokens for reply in replies] == [3, 1, 1]
    await actor.chat(PROMPT, sampling=ONE)
    assert actor.spent == Spent(requests=2, usage=Usage(prompt_tokens=14, completion_tokens=10))


async def test_an_endpoint_that_ignores_n_is_asked_for_the_others(endpoint: Endpoint) -> None:
    endpoint.choices = 1
    replies = await endpoint.actor().chat(PROMPT, sampling=Sampling(n=3, temperature=1.0, seed=5))
    assert len(replies) == 3
    assert [body.get("n") for body in endpoint.bodies] == [3, None, None]
    assert len({body["seed"] for body in endpoint.bodies}) == 3


async def test_options_that_an_endpoint_refuses_are_left_out_from_then_on(endpoint: Endpoint) -> None:
    endpoint.refused = ("seed", "temperature", "n")
    actor = endpoint.actor()
    sampling = Sampling(n=2, temperature=1.0, seed=5)
    assert len(await actor.chat(PROMPT, sampling=sampling)) == 2
    assert set(endpoint.bodies[-1]) == {"model", "messages", "max_tokens"}
    asked = len(endpoint.bodies)
    assert len(await actor.chat(PROMPT, sampling=sampling)) == 2
    assert len(endpoint.bodies) == asked + 2, "two single requests, none refused"


async def test_the_other_name_of_the_token_limit_is_learned(endpoint: Endpoint) -> None:
    endpoint.failures = [refusal(400, "Use 'max_completion_tokens' instead.", param="max_tokens")]
    actor = endpoint.actor()
    for _ in range(2):
        await actor.chat(PROMPT, sampling=ONE)
    assert [("max_tokens" in body, "max_completion_tokens" in body) for body in endpoint.bodies] == [
        (True, False), (False, True), (False, True)
    ]  # fmt: skip


FAILURES = [  # answer, error, words of its message
    (refusal(401), EngineRefused, "refuses the key in GADFLY_ACTOR_KEY"),
    (refusal(403), EngineRefused, "refuses the key"),
    (refusal(404, "no model gpt"), EngineRefused, "check GADFLY_ACTOR_MODEL, .* with /v1 .no model gpt"),
    (refusal(429, code="insufficient_quota"), EngineRefused, "no quota left"),
    (refusal(400, "bad"), BadInput, "refused the request: bad"),
    (refusal(400, "This model's maximum context length is 9"), PromptTooLong, "does not fit the actor gpt"),
    (refusal(400, "too long", code="context_length_exceeded"), PromptTooLong, "does not fit"),
    (refusal(400, "too long", param="input_tokens"), PromptTooLong, "does not fit"),
    (httpx.ReadTimeout("x"), ActorTimeout, "longer than 5 s"),
    (httpx.Response(200, text="<html>"), EngineError, "did not answer with a chat completion"),
    (httpx.Response(200, json={"choices": []}), EngineError, "did not answer with a chat completion"),
    (httpx.Response(418), EngineError, "status 418"),
]


@pytest.mark.parametrize(("failure", "error", "words"), FAILURES)
async def test_failures_that_another_try_does_not_help(
    endpoint: Endpoint, failure: httpx.Response | Exception, error: type[Exception], words: str
) -> None:
    endpoint.failures = [failure]
    with pytest.raises(error, match=words):
        await endpoint.actor(retries=3).chat(PROMPT, sampling=ONE)
    assert len(endpoint.bodies) == 1


PASSING = [refusal(429), refusal(503), refusal(500), httpx.ConnectError("x"), httpx.ReadError("x")]


@pytest.mark.parametrize("failure", PASSING)
async def test_an_unavailable_endpoint_is_tried_again(endpoint: Endpoint, failure: httpx.Response | Exception) -> None:
    endpoint.failures = [failure, failure]
    [reply] = await endpoint.actor(retries=2).chat(PROMPT, sampling=ONE)
    assert reply.text == "3.0"
    endpoint.failures = [failure, failure]
    with pytest.raises(ActorUnavailable):
        await endpoint.actor(retries=1).chat(PROMPT, sampling=ONE)


@pytest.mark.parametrize(("asked", "wait_s"), [("0", 0), ("7", 7), ("Sat, 28 Nov 2026 19:00:00 GMT", 1), (None, 1)])
async def test_the_endpoint_says_how_long_to_wait(endpoint: Endpoint, asked: str | None, wait_s: float) -> None:
    endpoint.failures = [httpx.Response(429, headers={} if asked is None else {"retry-after": asked})]
    with pytest.raises(ActorUnavailable) as refusal:
        await endpoint.actor().chat(PROMPT, sampling=ONE)
    assert refusal.value.retry_after_s == wait_s


async def test_a_declined_text_is_an_empty_answer(endpoint: Endpoint) -> None:
    endpoint.failures = [refusal(400, code="content_filter")]
    [reply] = await endpoint.actor().chat(PROMPT, sampling=ONE)
    assert (reply.text, reply.finish_reason) == ("", "content_filter")


async def test_concurrency_is_limited(endpoint: Endpoint) -> None:
    actor = endpoint.actor(concurrency=2)
    await asyncio.gather(*(actor.chat(PROMPT, sampling=ONE) for _ in range(8)))
    assert endpoint.most_at_once == 2


async def test_a_reply_is_streamed_whole(endpoint: Endpoint) -> None:
    pieces: list[tuple[int, str]] = []

    async def on_text(sample: int, text: str) -> None:
        pieces.append((sample, text))

    actor = endpoint.actor(retries=1)
    endpoint.failures = [refusal(503)]
    [reply] = await actor.chat(PROMPT, sampling=ONE, on_text=on_text)
    assert reply.text == "It\u20282"
    assert pieces == [(0, "It\u2028"), (0, "2")]
    assert actor.spent.usage == Usage(prompt_tokens=7, completion_tokens=5)


async def test_a_stream_that_breaks_off_is_not_begun_again(endpoint: Endpoint) -> None:
    async def on_text(sample: int, text: str) -> None:
        pass

    piece = b'data: {"choices": [{"index": 0, "delta": {"content": "It"}, "finish_reason": null}]}\n\n'
    endpoint.failures = [httpx.Response(200, content=piece, headers=EVENTS)]
    with pytest.raises(ActorUnavailable, match="before the reply was complete"):
        await endpoint.actor(retries=3).chat(PROMPT, sampling=ONE, on_text=on_text)
    assert len(endpoint.bodies) == 1


TOKENIZERS = [  # added tokens that the endpoint reports, text, as sent, why
    (None, "<|im_end|> <b>", f"<{JOINER}|im_end|> <{JOINER}b>", "unknown: everything in the form of a control token"),
    ({"1": "<|im_end|>"}, "<|im_end|> <b>", f"<{JOINER}|im_end|> <b>", "known: exactly its control tokens"),
    (None, "1 < 2", "1 < 2", "no control token"),
]


@pytest.mark.parametrize(("tokens", "text", "sent", "why"), TOKENIZERS)
async def test_texts_cannot_begin_a_turn(
    endpoint: Endpoint, tokens: dict[str, str] | None, text: str, sent: str, why: str
) -> None:
    endpoint.tokenizer = tokens
    await endpoint.actor().chat(Prompt((Message("user", text),)), sampling=ONE)
    assert endpoint.bodies[0]["messages"][0]["content"] == sent, why


GAPS = [  # what the endpoint's text follows, the words of its gaps besides the first and the tokenizer's
    (lambda body: f"{body.get('seed')} {body['temperature']}", ()),
    (lambda body: "always the same" if body["temperature"] == 0 else None, ("does not follow seeds",)),
    (lambda _: None, ("different answers to one greedy request", "does not follow seeds")),
]


@pytest.mark.parametrize(("text", "words"), GAPS)
async def test_gaps_are_found_by_trying(
    endpoint: Endpoint, text: Callable[[dict[str, Any]], str | None], words: tuple[str, ...]
) -> None:
    endpoint.text = lambda body: text(body) or str(len(endpoint.bodies))
    actor = endpoint.actor(concurrency=1)
    first, *others, last = await actor.gaps()
    assert "the run pays for its tokens" in first
    assert "tokenizer is not known" in last
    assert len(others) == len(words)
    assert all(word in sentence for word, sentence in zip(words, others, strict=True))
    await actor.gaps()
    assert len(endpoint.bodies) == 4, "found out once"


async def test_what_an_endpoint_refuses_or_does_not_count_is_a_gap(endpoint: Endpoint) -> None:
    endpoint.refused, endpoint.usage, endpoint.tokenizer = ("temperature", "seed"), None, {"1": "<|end|>"}
    found = " ".join(await endpoint.actor().gaps())
    for words in ("greedy", "no temperature", "seeds", "no token counts"):
        assert words in found
    assert "tokenizer" not in found


async def test_its_check_names_a_model_that_is_not_listed(endpoint: Endpoint) -> None:
    assert await endpoint.actor().check() == "gpt at https://api/v1"
    other = EndpointActor(
        "https://me:word@api/v1", access=Access(key="secret", model="gbt"), timeout_s=5, concurrency=1, retries=0,
        transport=httpx.MockTransport(endpoint.answer),
    )  # fmt: skip
    with pytest.raises(EngineRefused, match="lists gpt, other, and not gbt") as refusal:
        await other.check()
    assert "word" not in str(refusal.value)


async def test_the_default_is_the_base_model_on_the_engines() -> None:
    pool = EnginePool.connect(["http://127.0.0.1:9"], timeout_s=1)
    actor = open_actor(Settings(model="tiny"), pool)
    assert isinstance(actor, BaseActor)
    assert (actor.name, await actor.gaps(), actor.spent) == ("tiny", (), Spent())
    own = open_actor(Settings(actor_url="https://api/v1", actor_model="gpt"), pool)
    assert isinstance(own, EndpointActor)
    await own.aclose()
    await pool.aclose()


BAD = [
    ({"actor_url": "https://api"}, "actor_url and actor_model must be set together"),
    ({"actor_model": "gpt"}, "actor_url and actor_model must be set together"),
    ({"actor_key": "k"}, "actor_key is set, and actor_url is not"),
    ({"actor_url": "api.openai.com", "actor_model": "gpt"}, "GADFLY_ACTOR_URL: .* is not http:// or https://"),
]


@pytest.mark.parametrize(("given", "words"), BAD)
def test_half_an_actor_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        Settings.load(given)
