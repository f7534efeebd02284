"""What routes need, as type aliases: a route's signature is its list of needs."""

from typing import Annotated

from fastapi import Depends, Request

from core.errors import NotAllowed
from core.records import Tier
from service.keyring import Caller
from service.state import Service


def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


def _secret(request: Request) -> str | None:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.casefold() == "bearer" and secret.strip() else None


async def get_caller(request: Request, service: ServiceDep) -> Caller:
    return await service.keyring.authenticate(_secret(request))


CallerDep = Annotated[Caller, Depends(get_caller)]


async def get_admin(caller: CallerDep) -> Caller:
    if caller.tier is not Tier.ADMIN:
        raise NotAllowed("this needs an admin key", authenticated=True)
    return caller


AdminDep = Annotated[Caller, Depends(get_admin)]
