"""/labels: the queue of answers to label, and the progress of labelling."""

from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from gadfly.records import QueueReason, Split, Tier
from gadfly.service.dependencies import LabellerDep, ProgressDep, ServiceDep
from gadfly.service.label_queue import Needs, Taken
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.common import critic_of
from gadfly.service.wire.labels import vote_views
from gadfly.service.wire.queue import (
    LabelledByClass,
    LabellerRequest,
    LabelProgressView,
    ProgressQuery,
    QueueItem,
    QueueView,
    TakeRequest,
)
from gadfly.verdict import Verdict, parse_critique
from gadfly.votes import VoteAgreement

router = APIRouter(
    route_class=StrictJsonRoute, prefix="/labels", tags=["labels"], responses=problems(401, 403, 413, 422, 503)
)


@router.post("/queue", summary="Take answers to label", response_model=QueueView)
async def take(body: TakeRequest, caller: LabellerDep, service: ServiceDep) -> QueueView:
    """The answers whose label teaches most, reserved for this labeller: the caller's own, or all by the scope `label`.

    What the labeller has reserved already comes first. Label one with `POST /feedback`: it then leaves the queue.
    """
    taken, waiting = await service.label_queue.take(
        caller, labeller=body.labeller, limit=body.limit, reserve_s=body.reserve_s, reasons=body.reasons
    )
    names = await service.labels.key_names() if caller.tier is Tier.ADMIN else None
    return QueueView(items=[_item(each, names) for each in taken], waiting=waiting)


@router.post("/queue/release", summary="Give answers back", status_code=204)
async def release(body: LabellerRequest, caller: LabellerDep, service: ServiceDep) -> Response:
    """End all reservations of a labeller."""
    await service.label_queue.release(caller, labeller=body.labeller)
    return Response(status_code=204)


@router.post("/queue/{interaction_id}/skip", summary="Skip an answer", status_code=204, responses=problems(404))
async def skip(interaction_id: UUID, body: LabellerRequest, caller: LabellerDep, service: ServiceDep) -> Response:
    """Leave an answer to others: this labeller is not given it for a week."""
    interaction = await service.history.find(caller, interaction_id)
    await service.label_queue.skip(caller, interaction, labeller=body.labeller)
    return Response(status_code=204)


@router.get(
    "/progress", summary="Read the progress of labelling", response_model=LabelProgressView, responses=problems(404)
)
async def read_progress(
    query: Annotated[ProgressQuery, Query()], caller: ProgressDep, service: ServiceDep
) -> LabelProgressView:
    """Labelled questions by side and class, and what is missing until the gate can see a gain of `target_points`."""
    if query.task is not None:
        caller.require_task(query.task)
    counts = await service.label_queue.counts(query.task)
    needs = await service.label_queue.needs(counts, gain=query.target_points / 100, task=query.task)
    today, by_you = await service.label_queue.today(caller)
    return LabelProgressView(
        train=LabelledByClass(right=counts.right[Split.TRAIN], wrong=counts.wrong[Split.TRAIN]),
        heldout=LabelledByClass(right=counts.right[Split.HELDOUT], wrong=counts.wrong[Split.HELDOUT]),
        target_points=query.target_points,
        detectable_points=None if needs.detectable is None else round(100 * needs.detectable, 1),
        needed=LabelledByClass(right=needs.right, wrong=needs.wrong),
        expected_labels=LabelledByClass(right=needs.labels_right, wrong=needs.labels_wrong),
        beyond_gate=needs.is_beyond_gate,
        sentence=_sentence(needs, query.target_points),
        labelled_today=today,
        by_you_today=by_you,
    )


def _item(taken: Taken, names: Mapping[UUID, str] | None) -> QueueItem:
    interaction, judged, waiting = taken.interaction, taken.judged, taken.waiting
    own = [item for item in interaction.critiques if item.round == 0 and item.sample == 0 and not item.supplied]
    critique = own[0] if own else None
    confidence = None if critique is None else critique.confidence
    p_right = None if critique is None else critique.calibrated_p_right
    if critique is not None and p_right is None and confidence is not None:
        p_right = confidence if critique.verdict is Verdict.CORRECT else 1 - confidence
    return QueueItem.of(
        interaction,
        interaction_id=interaction.id,
        has_reference=interaction.reference is not None,
        critic=critic_of(interaction),
        verdict=None if critique is None else critique.verdict,
        confidence=confidence,
        p_right=p_right,
        critique=None if critique is None else critique.text,
        steps=[] if critique is None else list(parse_critique(critique.text).steps),
        reason=waiting.reason,
        why=_why(taken, confidence),
        other_verdict=waiting.other_verdict,
        other_critic=waiting.other_critic,
        standing=VoteAgreement.NONE if judged is None else judged.standing,
        votes=[] if judged is None or names is None else vote_views(judged.votes, names),
        reserved_until=taken.reserved_until,
    )


def _why(taken: Taken, confidence: float | None) -> str:
    waiting = taken.waiting
    match waiting.reason:
        case QueueReason.CONFLICT:
            return "The votes about this answer differ, so it has no label."
        case QueueReason.DISAGREEMENT:
            return f"The critics {taken.interaction.critic_version} and {waiting.other_critic} give different verdicts."
        case QueueReason.CONTRADICTED:
            return "The only vote contradicts the critic, which is sure of its verdict."
        case QueueReason.UNCERTAIN:
            sure = "" if confidence is None else f" The critic's confidence in its verdict is {100 * confidence:.0f} %."
            return f"There is no label yet.{sure}"
        case QueueReason.NEW:
            return "No critic has given a probability for this answer."


def _sentence(needs: Needs, points: float) -> str:
    missing = [f"{count} more {name}" for name, count in (("wrong", needs.wrong), ("right", needs.right)) if count]
    if not missing:
        return f"The held-out answers are enough for the gate to see a gain of {points:g} points."
    labels = needs.labels_right + needs.labels_wrong
    end = " That is more than a gate judges: raise its option evaluation_items." if needs.is_beyond_gate else ""
    return (
        f"{' and '.join(missing)} held-out answers until the gate can see {points:g} points: about {labels} labels, "
        f"because only a share of all questions is held out.{end}"
    )
