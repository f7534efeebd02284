"""Request bodies as strict JSON, without NaN or lone surrogates, which Postgres cannot store."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute


class _StrictJsonRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())  # raises json.JSONDecodeError, which FastAPI answers with 422


class StrictJsonRoute(APIRoute):
    """Parses bodies with orjson instead of `json.loads`, which accepts NaN and lone surrogates."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictJsonRequest(request.scope, request.receive))

        return handle_strictly
