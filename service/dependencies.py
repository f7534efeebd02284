"""Dependencies of routes, as type aliases for their signatures."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from gadfly.errors import NotAllowed
from gadfly.records import Tier
from gadfly.service.container import Service
from gadfly.service.keyring import Caller, Origin


async def get_service(request: Request) -> Service:  # a plain function would be called in a thread
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})

_bearer = HTTPBearer(auto_error=False, scheme_name="key", description="An API key, created with `gadfly keys create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def get_caller(request: Request, credentials: Credentials, service: ServiceDep) -> Caller:
    secret = None if credentials is None else credentials.credentials
    try:
        return await service.keyring.authenticate(secret, origin=_origin(request, service.settings.cors_origins))
    except NotAllowed as error:
        if credentials is None and "authorization" in request.headers:
            raise error.again("the header Authorization has another form than `Bearer KEY`") from None
        raise


async def get_openai_caller(request: Request, credentials: Credentials, service: ServiceDep) -> Caller:
    """The caller of a route under /v1. OpenAI's clients always send a key, and invent one where none is needed."""
    secret = None if credentials is None else credentials.credentials
    origin = _origin(request, service.settings.cors_origins)
    return await service.keyring.authenticate(secret, origin=origin, is_placeholder=True)


async def get_guard_caller(request: Request, credentials: Credentials, service: ServiceDep) -> Caller:
    """The caller of the guardrail route: LiteLLM sends its key in `x-api-key`."""
    secret = request.headers.get("x-api-key") if credentials is None else credentials.credentials
    origin = _origin(request, service.settings.cors_origins)
    return await service.keyring.authenticate(secret, origin=origin, is_placeholder=True)


def _origin(request: Request, trusted: Sequence[str]) -> Origin:
    page = request.headers.get("origin")
    is_foreign = page is not None and page not in trusted and page.partition("://")[2] != request.headers.get("host")
    return Origin(
        host=request.url.hostname,
        proxy=next((name for name in _PROXY_HEADERS if name in request.headers), None),
        page=page if is_foreign and request.method not in _READING else None,
    )


CallerDep = Annotated[Caller, Depends(get_caller)]
GuardCallerDep = Annotated[Caller, Depends(get_guard_caller)]
OpenAICallerDep = Annotated[Caller, Depends(get_openai_caller)]


async def get_admin(caller: CallerDep) -> Caller:
    if caller.tier is not Tier.ADMIN:
        raise NotAllowed("this call requires an admin key", authenticated=True)
    return caller


AdminDep = Annotated[Caller, Depends(get_admin)]
