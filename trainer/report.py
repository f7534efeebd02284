"""What a run reports: progress and events in the database, curves for TensorBoard, lines in the log."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from torch.utils.tensorboard import SummaryWriter

from gadfly import store, tracing
from gadfly.store.database import Database
from gadfly.store.learning import Learned
from gadfly.trainer.patience import patiently
from gadfly.trainer.workspace import Workspace
from gadfly.training import EventKind, GateOutcome, Progress, Stage

log = structlog.get_logger(__name__)

_SMOOTHING = 0.7  # weight of the earlier steps in the mean duration of a step


@dataclass(kw_only=True)
class Report(ABC):
    """The stages, steps, validations, notes and alarms of a run. `steps` is the number of steps of the whole run."""

    workspace: Workspace
    steps: int
    _stage: Stage | None = None
    _step_s: float | None = None
    _writer: SummaryWriter | None = None
    _span: ExitStack = field(default_factory=ExitStack)  # that of the stage

    async def stage(self, stage: Stage, *, step: int, **details: Any) -> None:
        """Report that a stage begins, or resumes after an interruption. Its span ends with the next stage."""
        self._stage = stage
        self._span.close()
        self._span.enter_context(tracing.span(stage.value, {"gadfly.step": step}))
        log.info("stage", stage=stage.value, step=step, **details)
        await self._store(EventKind.STAGE, {"stage": stage.value, "step": step, **details}, step=step)

    async def note(self, message: str, **details: Any) -> None:
        log.info("note", message=message, **details)
        await self._store(EventKind.NOTE, {"message": message, **details})

    async def step(self, step: int, metrics: dict[str, float], *, seconds: float) -> None:
        """Report a finished rollout step; `step` counts from 0 over the run."""
        self._step_s = seconds if self._step_s is None else _SMOOTHING * self._step_s + (1 - _SMOOTHING) * seconds
        log.info("step", step=step + 1, of=self.steps, **{name: round(value, 4) for name, value in metrics.items()})
        self._plot(metrics, step)
        await self._store(EventKind.STEP, {"step": step + 1, "seconds": seconds, "metrics": metrics}, step=step + 1)

    async def validation(self, step: int, metrics: dict[str, float]) -> None:
        log.info("validation", step=step, **{name: round(value, 4) for name, value in metrics.items()})
        self._plot({f"validation/{name}": value for name, value in metrics.items()}, step)
        await self._store(EventKind.VALIDATION, {"step": step, "metrics": metrics})

    async def samples(self, stage: Stage, step: int, samples: Sequence[dict[str, Any]]) -> None:
        """Keep a few critiques of a step for people to read; each names its interaction, to be deleted with it."""
        await self._store(EventKind.SAMPLES, {"stage": stage.value, "step": step + 1, "samples": list(samples)})

    async def learned(self, entries: Sequence[Learned]) -> None:
        """Keep what the answers of the run earned so far. Only a run in a database has a ledger."""
        log.debug("learned", answers=len(entries))

    async def alarm(self, message: str, evidence: dict[str, Any]) -> None:
        log.error("alarm", message=message)
        await self._store(EventKind.ALARM, {"message": message, "evidence": evidence})

    def close(self) -> None:
        self._span.close()
        if self._writer is not None:
            self._writer.close()

    def _plot(self, metrics: dict[str, float], step: int) -> None:
        if self._writer is None:  # a resumed run overwrites the steps that it repeats
            self._writer = SummaryWriter(str(self.workspace.tensorboard), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    @abstractmethod
    async def _store(self, kind: EventKind, data: dict[str, Any], *, step: int | None = None) -> None:
        """Store an event and, with `step`, the number of steps that are done."""


@dataclass(kw_only=True)
class Reporter(Report):
    """Stores a run's events and progress in the database. While the database is unavailable, the run waits."""

    run_id: UUID
    database: Database

    async def gate(self, outcome: GateOutcome, report: dict[str, Any]) -> None:
        log.info("gate", outcome=outcome.value)
        tracing.annotate({"gadfly.gate": outcome})

        async def save() -> None:
            async with self.database.session() as session:
                await store.runs.save_gate(session, self.run_id, outcome, report)
                await store.runs.append_event(session, self.run_id, EventKind.GATE, report)

        await patiently(save)

    async def learned(self, entries: Sequence[Learned]) -> None:
        async def save() -> None:
            async with self.database.session() as session:
                await store.learning.save_learned(session, self.run_id, entries)

        await patiently(save)

    async def _store(self, kind: EventKind, data: dict[str, Any], *, step: int | None = None) -> None:
        async def save() -> None:
            async with self.database.session() as session:
                await store.runs.append_event(session, self.run_id, kind, data)
                if step is not None:
                    eta_s = None if self._step_s is None else self._step_s * (self.steps - step)
                    progress = Progress(stage=self._stage, step=step, steps=self.steps, eta_s=eta_s)
                    await store.runs.save_progress(session, self.run_id, progress)

        await patiently(save)
