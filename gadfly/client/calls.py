"""Every request of the API, described once: method, path, values, shape of the answer, and whether it is repeatable.

`Client` and `AsyncClient` send these descriptions. A request is repeatable if sending it twice has the effect of
sending it once, because it only reads, or because the service knows it by its request id.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, Literal, Protocol, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_jsonable_python

from gadfly.grading import Grade
from gadfly.records import Kind, LabelState, QueueReason, Ruling, Scope, Tier
from gadfly.refinement import Role, When
from gadfly.service.wire.admin import GradeView, KeyView, NewKey, SettingView, TrustView
from gadfly.service.wire.answers import CritiqueResult, RefineResult
from gadfly.service.wire.critics import CanaryView, CriticHistoryView, CriticVersionView, SwapView
from gadfly.service.wire.feedback import FeedbackView
from gadfly.service.wire.forget import ForgetView, RetentionView
from gadfly.service.wire.health import Readiness, State
from gadfly.service.wire.interactions import InteractionPage, InteractionView, LearningLedger
from gadfly.service.wire.labels import ActPage, DisputePage, LabelView
from gadfly.service.wire.overview import AccuracyView, BucketName, OverviewView
from gadfly.service.wire.queue import LabelProgressView, QueueView, WithdrawnView
from gadfly.service.wire.runs import PlanView, RunComparison, RunPage, RunView, SamplePage, StepPage
from gadfly.service.wire.tasks import TaskView
from gadfly.service.wire.webhooks import DeliveryPage, DeliveryView, NewWebhook, WebhookView
from gadfly.training import EventKind
from gadfly.verdict import Verdict
from gadfly.webhooks import DeliveryStatus, WebhookEvent

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
M = TypeVar("M", bound=BaseModel)

AnswerPath = Literal["/critique", "/refine"]
CriticName = Literal["live", "candidate"] | int
Metadata = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[T_co]):
    """One request; `read` makes the answer of its body."""

    method: str
    path: str
    read: Callable[[bytes], T_co]
    params: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None
    is_repeatable: bool = True
    accepts: tuple[int, ...] = ()  # error statuses whose body is an answer too


class ListPage(Protocol[T_co]):
    """One page of a list."""

    @property
    def items(self) -> Sequence[T_co]: ...

    @property
    def next_cursor(self) -> str | UUID | None: ...


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `id` is 0 where the service sends none."""

    id: int
    name: str
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamCall(Generic[T_co]):
    """One request that is answered with server-sent events; `read` makes a value of each."""

    method: str
    path: str
    read: Callable[[Event], T_co]
    body: Mapping[str, Any] | None = None
    after: int | None = None  # the id of the last event that was received
    silence_s: float | None = None  # the longest wait for a next byte, in seconds; None: the client's limit
    is_repeatable: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta:
    """A piece of a text, as it is generated."""

    role: Role
    round: int
    sample: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedRunEvent:
    """An event of a training run; `data` depends on its kind, which is a plain text where a later release added it."""

    id: int
    kind: EventKind | str
    at: datetime
    data: dict[str, Any]


def next_page(call: Call[T], cursor: str | UUID) -> Call[T]:
    """The request for the page that starts at a cursor."""
    return replace(call, params={**(call.params or {}), "cursor": str(cursor)})


# ---------------------------------------------------------------------------------------------------------- the answers


def answer(path: AnswerPath, body: Mapping[str, Any]) -> Call[CritiqueResult | RefineResult]:
    """POST /critique or /refine with a body as the API takes it. Without a request id it is not repeatable."""
    read = _one(CritiqueResult) if path == "/critique" else _one(RefineResult)
    return Call(method="POST", path=path, body=_json(body), read=read, is_repeatable="request_id" in body)


def critique(
    question: str,
    response: str,
    *,
    reference: str | None = None,
    task: str | None = None,
    critic: CriticName = "live",
    n: int = 1,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    episode_id: UUID | str | None = None,
    request_id: str | None = None,
    metadata: Metadata | None = None,
    store: bool | None = None,
) -> Call[CritiqueResult]:
    """Judge an answer step by step: `POST /critique`. Without a request id a new one is sent, so that it can repeat.

    With `store=False` nothing is stored.
    """
    body = _with_id(locals())
    return Call(method="POST", path="/critique", body=body, read=_one(CritiqueResult))


