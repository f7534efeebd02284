"""GET, POST and DELETE /session: a browser signs in with a key, and then sends a cookie."""

from importlib.metadata import version

from fastapi import APIRouter, Request, Response

from gadfly.service.dependencies import AnyKeyDep, ServiceDep, SessionCookie, client_address, require_own_page
from gadfly.service.keyring import Caller, caller_with
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.sessions import COOKIE, LIFETIME, SignedIn
from gadfly.service.wire.session import SessionView, SignInRequest

router = APIRouter(route_class=StrictJsonRoute, tags=["session"])


@router.get("/session", summary="Who am I", response_model=SessionView, responses=problems(401, 503))
async def read_session(request: Request, caller: AnyKeyDep, cookie: SessionCookie, service: ServiceDep) -> SessionView:
    """The caller of this request. 401: sign in first."""
    signed_in = None if cookie is None else await service.sessions.find(cookie, address=client_address(request))
    if signed_in is not None and signed_in.caller.key_id != caller.key_id:
        signed_in = None  # a key was sent besides the cookie, and the key counts
    return _view(caller, signed_in)


@router.post("/session", summary="Sign in", response_model=SessionView, responses=problems(401, 403, 413, 422, 503))
async def sign_in(body: SignInRequest, request: Request, service: ServiceDep, response: Response) -> SessionView:
    """Start a session of twelve hours with a key. Its cookie is for pages of the service's own address only."""
    require_own_page(request)
    key = await service.keyring.key_of(body.key, address=client_address(request))
    secret = await service.sessions.open(key)
    response.set_cookie(
        COOKIE,
        secret,
        max_age=int(LIFETIME.total_seconds()),
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    caller = caller_with(key)
    return _view(caller, await service.sessions.find(secret, address=client_address(request)))


@router.delete("/session", summary="Sign out", status_code=204, responses=problems(403, 503))
async def sign_out(request: Request, cookie: SessionCookie, service: ServiceDep) -> Response:
    """End the session. Without one, nothing happens."""
    require_own_page(request)
    if cookie is not None:
        await service.sessions.close(cookie)
    response = Response(status_code=204)
    response.delete_cookie(
        COOKIE, path=_path(request), secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
    return response


def _path(request: Request) -> str:
    return str(request.scope.get("root_path") or "/")


def _view(caller: Caller, signed_in: SignedIn | None) -> SessionView:
    return SessionView(
        keyless=caller.key_id is None,
        tier=caller.tier,
        scopes=list(caller.scopes),
        key_id=caller.key_id,
        key_name=caller.key_name,
        csrf_token=None if signed_in is None else signed_in.csrf_token,
        expires_at=None if signed_in is None else signed_in.expires_at,
        version=version("gadfly"),
    )
