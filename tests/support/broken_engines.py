"""Engines over real sockets that answer well, break in a named way, or do not answer, without a model behind them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

_ANSWER = orjson.dumps(
    {
        "choices": [{"index": 0, "message": {"content": "4"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 1},
    }
)
_MODELS = orjson.dumps({"data": [{"id": "base", "root": "tiny", "parent": None, "max_model_len": 4096}]})


class Fault(StrEnum):
    """How an engine answers generations."""

    NONE = "none"
    STATUS_500 = "status_500"
    CHAT_500 = "chat_500"  # generates the probe's token, and fails requests
    HALF_JSON = "half_json"
    OTHER_JSON = "other_json"
    WRONG_KEY = "wrong_key"
    HTML = "html"
    CUT = "cut"
    FROZEN = "frozen"  # accepts connections and never answers anything


@dataclass
class StandIn:
    """One engine; its fault may change while it runs. `asked` counts the generations that reached it."""

    fault: Fault = Fault.NONE
    seconds: float = 0.0  # of a sound generation
    asked: int = 0
    url: str = ""
    _connections: set["asyncio.Task[None]"] = field(default_factory=set)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._answer_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    def close(self) -> None:
        for connection in self._connections:
            connection.cancel()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        path = head.split(" ", 2)[1]
        length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
        body = orjson.loads(await reader.readexactly(length) or b"{}")
        if self.fault is Fault.FROZEN:
            self.asked += "completions" in path
            await asyncio.sleep(3600)
        match path:
            case "/health":
                return await _send(writer, 200, b"{}")
            case "/v1/models":
                return await _send(writer, 200, _MODELS)
            case "/tokenize":
                return await _send(writer, 200, orjson.dumps({"tokens": list(body.get("prompt", "x").encode())}))
            case "/detokenize":
                return await _send(writer, 200, orjson.dumps({"prompt": bytes(body["tokens"]).decode()}))
            case "/v1/completions" | "/v1/chat/completions":
                if self.fault is Fault.CHAT_500 and "chat" not in path:
                    return await _send(writer, 200, _ANSWER)
                return await self._generate(body, writer)
        return await _send(writer, 404, b"{}")

    async def _generate(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        self.asked += 1
        match self.fault:
            case Fault.STATUS_500 | Fault.CHAT_500:
                return await _send(writer, 500, b'{"error": {"message": "EngineCore encountered an issue"}}')
            case Fault.HALF_JSON:
                return await _send(writer, 200, _ANSWER[: len(_ANSWER) // 2])
            case Fault.OTHER_JSON:
                return await _send(writer, 200, b'{"choices": [{"text": "4"}]}')
            case Fault.WRONG_KEY:
                return await _send(writer, 401, b'{"error": "Unauthorized"}')
            case Fault.HTML:
                return await _send(writer, 200, b"<html><body>It works!</body></html>", kind="text/html")
            case Fault.CUT:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{")
                await writer.drain()
                return False
        await asyncio.sleep(self.seconds)
        if labels := body.get("logprob_token_ids"):
            return await _send(writer, 200, _reading(labels))
        return await _send(writer, 200, _ANSWER)


def _reading(labels: list[int]) -> bytes:
    """A reply of one token, with the log-probabilities of these tokens."""
    top = [{"token": f"token_id:{label}", "logprob": -0.7} for label in labels]
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "length"}
    logprobs = {"logprobs": {"content": [{"token": top[0]["token"], "logprob": -0.7, "top_logprobs": top}]}}
    return orjson.dumps({"choices": [choice | logprobs], "usage": {"prompt_tokens": 4, "completion_tokens": 1}})


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, *, kind: str = "application/json") -> bool:
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return True


@asynccontextmanager
async def standing_in(*engines: StandIn) -> AsyncIterator[None]:
    """Serve these engines on free ports of this machine."""
    servers = []
    try:
        for engine in engines:
            server = await asyncio.start_server(engine.handle, "127.0.0.1", 0)
            servers.append(server)
            engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield
    finally:
        for server in servers:
            server.close()
        for engine in engines:
            engine.close()
