"""Dependencies of routes, as type aliases for their signatures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from gadfly.errors import NotAllowed
from gadfly.grading import grading_for
from gadfly.records import Scope, Tier
from gadfly.service.container import Service
from gadfly.service.keyring import Caller, Origin
from gadfly.service.quotas import Quotas
from gadfly.service.sessions import COOKIE, CSRF_HEADER, require_csrf_token


async def get_service(request: Request) -> Service:  # a plain function would be called in a thread
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})

_bearer = HTTPBearer(auto_error=False, scheme_name="key", description="An API key, created with `gadfly keys create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


_cookie = APIKeyCookie(
    name=COOKIE,
    auto_error=False,
    scheme_name="session",
    description=f"A browser's session (POST /session). Changes also need the header {CSRF_HEADER}.",
)
SessionCookie = Annotated[str | None, Depends(_cookie)]


async def get_caller(request: Request, credentials: Credentials, cookie: SessionCookie, service: ServiceDep) -> Caller:
    if credentials is None and (signed_in := await _signed_in(request, cookie, service)) is not None:
        return signed_in
    secret = None if credentials is None else credentials.credentials
    try:
        return await service.keyring.authenticate(secret, origin=_origin(request, service.settings.cors_origins))
    except NotAllowed as error:
        if credentials is None and "authorization" in request.headers:
            raise error.again("the header Authorization has another form than `Bearer KEY`") from None
        raise


async def _signed_in(request: Request, cookie: str | None, service: Service) -> Caller | None:
    """The caller whose session a cookie proves.

    Raises:
        NotAllowed: the request changes something, and lacks the session's CSRF token or comes from a foreign page.
        TooBusy: as `Sessions.find`.
    """
    signed_in = None if cookie is None else await service.sessions.find(cookie, address=client_address(request))
    if signed_in is None:
        return None
    if request.method not in _READING:
        require_own_page(request)
        require_csrf_token(request.headers.get(CSRF_HEADER), signed_in.csrf_token)
    return signed_in.caller


def require_own_page(request: Request) -> None:
    """Refuse a request that a page of another origin had a browser send.

    Raises:
        NotAllowed: it was.
    """
    page = request.headers.get("origin")
    # A proxy may have replaced the host; a foreign page cannot send the second header without asking first.
    own = {request.headers.get("host"), request.headers.get("x-forwarded-host")}
    if page is not None and page.partition("://")[2] not in own:
        raise NotAllowed(f"a page of {page} sent this request: sessions are for own pages only", authenticated=True)


async def get_openai_caller(
    request: Request, credentials: Credentials, cookie: SessionCookie, service: ServiceDep
) -> Caller:
    """The caller of a route under /v1. OpenAI's clients always send a key, and invent one where none is needed."""
    if credentials is None and (signed_in := await _signed_in(request, cookie, service)) is not None:
        return signed_in
    secret = None if credentials is None else credentials.credentials
    origin = _origin(request, service.settings.cors_origins)
    return await service.keyring.authenticate(secret, origin=origin, is_placeholder=True)


async def get_guard_caller(request: Request, credentials: Credentials, service: ServiceDep) -> Caller:
    """The caller of the guardrail route: LiteLLM sends its key in `x-api-key`."""
    secret = request.headers.get("x-api-key") if credentials is None else credentials.credentials
    origin = _origin(request, service.settings.cors_origins)
    return await service.keyring.authenticate(secret, origin=origin, is_placeholder=True)


def client_address(request: Request) -> str | None:
    """The address that a request comes from; behind a trusted proxy the one that the proxy names."""
    return None if request.client is None else request.client.host


def _origin(request: Request, trusted: Sequence[str]) -> Origin:
    page = request.headers.get("origin")
    is_foreign = page is not None and page not in trusted and page.partition("://")[2] != request.headers.get("host")
    return Origin(
        host=request.url.hostname,
        address=client_address(request),
        proxy=next((name for name in _PROXY_HEADERS if name in request.headers), None),
        page=page if is_foreign and request.method not in _READING else None,
    )


