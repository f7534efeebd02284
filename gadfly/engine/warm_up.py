"""Readiness of the engine: /health answers 200 only after the engine generated a critique and read its verdict.

vLLM reports healthy as soon as its server listens. The first requests then load the tokenizer and the chat template,
allocate buffers and fill the cache with the common prefix of the prompts. This middleware triggers that work before
`gadfly up`, a container's health check or a load balancer routes callers to the engine.
"""

import asyncio
import logging
import time
from typing import Any

import httpx
import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from gadfly.critique import critique
from gadfly.engine_client import ACTOR, Engine, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import GadflyError, PromptTooLong
from gadfly.settings import Settings
from gadfly.tasks import load_tasks

logger = logging.getLogger("vllm.gadfly")

_QUESTION = "What is 2 + 3?"
_RESPONSE = "2 + 3 = 5. The answer is 5."
_SAMPLING = Sampling(temperature=1.0, seed=0, max_tokens=4)
_LIMIT_S = 600.0


class WarmUp:
    """ASGI middleware for `--middleware gadfly.engine.warm_up.WarmUp`; passes through every request except /health.

    The first request for /health starts the warm-up. While it runs, /health answers 503; if it fails, 503 with the
    reason, and the next request for /health starts it again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._warm_up: asyncio.Task[None] | None = None
        self._is_warm = False
        self._detail = "the engine is warming up"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server for each request."""
        if scope["type"] != "http" or scope["path"] != "/health" or self._is_warm:
            await self._app(scope, receive, send)
            return
        if self._warm_up is None or self._warm_up.done():
            # `app` is the complete application: the warm-up's requests take the same path as all others.
            self._warm_up = asyncio.create_task(self._run(scope["app"]))
        body = orjson.dumps({"detail": self._detail})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _run(self, app: Any) -> None:
        started = time.monotonic()
        try:
            await warm_up(httpx.ASGITransport(app=app), Settings.load())
        except GadflyError as error:
            self._detail = f"the warm-up failed: {error}"
            logger.error("The engine is not ready; %s", self._detail)
            return
        self._is_warm = True
        logger.info("Warm-up: one critique and one label read in %.1f s.", time.monotonic() - started)


async def warm_up(transport: httpx.AsyncBaseTransport, settings: Settings) -> None:
    """Generate a short critique with the deployment's prompts and read its verdict, as the service does.

    Raises:
        GadflyError: the reason why the engine cannot answer /critique.
    """
    engine = Engine("http://engine", timeout_s=_LIMIT_S, transport=transport)
    try:
        await critique(
            EnginePool([engine]),
            load_tasks(settings).default.prompts,
            model=ACTOR,
            question=_QUESTION,
            response=_RESPONSE,
            sampling=_SAMPLING,
        )
    except PromptTooLong:  # with a context too short for critiques the engine still serves short requests
        await engine.probe()
    finally:
        await engine.aclose()
