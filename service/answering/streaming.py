"""How an answer leaves: at once as JSON, or piece by piece as server-sent events; and what a disconnect does."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
import structlog
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from gadfly.refinement import OnPiece, Role
from gadfly.service.errors import describe
from gadfly.training import RunEvent

log = structlog.get_logger(__name__)

T = TypeVar("T")

HEARTBEAT_S = 15.0
_HEARTBEAT = b": still at work\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
CLIENT_CLOSED_REQUEST = 499  # nginx's number for it; nobody is there to read it


async def until_disconnect(request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None when the client went away first: `work` is then cancelled, and the engine free."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        log.info("client_disconnected")
        return None
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def answer_json(request: Request, work: Awaitable[BaseModel], *, headers: Mapping[str, str]) -> Response:
    """The result as one JSON document. `headers` are read when it is there."""
    result = await until_disconnect(request, work)
    if result is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(result.model_dump_json(), media_type="application/json", headers=headers)


async def answer_events(
    request: Request, work: Callable[[OnPiece], Awaitable[BaseModel]], *, headers: Mapping[str, str]
) -> Response:
    """The result as server-sent events: `text` as it comes, then one `result`, or one `error` with a problem document.

    The answer begins with its first event, so what fails before that is refused with a status like any other request.
    The final `result` is sent after its record is durable, like any other answer. A comment goes out every
    `HEARTBEAT_S` seconds of silence, so that proxies keep the connection. `headers` are read when the answer begins.
    """
    events = _events(work)
    first = await until_disconnect(request, anext(events))
    if first is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return StreamingResponse(
        _continued(first, events),
        media_type="text/event-stream",
        headers={**_HEADERS, **headers},
    )


def run_events(events: AsyncGenerator[RunEvent]) -> Response:
    """A run's events as server-sent events, each under its own id; a comment whenever nothing came for a while."""
    return StreamingResponse(_kept_alive(_encoded(events)), media_type="text/event-stream", headers=_HEADERS)


async def _encoded(events: AsyncGenerator[RunEvent]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for event in events:
            yield _event(event.kind.value, {"at": event.created_at, **event.data}, id=event.id)


async def _kept_alive(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield b": following\n\n"  # the answer begins now, and not with the first event
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
    finally:  # the client went away, or all is said
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


async def _events(work: Callable[[OnPiece], Awaitable[BaseModel]]) -> AsyncGenerator[bytes]:
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    has_begun = False

    async def on_piece(role: Role, round: int, sample: int, text: str) -> None:
        pieces.put_nowait(_event("text", {"role": role.value, "round": round, "sample": sample, "text": text}))

    task = asyncio.ensure_future(work(on_piece))
    getter: asyncio.Task[bytes] | None = None
    try:
        while not task.done() or not pieces.empty():
            getter = asyncio.ensure_future(pieces.get())
            done, _ = await asyncio.wait((getter, task), timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
            if getter in done:
                has_begun = True
                yield getter.result()
            else:
                getter.cancel()
                if not done:
                    has_begun = True
                    yield _HEARTBEAT
        try:
            yield _event("result", (await task).model_dump_json().encode())
        except Exception as error:
            if not has_begun:
                raise
            document, _ = describe(error)
            if document.status >= 500:
                log.error("stream_failed", exc_info=error)
            yield _event("error", document.model_dump_json(exclude_none=True).encode())
    finally:  # the client went away, or all is said
        if getter is not None:
            getter.cancel()
        if not task.done():
            log.info("client_disconnected")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _event(name: str, data: bytes | dict[str, Any], *, id: int | None = None) -> bytes:
    body = data if isinstance(data, bytes) else orjson.dumps(data)
    head = b"" if id is None else b"id: %d\n" % id
    return head + b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"
