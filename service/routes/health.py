"""What is seen from outside: /healthz, /readyz, /state, /metrics. None of them needs a key or shows a text."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from gadfly.service.dependencies import ServiceDep
from gadfly.service.health import Readiness, State

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    """The process runs and its event loop turns."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can it answer?", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(service: ServiceDep) -> Response:
    """A real token through every engine, a real statement through the database, and a live critic."""
    readiness = await service.health.check()
    return Response(
        readiness.model_dump_json(), status_code=200 if readiness.ready else 503, media_type="application/json"
    )


@router.get("/state", summary="What is it doing?", response_model=State)
async def state(service: ServiceDep) -> State:
    """What is at work now: in flight by critic version, the spool, the engines."""
    return service.health.state()


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceDep) -> Response:
    """Prometheus."""
    return Response(service.health.render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")
