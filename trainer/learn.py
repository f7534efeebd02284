"""The loop of both stages: sample critiques, score them, update the policy.

Stage I rewards a right verdict; its anchor is the critic at the start of the stage. Stage II rewards a right refinement
and a right verdict; its anchor is the critic at the end of stage I (arXiv 2510.24320, equations 8 and 9). Iterated
training repeats both (table 2).
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gadfly import tracing
from gadfly.adapters import WEIGHTS, file_sha256
from gadfly.errors import GadflyError
from gadfly.store.learning import Learned
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import Dealer, DealerState, Known
from gadfly.trainer.engines import RunEngines
from gadfly.trainer.ledger import Ledger, shown
from gadfly.trainer.measure import metrics
from gadfly.trainer.measure.alarms import Alarm, Alarms, AlarmState, step_examples, step_statistics
from gadfly.trainer.measure.evaluate import evaluate
from gadfly.trainer.measure.metrics import Judged
from gadfly.trainer.measure.validation import Validation, best, validation
from gadfly.trainer.report import Report
from gadfly.trainer.rl.processes import ProcessGroup, StageSetting
from gadfly.trainer.rollouts import Collector
from gadfly.trainer.workspace import Workspace, new_folder
from gadfly.training import Stage, TrainConfig

_SAMPLE_EVERY = 10  # steps of which a few critiques are kept for people to read
_KEPT = 3  # of the latest validated checkpoints, besides the one that would be published
_EXHAUSTED = "zero_advantage"  # the alarm that means: nothing is left to learn


class AlarmRaised(GadflyError):
    """An alarm stopped the run, and no checkpoint before it is good."""

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
    dealer: DealerState = field(default_factory=DealerState)
    validations: list[Validation] = field(default_factory=list)  # of the checkpoints that may still be published
    ledger: list[Learned] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class _Loop:
    """The state of the loop in memory."""

    alarms: Alarms
    dealer: Dealer
    rewards: list[float] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def state(self) -> LoopState:
        return LoopState(
            alarms=self.alarms.state,
            rewards=self.rewards,
            dealer=self.dealer.state,
            validations=self.validations,
            ledger=self.ledger.entries,
        )


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
    known: Known = field(default_factory=Known)

    async def run(self) -> None:
        """Do all remaining steps, and save in the workspace's `final` the adapter to publish.

        Raises:
            AlarmRaised: a statistic was beyond its limit for `patience` steps in a row, and no checkpoint that was
                validated before these steps is better than the start.
        """
        plan = schedule(self.config, has_references=any(item.reference is not None for item in self.learn))
        self.report.steps = len(plan)
        done, loop = self._resume(plan)
        loaded: str | None = None
        stage: Stage | None = None
        alarm: Alarm | None = None
        for planned in plan[done:]:
            began = time.perf_counter()
            if planned.is_first:
                self.processes.begin_stage(self._setting(plan, planned))
                loop.alarms.begin_stage()
                loop.rewards = []
                seen = DealerState(uncertainties=loop.dealer.state.uncertainties)
                loop.dealer = self._dealer(planned).resumed(seen)
            if planned.stage is not stage:
                stage = planned.stage
                await self.report.stage(stage, step=planned.step, cycle=planned.cycle)
            loaded, sha256 = await self._load(planned.step, instead_of=loaded)
            if self.config.validate_every and planned.step % self.config.validate_every == 0:
                alarm = await self._validate(planned.step, loaded, sha256, loop)
                if alarm is not None:
                    break

            alarm = await self._step(planned, loaded, sha256, loop, began)
            if alarm is not None:
                await self.report.learned(loop.ledger.entries)
                break
            is_last = planned.step + 1 == len(plan)
            if is_last or (planned.step + 1) % self.config.checkpoint_every == 0:
                self._save(planned, loop)
                await self.report.learned(loop.ledger.entries)
        if alarm is None:
            await self._finish(len(plan), loop, loaded)
        elif alarm.name == _EXHAUSTED:
            await self.report.note(f"the stages end here, since nothing is left to learn from: {alarm.message}")
            await self._finish(alarm.evidence["steps"][-1] + 1, loop, loaded)
        else:
            await self.report.alarm(alarm.message, alarm.evidence)
            await self._fall_back(alarm, loop)

    async def _step(self, planned: Planned, model: str, sha256: str, loop: _Loop, began: float) -> Alarm | None:
        """Sample and score critiques, update the policy and report the step; the raised alarm.

        `began`: when the step did, before its adapter was loaded (`time.perf_counter`).
        """
        with tracing.span("step", {"gadfly.step": planned.step + 1}) as span:
            groups = await self.collector.collect(
                loop.dealer.deal(self.config.prompts_per_step),
                stage=planned.stage,
                model=model,
                adapter_sha256=sha256,
                seed=f"{self._seed(planned)} {planned.step}",
                file=self.workspace.rollouts(planned.step),
            )
            sampled = time.perf_counter()
            with tracing.span("update"):
                learned = self.processes.update([group.to_group() for group in groups], planned.step)
            for group in groups:
                loop.dealer.observe(group.item, [rollout.score for rollout in group.rollouts])

            numbers = {**step_statistics(groups), **learned, "sampling_s": sampled - began}
            numbers["fresh"] = sum(self.known.is_fresh(group.item) for group in groups) / len(groups)
            loop.rewards.append(numbers["mean_score"])
            loop.ledger.add(planned.stage, planned.step, groups)
            span.set({"gadfly.mean_score": numbers["mean_score"]})
            await self.report.step(planned.step, numbers, seconds=time.perf_counter() - began)
            if planned.is_first or planned.step % _SAMPLE_EVERY == 0:
                await self.report.samples(planned.stage, planned.step, shown(groups))
            return loop.alarms.observe(planned.step, numbers, step_examples(groups))

    async def _finish(self, steps: int, loop: _Loop, loaded: str | None) -> None:
        """Save the adapter to publish after so many steps: the best one by validation, or the policy as it is now."""
        if not (self.config.best_checkpoint and self.config.validate_every):
            if loaded is not None:
                await self.engines.unload(loaded)
            with new_folder(self.workspace.final) as unfinished:
                self.processes.save_adapter(unfinished)
            return
        loaded, sha256 = await self._load(steps, instead_of=loaded)
        await self._validate(steps, loaded, sha256, loop)
        await self.engines.unload(loaded)
        chosen = best(loop.validations)
        await self._publish(chosen.step, f"the best checkpoint by validation is the one after step {chosen.step}")

    async def _fall_back(self, alarm: Alarm, loop: _Loop) -> None:
        """Save the last good adapter: validated before the first step beyond the limit, and better than the start.

        Raises:
            AlarmRaised: there is none.
        """
        first = alarm.evidence["steps"][0]
        good = [each for each in loop.validations if each.step == 0 or each.step < first]
        if not good or best(good).step == 0:
            raise AlarmRaised(alarm)
        step = best(good).step
        await self._publish(step, f"the alarm ends the stages; the checkpoint after step {step} is measured")

    async def _publish(self, step: int, reason: str) -> None:
        await self.report.note(reason, step=step)
        with new_folder(self.workspace.final) as unfinished:
            shutil.copytree(self.workspace.validated(step), unfinished, dirs_exist_ok=True)

    def _setting(self, plan: Sequence[Planned], planned: Planned) -> StageSetting:
        steps = _steps_of(plan, planned)
        kl = self.config.kl_stage_1 if planned.stage is Stage.STAGE_1 else self.config.kl_stage_2
        return StageSetting(kl_coefficient=kl, first_step=steps[0], steps=len(steps))

    def _seed(self, planned: Planned) -> str:
        return f"{self.config.fixed_seed} {planned.cycle} {planned.stage.value}"

    def _dealer(self, planned: Planned) -> Dealer:
        """The dealer of a step's stage, at its beginning."""
        needs_reference = planned.stage is Stage.STAGE_2
        steps = self.config.steps_stage_2 if needs_reference else self.config.steps_stage_1
        return Dealer(
            [item for item in self.learn if item.reference is not None or not needs_reference],
            seed=self._seed(planned),
            balance=self.config.balance,
            total=steps * self.config.prompts_per_step,
            fresh_share=self.config.fresh_share,
            fresh_repeats=self.config.fresh_repeats,
            uncertain_first=self.config.uncertain_first,
            known=self.known,
        )

    def _resume(self, plan: Sequence[Planned]) -> tuple[int, _Loop]:
        """Restore the newest checkpoint: the number of steps done, and the loop's state."""
        checkpoint = self.workspace.newest_checkpoint()
        if checkpoint is None:
            return 0, _Loop(alarms=Alarms(self.config.alarms), dealer=self._dealer(plan[0]))
        done = int(checkpoint.name)
        self.processes.restore(checkpoint, self._setting(plan, plan[done - 1]))
        state = self.workspace.read(f"checkpoints/{checkpoint.name}/loop.json", LoopState)
        assert state is not None
        return done, _Loop(
            alarms=Alarms(self.config.alarms, state.alarms),
            dealer=self._dealer(plan[done - 1]).resumed(state.dealer),
            rewards=state.rewards,
            validations=[each for each in state.validations if self.workspace.validated(each.step).exists()],
            ledger=Ledger(state.ledger),
        )

    def _save(self, planned: Planned, loop: _Loop) -> None:
        with tracing.span("checkpoint"), self.workspace.new_checkpoint(planned.step + 1) as folder:
            self.processes.save(folder)
            self.workspace.write(f"checkpoints/{folder.name}/loop.json", loop.state)

    async def _load(self, step: int, *, instead_of: str | None) -> tuple[str, str]:
        """Load the current policy on the engines; the adapter's name there, and the hash of its weights."""
        folder = self.workspace.adapter(step)
        with tracing.span("load_adapter", {"gadfly.step": step}):
            with new_folder(folder) as unfinished:
                self.processes.save_adapter(unfinished)
            return await load_adapter(self.engines, folder, label=f"{step:05}", instead_of=instead_of)

    async def _validate(self, step: int, model: str, sha256: str, loop: _Loop) -> Alarm | None:
        """Judge the validation answers with the current adapter and keep it as a checkpoint; the raised alarm."""
        with tracing.span("validate", {"gadfly.step": step}):
            judged = await self._judged(step, model, sha256)
        loop.validations = [each for each in loop.validations if each.step < step] + [validation(step, judged)]
        kept = [best(loop.validations), *loop.validations[-_KEPT:]]
        loop.validations = [each for each in loop.validations if each.step == 0 or each in kept]
        self.workspace.keep_validated(step, [each.step for each in loop.validations])
        if not judged:
            return None
        measured = metrics.measure(judged)
        rates = {
            "discrimination": measured.discrimination,
            "discrimination_right": measured.discrimination_right,
            "discrimination_wrong": measured.discrimination_wrong,
            "balanced": measured.discrimination_balanced,
            "coverage": measured.coverage,
            "accuracy_refined": measured.accuracy_refined,
        }
        numbers = {name: rate.value for name, rate in rates.items() if rate is not None}
        await self.report.validation(step, numbers | {"merit": loop.validations[-1].merit})
        accuracy = measured.discrimination_balanced or measured.discrimination
        assert accuracy is not None
        rewards, loop.rewards = loop.rewards, []
        if not rewards:
            return None
        return loop.alarms.observe_validation(step, reward=sum(rewards) / len(rewards), accuracy=accuracy.value)

    async def _judged(self, step: int, model: str, sha256: str) -> list[Judged]:
        """The judged validation answers; a resumed run reads those of the same adapter from its folder."""
        name = f"evaluation/validation-{step:05}.json"
        kept = self.workspace.read(name, _Judgements)
        if kept is not None and kept.adapter == sha256:
            return kept.judged
        judged = await self.engines.patiently(
            lambda: evaluate(
                self.collector.bench(), self.validate, model=model, with_refinement=self.config.best_checkpoint
            )
        )
        self.workspace.write(name, _Judgements(adapter=sha256, judged=judged))
        return judged


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judgements:
    """One validation, as the run's folder stores it."""

    adapter: str  # the hash of its weights
    judged: list[Judged]


def _steps_of(plan: Sequence[Planned], planned: Planned) -> list[int]:
    """The steps of the stage that a step is in."""
    return [each.step for each in plan if (each.cycle, each.stage) == (planned.cycle, planned.stage)]


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
