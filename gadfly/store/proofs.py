"""Proofs that an engine answers with a critic's weights, so that its replicas need not repeat each other's."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.store.tables import EngineProofRow

VALID_FOR = timedelta(minutes=10)
"""How long others may rely on a proof: longer than replicas need to follow a swap."""


async def keep_proof(
    session: AsyncSession, process: str, version: int, proof: Mapping[str, Any], *, replica_id: UUID
) -> None:
    """Keep what a replica has just proven about one process of an engine, and delete what is no longer valid."""
    await session.execute(delete(EngineProofRow).where(EngineProofRow.proved_at < func.clock_timestamp() - VALID_FOR))
    statement = insert(EngineProofRow).values(
        process=process, version=version, replica_id=replica_id, proof=dict(proof)
    )
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[EngineProofRow.process, EngineProofRow.version],
            set_={
                "replica_id": statement.excluded.replica_id,
                "proof": statement.excluded.proof,
                "proved_at": func.clock_timestamp(),
            },
        )
    )


async def withdraw_proof(session: AsyncSession, process: str, version: int) -> None:
    """Delete the proof of a version on a process: it failed one since, or the adapter is unloaded."""
    await session.execute(
        delete(EngineProofRow).where(EngineProofRow.process == process, EngineProofRow.version == version)
    )


async def find_proof(session: AsyncSession, process: str, version: int) -> tuple[UUID, dict[str, Any]] | None:
    """The replica that proved a version on this process of an engine, with its proof; None without a valid one."""
    row = await session.scalar(
        select(EngineProofRow).where(
            EngineProofRow.process == process,
            EngineProofRow.version == version,
            EngineProofRow.proved_at >= func.clock_timestamp() - VALID_FOR,
        )
    )
    return None if row is None else (row.replica_id, row.proof)
