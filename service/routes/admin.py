"""/admin/keys, /admin/settings and /admin/tasks/{task}/grade."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from fastapi import APIRouter

from gadfly.errors import UnreadableReference
from gadfly.grading import Submission
from gadfly.records import KeyLimits
from gadfly.service.admin import shown_settings
from gadfly.service.dependencies import AdminDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.routes.json import StrictJsonRoute
from gadfly.service.wire.admin import (
    GradeRequest,
    GradeView,
    KeyChange,
    KeyLimitsView,
    KeyRequest,
    KeyView,
    NewKey,
    ReasonRequest,
    SettingView,
    TaughtView,
    TrustView,
    masked,
)
from gadfly.service.wire.common import TaskName

router = APIRouter(
    route_class=StrictJsonRoute, prefix="/admin", tags=["admin"], responses=problems(401, 403, 413, 422, 503)
)


@router.get("/keys", summary="List keys", response_model=list[KeyView])
async def list_keys(admin: AdminDep, service: ServiceDep) -> list[KeyView]:
    """All keys, oldest first, with revoked and expired ones."""
    return [KeyView.of(key) for key in await service.keys.all()]


@router.post("/keys", summary="Create a key", status_code=201, response_model=NewKey, responses=problems(409))
async def create_key(body: KeyRequest, admin: AdminDep, service: ServiceDep) -> NewKey:
    """Create a key; its secret is in this answer only. The first key ends the time without keys."""
    expires_in = None if body.expires_in_days is None else timedelta(days=body.expires_in_days)
    key, secret = await service.keys.create(
        admin,
        name=body.name,
        tier=body.tier,
        expires_in=expires_in,
        scopes=body.scopes,
        limits=KeyLimits(**_limits(body)),
    )
    return NewKey.of(key, secret=secret)


@router.patch("/keys/{key_id}", summary="Change the limits of a key", response_model=KeyView, responses=problems(404))
async def limit_key(key_id: UUID, body: KeyChange, admin: AdminDep, service: ServiceDep) -> KeyView:
    """Set or remove limits of a key. Services notice within seconds."""
    return KeyView.of(await service.keys.limit(admin, key_id, _limits(body), reason=body.reason))


@router.post("/keys/{key_id}/revoke", summary="Revoke a key", response_model=KeyView, responses=problems(404, 409))
async def revoke_key(key_id: UUID, body: ReasonRequest, admin: AdminDep, service: ServiceDep) -> KeyView:
    """Revoke a key permanently. Services notice within seconds, and its sessions end."""
    return KeyView.of(await service.keys.revoke(admin, key_id, reason=body.reason))


@router.post("/keys/{key_id}/distrust", summary="Distrust a key", response_model=TrustView, responses=problems(404))
async def distrust_key(key_id: UUID, body: ReasonRequest, admin: AdminDep, service: ServiceDep) -> TrustView:
    """Count no label of a key any more, also past ones, and name the critics that learned from them."""
    return await _set_trust(key_id, body, admin, service, is_trusted=False)


@router.post("/keys/{key_id}/trust", summary="Trust a key again", response_model=TrustView, responses=problems(404))
async def trust_key(key_id: UUID, body: ReasonRequest, admin: AdminDep, service: ServiceDep) -> TrustView:
    """Count the labels of a distrusted key again, also past ones."""
    return await _set_trust(key_id, body, admin, service, is_trusted=True)


@router.get("/settings", summary="List settings", response_model=list[SettingView])
async def list_settings(admin: AdminDep, service: ServiceDep) -> list[SettingView]:
    """The settings in force of the replica that answers. Secrets are masked."""
    return [
        SettingView(name=name, value=masked(value), is_default=is_default, description=description)
        for name, value, is_default, description in shown_settings(service.settings)
    ]


@router.post(
    "/tasks/{task}/grade", summary="Try a grader", response_model=GradeView, responses=problems(404, 429, 502, 504)
)
async def try_grader(task: TaskName, body: GradeRequest, admin: AdminDep, service: ServiceDep) -> GradeView:
    """How a task's grader grades a response against a reference. Nothing is stored."""
    served = service.tasks.get(task)
    [outcome] = await service.graders[served.name].grade_all(
        [Submission(body.response, body.reference, question=body.question or "")]
    )
    problem = str(outcome) if isinstance(outcome, UnreadableReference) else None
    return GradeView(
        grade=None if isinstance(outcome, UnreadableReference) else outcome,
        problem=problem,
        stated_answer=served.task.stated_answer(body.response),
    )


def _limits(body: KeyLimitsView) -> dict[str, Any]:
    """The limits that a body has."""
    return body.model_dump(include=set(KeyLimitsView.model_fields), exclude_unset=True)


async def _set_trust(
    key_id: UUID, body: ReasonRequest, admin: AdminDep, service: ServiceDep, *, is_trusted: bool
) -> TrustView:
    key, taught = await service.keys.set_trust(admin, key_id, is_trusted=is_trusted, reason=body.reason)
    return TrustView(key=KeyView.of(key), critics=[TaughtView.of(critic) for critic in taught])
