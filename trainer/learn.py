"""The loop of both stages: sample critiques, score them, update the policy.

Stage I rewards a right verdict; its anchor is the critic at the start of the stage. Stage II rewards a right refinement
and a right verdict; its anchor is the critic at the end of stage I (arXiv 2510.24320, equations 8 and 9). Iterated
training repeats both (table 2).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gadfly.adapters import WEIGHTS, file_sha256
from gadfly.errors import GadflyError
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import draw
from gadfly.trainer.engines import RunEngines
from gadfly.trainer.measure import metrics
from gadfly.trainer.measure.alarms import Alarm, Alarms, AlarmState, step_examples, step_statistics
from gadfly.trainer.measure.evaluate import evaluate
from gadfly.trainer.report import Report
from gadfly.trainer.rl.processes import ProcessGroup, StageSetting
from gadfly.trainer.rollouts import Collector
from gadfly.trainer.workspace import Workspace, new_folder
from gadfly.training import Stage, TrainConfig


class AlarmRaised(GadflyError):
    """An alarm stopped the run."""

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(alarm.message)
        self.alarm = alarm


@dataclass(frozen=True, slots=True)
class Planned:
    """One rollout step. `step` counts from 0 over the run."""

    step: int
    cycle: int
    stage: Stage
    is_first: bool  # of its stage


def schedule(config: TrainConfig, *, has_references: bool) -> list[Planned]:
    """Every step of a run in order. Without references no refinement can be graded, so stage II is left out."""
    planned: list[Planned] = []
    for cycle in range(config.cycles):
        for stage, steps in ((Stage.STAGE_1, config.steps_stage_1), (Stage.STAGE_2, config.steps_stage_2)):
            if stage is Stage.STAGE_2 and not has_references:
                continue
            planned += [Planned(len(planned) + place, cycle, stage, place == 0) for place in range(steps)]
    return planned


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopState:
    """The loop's own part of a checkpoint."""

    alarms: AlarmState
    rewards: list[float]  # mean scores of the steps since the last validation


