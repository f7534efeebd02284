"""Claims on request ids: among replicas that receive the same request, exactly one processes it."""

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
    """End the claims on the request ids of interactions that are now stored."""
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
    """The caller may process the request id until the lease expires."""

    claim_id: UUID


@dataclass(frozen=True, slots=True)
class Held:
    """Another replica processes the request id; its lease lasts until `until` unless it is extended."""

    fingerprint: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """The interaction with this request id is stored already."""

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
    """Claim a request id for `lease_s` seconds, unless it is done or another replica holds it.

    An expired claim is taken over. Storing the interaction ends the claim.
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
    # Queried after claiming: storing an interaction and ending its claim are one transaction, so the new owner of a
    # claim sees the interaction that the previous owner stored.
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
    if held is None:  # it ended between the two queries
        return Held(fingerprint, now())
    return Held(held.fingerprint, held.expires_at)


async def extend_claims(session: AsyncSession, owner: UUID, claim_ids: Iterable[UUID], *, lease_s: float) -> set[UUID]:
    """Renew and return the claims that `owner` still holds; the others were taken over or have ended."""
    lease = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, lease_s)
    renewed = await session.scalars(
        update(RequestClaimRow)
        .where(
            # A claim that is being deleted needs no lease, and waiting for it could deadlock.
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


async def free_claims(session: AsyncSession, owners: Sequence[UUID]) -> int:
    """Give up the claims of processes that have died; how many there were."""
    freed = await session.scalars(
        delete(RequestClaimRow).where(RequestClaimRow.owner.in_(owners)).returning(RequestClaimRow.id)
    )
    return len(freed.all())


async def release_claim(session: AsyncSession, claim_id: UUID) -> None:
    """Give up a claim, for instance after a failure: the next caller may then process the request."""
    await session.execute(delete(RequestClaimRow).where(RequestClaimRow.id == claim_id))
