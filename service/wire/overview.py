"""Shapes of /admin/overview."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import AwareDatetime, Field

from gadfly.records import SwapKind, SwapStatus
from gadfly.service.wire.common import Wire
from gadfly.service.wire.critics import RateView, SwapView
from gadfly.service.wire.runs import RunSummary

BucketName = Literal["hour", "day", "week"]


class UndecidedView(Wire):
    version: int
    run_id: UUID
    at: datetime


class AlarmView(Wire):
    run_id: UUID
    at: datetime
    message: str


class WaitingView(Wire):
    """What waits for a person."""

    conflicts: int = Field(description="Answers without a label because their votes differ.")
    disputed: int = Field(description="Answers with a label that some votes contradict.")
    undecided: list[UndecidedView] = Field(
        description="Critics newer than the live one about which the gate had not enough evidence, newest first."
    )
    alarms: list[AlarmView] = Field(description="Of runs of the last 30 days, newest first.")
    refused_swap: SwapView | None = Field(description="The last swap, if it was refused.")
    watch: str | None = Field(description="Why automatic rollback cannot decide, although labels arrive.")


class RecentView(Wire):
    """Counts of the last 24 hours."""

    interactions: int
    labels: int


class OverviewView(Wire):
    """What runs now, and what waits for a person."""

    live: int
    candidate: int | None
    previous: int | None
    run: RunSummary | None = Field(description="The run in progress, else the next queued one.")
    swap: SwapView | None = Field(description="The swap in progress, else the last one.")
    waiting: WaitingView
    last_24h: RecentView


class AccuracyQuery(Wire):
    """The query of GET /admin/overview/accuracy."""

    since: AwareDatetime | None = Field(None, description="From this time on; 30 days ago if not given.")
    until: AwareDatetime | None = Field(None, description="Before this time; now if not given.")
    bucket: BucketName = Field("day", description="The time that one point covers, in UTC; weeks begin on Mondays.")


class AccuracyTotal(Wire):
    """How a version did on labelled answers. Null: there was none of that class."""

    right: RateView | None = Field(description="Right answers that it called correct.")
    wrong: RateView | None = Field(description="Wrong answers that it called incorrect.")
    balanced: RateView | None = Field(description="The mean of the two.")


class AccuracyPoint(AccuracyTotal):
    at: datetime = Field(description="The beginning of the bucket.")


class AccuracySeries(Wire):
    version: int
    total: AccuracyTotal
    points: list[AccuracyPoint] = Field(description="Oldest first; a bucket without labelled answers has none.")


class SwapEvent(Wire):
    """A move of the live pointer, or an attempt."""

    at: datetime
    kind: SwapKind
    from_version: int
    version: int
    status: SwapStatus
    reason: str | None


class AccuracyView(Wire):
    """Verdict accuracy of every version over time, by the rule of a critic's scoreboard.

    The newest right and the newest wrong answer to each question count, in each bucket and in the total. Of a trained
    critic, only held-out questions and those that arrived after it was made.
    """

    since: datetime
    until: datetime
    bucket: BucketName
    series: list[AccuracySeries] = Field(description="Oldest version first.")
    events: list[SwapEvent] = Field(description="Oldest first.")
