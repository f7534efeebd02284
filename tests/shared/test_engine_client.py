"""The engine client against answers that a healthy engine does not give; healthy ones are in tests/service."""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import orjson
import pytest

from gadfly.engine_client import Engine, LabelTokens, LabelTrace, LabelWords, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import AdapterRefused, BadInput, EngineError, EngineTimeout, EngineUnavailable, PromptTooLong
from gadfly.prompts import Message, Prompt

PROMPT = Prompt((Message("user", "2 + 2?"),))
ONE = Sampling(max_tokens=5)
WORDS = LabelWords(":", "Correct", "Wrong")


def engine(handler: Callable[[httpx.Request], httpx.Response]) -> Engine:
    return Engine("http://engine", timeout_s=5, transport=httpx.MockTransport(handler))


def refusing(status: int, message: str = "no", param: str | None = None) -> Engine:
    body = {"error": {"message": message, "type": "X", "param": param, "code": status}}
    return engine(lambda _: httpx.Response(status, json=body))


@pytest.mark.parametrize(
    ("status", "param", "error"),
    [
        (404, "model", EngineUnavailable),
        (400, "input_tokens", PromptTooLong),
        (400, "max_tokens", PromptTooLong),
        (400, "temperature", BadInput),
        (503, None, EngineUnavailable),
        (429, None, EngineUnavailable),
        (500, None, EngineUnavailable),
    ],
)
async def test_refusals_have_names(status: int, param: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        await refusing(status, param=param).chat(PROMPT, model="base", sampling=ONE)


async def test_a_refusal_that_is_not_json_is_still_named() -> None:
    with pytest.raises(EngineUnavailable, match="502"):
        await engine(lambda _: httpx.Response(502, content=b"<html>")).chat(PROMPT, model="base", sampling=ONE)


def raising(error: Exception) -> Engine:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    return engine(handler)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (httpx.ConnectError("x"), EngineUnavailable),
        (httpx.ConnectTimeout("x"), EngineUnavailable),
        (httpx.ReadError("x"), EngineUnavailable),
        (httpx.RemoteProtocolError("x"), EngineUnavailable),
        (httpx.ReadTimeout("x"), EngineTimeout),
    ],
)
async def test_broken_connections_have_names(fault: Exception, error: type[Exception]) -> None:
    broken = raising(fault)
    with pytest.raises(error):
        await broken.chat(PROMPT, model="base", sampling=ONE)
    assert broken.in_flight == 0


