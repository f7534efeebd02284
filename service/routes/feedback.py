"""POST /feedback."""

from fastapi import APIRouter

from gadfly.service.answering.limits import check_limits
from gadfly.service.dependencies import CallerDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.feedback import FeedbackRequest, FeedbackView

router = APIRouter(
    route_class=StrictJsonRoute, tags=["feedback"], responses=problems(401, 403, 404, 409, 413, 422, 503)
)


@router.post("/feedback", summary="Give feedback", response_model=FeedbackView)
async def post_feedback(body: FeedbackRequest, caller: CallerDep, service: ServiceDep) -> FeedbackView:
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
