"""The learning ledger: which answers a run drew, how often, and what their critiques earned."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.store.mapping import record_of
from gadfly.store.tables import CriticVersionRow, LearningRow, TrainingRunRow
from gadfly.training import RunStatus, Stage

RESPONSE, SAMPLED = "response", "sampled"
_CHUNK = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What one answer earned in one stage of a run so far."""

    interaction_id: UUID
    answer: str  # RESPONSE, SAMPLED by the actor, or the id of a refinement
    stage: str
    draws: int
    critiques: int
    mean_score: float  # of the critiques, before the KL penalty
    verdicts_right: int
    first_step: int
    last_step: int

    def with_draw(self, step: int, scores: Sequence[float], verdicts_right: int) -> "Learned":
        """The entry after one more draw, with the scores of its critiques."""
        critiques = self.critiques + len(scores)
        return Learned(
            interaction_id=self.interaction_id,
            answer=self.answer,
            stage=self.stage,
            draws=self.draws + 1,
            critiques=critiques,
            mean_score=(self.mean_score * self.critiques + sum(scores)) / max(critiques, 1),
            verdicts_right=self.verdicts_right + verdicts_right,
            first_step=self.first_step,
            last_step=step,
        )


async def save_learned(session: AsyncSession, run_id: UUID, entries: Sequence[Learned]) -> None:
    """Store the entries of a run; one that is stored already is replaced, so a resumed run may store them again."""
    for start in range(0, len(entries), _CHUNK):
        rows = [{"run_id": run_id, **asdict(entry)} for entry in entries[start : start + _CHUNK]]
        statement = insert(LearningRow).values(rows)
        keys = {"run_id", "interaction_id", "answer", "stage"}
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=sorted(keys),
                set_={name: statement.excluded[name] for name in rows[0] if name not in keys},
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """An entry, and the run that it belongs to."""

    learned: Learned
    run_id: UUID
    run_status: RunStatus
    created_at: datetime
    version: int | None

    @property
    def stage(self) -> Stage:
        return Stage(self.learned.stage)


async def learned_from(session: AsyncSession, interaction_id: UUID) -> list[LedgerEntry]:
    """What runs learned from an interaction, the newest run first."""
    rows = await session.execute(
        select(LearningRow, TrainingRunRow.status, TrainingRunRow.created_at, CriticVersionRow.version)
        .join(TrainingRunRow, TrainingRunRow.id == LearningRow.run_id)
        .outerjoin(CriticVersionRow, CriticVersionRow.run_id == LearningRow.run_id)
        .where(LearningRow.interaction_id == interaction_id)
        .order_by(LearningRow.run_id.desc(), LearningRow.first_step, LearningRow.answer)
    )
    return [
        LedgerEntry(
            learned=record_of(Learned, row), run_id=row.run_id, run_status=status, created_at=created, version=version
        )
        for row, status, created, version in rows
    ]


async def selected_by(session: AsyncSession, interaction_id: UUID) -> list[UUID]:
    """The runs whose manifests name an interaction among the answers or questions to learn from, the newest first."""
    manifest = type_coerce(TrainingRunRow.manifest, JSONB)
    named = func.jsonb_build_array(func.jsonb_build_object("id", str(interaction_id)))
    rows = await session.scalars(
        select(TrainingRunRow.id)
        .where(manifest["answers"].contains(named) | func.coalesce(manifest["questions"].contains(named), False))
        .order_by(TrainingRunRow.id.desc())
    )
    return list(rows)
