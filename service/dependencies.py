"""Dependencies of routes, as type aliases for their signatures."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from gadfly.errors import NotAllowed
from gadfly.records import Tier
from gadfly.service.container import Service
from gadfly.service.keyring import Caller


def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


_bearer = HTTPBearer(auto_error=False, scheme_name="key", description="An API key, created with `gadfly keys create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def get_caller(request: Request, credentials: Credentials, service: ServiceDep) -> Caller:
    secret = None if credentials is None else credentials.credentials
    try:
        return await service.keyring.authenticate(secret, host=request.url.hostname)
    except NotAllowed as error:
        if credentials is None and "authorization" in request.headers:
            raise error.again("the header Authorization has another form than `Bearer KEY`") from None
        raise


CallerDep = Annotated[Caller, Depends(get_caller)]


async def get_admin(caller: CallerDep) -> Caller:
    if caller.tier is not Tier.ADMIN:
        raise NotAllowed("this call requires an admin key", authenticated=True)
    return caller


AdminDep = Annotated[Caller, Depends(get_admin)]