def refine(
    question: str,
    response: str,
    *,
    reference: str | None = None,
    critique: str | None = None,
    critique_id: UUID | str | None = None,
    rounds: int = 1,
    when: When | Literal["always", "if_incorrect"] = When.ALWAYS,
    samples: int = 1,
    refine_temperature: float | None = None,
    task: str | None = None,
    critic: CriticName = "live",
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    episode_id: UUID | str | None = None,
    request_id: str | None = None,
    metadata: Metadata | None = None,
    store: bool | None = None,
) -> Call[RefineResult]:
    """Rewrite an answer with a critique: `POST /refine`. Without a request id a new one is sent, as for `critique`.

    With `store=False` nothing is stored.
    """
    body = _with_id(locals())
    return Call(method="POST", path="/refine", body=body, read=_one(RefineResult))


def feedback(
    interaction_id: UUID | str | None = None,
    *,
    request_id: str | None = None,
    critique_id: UUID | str | None = None,
    refinement_id: UUID | str | None = None,
    correct: bool | None = None,
    helpful: bool | None = None,
    reference: str | None = None,
    edited_response: str | None = None,
    rating: int | None = None,
    comment: str | None = None,
    metadata: Metadata | None = None,
    feedback_id: UUID | str | None = None,
) -> Call[FeedbackView]:
    """Say how an answer really was: `POST /feedback`. Name the interaction by its id or by its request id.

    With `critique_id` or `refinement_id` it is about that critique or refinement. The service stores feedback that
    equals the caller's latest about the interaction once, so it can repeat; with a `feedback_id` also later.
    """
    body = _given(locals())
    return Call(method="POST", path="/feedback", body=body, read=_one(FeedbackView))


def withdraw_feedback(feedback_id: UUID | str) -> Call[WithdrawnView]:
    """Remove feedback that was given by mistake: `DELETE /feedback/{id}`."""
    return Call(method="DELETE", path=f"/feedback/{feedback_id}", read=_one(WithdrawnView), is_repeatable=False)


# ----------------------------------------------------------------------------------------------------- the interactions


def interactions(
    *,
    limit: int = 50,
    kind: Kind | None = None,
    verdict: Verdict | None = None,
    grade: Grade | None = None,
    episode_id: UUID | str | None = None,
    critic_version: int | None = None,
    task: str | None = None,
    has_feedback: bool | None = None,
    label: LabelState | Literal["right", "wrong", "none", "conflict"] | None = None,
    key_id: UUID | str | None = None,
    confidence_from: float | None = None,
    confidence_to: float | None = None,
    q: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    cursor: str | None = None,
) -> Call[InteractionPage]:
    """Interactions, the newest first: `GET /interactions`. `limit` is the size of a page, `q` words to search for."""
    params = _given(locals())
    return Call(method="GET", path="/interactions", params=params, read=_one(InteractionPage))


def interaction(interaction_id: UUID | str) -> Call[InteractionView]:
    """One interaction with its result and its feedback: `GET /interactions/{id}`."""
    return Call(method="GET", path=f"/interactions/{interaction_id}", read=_one(InteractionView))


def replay(
    interaction_id: UUID | str, critic: CriticName = "live", *, temperature: float = 0.0
) -> Call[CritiqueResult]:
    """How a critic judges the answer now; nothing is stored: `POST /interactions/{id}/replay`."""
    body = _json({"critic": critic, "temperature": temperature})
    return Call(method="POST", path=f"/interactions/{interaction_id}/replay", body=body, read=_one(CritiqueResult))


def learning(interaction_id: UUID | str) -> Call[LearningLedger]:
    """What runs learned from an interaction: `GET /admin/interactions/{id}/learning`."""
    return Call(method="GET", path=f"/admin/interactions/{interaction_id}/learning", read=_one(LearningLedger))


def delete_interaction(interaction_id: UUID | str) -> Call[None]:
    """Delete an interaction permanently: `DELETE /interactions/{id}`."""
    return Call(method="DELETE", path=f"/interactions/{interaction_id}", read=_nothing, is_repeatable=False)


def forget(
    *,
    interaction_id: UUID | str | None = None,
    episode_id: UUID | str | None = None,
    key_id: UUID | str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    kind: Kind | None = None,
    dry_run: bool = False,
    reason: str | None = None,
) -> Call[ForgetView]:
    """Delete interactions with all that was derived from them: `POST /admin/forget`. Repeat it while some remain."""
    body = _given(locals())
    return Call(method="POST", path="/admin/forget", body=body, read=_one(ForgetView))


