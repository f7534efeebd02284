"""An engine that answers at once, to measure the service alone: `python -m bench.instant_engine --uds PATH --port N`.

It knows the routes of vLLM that the service uses. Every critique is the same text of about a hundred tokens, with its
log-probabilities if they are requested, and streams send all tokens at once. Nothing is computed, except draws from a
biased distribution, with which the service checks an engine's sampling.
"""

import argparse
import asyncio
import math
import random
from functools import cache
from typing import Any, cast

import httptools
import orjson
import uvloop

MODEL = "base"
VOCABULARY = 200  # all tokens are equally likely
LOGPROB = -math.log(VOCABULARY)

WORDS = (" Correct", " Wrong")
VERDICT = WORDS[0]
_TOKEN_OF = {word: number for number, word in enumerate(WORDS, start=1)}
_WORD_OF = {number: word for word, number in _TOKEN_OF.items()}
TEXT = (
    " She buys 5 * 12 = 60 pens.\nCorrectness of the step: Correct\nExplanation: Five boxes of twelve pens are sixty"
    " pens, because 5 * 12 = 60.\nStep sentence: She has 60 - 17 = 43 pens left.\nCorrectness of the step: Correct\n"
    "Explanation: She gives seventeen of the sixty pens away, so 60 - 17 = 43 pens are left.\nCorrectness of the final"
    f" answer:{VERDICT}\nExplanation: Both steps are right, and the answer is what the question asks for."
)


def _pieces() -> list[str]:
    """The text in tokens: words with the space or line feed before them."""
    pieces: list[str] = []
    for character in TEXT:
        if not pieces or (character in " \n:." and pieces[-1].strip()):
            pieces.append("")
        pieces[-1] += character
    return pieces


PIECES = _pieces()
USAGE = {"prompt_tokens": 300, "completion_tokens": len(PIECES), "total_tokens": 300 + len(PIECES)}
_HEAD = {"id": "chatcmpl-1", "created": 1, "model": MODEL}


def _logprobs(token: int, piece: str, labels: tuple[int, ...], *, as_ids: bool) -> dict[str, Any]:
    """One token's entry in the form of vLLM 0.32: labels have the texts of the two verdict words."""
    texts = {token: piece, **{label: _WORD_OF.get(label, f" {label}") for label in labels}}
    names = [f"token_id:{each}" if as_ids else text for each, text in texts.items()]
    told = [{"token": name, "logprob": LOGPROB, "bytes": list(name.encode())} for name in names] if labels else []
    return {"token": names[0], "logprob": LOGPROB, "bytes": list(piece.encode()), "top_logprobs": told}


def _content(labels: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        _logprobs(labels[0] if piece == VERDICT and labels else 100 + place % 90, piece, labels, as_ids=False)
        for place, piece in enumerate(PIECES)
    ]


@cache
def critique(labels: tuple[int, ...] | None) -> bytes:
    """A chat completion; `labels`: with log-probabilities, and those of these tokens."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT},
        "logprobs": None if labels is None else {"content": _content(labels)},
        "finish_reason": "stop",
    }
    return orjson.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE})


@cache
def stream(labels: tuple[int, ...] | None) -> bytes:
    """The same as server-sent events."""
    entries: list[dict[str, Any] | None] = [None] * len(PIECES) if labels is None else [*_content(labels)]
    chunks: list[dict[str, Any]] = [
        {
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": piece},
                    "logprobs": None if entry is None else {"content": [entry]},
                    "finish_reason": None,
                }
            ]
        }
        for piece, entry in zip(PIECES, entries, strict=True)
    ]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": USAGE}]
    events = [b"data: " + orjson.dumps({**_HEAD, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
    return b"\n\n".join([*events, b"data: [DONE]", b""])


def _draws(body: dict[str, Any]) -> dict[str, Any]:
    temperature = body["temperature"]
    logits = [body["logit_bias"].get(str(token), 0.0) for token in range(VOCABULARY)]
    if temperature == 0:
        drawn = [logits.index(max(logits))]
    else:
        weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
        drawn = random.Random(str(body["seed"])).choices(range(VOCABULARY), weights, k=body["n"])
    choices = [{"index": index, "finish_reason": "length", "token_ids": [token]} for index, token in enumerate(drawn)]
    return {"choices": choices}


def _read(labels: tuple[int, ...]) -> dict[str, Any]:
    content = [_logprobs(100, "", labels, as_ids=True)]
    return {
        "choices": [
            {"index": 0, "finish_reason": "length", "message": {"content": ""}, "logprobs": {"content": content}}
        ],
        "usage": {"prompt_tokens": 400, "completion_tokens": 1},
    }


def _completion(body: dict[str, Any]) -> bytes:
    if "logit_bias" in body:
        return orjson.dumps(_draws(body))
    labels = tuple(body.get("logprob_token_ids", ())) if body.get("logprobs") else None
    if body["max_tokens"] == 1:
        return orjson.dumps(_read(labels or ()))
    return critique(labels)


def _tokens(body: dict[str, Any]) -> list[int]:
    if "messages" in body:
        return list(range(100))
    words = body["prompt"].split(" ")
    return [0, _TOKEN_OF[f" {words[1]}"]] if len(words) == 2 else list(range(VOCABULARY))


def answer(path: str, content: bytes) -> tuple[int, bytes]:
    """Status and body."""
    body = orjson.loads(content) if content else {}
    match path:
        case "/v1/chat/completions":
            return 200, _completion(body)
        case "/tokenize":
            return 200, orjson.dumps({"tokens": _tokens(body)})
        case "/detokenize":
            return 200, orjson.dumps({"prompt": "".join(_WORD_OF.get(token, ":") for token in body["tokens"])})
        case "/v1/completions":
            return 200, orjson.dumps({"choices": [{"text": "0"}]})
        case "/v1/models":
            return 200, orjson.dumps({"data": [{"id": MODEL, "root": MODEL, "max_model_len": 2048}]})
        case "/version":
            return 200, orjson.dumps({"version": "0.32.0"})
        case "/health":
            return 200, b"{}"
        case _:
            return 404, orjson.dumps({"detail": "Not Found"})


class _Protocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._parser = httptools.HttpRequestParser(self)
        self._path, self._body = b"", b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path, content = self._path.decode(), self._body
        self._path, self._body = b"", b""
        if b'"stream":true' in content:
            body = orjson.loads(content)
            labels = tuple(body.get("logprob_token_ids", ())) if body.get("logprobs") else None
            events = stream(labels)
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                + b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events)
            )
            return
        status, answered = answer(path, content)
        self._transport.write(
            b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(answered))
            + answered
        )


async def serve(uds: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_unix_server(_Protocol, uds, backlog=2048)]
    if port:
        servers.append(await loop.create_server(_Protocol, "127.0.0.1", port, backlog=2048))
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--port", type=int, default=0, help="for programs that know no Unix sockets")
    options = parser.parse_args()
    uvloop.run(serve(options.uds, options.port))


if __name__ == "__main__":
    main()
