"""POST /admin/retrain, and /admin/runs: requesting, following, cancelling and reproducing training runs."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response

from gadfly.service.answering.streaming import run_events
from gadfly.service.dependencies import RunReaderDep, ServiceDep, TrainerDep
from gadfly.service.routes.docs import EVENTS, problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.runs import (
    AnswerOverlap,
    CompareQuery,
    CritiqueSample,
    OptionDifference,
    PlanView,
    RetrainRequest,
    RunComparison,
    RunPage,
    RunQuery,
    RunSummary,
    RunView,
    SamplePage,
    SampleQuery,
    StepMetrics,
    StepPage,
    StepQuery,
    ValidationMetrics,
)
from gadfly.training import EventKind, Run, RunEvent

router = APIRouter(
    route_class=StrictJsonRoute, prefix="/admin", tags=["training"], responses=problems(401, 403, 422, 503)
)

_LOCATION = {"Location": {"description": "The path of the run.", "schema": {"type": "string"}}}
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"description": "The run is queued for the trainer.", "model": RunView, "headers": _LOCATION}
}
_CURVES = (EventKind.STAGE, EventKind.STEP, EventKind.VALIDATION)
EventId = Annotated[int, Query(ge=0, lt=2**63, description="The id of the last event already received.")]
LastEventId = Annotated[
    int | None, Header(alias="Last-Event-ID", ge=0, lt=2**63, description="The same; takes precedence over `after`.")
]


@router.post(
    "/retrain",
    summary="Train a new critic",
    status_code=202,
    response_model=None,
    responses={
        200: {
            "description": "With `dry_run`, the plan; otherwise the existing run of this request id.",
            "model": PlanView | RunView,
        },
        **_ACCEPTED,
        **problems(404, 409, 413),
    },
)
async def retrain(body: RetrainRequest, caller: TrainerDep, service: ServiceDep) -> Response:
    """Request a training run: the trainer trains a new critic on a task's labelled answers, and the gate decides on it.

    With `dry_run`, only the plan is returned: the answers to train and to measure on, their label sources, the smallest
    gain that the held-out answers could show, and the estimated time.
    """
    if body.dry_run:
        plan = await service.runs.plan(body.config, task=body.task)
        shown = plan if body.ids else plan.without_ids()
        return Response(PlanView.of(shown).model_dump_json(), media_type="application/json")
    requested = await service.runs.request(caller, body.config, request_id=body.request_id, task=body.task)
    return _located(requested.run, status=200 if requested.is_repeat else 202)


@router.get("/runs", summary="List training runs", response_model=RunPage)
async def list_runs(query: Annotated[RunQuery, Query()], caller: RunReaderDep, service: ServiceDep) -> RunPage:
    """A page of training runs, newest first."""
    runs = await service.runs.page(limit=query.limit + 1, before=query.cursor, task=query.task)
    shown = runs[: query.limit]
    return RunPage(
        items=[RunSummary.of(run) for run in shown], next_cursor=shown[-1].id if len(runs) > query.limit else None
    )


@router.get("/runs/compare", summary="Compare two training runs", response_model=RunComparison, responses=problems(404))
async def compare_runs(
    query: Annotated[CompareQuery, Query()], caller: RunReaderDep, service: ServiceDep
) -> RunComparison:
    """The options in which two runs differ, the answers that both learned from, and both gates' reports."""
    return _comparison(await service.runs.read(query.a), await service.runs.read(query.b))


@router.get("/runs/{run_id}", summary="Read a training run", response_model=RunView, responses=problems(404))
async def read_run(run_id: UUID, caller: RunReaderDep, service: ServiceDep) -> RunView:
    """One training run: its progress, config, manifest and gate report."""
    return RunView.of(await service.runs.read(run_id))


@router.get("/runs/{run_id}/steps", summary="List a run's steps", response_model=StepPage, responses=problems(404))
async def list_steps(
    run_id: UUID, query: Annotated[StepQuery, Query()], caller: RunReaderDep, service: ServiceDep
) -> StepPage:
    """The metrics of a run's steps and validations so far. `GET /admin/runs/{id}/events` sends new ones."""
    events = await service.runs.events_of(run_id, _CURVES, after=query.after, limit=query.limit)
    return _step_page(events, is_full=len(events) == query.limit)


