"""HTTP over real sockets: what servers do to connections has the same names as with a transport of httpx."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from httpx_sse import EventSource

from gadfly.access import Access
from gadfly.engine_client import Engine, Sampling
from gadfly.errors import EngineTimeout, EngineUnavailable
from gadfly.prompts import Message, Prompt
from gadfly.transport import Broken, Link, NotConnected, Silence, open_link

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b": 0")
    return head + await reader.readexactly(int(length.partition(b":")[2]))


@asynccontextmanager
async def serving(handler: Handler, *, uds: Path | None = None) -> AsyncIterator[str]:
    """A server that does this on each connection; its URL."""
    tasks: list[asyncio.Task[None]] = []

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(handler(reader, writer)))

    if uds is not None:
        server = await asyncio.start_unix_server(handle, uds)
        url = f"unix://{uds}"
    else:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield url
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*tasks), 2)  # a connection that the client left open would not end


@asynccontextmanager
async def linked(url: str, *, silence_s: float = 5, key: str = "") -> AsyncIterator[Link]:
    link = open_link(url, access=Access(key=key), silence_s=silence_s, connect_s=2)
    try:
        yield link
    finally:
        await link.aclose()


def sending(*parts: bytes, then_waits: bool = False) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then_waits:
            await reader.read()  # until the client closes
        writer.close()

    return handle


def resetting(*parts: bytes) -> Handler:
    """As a process that is killed with unread data."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
        await asyncio.sleep(0.05)  # until the client has read it
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    return handle


FAULTS: list[tuple[Handler, type[Exception], str]] = [
    (sending(), Broken, "closes without an answer"),
    (sending(OK[:-1]), Broken, "closes within the body"),
    (sending(b"nonsense\r\n\r\n"), Broken, "answers with something else"),
    (sending(then_waits=True), Silence, "does not answer"),
    (sending(OK[:-1], then_waits=True), Silence, "stops within the body"),
    (sending(EVENTS + chunk(b"{")), Broken, "closes within a stream"),
    (resetting(), Broken, "resets without an answer"),
    (resetting(EVENTS + chunk(b"{")), Broken, "resets within a stream"),
]


@pytest.mark.parametrize(("handler", "error"), [fault[:2] for fault in FAULTS], ids=[fault[2] for fault in FAULTS])
async def test_what_a_server_does_has_a_name(handler: Handler, error: type[Exception]) -> None:
    async with serving(handler) as url, linked(url, silence_s=0.2) as link:
        with pytest.raises(error):
            await link.post("/", {})
        with pytest.raises(error):
            async with link.stream("/", {}) as response:
                await response.aread()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "unix:///tmp/there-is-no-such-socket"])
async def test_an_absent_server_is_not_connected(url: str) -> None:
    async with linked(url) as link:
        with pytest.raises(NotConnected):
            await link.get("/", silence_s=5)


async def test_errors_of_the_client_follow(tmp_path: Path) -> None:
    prompt, one = Prompt((Message("user", "1 + 1?"),)), Sampling(max_tokens=1)
    async with serving(sending(), uds=tmp_path / "engine.sock") as url:
        engine = Engine(url, timeout_s=0.2)
        with pytest.raises(EngineUnavailable, match=r"cut before its answer was complete \(ServerDisconnectedError\)"):
            await engine.chat(prompt, model="base", sampling=one)
        assert (engine.drops, engine.is_reachable) == (1, False)
        await engine.aclose()
    engine = Engine(url, timeout_s=0.2)
    with pytest.raises(EngineUnavailable, match="no engine answers at unix://"):
        await engine.chat(prompt, model="base", sampling=one)
    await engine.aclose()
    async with serving(sending(then_waits=True)) as url:
        engine = Engine(url, timeout_s=0.2)
        with pytest.raises(EngineTimeout, match=r"longer than 0\.2 s"):
            await engine.chat(prompt, model="base", sampling=one)
        await engine.aclose()


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
async def test_a_stream_in_pieces_is_read_in_events(separator: str) -> None:
    events = f"data: a{separator}b\n\n: comment\r\ndata: \U0001f40a\r\n\r\n".encode()
    parts = [EVENTS, *(chunk(events[index : index + 1]) for index in range(len(events))), chunk(b"")]
    async with serving(sending(*parts)) as url, linked(url) as link, link.stream("/", {}) as response:
        assert response.status_code == 200
        heard = [event.data async for event in EventSource(response).aiter_sse()]
    assert heard == [f"a{separator}b", "\U0001f40a"]


async def test_a_caller_that_leaves_ends_its_request() -> None:
    ended: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"POST /stream" in await read_request(reader):
            writer.write(EVENTS + chunk(b"data: a\n\n"))
        ended.put_nowait(await reader.read())  # until the client closes
        writer.close()

    async with serving(handle) as url, linked(url) as link:
        task = asyncio.create_task(link.post("/", {}))
        await asyncio.sleep(0.1)
        task.cancel()
        assert await asyncio.wait_for(ended.get(), 1) == b""
        async with link.stream("/stream", {}) as response:
            assert await anext(response.aiter_bytes()) == b"data: a\n\n"
        assert await asyncio.wait_for(ended.get(), 1) == b""


ACCOUNTS = [
    ("", "", None, "no account"),
    ("ann:p%40ss@", "", b"Basic YW5uOnBAc3M=", "the address has a name and password"),
    ("ann:x@", "k", b"Bearer k", "a key goes before them"),
]


@pytest.mark.parametrize(
    ("account", "key", "expected"), [row[:3] for row in ACCOUNTS], ids=[row[3] for row in ACCOUNTS]
)
async def test_who_asks(account: str, key: str, expected: bytes | None) -> None:
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            requests.append(await read_request(reader))
            writer.write(b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with serving(handle) as url:
        own = url.replace("//", f"//{account}")
        async with linked(f"{own}/v1", key=key) as link:
            assert (await link.get("/models", silence_s=5)).status == 302, "redirects are not followed"
            await link.post("/chat/completions", {"a": 1})
            await link.get(f"{own}/tokenizer_info", silence_s=5)
    lines = [request.partition(b"\r\n")[0] for request in requests]
    assert lines == [
        b"GET /v1/models HTTP/1.1", b"POST /v1/chat/completions HTTP/1.1", b"GET /tokenizer_info HTTP/1.1"
    ]  # fmt: skip
    assert requests[1].endswith(b'\r\n\r\n{"a":1}')
    for request in requests:
        assert (b"uthorization: " in request) == (expected is not None)
        assert expected is None or expected in request
