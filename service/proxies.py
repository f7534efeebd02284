"""What trusted proxies say about a request: its scheme, its client, and the path under which they serve it."""

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gadfly.settings import is_prefix


class Proxies:
    """Applies X-Forwarded-Proto, X-Forwarded-For and X-Forwarded-Prefix of trusted proxies; others' are ignored."""

    def __init__(self, app: ASGIApp, *, trusted: tuple[str, ...]) -> None:
        forwarded: Any = ProxyHeadersMiddleware(app, list(trusted))  # type: ignore[arg-type]  # uvicorn has own ASGI types
        self._forwarded = forwarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("root_path"):
            client = scope.get("client")
            # Before uvicorn's middleware, which replaces the proxy's address by the client's.
            if client is not None and client[0] in self._forwarded.trusted_hosts:
                sent = dict(scope["headers"]).get(b"x-forwarded-prefix", b"").decode("latin1").rstrip("/")
                if is_prefix(sent):
                    scope["root_path"] = sent
        await self._forwarded(scope, receive, send)
