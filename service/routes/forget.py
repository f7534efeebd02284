"""POST /admin/forget and GET /admin/retention."""

from fastapi import APIRouter

from gadfly.service.dependencies import AdminDep, ServiceDep
from gadfly.service.forgetting import Forgotten
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.forget import AffectedCritic, ForgetRequest, ForgetView, RetentionRule, RetentionView
from gadfly.store.forgetting import What

router = APIRouter(
    route_class=StrictJsonRoute, prefix="/admin", tags=["admin"], responses=problems(401, 403, 413, 422, 503)
)


@router.post("/forget", summary="Forget interactions", response_model=ForgetView)
async def forget(body: ForgetRequest, admin: AdminDep, service: ServiceDep) -> ForgetView:
    """Delete interactions with their feedback and all that quotes them, and mark the critics that learned from them.

    A replica that still has such a record in its spool does not bring it back. With `dry_run`, only say what would be
    deleted. At most 10,000 interactions are deleted by one request.
    """
    what = What(
        interaction_id=body.interaction_id,
        episode_id=body.episode_id,
        key_id=body.key_id,
        since=body.since,
        until=body.until,
        kind=body.kind,
    )
    if body.dry_run:
        found = await service.forgetting.plan(what)
    else:
        found = await service.forgetting.forget(admin, what, reason=body.reason)
    live = await service.critics.pointers.resolve("live")
    return ForgetView(
        dry_run=body.dry_run,
        interactions=found.interactions,
        feedback=found.feedback,
        remaining=found.is_more,
        critics=[AffectedCritic.of(critic) for critic in found.critics],
        runs=found.runs,
        clean_version=found.clean_version,
        advice=_advice(found, live=live.version),
    )


@router.get("/retention", summary="Read what retention deletes", response_model=RetentionView)
async def read_retention(admin: AdminDep, service: ServiceDep) -> RetentionView:
    """The rules of the setting `retention`, and what is due now."""
    rules = await service.forgetting.retention()
    return RetentionView(
        rules=[RetentionRule(kind=kind, days=days, due=due, oldest=oldest) for kind, days, due, oldest in rules]
    )


def _advice(found: Forgotten, *, live: int) -> str:
    if not found.critics:
        return "No critic learned from these rows."
    versions = ", ".join(str(critic.version) for critic in found.critics)
    if live not in {critic.version for critic in found.critics}:
        return f"Critics {versions} learned from these rows. The live critic {live} did not: POST /admin/retrain."
    if found.clean_version is None:
        return f"Critics {versions} learned from these rows, and no other critic of this model is left."
    return (
        f"Critics {versions} learned from these rows, the live one among them. For a critic without them, make version "
        f"{found.clean_version} live (POST /admin/promote), and then train (POST /admin/retrain)."
    )
