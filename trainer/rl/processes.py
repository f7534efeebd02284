"""The processes of one run. The first one leads, and the others repeat its calls.

An optimiser step is a collective operation of all processes. The first process samples and decides; it broadcasts each
collective call to the others (`accelerate launch`). With a single process a call is an ordinary call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from gadfly.trainer.rl.learner import Learner
from gadfly.trainer.rl.packing import Group
from gadfly.trainer.rl.policy import Policy
from gadfly.trainer.rl.sft import FineTuning, Pair
from gadfly.training import TrainConfig

_PATIENCE = timedelta(hours=12)  # the others wait while the first one samples

_STOP = "stop"


def make_accelerator(*, cpu: bool) -> Accelerator:
    """The accelerator of this process. It detects by itself whether `accelerate launch` started several."""
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSetting:
    """The parameters of a stage's optimiser that are not in the config."""

    kl_coefficient: float
    first_step: int  # of the run
    steps: int


class ProcessGroup:
    """Policy and learner in every process. The first process calls the methods; the others are in `follow`."""

    def __init__(self, policy: Policy, config: TrainConfig, accelerator: Accelerator) -> None:
        self._policy = policy
        self._config = config
        self._accelerator = accelerator
        self._learner = self._make_learner(StageSetting(kl_coefficient=0.0, first_step=0, steps=config.steps))

    @property
    def leads(self) -> bool:
        return bool(self._accelerator.is_main_process)

    def warm_start(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Fine-tune the policy on the pairs; the metrics of each epoch."""
        result: list[dict[str, float]] = self._call("_warm_start", list(pairs))
        return result

    def begin_stage(self, stage: StageSetting) -> None:
        """Set the anchor to the current policy, and start a new optimiser."""
        self._call("_begin_stage", stage)

    def update(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Learn from one step's rollouts; the metrics of the step."""
        result: dict[str, float] = self._call("_update", list(groups), step)
        return result

    def restore(self, folder: Path, stage: StageSetting) -> None:
        """Load a checkpoint."""
        self._call("_restore", folder, stage)

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        self._call("_save", folder)

    def save_adapter(self, folder: Path) -> None:
        """Write the policy's adapter, in the format that the engine loads."""
        self._call("_save_adapter", folder)

    def load_adapter(self, folder: Path) -> None:
        """Load an adapter's weights into the policy."""
        self._call("_load_adapter", folder)

    def stop(self) -> None:
        """End `follow` in the other processes."""
        self._broadcast((_STOP, ()))

    def follow(self) -> None:
        """Repeat the calls of the first process until it calls `stop`."""
        while True:
            name, arguments = self._broadcast(None)
            if name == _STOP:
                return
            getattr(self, name)(*arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a method in every process; the result of this one."""
        self._broadcast((name, arguments))
        return getattr(self, name)(*arguments)

    def _broadcast(self, call: tuple[str, tuple[Any, ...]] | None) -> tuple[str, tuple[Any, ...]]:
        """The call of the first process; the others pass None."""
        if self._accelerator.num_processes == 1:
            assert call is not None
            return call
        [received] = broadcast_object_list([call])
        assert received is not None
        result: tuple[str, tuple[Any, ...]] = received
        return result

    def _make_learner(self, stage: StageSetting) -> Learner:
        return Learner(
            self._policy,
            self._config,
            kl_coefficient=stage.kl_coefficient,
            first_step=stage.first_step,
            steps=stage.steps,
            accelerator=self._accelerator,
        )

    def _warm_start(self, pairs: list[Pair]) -> list[dict[str, float]]:
        tuning = FineTuning(self._policy, self._config, accelerator=self._accelerator)
        return [tuning.epoch(pairs, epoch) for epoch in range(self._config.warm_start_epochs)]

    def _save(self, folder: Path) -> None:
        self._learner.save(folder)

    def _save_adapter(self, folder: Path) -> None:
        self._policy.save_adapter(folder, write=self.leads)

    def _load_adapter(self, folder: Path) -> None:
        self._policy.load_adapter(folder)

    def _begin_stage(self, stage: StageSetting) -> None:
        self._policy.anchor_here()
        self._learner = self._make_learner(stage)

    def _update(self, groups: list[Group], step: int) -> dict[str, float]:
        return self._learner.update(groups, step)

    def _restore(self, folder: Path, stage: StageSetting) -> None:
        self._learner = self._make_learner(stage)
        self._learner.load(folder)
