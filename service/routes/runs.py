"""POST /admin/retrain, and /admin/runs: training runs asked for, watched, cancelled and done again."""

from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Header, Query, Response

from gadfly.planning import Plan
from gadfly.service.answering.streaming import run_events
from gadfly.service.dependencies import AdminDep, ServiceDep
from gadfly.service.routes.docs import EVENTS, problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.runs import RetrainRequest, RunPage, RunQuery, RunSummary, RunView
from gadfly.training import Run

router = APIRouter(
    route_class=StrictJsonRoute, prefix="/admin", tags=["training"], responses=problems(401, 403, 422, 503)
)

_LOCATION = {"Location": {"description": "Where the run can be read.", "schema": {"type": "string"}}}
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"description": "The run waits for the trainer.", "model": RunView, "headers": _LOCATION}
}
EventId = Annotated[int, Query(ge=0, lt=2**63, description="The last event already seen.")]
LastEventId = Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=2**63, description="The same; it wins.")]


@router.post(
    "/retrain",
    summary="Train a new critic",
    status_code=202,
    response_model=None,
    responses={
        200: {
            "description": "With `dry_run` the plan; else the run that this request id asked for before.",
            "model": Plan | RunView,
        },
        **_ACCEPTED,
        **problems(409, 413),
    },
)
async def retrain(body: RetrainRequest, caller: AdminDep, service: ServiceDep) -> Response:
    """Ask for a training run: the trainer learns from labelled answers, and the gate says whether it was worth it.

    With `dry_run`: which answers it would learn from and be measured on, who labelled them, what the held-out ones
    could show, and how long it would take.
    """
    if body.dry_run:
        plan = await service.runs.plan(body.config)
        return Response(orjson.dumps(plan.to_json()), media_type="application/json")
    requested = await service.runs.request(caller, body.config, request_id=body.request_id)
    return _located(requested.run, status=200 if requested.is_repeat else 202)


@router.get("/runs", summary="List training runs", response_model=RunPage)
async def list_runs(query: Annotated[RunQuery, Query()], caller: AdminDep, service: ServiceDep) -> RunPage:
    """A page of training runs, newest first."""
    runs = await service.runs.page(limit=query.limit + 1, before=query.cursor)
    shown = runs[: query.limit]
    return RunPage(
        items=[RunSummary.of(run) for run in shown], next_cursor=shown[-1].id if len(runs) > query.limit else None
    )


@router.get("/runs/{run_id}", summary="Read a training run", response_model=RunView, responses=problems(404))
async def read_run(run_id: UUID, caller: AdminDep, service: ServiceDep) -> RunView:
    """One training run: how far it is, what it tries and learns from, and what the gate said."""
    return RunView.of(await service.runs.read(run_id))


@router.get(
    "/runs/{run_id}/events", summary="Follow a training run", responses={**EVENTS, **problems(404)}, response_model=None
)
async def follow_run(
    run_id: UUID, caller: AdminDep, service: ServiceDep, after: EventId = 0, last_event_id: LastEventId = None
) -> Response:
    """What happened in a run, then what happens, until it is over.

    Each event carries an id, its kind as name (`status`, `stage`, `step`, `validation`, `note`, `alarm`, `gate`,
    `published`), and JSON with `at`. The last is the `status` that the run ended with. A client that was cut off goes
    on after the last event it saw.
    """
    seen = after if last_event_id is None else last_event_id
    if not await service.runs.has_more(run_id, after=seen):
        return Response(status_code=204)  # which also tells an EventSource to stop asking
    return run_events(service.runs.follow(run_id, after=seen))


@router.post(
    "/runs/{run_id}/cancel",
    summary="Cancel a training run",
    status_code=202,
    response_model=RunView,
    responses=problems(404, 409),
)
async def cancel_run(run_id: UUID, caller: AdminDep, service: ServiceDep) -> RunView:
    """Ask for a run's end. A run that waits ends at once, one at work within seconds; nothing of it is published."""
    return RunView.of(await service.runs.cancel(run_id))


@router.post(
    "/runs/{run_id}/reproduce",
    summary="Do a training run again",
    status_code=202,
    response_model=None,
    responses={**_ACCEPTED, **problems(404, 409)},
)
async def reproduce_run(run_id: UUID, caller: AdminDep, service: ServiceDep) -> Response:
    """Ask for a run with the same config, rows and seeds as an earlier one."""
    return _located(await service.runs.reproduce(caller, run_id), status=202)


def _located(run: Run, *, status: int) -> Response:
    return Response(
        RunView.of(run).model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers={"location": f"/admin/runs/{run.id}"},
    )