def retention() -> Call[RetentionView]:
    """What the setting `retention` deletes: `GET /admin/retention`."""
    return Call(method="GET", path="/admin/retention", read=_one(RetentionView))


# ---------------------------------------------------------------------------------------------------------- the critics


def critics(*, task: str | None = None) -> Call[list[CriticVersionView]]:
    """The critics of one task, or of all, the newest first: `GET /critics`."""
    params = _given(locals())
    return Call(method="GET", path="/critics", params=params, read=_many(CriticVersionView))


def critic(version: int) -> Call[CriticHistoryView]:
    """One critic with its history, its calibration and its scoreboard: `GET /critics/{version}`."""
    return Call(method="GET", path=f"/critics/{version}", read=_one(CriticHistoryView))


def promote(
    version: int,
    *,
    reason: str | None = None,
    task: str | None = None,
    canary_share: float | None = None,
    canary_s: int | None = None,
    canary_requests: int | None = None,
) -> Call[SwapView]:
    """Make a version live for its task, or for a share of the requests first: `POST /admin/promote`.

    Canary: a value that is not given is that of the service's settings; a share of 0 promotes without one.
    """
    canary = _given({"share": canary_share, "for_s": canary_s, "for_requests": canary_requests})
    body = _given({"version": version, "reason": reason, "task": task, "canary": canary or None})
    return Call(method="POST", path="/admin/promote", body=body, read=_one(SwapView), is_repeatable=False)


def rollback(*, from_version: int | None = None, reason: str | None = None, task: str | None = None) -> Call[SwapView]:
    """Make the previous version of a task live again: `POST /admin/rollback`."""
    body = _given(locals())
    return Call(method="POST", path="/admin/rollback", body=body, read=_one(SwapView), is_repeatable=False)


def canaries(*, task: str | None = None) -> Call[list[CanaryView]]:
    """The newest canaries; the first ones may run: `GET /admin/canaries`."""
    return Call(method="GET", path="/admin/canaries", params=_given({"task": task}), read=_many(CanaryView))


def widen_canary(*, version: int | None = None, reason: str | None = None, task: str | None = None) -> Call[CanaryView]:
    """Let the critic of a running canary answer all requests: `POST /admin/canaries/widen`."""
    body = _given(locals())
    return Call(method="POST", path="/admin/canaries/widen", body=body, read=_one(CanaryView), is_repeatable=False)


def overview() -> Call[OverviewView]:
    """What runs now and what waits for a person: `GET /admin/overview`."""
    return Call(method="GET", path="/admin/overview", read=_one(OverviewView))


def accuracy(
    *, since: datetime | None = None, until: datetime | None = None, bucket: BucketName = "day"
) -> Call[AccuracyView]:
    """Verdict accuracy of every version over time on labelled traffic: `GET /admin/overview/accuracy`."""
    params = _given(locals())
    return Call(method="GET", path="/admin/overview/accuracy", params=params, read=_one(AccuracyView))


# ------------------------------------------------------------------------------------------------------------- the runs


def plan(config: Mapping[str, Any] | None = None, *, task: str | None = None, ids: bool = False) -> Call[PlanView]:
    """What a training run of a task would do, without starting it: `POST /admin/retrain` as a dry run."""
    body = {"config": _json(config or {}), "dry_run": True, "ids": ids} | _of_task(task)
    return Call(method="POST", path="/admin/retrain", body=body, read=_one(PlanView))


def retrain(
    config: Mapping[str, Any] | None = None, *, task: str | None = None, request_id: str | None = None
) -> Call[RunView]:
    """Start a training run of a task: `POST /admin/retrain`. Without a request id a new one is sent, so that it can
    repeat.
    """
    body = {"config": _json(config or {}), "request_id": request_id or _new_request_id()} | _of_task(task)
    return Call(method="POST", path="/admin/retrain", body=body, read=_one(RunView))


def runs(*, limit: int = 50, task: str | None = None, cursor: UUID | str | None = None) -> Call[RunPage]:
    """Training runs of one task, or of all, the newest first: `GET /admin/runs`. `limit` is the size of a page."""
    params = _given(locals())
    return Call(method="GET", path="/admin/runs", params=params, read=_one(RunPage))


