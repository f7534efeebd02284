"""Monitoring: GET /healthz, /readyz, /state and /metrics. None of them needs a key or shows texts of callers."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from gadfly.service.dependencies import ServiceDep
from gadfly.service.wire.health import Readiness, State

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Liveness")
async def healthz() -> dict[str, str]:
    """The process is running and its event loop responds."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Readiness", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(service: ServiceDep) -> Response:
    """Generates a token on every engine, runs a statement in the database, and checks that the live critic is served
    and that the disk has room. Nothing is written.

    503 if any of the four fails; one engine that generates is enough.
    """
    readiness = await service.health.check()
    return Response(
        readiness.model_dump_json(), status_code=200 if readiness.ready else 503, media_type="application/json"
    )


@router.head("/state", include_in_schema=False)
@router.get("/state", summary="State of the replica", response_model=State)
async def state(service: ServiceDep) -> State:
    """Requests in flight by critic version, engines, replicas and the spool, without asking Postgres or the engines."""
    return service.health.state()


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceDep) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(service.health.render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")
