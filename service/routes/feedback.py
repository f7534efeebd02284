"""POST /feedback, and DELETE /feedback/{feedback_id}."""

from uuid import UUID

from fastapi import APIRouter

from gadfly.service.answering.limits import check_limits
from gadfly.service.dependencies import LabellerDep, ServiceDep, WithdrawerDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.feedback import FeedbackRequest, FeedbackView
from gadfly.service.wire.queue import WithdrawnView

router = APIRouter(
    route_class=StrictJsonRoute, tags=["feedback"], responses=problems(401, 403, 404, 409, 413, 422, 503)
)


@router.post("/feedback", summary="Give feedback", response_model=FeedbackView)
async def post_feedback(body: FeedbackRequest, caller: LabellerDep, service: ServiceDep) -> FeedbackView:
    """Store feedback about an interaction, at any time after it. Feedback is appended, never overwritten."""
    check_limits(service.settings, body)
    if body.interaction_id is not None:
        interaction = await service.history.find(caller, body.interaction_id)
    else:
        assert body.request_id is not None
        interaction = await service.history.find_by_request_id(caller, body.request_id)
    caller.require_task(interaction.task)
    feedback = await service.answerer.feedback(body, interaction, key_id=caller.key_id)
    await service.chat.pass_feedback_on(caller, body, interaction)
    return FeedbackView.of(feedback)


@router.delete("/feedback/{feedback_id}", summary="Withdraw feedback", response_model=WithdrawnView)
async def withdraw_feedback(feedback_id: UUID, caller: WithdrawerDep, service: ServiceDep) -> WithdrawnView:
    """Remove feedback that was given by mistake: the caller's own, or anybody's for an admin.

    The label of its answer then follows from the other votes. One that was frozen earlier, or for more than 15 minutes,
    stays.
    """
    interaction = await service.history.feedback_target(caller, feedback_id)
    grades = await service.answerer.own_grades(interaction)
    found = await service.history.withdraw(caller, feedback_id, interaction, grades)
    return WithdrawnView(
        id=feedback_id,
        interaction_id=found.interaction_id,
        correct=found.is_right,
        standing=found.standing,
        still_frozen=found.is_frozen,
    )
