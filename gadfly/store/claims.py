"""Claims on request ids: among replicas that receive the same request, one works on it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import Interaction, new_id, now
from gadfly.storable import storable_text
from gadfly.store.tables import InteractionRow, RequestClaimRow


async def end_claims(session: AsyncSession, interactions: Sequence[Interaction]) -> None:
    done = [(item.request_id, item.key_id) for item in interactions if item.request_id is not None]
    if done:
        await session.execute(
            text(
                "DELETE FROM request_claims USING unnest(:request_ids, :key_ids) AS done (request_id, key_id)"
                " WHERE request_claims.request_id = done.request_id"
                " AND request_claims.key_id IS NOT DISTINCT FROM done.key_id"
            ).bindparams(
                bindparam("request_ids", [storable_text(request_id) for request_id, _ in done], ARRAY(Text)),
                bindparam("key_ids", [key_id for _, key_id in done], ARRAY(Uuid)),
            )
        )


@dataclass(frozen=True, slots=True)
class Claimed:
    """The request id is the caller's to work on, until the lease runs out."""

    claim_id: UUID


@dataclass(frozen=True, slots=True)
class Held:
    """Another is at work on the request id; its lease lasts until `until` unless it is extended."""

    fingerprint: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """The request id stands for an interaction that is stored already."""

    fingerprint: str | None
    interaction_id: UUID


async def claim_request(
    session: AsyncSession,
    *,
    key_id: UUID | None,
    request_id: str,
    fingerprint: str,
    owner: UUID,
    lease_s: float,
) -> Claimed | Held | Done:
    """Claim a request id for `lease_s` seconds, unless its work is done or another holds it.

    A claim whose lease ran out is taken over. Storing the interaction ends the claim.
    """
    lease = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, lease_s)
    statement = insert(RequestClaimRow).values(
        id=new_id(), key_id=key_id, request_id=request_id, fingerprint=fingerprint, owner=owner, expires_at=lease
    )
    claim_id = await session.scalar(
        statement.on_conflict_do_update(
            index_elements=[RequestClaimRow.request_id, RequestClaimRow.key_id],
            set_={name: statement.excluded[name] for name in ("id", "fingerprint", "owner", "expires_at")},
            where=RequestClaimRow.expires_at <= func.clock_timestamp(),
        ).returning(RequestClaimRow.id)
    )
    # Looked for after claiming: storing an interaction and ending its claim are one transaction, so whoever gets the
    # claim sees what its last owner stored.
    done = (
        await session.execute(
            select(InteractionRow.fingerprint, InteractionRow.id).where(
                InteractionRow.request_id == request_id, InteractionRow.key_id.is_not_distinct_from(key_id)
            )
        )
    ).one_or_none()
    if done is not None:
        if claim_id is not None:
            await session.execute(delete(RequestClaimRow).where(RequestClaimRow.id == claim_id))
        return Done(done.fingerprint, done.id)
    if claim_id is not None:
        return Claimed(claim_id)
    held = (
        await session.execute(
            select(RequestClaimRow.fingerprint, RequestClaimRow.expires_at).where(
                RequestClaimRow.request_id == request_id, RequestClaimRow.key_id.is_not_distinct_from(key_id)
            )
        )
    ).one_or_none()
    if held is None:  # it ended between the two looks
        return Held(fingerprint, now())
    return Held(held.fingerprint, held.expires_at)


async def extend_claims(session: AsyncSession, owner: UUID, claim_ids: Iterable[UUID], *, lease_s: float) -> set[UUID]:
    """Renew the leases of claims that `owner` still holds; the rest were taken over or have ended."""
    lease = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, lease_s)
    renewed = await session.scalars(
        update(RequestClaimRow)
        .where(
            # One that is being deleted needs no lease: waiting for it could be waiting in a circle.
            RequestClaimRow.id.in_(
                select(RequestClaimRow.id)
                .where(RequestClaimRow.owner == owner, RequestClaimRow.id.in_(sorted(claim_ids)))
                .with_for_update(skip_locked=True)
            )
        )
        .values(expires_at=lease)
        .returning(RequestClaimRow.id)
        .execution_options(synchronize_session=False)
    )
    return set(renewed)


async def release_claim(session: AsyncSession, claim_id: UUID) -> None:
    """Give a claim up, for instance because the work failed: the next who asks may do it."""
    await session.execute(delete(RequestClaimRow).where(RequestClaimRow.id == claim_id))
