"""A real service over real HTTP: in this process for most tests, in one of its own for those that kill it."""

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
from httpx_sse import EventSource

from gadfly.service.app import create_app
from gadfly.service.serve import Server, server_options
from gadfly.settings import Settings

TIMEOUT_S = 60


class _PromptServer(Server):
    """The server, which notices within a hundredth of a second, and not a tenth, that it is to end."""

    async def main_loop(self) -> None:
        for tick in itertools.count():
            if await self.on_tick(tick % 100):
                return
            await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(settings: Settings, *, ready: bool = True, **given: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The service with these settings on a free port, and a client of it. `given` goes to `create_app`."""
    options = server_options(settings) | {"port": 0, "timeout_graceful_shutdown": 5}
    server = _PromptServer(create_app(settings, **given), options)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            if task.done():
                await task
                raise RuntimeError("the service did not start")
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None)
        ) as client:
            if ready:
                await until_ready(client)
            yield client
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(client: httpx.AsyncClient, path: str, wanted: Callable[[Any], bool], *, limit_s: float) -> Any:
    """The document at `path`, when it is as wanted."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while True:
        document = (await client.get(path)).json()
        if wanted(document):
            return document
        assert asyncio.get_running_loop().time() < deadline, document
        await asyncio.sleep(0.2)


async def until_ready(client: httpx.AsyncClient, *, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            answer = await client.get("/readyz")
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {limit_s} s: {answer.text if answer is not None else 'no answer'}")
        await asyncio.sleep(0.02)


@contextmanager
def service_process(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m gadfly.service` with these settings, in a process that the test may kill."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gadfly.service"],
            env=environment | settings.to_environment(),
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


async def read_events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """All server-sent events of one answer, as (event, data)."""
    async with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in iter_events(response)]


async def iter_events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    async for event in EventSource(response).aiter_sse():
        if event.data:
            yield event.event, orjson.loads(event.data)