def run(run_id: UUID | str) -> Call[RunView]:
    """One training run: `GET /admin/runs/{id}`."""
    return Call(method="GET", path=f"/admin/runs/{run_id}", read=_one(RunView))


def run_steps(run_id: UUID | str, *, after: int = 0, limit: int = 1000) -> Call[StepPage]:
    """The metrics of a run's steps and validations: `GET /admin/runs/{id}/steps`."""
    params = {"after": after, "limit": limit}
    return Call(method="GET", path=f"/admin/runs/{run_id}/steps", params=params, read=_one(StepPage))


def run_samples(run_id: UUID | str, *, steps: int = 20) -> Call[SamplePage]:
    """Critiques of a run over time: `GET /admin/runs/{id}/samples`."""
    return Call(method="GET", path=f"/admin/runs/{run_id}/samples", params={"steps": steps}, read=_one(SamplePage))


def compare_runs(a: UUID | str, b: UUID | str) -> Call[RunComparison]:
    """What two runs have in common: `GET /admin/runs/compare`."""
    params = {"a": str(a), "b": str(b)}
    return Call(method="GET", path="/admin/runs/compare", params=params, read=_one(RunComparison))


def cancel(run_id: UUID | str) -> Call[RunView]:
    """Cancel a training run: `POST /admin/runs/{id}/cancel`."""
    path = f"/admin/runs/{run_id}/cancel"
    return Call(method="POST", path=path, body={}, read=_one(RunView), is_repeatable=False)


def reproduce(run_id: UUID | str) -> Call[RunView]:
    """Repeat a training run with its config, rows and seeds: `POST /admin/runs/{id}/reproduce`."""
    path = f"/admin/runs/{run_id}/reproduce"
    return Call(method="POST", path=path, body={}, read=_one(RunView), is_repeatable=False)


def run_events(run_id: UUID | str, *, after: int = 0) -> StreamCall[StreamedRunEvent]:
    """The events of a run after the one with the id `after`: `GET /admin/runs/{id}/events`."""
    return StreamCall(
        method="GET",
        path=f"/admin/runs/{run_id}/events",
        read=run_event,
        after=after,
        silence_s=45.0,  # three of the service's heartbeats
    )


def run_event(event: Event) -> StreamedRunEvent:
    """A run's event of a server-sent one."""
    data = dict(event.data)
    at = datetime.fromisoformat(data.pop("at"))
    try:
        kind: EventKind | str = EventKind(event.name)
    except ValueError:
        kind = event.name
    return StreamedRunEvent(id=event.id, kind=kind, at=at, data=data)


# ----------------------------------------------------------------------------------------------------------- the labels


def label(interaction_id: UUID | str) -> Call[LabelView]:
    """The label of the answer that an interaction is about, with its votes: `GET /admin/labels/{id}`."""
    return Call(method="GET", path=f"/admin/labels/{interaction_id}", read=_one(LabelView))


def set_label(
    interaction_id: UUID | str, label: Ruling | Literal["right", "wrong", "none", "votes"], *, reason: str | None = None
) -> Call[LabelView]:
    """Decide the label of the answer that an interaction is about: `POST /admin/labels/{id}`."""
    body = _given({"label": label, "reason": reason})
    path = f"/admin/labels/{interaction_id}"
    return Call(method="POST", path=path, body=body, read=_one(LabelView), is_repeatable=False)


def conflicts(
    *, disputed: bool = False, task: str | None = None, limit: int = 50, cursor: str | None = None
) -> Call[DisputePage]:
    """Answers without a label because their votes differ: `GET /admin/labels/conflicts`."""
    params = _given(locals())
    return Call(method="GET", path="/admin/labels/conflicts", params=params, read=_one(DisputePage))


def take_labels(
    labeller: str,
    *,
    limit: int = 1,
    reserve_s: int = 300,
    reasons: Sequence[QueueReason | Literal["conflict", "disagreement", "contradicted", "uncertain", "new"]] = (),
) -> Call[QueueView]:
    """The answers whose label teaches most, reserved for `labeller`: `POST /labels/queue`."""
    body = _given({**locals(), "reasons": list(reasons)})
    return Call(method="POST", path="/labels/queue", body=body, read=_one(QueueView))


def skip_label(interaction_id: UUID | str, labeller: str) -> Call[None]:
    """Leave an answer of the label queue to others: `POST /labels/queue/{id}/skip`."""
    path = f"/labels/queue/{interaction_id}/skip"
    return Call(method="POST", path=path, body={"labeller": labeller}, read=_nothing)