@router.get(
    "/runs/{run_id}/samples", summary="List sampled critiques", response_model=SamplePage, responses=problems(404)
)
async def list_samples(
    run_id: UUID, query: Annotated[SampleQuery, Query()], caller: RunReaderDep, service: ServiceDep
) -> SamplePage:
    """Critiques of a run over time, with their scores. Those about deleted interactions are deleted."""
    events = await service.runs.events_of(run_id, [EventKind.SAMPLES], after=0, limit=query.steps, newest=True)
    return SamplePage(
        items=[
            CritiqueSample(step=event.data["step"], stage=event.data["stage"], at=event.created_at, **sample)
            for event in events
            for sample in event.data["samples"]
        ]
    )


@router.get(
    "/runs/{run_id}/events", summary="Follow a training run", responses={**EVENTS, **problems(404)}, response_model=None
)
async def follow_run(
    run_id: UUID, caller: RunReaderDep, service: ServiceDep, after: EventId = 0, last_event_id: LastEventId = None
) -> Response:
    """Server-sent events of a run: the past ones, then new ones, until the run ends.

    Each event carries an id, its kind as name (`status`, `stage`, `step`, `samples`, `validation`, `note`, `alarm`,
    `gate`, `published`), and JSON with its time, `at`. The last one is the run's final `status`. A client that was
    disconnected resumes after the last event it received.
    """
    seen = after if last_event_id is None else last_event_id
    if not await service.runs.has_more(run_id, after=seen):
        return Response(status_code=204)  # makes an EventSource stop reconnecting
    return run_events(service.runs.follow(run_id, after=seen))


@router.post(
    "/runs/{run_id}/cancel",
    summary="Cancel a training run",
    status_code=202,
    response_model=RunView,
    responses=problems(404, 409),
)
async def cancel_run(run_id: UUID, caller: TrainerDep, service: ServiceDep) -> RunView:
    """Cancel a run: at once if it is queued, within seconds if it is running. Nothing of it is published."""
    return RunView.of(await service.runs.cancel(run_id))


@router.post(
    "/runs/{run_id}/reproduce",
    summary="Reproduce a training run",
    status_code=202,
    response_model=None,
    responses={**_ACCEPTED, **problems(404, 409)},
)
async def reproduce_run(run_id: UUID, caller: TrainerDep, service: ServiceDep) -> Response:
    """Request a run with the config, rows and seeds of an earlier one."""
    return _located(await service.runs.reproduce(caller, run_id), status=202)


def _located(run: Run, *, status: int) -> Response:
    return Response(
        RunView.of(run).model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers={"location": f"/admin/runs/{run.id}"},
    )


def _step_page(events: Sequence[RunEvent], *, is_full: bool) -> StepPage:
    steps: dict[int, StepMetrics] = {}
    validations: dict[int, ValidationMetrics] = {}
    stage = None
    for event in events:
        data = event.data
        if event.kind is EventKind.STAGE:
            stage = data["stage"]
        elif event.kind is EventKind.STEP:
            steps[data["step"]] = StepMetrics(
                step=data["step"],
                stage=stage,
                at=event.created_at,
                seconds=data["seconds"],
                metrics=_numbers(data["metrics"]),
            )
        else:
            validations[data["step"]] = ValidationMetrics(
                step=data["step"], at=event.created_at, metrics=_numbers(data["metrics"])
            )
    return StepPage(
        items=[steps[number] for number in sorted(steps)],
        validations=[validations[number] for number in sorted(validations)],
        next_after=events[-1].id if is_full else None,
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers that JSON has no form for are stored as texts (`nan`, `inf`)."""
    return {name: value if isinstance(value, int | float) else None for name, value in metrics.items()}


def _comparison(a: Run, b: Run) -> RunComparison:
    options_a, options_b = a.config.model_dump(mode="json"), b.config.model_dump(mode="json")
    learned = [None if run.manifest is None else {entry["id"] for entry in run.manifest["answers"]} for run in (a, b)]
    of_a, of_b = learned
    overlap = None
    if of_a is not None and of_b is not None:
        overlap = AnswerOverlap(both=len(of_a & of_b), only_a=len(of_a - of_b), only_b=len(of_b - of_a))
    return RunComparison(
        a=RunSummary.of(a),
        b=RunSummary.of(b),
        options=[
            OptionDifference(option=name, a=options_a[name], b=options_b[name])
            for name in sorted(options_a)
            if options_a[name] != options_b[name]
        ],
        answers=overlap,
        gate_a=a.gate,
        gate_b=b.gate,
    )
