"""/admin/overview: is it learning, what runs, and what waits for a person."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from gadfly.errors import BadInput
from gadfly.rates import balanced, proportion
from gadfly.service.dependencies import ReaderDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.wire.common import TaskName
from gadfly.service.wire.critics import RateView, SwapView
from gadfly.service.wire.overview import (
    AccuracyPoint,
    AccuracyQuery,
    AccuracySeries,
    AccuracyTotal,
    AccuracyView,
    OverviewView,
    RecentView,
    SwapEvent,
    WaitingView,
)
from gadfly.service.wire.runs import RunSummary
from gadfly.store.overview import Bucket, VerdictCounts

router = APIRouter(prefix="/admin", tags=["admin"], responses=problems(401, 403, 422, 503))

_DEFAULT = timedelta(days=30)
_LONGEST = {"hour": timedelta(days=60), "day": timedelta(days=1500), "week": timedelta(days=10_000)}
_STEP = timedelta(seconds=10)
_FIRST_YEAR = 2000


@router.get("/overview", summary="Read what runs and what waits", response_model=OverviewView, responses=problems(404))
async def read_overview(
    reader: ReaderDep, service: ServiceDep, task: Annotated[TaskName | None, Query()] = None
) -> OverviewView:
    """The critics of a task in use, the run and the swap in progress, and what waits for a person."""
    line = service.critics.pointers.line(service.tasks.get(task).name)
    live = await service.critics.pointers.resolve("live", line.task)
    run, waiting, (interactions, labels) = await service.overview.now(live=live.version, task=line.task)
    pointers, swap = line.current, line.swaps.pending or line.swaps.last
    return OverviewView(
        live=live.version,
        candidate=pointers.get("candidate"),
        previous=pointers.get("previous"),
        run=None if run is None else RunSummary.of(run),
        swap=None if swap is None else SwapView.of(swap),
        waiting=WaitingView.of(waiting, watch=service.critics.watch.problems.get(line.task)),
        last_24h=RecentView(interactions=interactions, labels=labels),
    )


@router.get("/overview/accuracy", summary="Read verdict accuracy over time", response_model=AccuracyView)
async def read_accuracy(
    query: Annotated[AccuracyQuery, Query()], reader: ReaderDep, service: ServiceDep
) -> AccuracyView:
    """Verdict accuracy of every version over time on labelled traffic, by class, with 95 % intervals and swaps."""
    until = query.until or _rounded(datetime.now(UTC))
    if until.year < _FIRST_YEAR:
        raise BadInput(f"until must be after the year {_FIRST_YEAR}", field="until")
    since = query.since or until - min(_DEFAULT, _LONGEST[query.bucket])
    if not since < until:
        raise BadInput("since must be before until", field="since")
    if until - since > _LONGEST[query.bucket]:
        raise BadInput(f"with buckets of a {query.bucket}, give at most {_LONGEST[query.bucket].days} days")
    parts, totals, swaps = await service.overview.accuracy(since=since, until=until, bucket=Bucket(query.bucket))
    versions = sorted({each.version for each in totals})
    return AccuracyView(
        since=since,
        until=until,
        bucket=query.bucket,
        series=[
            AccuracySeries(
                version=version,
                total=AccuracyTotal(**_rates(each for each in totals if each.version == version)),
                points=_points([each for each in parts if each.version == version]),
            )
            for version in versions
        ],
        events=[SwapEvent.of(swap, at=swap.finished_at or swap.requested_at) for swap in swaps],
    )


def _rounded(moment: datetime) -> datetime:
    """So that pages which ask within some seconds share one reading."""
    return datetime.fromtimestamp((moment.timestamp() // _STEP.total_seconds() + 1) * _STEP.total_seconds(), UTC)


def _points(parts: list[VerdictCounts]) -> list[AccuracyPoint]:
    moments = sorted({each.at for each in parts if each.at is not None})
    return [AccuracyPoint(at=at, **_rates(each for each in parts if each.at == at)) for at in moments]


def _rates(parts: Iterable[VerdictCounts]) -> dict[str, RateView | None]:
    by_class = {each.was_right: proportion(each.hits, each.of) for each in parts}
    right, wrong = by_class.get(True), by_class.get(False)
    found = {"right": right, "wrong": wrong, "balanced": balanced(right, wrong)}
    return {name: None if rate is None else RateView.model_validate(rate) for name, rate in found.items()}
