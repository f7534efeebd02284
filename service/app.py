"""The HTTP application."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import structlog
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from gadfly.errors import GadflyError
from gadfly.service import errors
from gadfly.service.container import Service
from gadfly.service.metrics import Metrics
from gadfly.service.middleware import BodyLimit, Edge
from gadfly.service.routes import chat, critics, critique, feedback, health, interactions, labels, pointers, runs
from gadfly.service.routes.docs import name_problems
from gadfly.settings import Settings

log = structlog.get_logger(__name__)


def _stop_if_failed(running: "asyncio.Task[None]") -> None:
    error = None if running.cancelled() else running.exception()
    if error is not None:
        log.error("service_cannot_run", reason=str(error))
        signal.raise_signal(signal.SIGTERM)  # a regular shutdown, which drains requests


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("docs")  # relative, for proxies that serve the API under a path


def create_app(settings: Settings, *, metrics_folder: Path | None = None) -> FastAPI:
    """The service as an ASGI app; its lifespan opens and closes all resources. The folder is that of `Metrics`."""
    metrics = Metrics(folder=metrics_folder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = await Service.open(settings, metrics)
        running = asyncio.create_task(service.run())
        running.add_done_callback(_stop_if_failed)
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, GadflyError):
                await running
            await service.aclose()

    app = FastAPIOffline(  # /docs loads nothing from other hosts
        title="Gadfly",
        version=version("gadfly"),
        description="Judges answers step by step, says what to fix, and rewrites them. Its critic learns from traffic.",
        redoc_url=None,
        static_url="/docs/static",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name.removeprefix("post_"),
    )
    for module in (critique, chat, feedback, interactions, critics, runs, pointers, labels, health):
        app.include_router(module.router)
    app.add_api_route("/", _to_docs, include_in_schema=False)
    errors.install(app)
    name_problems(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "X-Request-Id"],
            expose_headers=["X-Request-Id", "X-Gadfly-Critic", "Location", "Retry-After"],
        )
    app.add_middleware(Edge, metrics=metrics)
    return app
