"""Server-sent events of answers and of training runs. Work ends when its client disconnects."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import orjson
import structlog
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from gadfly.records import Interaction
from gadfly.refinement import Role
from gadfly.service.answering.answer import Listener
from gadfly.service.errors import describe
from gadfly.service.wire.answers import result_of
from gadfly.service.wire.common import Problem
from gadfly.training import RunEvent

log = structlog.get_logger(__name__)

T = TypeVar("T")

HEARTBEAT_S = 15.0
_HEARTBEAT = b": in progress\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
CLIENT_CLOSED_REQUEST = 499  # nginx's status code, for logs and metrics: the client has disconnected


async def until_disconnect(request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`; None if the client disconnects first, which cancels `work` and frees the engine."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        log.info("client_disconnected")
        return None
    finally:
        disconnected.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def critic_header(version: int | None) -> dict[str, str]:
    """The header that names the critic of an answer, if it is known."""
    return {} if version is None else {"x-gadfly-critic": f"critic@{version}"}


class Work(Protocol):
    """Generates an answer and reports its progress to the listener."""

    def __call__(self, *, listener: Listener) -> Awaitable[Interaction]: ...


class AnswerStream(ABC, Generic[T]):
    """One answer as server-sent events: pieces while it is generated, then `ended`, or `failed` after an error."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()

    def send(self, event: bytes) -> None:
        """Send an event; for `work`."""
        self._pieces.put_nowait(event)

    @abstractmethod
    async def work(self) -> T:
        """Generate the answer. It returns when its record is durable."""

    @abstractmethod
    def ended(self, result: T) -> bytes:
        """The last events of a complete answer."""

    @abstractmethod
    def failed(self, document: Problem) -> bytes:
        """The last event of an answer that failed after its first event."""

    @abstractmethod
    def headers(self) -> dict[str, str]:
        """The headers that are known at the answer's first event."""

    async def events(self) -> AsyncGenerator[bytes]:
        """All events. An error before the first event is raised; a later one is sent as the last event.

        The first may be a comment, if the engine is busy for long.
        """
        has_started = False
        task = asyncio.ensure_future(self.work())
        getter: asyncio.Task[bytes] | None = None
        try:
            while not task.done() or not self._pieces.empty():
                getter = asyncio.ensure_future(self._pieces.get())
                done, _ = await asyncio.wait((getter, task), timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
                if getter in done:
                    has_started = True
                    yield getter.result()
                else:
                    getter.cancel()
                    if not done:
                        has_started = True
                        yield _HEARTBEAT
            try:
                yield self.ended(await task)
            except Exception as error:
                if not has_started:
                    raise
                document, _ = describe(error)
                if document.status >= 500:
                    log.error("stream_failed", exc_info=error)
                yield self.failed(document)
        finally:  # the client disconnected, or every event was sent
            if getter is not None:
                getter.cancel()
            if not task.done():
                log.info("client_disconnected")
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def stream_response(request: Request, answer: AnswerStream[Any]) -> Response:
    """The response that sends a stream.

    It begins with its first event, so an error before that gets its own status code, as without streaming. After
    `HEARTBEAT_S` seconds without an event a comment is sent, so that proxies keep the connection open.
    """
    events = answer.events()
    first = await until_disconnect(request, anext(events))
    if first is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return StreamingResponse(
        _continued(first, events), media_type="text/event-stream", headers={**_HEADERS, **answer.headers()}
    )


class CritiqueStream(AnswerStream[Interaction]):
    """An answer of /critique or /refine: `text` pieces, then one `result`, or one `error` with a problem document."""

    def __init__(self, work: Work, *, brief: bool = False) -> None:
        super().__init__()
        self._work = work
        self._brief = brief
        self._critic: int | None = None  # unknown at first if this request waits for one with the same request id

    async def work(self) -> Interaction:
        return await self._work(listener=self)

    async def on_critic(self, version: int, interaction_id: UUID) -> None:
        self._critic = version

    async def on_piece(self, role: Role, round: int, sample: int, text: str) -> None:
        self.send(_event("text", {"role": role.value, "round": round, "sample": sample, "text": text}))

    def ended(self, result: Interaction) -> bytes:
        self._critic = result.critic_version
        return _event("result", result_of(result, brief=self._brief).model_dump_json().encode())

    def failed(self, document: Problem) -> bytes:
        return _event("error", document.model_dump_json(exclude_none=True).encode())

    def headers(self) -> dict[str, str]:
        return critic_header(self._critic)


def run_events(events: AsyncGenerator[RunEvent]) -> Response:
    """A run's events as server-sent events with their ids, and a comment after `HEARTBEAT_S` seconds without one."""
    return StreamingResponse(_kept_alive(_encoded(events)), media_type="text/event-stream", headers=_HEADERS)


async def _encoded(events: AsyncGenerator[RunEvent]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for event in events:
            yield _event(event.kind.value, {"at": event.created_at, **event.data}, id=event.id)


async def _kept_alive(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield b": following\n\n"  # so that the response begins now, not with the first event
    upcoming: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            upcoming = asyncio.ensure_future(_next(pieces))
            while not (await asyncio.wait((upcoming,), timeout=HEARTBEAT_S))[0]:
                yield _HEARTBEAT
            piece = upcoming.result()
            if piece is None:
                return
            yield piece
    finally:  # the client disconnected, or every event was sent
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
        await pieces.aclose()


async def _next(pieces: AsyncGenerator[bytes]) -> bytes | None:
    return await anext(pieces, None)


async def _continued(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def _event(name: str, data: bytes | dict[str, Any], *, id: int | None = None) -> bytes:
    body = data if isinstance(data, bytes) else orjson.dumps(data)
    head = b"" if id is None else b"id: %d\n" % id
    return head + b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"
