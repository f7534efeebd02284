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
from gadfly.service.proxies import Proxies
from gadfly.service.routes import (
    admin,
    chat,
    critics,
    critique,
    feedback,
    forget,
    guardrail,
    health,
    interactions,
    labels,
    overview,
    pointers,
    queue,
    runs,
    session,
    tasks,
    webhooks,
)
from gadfly.service.routes.console import console_routes
from gadfly.service.routes.docs import name_problems
from gadfly.settings import Settings

log = structlog.get_logger(__name__)

CONSOLE = Path(__file__).parents[1] / "console"
"""The folder of the built console."""

_ROUTES = (
    session,
    critique,
    chat,
    guardrail,
    feedback,
    interactions,
    critics,
    tasks,
    runs,
    pointers,
    labels,
    queue,
    overview,
    admin,
    forget,
    webhooks,
    health,
)


def _stop_if_failed(running: "asyncio.Task[None]") -> None:
    error = None if running.cancelled() else running.exception()
    if error is not None:
        log.error("service_cannot_run", reason=str(error))
        signal.raise_signal(signal.SIGTERM)  # a regular shutdown, which drains requests


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("docs")  # relative, for proxies that serve the API under a path


def create_app(settings: Settings, *, metrics_folder: Path | None = None, console: Path = CONSOLE) -> FastAPI:
    """The service as an ASGI app; its lifespan opens and closes all resources.

    `metrics_folder` is that of `Metrics`, and `console` the folder of the built console.
    """
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
        root_path=settings.root_path,
        static_url="/docs/static",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name.removeprefix("post_"),
    )
    for module in _ROUTES:
        app.include_router(module.router)
    app.include_router(console_routes(console))
    app.add_api_route("/", _to_docs, include_in_schema=False)
    errors.install(app)
    name_problems(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],  # OpenAI's clients send a dozen of their own; the origins are what is restricted
            expose_headers=["X-Request-Id", "X-Gadfly-Critic", "X-Gadfly-Interaction-Id", "Location", "Retry-After"],
        )
    app.add_middleware(Edge, metrics=metrics)
    app.add_middleware(Proxies, trusted=settings.trusted_proxies)
    return app