def stream(*chunks: dict[str, Any], done: bool = True) -> Engine:
    lines = [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"] * done
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return engine(lambda _: httpx.Response(200, content=b"".join(lines), headers=headers))


def piece(text: str, *, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}


async def heard(engine: Engine) -> tuple[list[str], str]:
    pieces: list[str] = []

    async def on_text(_: int, text: str) -> None:
        pieces.append(text)

    [reply] = await engine.chat(PROMPT, model="base", sampling=ONE, on_text=on_text)
    return pieces, reply.text


async def test_a_whole_stream_is_heard() -> None:
    assert await heard(stream(piece("4"), piece(".", reason="stop"), USAGE)) == (["4", "."], "4.")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r\n"])
async def test_only_line_feeds_end_a_line_of_a_stream(separator: str) -> None:
    text = f"a{separator}b"
    assert await heard(stream(piece(text), piece("", reason="stop"), USAGE)) == ([text], text)


@pytest.mark.parametrize(
    "chunks",
    [
        (piece("4"),),  # no end
        (piece("4"), USAGE),  # no reason to end
        (piece("4", reason="stop"),),  # no usage: cut before the last chunk
        (piece("4"), {"error": {"message": "EngineCore encountered an issue", "code": 500}}),  # the engine died
    ],
)
async def test_a_stream_that_breaks_off_is_no_reply(chunks: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(EngineUnavailable):
        await heard(stream(*chunks))
    with pytest.raises(EngineUnavailable):
        await heard(stream(*chunks, done=False))


async def test_what_an_engine_gave_up_is_no_reply() -> None:
    choice = {"index": 0, "message": {"content": ""}, "finish_reason": "abort"}
    answer = {"choices": [choice], "usage": {"prompt_tokens": 4, "completion_tokens": 0}}
    with pytest.raises(EngineUnavailable):
        await engine(lambda _: httpx.Response(200, json=answer)).chat(PROMPT, model="base", sampling=ONE)
    with pytest.raises(EngineUnavailable):
        await heard(stream(piece("4", reason="abort"), USAGE))

    def giving_up(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": [1, len(request.content)]})
        return httpx.Response(200, json={"prompt": ":"} | answer)

    with pytest.raises(EngineUnavailable):
        await engine(giving_up).read_labels(PROMPT, model="base", labels=WORDS)


async def test_label_tokens_that_share_a_beginning() -> None:
    vocabulary = {"a: Correct": [1, 9, 2, 3], "a: Wrong": [1, 9, 4]}

    def handler(request: httpx.Request) -> httpx.Response:
        body = orjson.loads(request.content)
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": vocabulary[body["prompt"]]})
        return httpx.Response(200, json={"prompt": {1: "a: ", 2: "Cor", 4: " Wrong"}[body["tokens"][0]]})

    found = await engine(handler).label_tokens(LabelWords("a:", "Correct", "Wrong"))
    assert found == LabelTokens(" ", 2, 4, ("Cor", "Wrong"))


def entry(text: str, *told: tuple[str, float]) -> dict[str, Any]:
    """One token of a reply, with the probabilities of tokens in vLLM's order: the sampled one, then the labels."""
    top = [{"token": token, "logprob": math.log(probability)} for token, probability in told]
    return {"token": text, "bytes": list(text.encode()), "top_logprobs": top}


THREE = ((" Go", 0.1), (" Yes", 0.7), (" No", 0.15))
TRACES: list[tuple[list[dict[str, Any]] | None, str, tuple[float, float] | None, str]] = [
    ([entry("a"), entry(":"), entry(" Go", *THREE)], "a:", (0.7, 0.15), "another token was sampled"),
    ([entry("a:"), entry(" Yes", (" Yes", 0.7), (" No", 0.1))], "a:", (0.7, 0.1), "the first label was sampled"),
    ([entry("a:"), entry(" No", (" No", 0.1), (" Yes", 0.7))], "a:", (0.7, 0.1), "the second label was sampled"),
    ([entry("\u20ac", *THREE), entry(" Yes")], "", (0.7, 0.15), "at the reply's first token"),
    ([entry("a"), entry("\u20ac:"), entry("", *THREE)], "a\u20ac:", (0.7, 0.15), "an unfinished character"),
    ([entry("a"), entry(":*"), entry("* Yes", *THREE)], "a:", None, "within a token"),
    ([entry("b"), entry(":"), entry(" Yes", *THREE)], "a:", None, "another text"),
    ([entry("a"), entry(":")], "a:", None, "the reply ends there"),
    ([entry("a:"), entry(" Yes", (" Yes", 0.7))], "a:", None, "one label is missing"),
    ([entry("a:"), entry("Yes", ("Yes", 0.7), (" Yes", 0.2))], "a:", None, "tokens that look alike"),
    ([], "a:", None, "no tokens"),
    ([{"logprob": -0.1, "top_logprobs": []}], "a:", None, "tokens without their text"),
    (None, "a:", None, "no log-probabilities"),
]


@pytest.mark.parametrize(("content", "text", "found"), [row[:3] for row in TRACES], ids=[row[3] for row in TRACES])
def test_the_probabilities_of_labels_after_a_text(
    content: list[dict[str, Any]] | None, text: str, found: tuple[float, float] | None
) -> None:
    tokens = LabelTokens("", 2, 4, ("Yes", "No"))
    expected = None if found is None else pytest.approx(found)
    whole = orjson.dumps(None if content is None else {"content": content})
    assert LabelTrace(tokens, [whole]).after(text) == expected
    chunks = [orjson.dumps({"content": [item]}) for item in content or ()]
    assert LabelTrace(tokens, chunks).after(text) == expected, "in a stream"


def test_labels_with_a_common_beginning_are_read_after_it() -> None:
    content = [entry("a:"), entry(" ", (" ", 0.4), ("Yes", 0.2), ("No", 0.3)), entry("Yes", ("Yes", 0.7), ("No", 0.1))]
    trace = LabelTrace(LabelTokens(" ", 2, 4, ("Yes", "No")), [orjson.dumps({"content": content})])
    assert trace.after("a:") == pytest.approx((0.7, 0.1))


async def test_an_answer_of_another_form_is_an_error() -> None:
    for content in (b"<html>", b"[]", b'{"choices": [{}]}'):
        answering = engine(partial(lambda content, _: httpx.Response(200, content=content), content))
        with pytest.raises(EngineError, match=r"the reply of the engine at .* cannot be read"):
            await answering.chat(PROMPT, model="base", sampling=ONE)


async def test_words_that_tokens_cannot_tell_apart_are_an_error() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"tokens": [1, 2], "prompt": "x"})

    with pytest.raises(EngineError, match="do not distinguish"):
        await engine(handler).label_tokens(WORDS)


ANSWER = {
    "choices": [{"index": 0, "message": {"content": "4"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 1},
}


async def test_a_pool_goes_on_with_the_engines_that_answer() -> None:
    asked: list[str] = []

    def well(request: httpx.Request) -> httpx.Response:
        asked.append("well")
        return httpx.Response(200, json=ANSWER)

    dead = raising(httpx.ConnectError("x"))
    pool = EnginePool([dead, engine(well)])
    for _ in range(3):
        [reply] = await pool.chat(PROMPT, model="base", sampling=ONE)
        assert reply.text == "4"
    assert asked == ["well"] * 3
    with pytest.raises(EngineUnavailable):
        await EnginePool([dead]).chat(PROMPT, model="base", sampling=ONE)


@pytest.mark.parametrize("status", [404, 429, 503])
async def test_a_pool_asks_another_engine_when_one_does_not_take_it(status: int) -> None:
    full = refusing(status)
    pool = EnginePool([full, engine(lambda _: httpx.Response(200, json=ANSWER))])
    [reply] = await pool.chat(PROMPT, model="critic@3", sampling=ONE)
    assert reply.text == "4"
    assert not full.has_room  # its quick refusals must not make it the favourite
    with pytest.raises(EngineUnavailable):
        await EnginePool([full, refusing(status)]).chat(PROMPT, model="critic@3", sampling=ONE)


async def test_a_pool_does_not_repeat_what_an_engine_may_have_done() -> None:
    asked: list[str] = []

    def well(request: httpx.Request) -> httpx.Response:
        asked.append("well")
        return httpx.Response(200, json=ANSWER)

    pool = EnginePool([raising(httpx.ReadError("x")), engine(well)])
    with pytest.raises(EngineUnavailable):
        await pool.chat(PROMPT, model="base", sampling=ONE)
    assert asked == []


async def test_a_pool_spreads_what_is_asked_at_once() -> None:
    counts = [0, 0]
    release = asyncio.Event()

    def counting(index: int) -> Engine:
        async def handler(request: httpx.Request) -> httpx.Response:
            counts[index] += 1
            await release.wait()
            return httpx.Response(200, json=ANSWER)

        return Engine("http://engine", timeout_s=5, transport=httpx.MockTransport(handler))

    pool = EnginePool([counting(0), counting(1)])
    tasks = [asyncio.create_task(pool.chat(PROMPT, model="base", sampling=ONE)) for _ in range(10)]
    await asyncio.sleep(0.1)
    assert counts == [5, 5]
    release.set()
    await asyncio.gather(*tasks)


class Forgetful:
    """An engine that serves an adapter once it was restored."""

    def __init__(self) -> None:
        self.asked = 0
        self.restored: list[str] = []
        self.engine = engine(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if not self.restored:
            return httpx.Response(404, json={"error": {"message": "The model does not exist."}})
        return httpx.Response(200, json=ANSWER)

    def may_serve(self, engine: Engine, model: str) -> bool:
        return True

    async def restore(self, engine: Engine, model: str) -> None:
        assert engine is self.engine
        self.restored.append(model)


async def test_a_request_waits_until_an_engine_serves_its_adapter_again() -> None:
    forgetful = Forgetful()
    with pytest.raises(EngineUnavailable, match="does not serve this at present"):
        await EnginePool([forgetful.engine]).chat(PROMPT, model="critic@3", sampling=ONE)
    pool = EnginePool([forgetful.engine], router=forgetful)
    [reply] = await pool.chat(PROMPT, model="critic@3", sampling=ONE)
    assert reply.text == "4"
    assert (forgetful.restored, forgetful.asked) == (["critic@3"], 3)
    assert forgetful.engine.has_room


async def test_an_engine_that_serves_it_is_asked_before_one_is_restored() -> None:
    forgetful = Forgetful()
    well = engine(lambda _: httpx.Response(200, json=ANSWER))
    pool = EnginePool([forgetful.engine, well], router=forgetful)
    await pool.chat(PROMPT, model="critic@3", sampling=ONE)
    assert (forgetful.restored, forgetful.asked) == ([], 1)


async def test_why_an_adapter_cannot_be_served_again_is_the_answer() -> None:
    class Refusing(Forgetful):
        async def restore(self, engine: Engine, model: str) -> None:
            raise AdapterRefused(f"{model} is spoilt")

    refusing = Refusing()
    pool = EnginePool([refusing.engine], router=refusing)
    with pytest.raises(AdapterRefused, match="critic@3 is spoilt"):
        await pool.chat(PROMPT, model="critic@3", sampling=ONE)
