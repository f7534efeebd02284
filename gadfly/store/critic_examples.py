"""The labelled answers in the prompts of critics that are not trained, and the probe records of these critics.

An example goes when its interaction is deleted. Its critic is another one without it, so it is not served any more.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.adapters import ProbeRecord
from gadfly.prompts import Example
from gadfly.store.tables import CriticExampleRow, CriticProbeRow, CriticVersionRow


@dataclass(frozen=True, slots=True)
class PromptExamples:
    """The examples of a critic, in the order of its prompt, and its expected answers to the probe set."""

    items: tuple[Example, ...]
    interactions: tuple[UUID, ...]  # where the answers come from, one for each example
    probe: ProbeRecord

    @property
    def sha256(self) -> str:
        return sha256_of(self.items)


def sha256_of(examples: Sequence[Example]) -> str:
    """The identity of a critic's examples: the hash (hex) of their texts in their order."""
    return hashlib.sha256(json.dumps([asdict(each) for each in examples]).encode()).hexdigest()


async def insert_examples(session: AsyncSession, version: int, examples: PromptExamples) -> None:
    """Store the examples and the probe record of a new version."""
    session.add_all(
        CriticExampleRow(version=version, place=place, interaction_id=interaction_id, **asdict(example))
        for place, (example, interaction_id) in enumerate(zip(examples.items, examples.interactions, strict=True))
    )
    session.add(CriticProbeRow(version=version, record=examples.probe.model_dump(mode="json")))
    await session.flush()


async def read_examples(session: AsyncSession, version: int) -> tuple[tuple[Example, ...], ProbeRecord | None]:
    """The examples of a version that are left, and its probe record; None for a version that has none."""
    rows = await session.scalars(
        select(CriticExampleRow).where(CriticExampleRow.version == version).order_by(CriticExampleRow.place)
    )
    items = tuple(Example(row.question, row.response, row.critique) for row in rows)
    record = await session.scalar(select(CriticProbeRow.record).where(CriticProbeRow.version == version))
    return items, None if record is None else ProbeRecord.model_validate(record)


async def incomplete_versions(session: AsyncSession) -> frozenset[int]:
    """The versions that have lost an example, because its interaction was deleted."""
    left = (
        select(func.count())
        .where(CriticExampleRow.version == CriticVersionRow.version)
        .correlate(CriticVersionRow)
        .scalar_subquery()
    )
    rows = await session.scalars(
        select(CriticVersionRow.version).where(CriticVersionRow.examples > 0, CriticVersionRow.examples > left)
    )
    return frozenset(rows)
