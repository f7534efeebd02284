"""The processes of one run in step: the first one leads, the others do what it does when it does it.

With one process a call is a call. With more (`accelerate launch`), the first process samples and decides, and tells the
others each collective call, since an optimiser step needs all of them.
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
    """One per process. It finds out by itself whether `accelerate launch` has started several."""
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSetting:
    """What a stage's optimiser depends on, besides the config."""

    kl_coefficient: float
    first_step: int  # of the run
    steps: int


class ProcessGroup:
    """Policy and learner in every process. Only the first process calls; the others are in `follow`."""

    def __init__(self, policy: Policy, config: TrainConfig, accelerator: Accelerator) -> None:
        self._policy = policy
        self._config = config
        self._accelerator = accelerator
        self._learner = self._make_learner(StageSetting(kl_coefficient=0.0, first_step=0, steps=config.steps))

    @property
    def leads(self) -> bool:
        return bool(self._accelerator.is_main_process)

    def warm_start(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Supervised fine-tuning of the policy; what each epoch came to."""
        result: list[dict[str, float]] = self._everywhere("_warm_start", list(pairs))
        return result

    def begin_stage(self, stage: StageSetting) -> None:
        """Anchor here: what the policy is now is what it is held to, by a fresh optimiser."""
        self._everywhere("_begin_stage", stage)

    def update(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Learn from one step's rollouts."""
        result: dict[str, float] = self._everywhere("_update", list(groups), step)
        return result

    def restore(self, folder: Path, stage: StageSetting) -> None:
        """Go on from a checkpoint."""
        self._everywhere("_restore", folder, stage)

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        self._everywhere("_save", folder)

    def save_adapter(self, folder: Path) -> None:
        """Write the policy's adapter, as the engine loads it."""
        self._everywhere("_save_adapter", folder)

    def load_adapter(self, folder: Path) -> None:
        """Take the weights of an adapter for the policy."""
        self._everywhere("_load_adapter", folder)

    def stop(self) -> None:
        """Let the others end."""
        self._tell((_STOP, ()))

    def follow(self) -> None:
        """What every process but the first does."""
        while True:
            name, arguments = self._tell(None)
            if name == _STOP:
                return
            getattr(self, name)(*arguments)

    def _everywhere(self, name: str, *arguments: Any) -> Any:
        self._tell((name, arguments))
        return getattr(self, name)(*arguments)

    def _tell(self, call: tuple[str, tuple[Any, ...]] | None) -> tuple[str, tuple[Any, ...]]:
        if self._accelerator.num_processes == 1:
            assert call is not None
            return call
        [told] = broadcast_object_list([call])
        assert told is not None
        heard: tuple[str, tuple[Any, ...]] = told
        return heard

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
