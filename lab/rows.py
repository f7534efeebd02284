"""The rows of the table, as changes to one training config.

Every row samples the same number of critiques of the same answers. A row with one stage has the steps of both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gadfly.lab.arena import MAX_ANSWER_TOKENS, MAX_CRITIQUE_TOKENS, Sizes
from gadfly.training import AlarmLimits, Baseline, Helpfulness, RewardProfile, TrainConfig, WarmStart


class Method(StrEnum):
    """How a row's critic is made."""

    NONE = "none"  # no critic
    START = "start"  # the initial critic of all other rows
    STAR = "star"  # fine-tuned on its own critiques that led to a right refinement
    LEARN = "learn"  # trained by the trainer's loop


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    `one_stage`: all steps are of stage II. `only_verdicts`: all are of stage I. `is_sampled`: MV@K and Pass@K are
    measured. `update`: changes to the config of the update alone, not of sampling.
    """

    name: str
    title: str
    method: Method
    changes: Mapping[str, Any] = field(default_factory=dict)
    one_stage: bool = False
    only_verdicts: bool = False
    is_sampled: bool = False
    update: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        return self.method not in (Method.NONE, Method.START)


_INDIRECT = {"discrimination_weight": 0.0}

_FASTER = {"learning_rate": 1e-3}
"""Twice the learning rate of the other rows, which learns more from each rollout."""

ROWS = (
    Row("none", "no critic", Method.NONE),
    Row("sft", "SFT critic", Method.START),
    Row("star", "STaR", Method.STAR),
    Row(
        "retroformer",
        "indirect reward, r_delta, one baseline (Retroformer)",
        Method.LEARN,
        _INDIRECT | {"helpfulness": Helpfulness.DELTA, "baseline": Baseline.BATCH_MEAN},
        one_stage=True,
    ),
    Row(
        "ctrl",
        "indirect reward, r_refine, group normalised (CTRL)",
        Method.LEARN,
        _INDIRECT | {"baseline": Baseline.GROUP_NORM},
        one_stage=True,
    ),
    Row("critique-rl", "Critique-RL", Method.LEARN, is_sampled=True),
    Row("no-stage-1", "without stage I", Method.LEARN, {"steps_stage_1": 0}),
    Row("no-stage-2", "without stage II", Method.LEARN, {"steps_stage_2": 0}),
    Row("no-dis", "stage II without r_dis and KL", Method.LEARN, _INDIRECT | {"kl_stage_2": 0.0}),
    Row("delta", "stage II with r_delta", Method.LEARN, {"helpfulness": Helpfulness.DELTA}),
    Row("correct", "stage II with r_correct", Method.LEARN, {"helpfulness": Helpfulness.CORRECT}),
    Row("released", "reward profile of the released code", Method.LEARN, {"profile": RewardProfile.RELEASED}),
    Row("iterated", "iterated: stages I, II, I, II (twice the rollouts)", Method.LEARN, {"cycles": 2}),
    Row("single-refine", "control: one stage, RLOO, r_refine", Method.LEARN, _INDIRECT, one_stage=True),
    Row("single-both", "control: one stage, RLOO, r_refine + r_dis", Method.LEARN, one_stage=True),
    Row(
        "efficient",
        "sample-efficient: one stage, r_refine + r_dis, twice the learning rate",
        Method.LEARN,
        _FASTER,
        one_stage=True,
    ),
    Row("efficient-stages", "... in two stages", Method.LEARN, _FASTER),
    Row(
        "efficient-skip",
        "... without the groups that teach nothing",
        Method.LEARN,
        _FASTER | {"skip_zero_advantage": True},
        one_stage=True,
    ),
    Row("alike", "all answers drawn alike, not the uncertain ones first", Method.LEARN, {"uncertain_first": False}),
    Row("update-at-1", "update at temperature 1, as in the released code", Method.LEARN, update={"temperature": 1.0}),
)

QUICK = ("none", "sft", "no-stage-2", "critique-rl")
QUICK_SIZES = Sizes(learn=256, validate=32, test=256, out_of_domain=16, samples=4, sampled=16)
QUICK_CHANGES: Mapping[str, Any] = {"steps_stage_1": 12, "steps_stage_2": 12, "validate_every": 6}


def row(name: str) -> Row:
    return next(each for each in ROWS if each.name == name)


# A failing row is a result, too: it runs to its end instead of being stopped.
_NO_ALARMS = AlarmLimits(**dict.fromkeys(set(AlarmLimits.model_fields) - {"patience"}))

BASE = TrainConfig(
    alarms=_NO_ALARMS,
    steps_stage_1=20,
    steps_stage_2=20,
    prompts_per_step=16,
    minibatches=4,
    learning_rate=5e-4,
    max_critique_tokens=MAX_CRITIQUE_TOKENS,
    max_answer_tokens=MAX_ANSWER_TOKENS,
    warm_start=WarmStart.NEVER,
    validate_every=5,
    best_checkpoint=False,  # the table shows the last checkpoint beside the best one
    checkpoint_every=10,
    micro_batch_tokens=8192,
)


def config(of: Row, base: TrainConfig, *, seed: int) -> TrainConfig:
    """The training config of a row with this seed."""
    changes, total = dict(of.changes), base.steps_stage_1 + base.steps_stage_2
    if of.one_stage:
        changes |= {"steps_stage_1": 0, "steps_stage_2": total}
    if of.only_verdicts:
        changes |= {"steps_stage_1": total, "steps_stage_2": 0}
    return TrainConfig.model_validate(base.model_dump() | changes | {"seed": seed})


def config_of_update(of: Row, sampling: TrainConfig) -> TrainConfig:
    """The config of a row's update, where `sampling` is that of its rollouts."""
    return TrainConfig.model_validate(sampling.model_dump() | dict(of.update))