def release_labels(labeller: str) -> Call[None]:
    """Give back all answers that `labeller` has reserved: `POST /labels/queue/release`."""
    return Call(method="POST", path="/labels/queue/release", body={"labeller": labeller}, read=_nothing)


def label_progress(*, target_points: float = 5.0, task: str | None = None) -> Call[LabelProgressView]:
    """What labels are missing until a task's gate can see a gain of `target_points`: `GET /labels/progress`.

    Without a task the labels of all tasks are counted, for the gate of the default one.
    """
    params = _given(locals())
    return Call(method="GET", path="/labels/progress", params=params, read=_one(LabelProgressView))


def acts(*, limit: int = 50, cursor: UUID | str | None = None) -> Call[ActPage]:
    """What admins did, the newest first: `GET /admin/acts`."""
    params = _given(locals())
    return Call(method="GET", path="/admin/acts", params=params, read=_one(ActPage))


# ------------------------------------------------------------------------------------------------- keys, settings, task


def keys() -> Call[list[KeyView]]:
    """All API keys, oldest first: `GET /admin/keys`."""
    return Call(method="GET", path="/admin/keys", read=_many(KeyView))


def create_key(
    name: str,
    *,
    tier: Tier | Literal["caller", "admin"] = Tier.CALLER,
    scopes: Sequence[Scope | Literal["use", "label", "read", "train"]] | None = None,
    expires_in_days: int | None = None,
    requests_per_minute: int | None = None,
    engine_calls_per_minute: int | None = None,
    tokens_per_day: int | None = None,
    max_in_flight: int | None = None,
) -> Call[NewKey]:
    """Create an API key: `POST /admin/keys`. Its secret is in the answer only."""
    body = _given(locals())
    return Call(method="POST", path="/admin/keys", body=body, read=_one(NewKey), is_repeatable=False)


def limit_key(
    key_id: UUID | str,
    *,
    requests_per_minute: int | None = None,
    engine_calls_per_minute: int | None = None,
    tokens_per_day: int | None = None,
    max_in_flight: int | None = None,
    remove: Sequence[str] = (),
    reason: str | None = None,
) -> Call[KeyView]:
    """Set limits of an API key, and remove those that `remove` names: `PATCH /admin/keys/{id}`."""
    given = {name: value for name, value in locals().items() if name not in ("key_id", "remove")}
    body = {**_given(given), **dict.fromkeys(remove)}
    return Call(method="PATCH", path=f"/admin/keys/{key_id}", body=body, read=_one(KeyView))


def revoke_key(key_id: UUID | str, *, reason: str | None = None) -> Call[KeyView]:
    """Revoke an API key permanently: `POST /admin/keys/{id}/revoke`."""
    body = _given({"reason": reason})
    return Call(method="POST", path=f"/admin/keys/{key_id}/revoke", body=body, read=_one(KeyView))


def distrust_key(key_id: UUID | str, *, reason: str | None = None) -> Call[TrustView]:
    """Count no label of a key any more: `POST /admin/keys/{id}/distrust`."""
    path = f"/admin/keys/{key_id}/distrust"
    return Call(method="POST", path=path, body=_given({"reason": reason}), read=_one(TrustView), is_repeatable=False)


def trust_key(key_id: UUID | str, *, reason: str | None = None) -> Call[TrustView]:
    """Count the labels of a distrusted key again: `POST /admin/keys/{id}/trust`."""
    path = f"/admin/keys/{key_id}/trust"
    return Call(method="POST", path=path, body=_given({"reason": reason}), read=_one(TrustView), is_repeatable=False)


def settings() -> Call[list[SettingView]]:
    """The settings of the replica that answers: `GET /admin/settings`."""
    return Call(method="GET", path="/admin/settings", read=_many(SettingView))


def try_grader(task: str, response: str, reference: str, *, question: str | None = None) -> Call[GradeView]:
    """How a task's grader grades a response: `POST /admin/tasks/{task}/grade`."""
    body = _given({"response": response, "reference": reference, "question": question})
    return Call(method="POST", path=f"/admin/tasks/{task}/grade", body=body, read=_one(GradeView))


# --------------------------------------------------------------------------------------------------------- the webhooks