@dataclass(frozen=True)
class RouteNeeds:
    """What a route needs of a key: a scope of `own`, for the key's own rows, or of `every`, for those of all callers.

    An admin key has all scopes and sees all rows; a route without scopes is for admin keys alone. Every route that
    requires a key has an argument of one of the types below, and nothing else decides what it needs.
    """

    own: frozenset[Scope] = frozenset()
    every: frozenset[Scope] = frozenset()

    async def __call__(
        self, request: Request, credentials: Credentials, cookie: SessionCookie, service: ServiceDep
    ) -> Caller:
        return self.admit(await get_caller(request, credentials, cookie, service), service.quotas)

    def __str__(self) -> str:
        """One sentence for the reference."""
        if self.own == frozenset(Scope):
            return "Needs a key."
        rows = ((self.every, ""), (self.own, ", for its own rows" if self.every else ""))
        parts = [
            f"with the scope {' or '.join(f'`{scope.value}`' for scope in Scope if scope in scopes)}{limit}"
            for scopes, limit in rows
            if scopes
        ]
        return f"Needs a key {', or '.join(parts)}." if parts else "Needs an admin key."

    def admit(self, caller: Caller, quotas: Quotas) -> Caller:
        """The caller with the rows that this route opens to it.

        Raises:
            TooBusy: its key has sent too many requests.
            NotAllowed: its key lacks the scope.
        """
        quotas.admit(caller)
        grading_for.set(caller.key_id)
        if caller.tier is Tier.ADMIN:
            return caller
        if not self.every.isdisjoint(caller.scopes):
            return replace(caller, sees_all=True)
        if not self.own.isdisjoint(caller.scopes):
            return caller
        names = [scope.value for scope in Scope if scope in self.own | self.every]
        if not names:
            raise NotAllowed("this call requires an admin key", authenticated=True)
        scopes = f"the scope {names[0]}" if len(names) == 1 else f"one of the scopes {', '.join(names)}"
        raise NotAllowed(f"this call requires a key with {scopes}, or an admin key", authenticated=True)


class OpenAIRouteNeeds(RouteNeeds):
    """`RouteNeeds` of a route under /v1."""

    async def __call__(
        self, request: Request, credentials: Credentials, cookie: SessionCookie, service: ServiceDep
    ) -> Caller:
        return self.admit(await get_openai_caller(request, credentials, cookie, service), service.quotas)


class GuardRouteNeeds(RouteNeeds):
    """`RouteNeeds` of the guardrail route."""

    async def __call__(  # type: ignore[override]  # no page of ours calls it, so it takes no cookie
        self, request: Request, credentials: Credentials, service: ServiceDep
    ) -> Caller:
        return self.admit(await get_guard_caller(request, credentials, service), service.quotas)


_USE = frozenset({Scope.USE})
_LABEL = frozenset({Scope.LABEL})
_READ = frozenset({Scope.READ})
_TRAIN = frozenset({Scope.TRAIN})

CallerDep = Annotated[Caller, Depends(RouteNeeds(own=_USE))]
OpenAICallerDep = Annotated[Caller, Depends(OpenAIRouteNeeds(own=_USE))]
GuardCallerDep = Annotated[Caller, Depends(GuardRouteNeeds(own=_USE))]
AnyKeyDep = Annotated[Caller, Depends(RouteNeeds(own=frozenset(Scope)))]
TrafficDep = Annotated[Caller, Depends(RouteNeeds(own=_USE, every=_READ))]
LabellerDep = Annotated[Caller, Depends(RouteNeeds(own=_USE, every=_LABEL))]
WithdrawerDep = Annotated[Caller, Depends(RouteNeeds(own=_USE | _LABEL))]
ProgressDep = Annotated[Caller, Depends(RouteNeeds(own=_USE | _LABEL | _READ))]
ReaderDep = Annotated[Caller, Depends(RouteNeeds(every=_READ))]
RunReaderDep = Annotated[Caller, Depends(RouteNeeds(every=_READ | _TRAIN))]
TrainerDep = Annotated[Caller, Depends(RouteNeeds(every=_TRAIN))]
AdminDep = Annotated[Caller, Depends(RouteNeeds())]
