"""Serve HTTP on GADFLY_HOST:GADFLY_PORT, in GADFLY_WORKERS processes."""

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from gadfly import logs, store, tracing
from gadfly.errors import BadSettings, GadflyError, StoreUnavailable
from gadfly.repeating import retry
from gadfly.service import workers
from gadfly.service.app import create_app
from gadfly.service.guard import GuardedProtocol
from gadfly.settings import Settings
from gadfly.store.database import Database

log = structlog.get_logger(__name__)

_DRAIN_S = 30
_KEEP_ALIVE_S = 65  # longer than common proxies, so that they never write to a connection that was just closed
_WAIT_FOR_DATABASE_S = 60.0
_EXIT_BAD_SETTINGS = 2
_EXIT_NOT_STARTED = 3


async def require_key_beyond_loopback(settings: Settings) -> None:
    """Check that a service which other machines can reach has a key.

    Raises:
        BadSettings: it would listen beyond loopback, and no key has ever been created.
        StoreUnavailable: Postgres was not available within a minute.
    """
    if settings.is_loopback:
        log.warning("open_to_this_machine", detail="without keys, every user of this machine can use the service")
        return
    database_url, _ = settings.require_addresses()
    async with Database.of(settings, database_url) as database:

        async def has_keys() -> bool:
            async with database.session() as session:
                return await store.keys.has_keys(session)

        if not await retry(
            has_keys, on=StoreUnavailable, every_s=1.0, limit_s=_WAIT_FOR_DATABASE_S, event="waiting_for_database"
        ):
            raise BadSettings(
                f"the service does not listen on {settings.host} without keys: run `gadfly keys create --tier admin`"
            )


def server_options(settings: Settings) -> dict[str, Any]:
    """The settings of uvicorn."""
    return {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # the app itself applies those of `trusted_proxies`
        "timeout_graceful_shutdown": _DRAIN_S,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "http": GuardedProtocol,
    }


class Server(uvicorn.Server):
    """Ends streams of run events, which have no end of their own, before it waits for requests in flight."""

    def __init__(self, app: FastAPI, options: dict[str, Any], *, beats: int | None = None) -> None:
        """`beats`: the pipe into which a worker writes while its event loop runs."""
        super().__init__(uvicorn.Config(app, **options))
        self._app = app
        self._beats = beats
        self._beating: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._beats is not None and self.started:
            self._beating = asyncio.create_task(_beat(self._beats))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.service.runs.stop_following()
        await super().shutdown(sockets)
        await asyncio.to_thread(tracing.stop)  # here, because after SIGTERM uvicorn ends the process by that signal


def _supervise(settings: Settings) -> int:
    try:
        sockets = workers.bind(settings.host, settings.port, workers=settings.workers)
    except OSError as error:
        print(f"gadfly service: it cannot listen on {settings.host}:{settings.port}: {error}", file=sys.stderr)
        return _EXIT_NOT_STARTED
    return workers.Workers(settings, sockets, exit_bad_settings=_EXIT_BAD_SETTINGS).run()


async def _beat(pipe: int) -> None:
    while True:
        os.write(pipe, b".")
        await asyncio.sleep(workers.BEAT_S)


def serve(descriptors: Sequence[int] = ()) -> None:
    """Serve until a signal ends it. A worker gets `descriptors`: of its socket, and of the pipe for its beats.

    Raises:
        SystemExit: it could not start; 2 for bad settings, where a restart does not help.
    """
    try:
        settings = Settings.load()
        logs.configure(settings)
        if not descriptors:
            asyncio.run(require_key_beyond_loopback(settings))
            if settings.workers > 1:
                raise SystemExit(_supervise(settings))
        tracing.start("service", os.environ)
        app = create_app(settings, metrics_folder=workers.metrics_folder())
    except GadflyError as error:
        print(f"gadfly service: {error}", file=sys.stderr)
        # 2: a restart does not help.
        raise SystemExit(_EXIT_BAD_SETTINGS if isinstance(error, BadSettings) else 1) from None
    sockets, beats = None, None
    if descriptors:
        sockets, beats = [socket.socket(fileno=descriptors[0])], descriptors[1]
    server = Server(app, server_options(settings), beats=beats)
    with suppress(KeyboardInterrupt):
        server.run(sockets)
    if not server.started:
        raise SystemExit(_EXIT_NOT_STARTED)