def webhooks() -> Call[list[WebhookView]]:
    """The endpoints that events are announced to: `GET /admin/webhooks`."""
    return Call(method="GET", path="/admin/webhooks", read=_many(WebhookView))


def create_webhook(
    url: str,
    *,
    events: Sequence[
        WebhookEvent | Literal["label.changed", "run.ended", "run.alarm", "critic.promoted", "critic.rolled_back"]
    ]
    | None = None,
) -> Call[NewWebhook]:
    """Announce events, or all, to an address: `POST /admin/webhooks`. Its secret is in the answer only."""
    body = _given({"url": url, "events": None if events is None else list(events)})
    return Call(method="POST", path="/admin/webhooks", body=body, read=_one(NewWebhook), is_repeatable=False)


def delete_webhook(webhook_id: UUID | str) -> Call[None]:
    """Delete an endpoint with its deliveries: `DELETE /admin/webhooks/{id}`."""
    return Call(method="DELETE", path=f"/admin/webhooks/{webhook_id}", read=_nothing, is_repeatable=False)


def try_webhook(webhook_id: UUID | str) -> Call[DeliveryView]:
    """Send the event `test` to an endpoint: `POST /admin/webhooks/{id}/test`."""
    path = f"/admin/webhooks/{webhook_id}/test"
    return Call(method="POST", path=path, read=_one(DeliveryView), is_repeatable=False)


def webhook_deliveries(
    *,
    status: DeliveryStatus | Literal["pending", "delivered", "dead"] | None = None,
    webhook: UUID | str | None = None,
    limit: int = 50,
    cursor: UUID | str | None = None,
) -> Call[DeliveryPage]:
    """Announcements with their attempts, the newest first: `GET /admin/webhooks/deliveries`."""
    params = _given(locals())
    return Call(method="GET", path="/admin/webhooks/deliveries", params=params, read=_one(DeliveryPage))


def resend_delivery(delivery_id: UUID | str) -> Call[DeliveryView]:
    """Attempt a delivery again now: `POST /admin/webhooks/deliveries/{id}/resend`."""
    path = f"/admin/webhooks/deliveries/{delivery_id}/resend"
    return Call(method="POST", path=path, read=_one(DeliveryView), is_repeatable=False)


# ------------------------------------------------------------------------------------------------------------ the state


def tasks() -> Call[list[TaskView]]:
    """The tasks that the caller may use, the default one first: `GET /tasks`."""
    return Call(method="GET", path="/tasks", read=_many(TaskView))


def state() -> Call[State]:
    """The state of the replica that answers: `GET /state`."""
    return Call(method="GET", path="/state", read=_one(State))


def readiness() -> Call[Readiness]:
    """Whether the service can answer, and why not: `GET /readyz`, also where it answers 503."""
    return Call(method="GET", path="/readyz", read=_one(Readiness), accepts=(503,))


# -------------------------------------------------------------------------------------------------------------- helpers


def streamed(call: Call[T]) -> StreamCall[TextDelta | T]:
    """The same request, answered as it is generated: pieces of text, and the result last."""

    def read(event: Event) -> TextDelta | T:
        if event.name != "text":
            return call.read(json.dumps(event.data).encode())
        data = event.data
        return TextDelta(role=Role(data["role"]), round=data["round"], sample=data["sample"], text=data["text"])

    return StreamCall(
        method=call.method,
        path=call.path,
        body={**(call.body or {}), "stream": True},
        read=read,
        is_repeatable=call.is_repeatable,
    )


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that are None, as JSON values."""
    return _json({name: value for name, value in values.items() if value is not None})


def _of_task(task: str | None) -> dict[str, str]:
    """The field of a body; absent for the default task, so that earlier releases of the service accept the body."""
    return {} if task is None else {"task": task}


def _with_id(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["store"] is False:
        return _given(values)
    return _given({**values, "request_id": values["request_id"] or _new_request_id()})


def _new_request_id() -> str:
    return f"client-{uuid4().hex}"


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = to_jsonable_python(dict(values))
    return found


def _one(model: type[M]) -> Callable[[bytes], M]:
    """Reads one document. Fields of a later release are left out."""
    return lambda body: model.model_validate_json(body, extra="ignore")


def _many(model: type[M]) -> Callable[[bytes], list[M]]:
    adapter = TypeAdapter(list[model])  # type: ignore[valid-type]
    return lambda body: adapter.validate_json(body, extra="ignore")


def _nothing(body: bytes) -> None:
    return None