@dataclass(kw_only=True)
class Learning:
    """The stages of one run, resumed from the newest checkpoint of its workspace."""

    config: TrainConfig
    processes: ProcessGroup
    engines: RunEngines
    collector: Collector
    workspace: Workspace
    report: Report
    learn: Sequence[LabelledAnswer]
    validate: Sequence[LabelledAnswer]  # they measure progress and are never learned from

    async def run(self) -> None:
        """Do all remaining steps and save the adapter in the workspace's `final`.

        Raises:
            AlarmRaised: a statistic was beyond its limit for `patience` steps in a row.
        """
        referenced = [item for item in self.learn if item.reference is not None]
        plan = schedule(self.config, has_references=bool(referenced))
        self.report.steps = len(plan)
        done, alarms, rewards = self._resume(plan)
        loaded: str | None = None
        stage: Stage | None = None
        for planned in plan[done:]:
            began = time.perf_counter()
            if planned.is_first:
                self.processes.begin_stage(self._setting(plan, planned))
                alarms.begin_stage()
                rewards = []
            if planned.stage is not stage:
                stage = planned.stage
                await self.report.stage(stage, step=planned.step, cycle=planned.cycle)
            loaded, sha256 = await self._load(planned.step, instead_of=loaded)
            if self.config.validate_every and planned.step % self.config.validate_every == 0:
                await self._validate(planned.step, loaded, alarms, rewards)
                rewards = []

            seed = f"{self.config.seed} {planned.cycle} {planned.stage.value}"
            items = draw(
                self.learn if stage is Stage.STAGE_1 else referenced,
                seed=seed,
                step=planned.step,
                count=self.config.prompts_per_step,
                balance=self.config.balance,
            )
            groups = await self.collector.collect(
                items,
                stage=stage,
                model=loaded,
                adapter_sha256=sha256,
                seed=f"{seed} {planned.step}",
                file=self.workspace.rollouts(planned.step),
            )
            sampled = time.perf_counter()
            learned = self.processes.update([group.to_group() for group in groups], planned.step)

            numbers = {**step_statistics(groups), **learned, "sampling_s": sampled - began}
            rewards.append(numbers["mean_score"])
            await self.report.step(planned.step, numbers, seconds=time.perf_counter() - began)
            await self._raise(alarms.observe(planned.step, numbers, step_examples(groups)))
            is_last = planned.step + 1 == len(plan)
            if is_last or (planned.step + 1) % self.config.checkpoint_every == 0:
                self._save(planned, alarms, rewards)
        if loaded is not None:
            await self.engines.unload(loaded)
        with new_folder(self.workspace.final) as unfinished:
            self.processes.save_adapter(unfinished)

    def _setting(self, plan: Sequence[Planned], planned: Planned) -> StageSetting:
        steps = [each.step for each in plan if (each.cycle, each.stage) == (planned.cycle, planned.stage)]
        kl = self.config.kl_stage_1 if planned.stage is Stage.STAGE_1 else self.config.kl_stage_2
        return StageSetting(kl_coefficient=kl, first_step=steps[0], steps=len(steps))

    def _resume(self, plan: Sequence[Planned]) -> tuple[int, Alarms, list[float]]:
        """Restore the newest checkpoint: the number of steps done, the alarms, and the rewards of the loop's state."""
        checkpoint = self.workspace.newest_checkpoint()
        if checkpoint is None:
            return 0, Alarms(self.config.alarms), []
        done = int(checkpoint.name)
        self.processes.restore(checkpoint, self._setting(plan, plan[done - 1]))
        state = self.workspace.read(f"checkpoints/{checkpoint.name}/loop.json", LoopState)
        assert state is not None
        return done, Alarms(self.config.alarms, state.alarms), state.rewards

    def _save(self, planned: Planned, alarms: Alarms, rewards: list[float]) -> None:
        with self.workspace.new_checkpoint(planned.step + 1) as folder:
            self.processes.save(folder)
            state = LoopState(alarms=alarms.state, rewards=rewards)
            self.workspace.write(f"checkpoints/{folder.name}/loop.json", state)

    async def _load(self, step: int, *, instead_of: str | None) -> tuple[str, str]:
        """Load the current policy on the engines; the adapter's name there, and the hash of its weights."""
        folder = self.workspace.adapter(step)
        with new_folder(folder) as unfinished:
            self.processes.save_adapter(unfinished)
        return await load_adapter(self.engines, folder, label=f"{step:05}", instead_of=instead_of)

    async def _validate(self, step: int, model: str, alarms: Alarms, rewards: Sequence[float]) -> None:
        if not self.validate:
            return
        judged = await self.engines.patiently(
            lambda: evaluate(self.collector.bench(), self.validate, model=model, with_refinement=False)
        )
        measured = metrics.measure(judged)
        rates = {
            "discrimination": measured.discrimination,
            "discrimination_right": measured.discrimination_right,
            "discrimination_wrong": measured.discrimination_wrong,
            "balanced": measured.discrimination_balanced,
            "coverage": measured.coverage,
        }
        numbers = {name: rate.value for name, rate in rates.items() if rate is not None}
        await self.report.validation(step, numbers)
        accuracy = measured.discrimination_balanced or measured.discrimination
        assert accuracy is not None
        if rewards:
            reward = sum(rewards) / len(rewards)
            await self._raise(alarms.observe_validation(step, reward=reward, accuracy=accuracy.value))

    async def _raise(self, alarm: Alarm | None) -> None:
        if alarm is not None:
            await self.report.alarm(alarm.message, alarm.evidence)
            raise AlarmRaised(alarm)


async def load_adapter(
    engines: RunEngines, folder: Path, *, label: str, instead_of: str | None = None
) -> tuple[str, str]:
    """Load a folder on the engines under a name with its hash, and unload `instead_of`; the name and the hash."""
    sha256 = file_sha256(folder / WEIGHTS)
    name = engines.name(f"{label}-{sha256[:12]}")
    await engines.load(name, folder)
    if instead_of is not None and instead_of != name:
        await engines.unload(instead_of)
    return name, sha256
