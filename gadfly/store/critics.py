"""Critic versions, and the pointers that name some of them: live, candidate and previous."""

from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import Conflict, NotFound
from gadfly.records import CriticVersion, Pointer, now
from gadfly.store.mapping import record_of
from gadfly.store.runs import append_event
from gadfly.store.tables import CriticPointerRow, CriticVersionRow
from gadfly.training import EventKind

Origin = dict[str, Any]
"""What the deployment that made a pulled critic recorded: `source`, `run_id` and `gate`."""


async def ensure_version_zero(session: AsyncSession, base_model: str) -> CriticVersion:
    """Store the base model under the critic's prompt as version 0, and make it live if no version is; return it.

    Raises:
        Conflict: the critics in the database are based on another model.
    """
    await session.execute(
        insert(CriticVersionRow).values(version=0, base_model=base_model, created_at=now()).on_conflict_do_nothing()
    )
    await session.execute(
        insert(CriticPointerRow).values(name="live", version=0, moved_at=now()).on_conflict_do_nothing()
    )
    zero = await resolve_critic(session, 0)
    if zero.base_model != base_model:
        raise Conflict(
            f"the critics in the database are based on the model {zero.base_model}, not {base_model}: use that model, "
            "or another database"
        )
    return zero


async def resolve_critic(session: AsyncSession, choice: Pointer | int) -> CriticVersion:
    """The critic that a pointer or a number names.

    Raises:
        NotFound: there is none.
    """
    statement = select(CriticVersionRow)
    if isinstance(choice, int):
        statement = statement.where(CriticVersionRow.version == choice)
    else:
        statement = statement.join(CriticPointerRow, CriticPointerRow.version == CriticVersionRow.version).where(
            CriticPointerRow.name == choice
        )
    row = await session.scalar(statement)
    if row is None:
        raise NotFound(
            f"there is no critic version {choice}" if isinstance(choice, int) else f"there is no {choice} critic now"
        )
    return record_of(CriticVersion, row)


async def list_critic_versions(session: AsyncSession) -> list[CriticVersion]:
    """All versions, newest first."""
    rows = await session.scalars(select(CriticVersionRow).order_by(CriticVersionRow.version.desc()))
    return [record_of(CriticVersion, row) for row in rows]


async def read_pointers(session: AsyncSession) -> dict[Pointer, int]:
    """The version that each pointer names; a pointer that is not set is absent."""
    rows = await session.execute(select(CriticPointerRow.name, CriticPointerRow.version))
    return {cast(Pointer, name): version for name, version in rows}


async def insert_critic(
    session: AsyncSession,
    *,
    run_id: UUID,
    parent: int,
    base_model: str,
    prompt_set: str,
    adapter_path: str,
    adapter_sha256: str,
) -> CriticVersion:
    """Store the next version, made by a run. A run makes one: a repeated call returns it."""
    await _lock_numbers(session)
    known = await session.scalar(select(CriticVersionRow).where(CriticVersionRow.run_id == run_id))
    if known is None:
        known = CriticVersionRow(
            version=await _next_number(session),
            parent=parent,
            base_model=base_model,
            adapter_path=adapter_path,
            adapter_sha256=adapter_sha256,
            created_at=now(),
            run_id=run_id,
            prompt_set=prompt_set,
        )
        session.add(known)
        await session.flush()
        await append_event(
            session, run_id, EventKind.PUBLISHED, {"version": known.version, "adapter_sha256": adapter_sha256}
        )
    return record_of(CriticVersion, known)


async def _lock_numbers(session: AsyncSession) -> None:
    """Let this transaction alone assign version numbers until it ends."""
    await session.execute(text("LOCK TABLE critic_versions IN SHARE ROW EXCLUSIVE MODE"))


async def _next_number(session: AsyncSession) -> int:
    newest = await session.scalar(select(func.max(CriticVersionRow.version)))
    return (newest or 0) + 1


async def insert_pulled_critic(
    session: AsyncSession, *, base_model: str, prompt_set: str, adapter_path: str, adapter_sha256: str, origin: Origin
) -> CriticVersion:
    """Store a critic of another deployment as the next version; the same adapter is stored once."""
    await _lock_numbers(session)
    known = await session.scalar(select(CriticVersionRow).where(CriticVersionRow.adapter_sha256 == adapter_sha256))
    if known is None:
        known = CriticVersionRow(
            version=await _next_number(session),
            base_model=base_model,
            adapter_path=adapter_path,
            adapter_sha256=adapter_sha256,
            created_at=now(),
            prompt_set=prompt_set,
            origin=origin,
        )
        session.add(known)
        await session.flush()
    return record_of(CriticVersion, known)


async def set_candidate(session: AsyncSession, version: int) -> None:
    """Point `candidate` at a version.

    Raises:
        NotFound: there is no such version.
    """
    await require_version(session, version)
    await set_pointer(session, "candidate", version)


async def require_version(session: AsyncSession, version: int) -> None:
    """Check that a version exists.

    Raises:
        NotFound: there is no such version.
    """
    if await session.get(CriticVersionRow, version) is None:
        raise NotFound(f"there is no critic version {version}")


async def set_pointer(session: AsyncSession, name: Pointer, version: int) -> None:
    """Point `name` at a version, at the database's time."""
    statement = insert(CriticPointerRow).values(name=name, version=version, moved_at=func.clock_timestamp())
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[CriticPointerRow.name],
            set_={"version": statement.excluded.version, "moved_at": statement.excluded.moved_at},
        )
    )


async def pointed_version(session: AsyncSession, name: Pointer, *, lock: bool = False) -> int | None:
    """The version that a pointer names, None if it is not set; with `lock`, it is locked until the transaction ends."""
    statement = select(CriticPointerRow.version).where(CriticPointerRow.name == name)
    return await session.scalar(statement.with_for_update() if lock else statement)
