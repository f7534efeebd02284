"""A receiver of webhooks that answers, fails, waits, redirects or loses connections, as a test says."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

Reply = int | Literal["hang", "drip", "drop"]
"""A status; no answer at all; an answer that never ends; or an end of the connection without an answer."""

_DRIP_S = 0.05


@dataclass(frozen=True, slots=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Gives the replies in order, and then the last one again and again. `port` is set while it is open."""

    replies: list[Reply] = field(default_factory=lambda: [204])
    received: list[Received] = field(default_factory=list)
    port: int = 0
    most_at_once: int = 0
    _open: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Receiver"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._open)  # until the senders have closed their connections

    async def until(self, count: int, *, limit_s: float = 20) -> list[Received]:
        """The requests, once there are `count` of them."""
        deadline = time.monotonic() + limit_s
        while len(self.received) < count:
            assert time.monotonic() < deadline, f"{len(self.received)} requests of {count}"
            await asyncio.sleep(0.02)
        return self.received

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.most_at_once = max(self.most_at_once, len(self._open))
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers["content-length"]))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            self.received.append(Received(first.split()[1], headers, body))
            await self._reply(reply, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._open.discard(task)

    async def _reply(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match reply:
            case "drop":
                return
            case "hang":
                await reader.read()  # until the sender gives up
            case "drip":
                writer.write(b"HTTP/1.1 200 OK\r\n")
                while True:
                    writer.write(b"x-more: 1\r\n")
                    await writer.drain()
                    await asyncio.sleep(_DRIP_S)
            case int():
                location = f"location: http://127.0.0.1:{self.port}/elsewhere\r\n" if 300 <= reply < 400 else ""
                writer.write(f"HTTP/1.1 {reply} X\r\n{location}content-length: 0\r\nconnection: close\r\n\r\n".encode())
                await writer.drain()
