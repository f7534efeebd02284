"""Configuration and state of training runs, shared by the service, the trainer and the command line.

`Settings` describes a deployment, `TrainConfig` one run; no name is in both. Defaults are those of Critique-RL (arXiv
2510.24320, section 5.1 and the code released with it) where they fit a LoRA adapter on one machine; the description of
a field notes where they do not.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gadfly.errors import BadInput
from gadfly.task_names import DEFAULT_TASK


class Recipe(StrEnum):
    """How a run makes its candidate from labelled answers."""

    REINFORCEMENT = "reinforcement"  # both stages train an adapter
    EXAMPLES = "examples"  # a few labelled answers go into the critic's prompt; nothing is trained


class RewardProfile(StrEnum):
    """The encoding of rewards. The paper and the code released with it differ."""

    PAPER = "paper"  # 0/1; stage II adds b1 for a right verdict
    RELEASED = "released"  # -1/+1; in stage II a wrong or missing verdict replaces the whole score by -1


class Helpfulness(StrEnum):
    """The reward of stage II, from the correctness of the answer before and after the refinement (equations 4-6)."""

    REFINE = "r_refine"
    DELTA = "r_delta"
    CORRECT = "r_correct"


class Baseline(StrEnum):
    """The value that a critique's score is compared with."""

    LEAVE_ONE_OUT = "leave_one_out"  # the mean of the others in its group: RLOO, the paper's
    GROUP_NORM = "group_norm"  # the group's mean, in units of its standard deviation: GRPO, as CTRL trains
    BATCH_MEAN = "batch_mean"  # the mean of the step's scores, like a value function that ignores the question


class Stage(StrEnum):
    """The stages of a run, in order (I and II once per cycle)."""

    SELECT = "select"
    POOL = "pool"  # the actor samples first answers
    WARM_START = "warm_start"
    STAGE_1 = "stage_1"
    STAGE_2 = "stage_2"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # it ran to its end; `outcome` is the gate's decision
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self not in (RunStatus.QUEUED, RunStatus.RUNNING)


class Trigger(StrEnum):
    """The reason for a run."""

    ADMIN = "admin"
    SCHEDULE = "schedule"
    LABELS = "labels"  # enough new labels arrived
    REPRODUCE = "reproduce"


class GateOutcome(StrEnum):
    PROMOTE = "promote"
    REJECT = "reject"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


class WarmStart(StrEnum):
    AUTO = "auto"  # when fewer than `warm_start_below` of the critic's samples state exactly one verdict
    ALWAYS = "always"
    NEVER = "never"


Share = Annotated[float, Field(ge=0, le=1)]

_MOST_STEPS = 1_000_000


class AlarmLimits(BaseModel):
    """Limits that stop a run. Each is measured over one step's rollouts; None disables an alarm."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    verdict_drift: Share | None = Field(0.45, description="|share judged correct - share that is correct|.")
    length_growth: float | None = Field(3.0, gt=1, description="Mean tokens of a critique, relative to the first step.")
    answer_leakage: Share | None = Field(
        0.9, description="Share of critiques of wrong answers that state the reference."
    )
    no_verdict: Share | None = Field(0.9, description="Share without exactly one final verdict.")
    double_verdict: Share | None = Field(0.5, description="Share with more than one final verdict.")
    kl: float | None = Field(2.0, gt=0, description="Mean summed k1 KL of a critique to the stage's anchor, in nats.")
    entropy: float | None = Field(0.005, ge=0, description="Lowest mean entropy of a token, in nats.")
    zero_advantage: Share | None = Field(0.98, description="Share of groups whose scores are all equal.")
    logprob_gap: float | None = Field(0.1, gt=0, description="Mean |engine - trainer| log-probability of a token.")
    no_gain: int | None = Field(
        5, ge=1, description="Consecutive validations in which accuracy fell while reward rose."
    )
    patience: int = Field(5, ge=1, description="Consecutive steps beyond a limit before the run is stopped.")


class TrainConfig(BaseModel):
    """The options of a run. Lengths in tokens, shares in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Seed of every draw: answers, samples, order; null: one that follows from the run's id.",
    )

    recipe: Recipe = Field(
        Recipe.REINFORCEMENT,
        description="How the candidate is made: `reinforcement` trains an adapter, `examples` puts a few labelled "
        "answers into the critic's prompt and trains nothing.",
    )
    examples: int = Field(
        4,
        ge=0,
        le=32,
        description="Most labelled answers in the prompt of the critic by examples, half of them wrong. Every run is "
        "compared with it; 0: no comparison.",
    )

    # Rewards
    profile: RewardProfile = Field(
        RewardProfile.PAPER, description="Encoding of rewards: `paper` (0 and 1) or `released` (-1 and 1)."
    )
    helpfulness: Helpfulness = Field(
        Helpfulness.REFINE, description="Reward of stage II: `r_refine`, `r_delta` or `r_correct` (equations 4 to 6)."
    )
    discrimination_weight: float = Field(0.2, ge=0, description="b1 of equation 9.")
    kl_stage_1: float = Field(0.01, ge=0, description="KL coefficient to the critic at the start.")
    kl_stage_2: float = Field(0.01, ge=0, description="KL coefficient to the stage I checkpoint (b2).")
    baseline: Baseline = Field(
        Baseline.LEAVE_ONE_OUT,
        description="What a score is compared with: `leave_one_out` (RLOO), `group_norm` (GRPO) or `batch_mean`.",
    )
    skip_zero_advantage: bool = Field(False, description="Leave groups whose scores are all equal out of the update.")

    # Schedule
    cycles: int = Field(1, ge=1, description="How often stages I and II are run in turn (2 in table 2).")
    steps_stage_1: int = Field(20, ge=0, description="Rollout steps of stage I. The paper's 500 need a GPU.")
    steps_stage_2: int = Field(20, ge=0, description="Rollout steps of stage II.")

    # Rollouts
    prompts_per_step: int = Field(16, ge=1, description="Question-answer pairs per step. The paper's is 64.")
    samples_per_prompt: int = Field(4, ge=2, description="Critiques per pair: the group of the leave-one-out mean.")
    temperature: float = Field(0.7, gt=0, le=2, description="Sampling temperature of critiques.")
    max_critique_tokens: int = Field(512, ge=1, description="Maximum tokens of a critique.")
    max_answer_tokens: int = Field(512, ge=1, description="Maximum tokens of a first answer or a refinement.")

    # Answers
    pool_samples: int = Field(4, ge=0, description="First answers the actor samples per question. The paper's is 10.")
    pool_questions: int = Field(
        256, ge=0, description="Questions with a reference for which the actor samples new answers."
    )
    pool_temperature: float = Field(0.7, gt=0, le=2, description="Sampling temperature of first answers.")
    balance: bool = Field(True, description="Draw right and wrong answers equally often.")
    fresh_share: Share = Field(
        0.5, description="Share of the draws from answers whose label is new since the run of the critic at the start."
    )
    fresh_repeats: int = Field(
        8, ge=1, description="Most draws of a new answer in one stage: few new answers get a smaller share."
    )
    uncertain_first: bool = Field(
        True, description="Answers that the critic is uncertain about tend to be drawn first; false: all alike."
    )
    max_questions: int = Field(
        4096, ge=1, description="Maximum questions that a run learns from; the newest are taken."
    )
    validation_share: float = Field(
        0.1, ge=0, lt=0.5, description="Share of the training questions reserved for validation."
    )
    validate_every: int = Field(5, ge=0, description="Steps between validations; 0: never.")
    validation_items: int = Field(
        32,
        ge=0,
        description="Maximum answers of one validation, half of each class. Each costs a critique and a rewrite.",
    )
    best_checkpoint: bool = Field(
        True, description="Publish the best checkpoint by validation, not the last; the latest of equally good ones."
    )

    # Optimiser
    inner_epochs: int = Field(2, ge=1, description="Passes over the critiques of a step.")
    minibatches: int = Field(4, ge=1, description="Optimiser steps per inner epoch.")
    clip: float = Field(0.2, gt=0, description="Clipping range of the probability ratio, as in PPO.")
    learning_rate: float = Field(2e-5, gt=0, description="For an adapter; the paper's 5e-7 is for all weights.")
    final_learning_rate: Share = Field(0.1, description="Share of the peak that the cosine ends at.")
    warmup_steps: int = Field(1, ge=0, description="Rollout steps over which the learning rate rises.")
    beta_1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean.")
    beta_2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the mean square.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    lora_alpha: int = Field(32, ge=1, description="The adapter is scaled by this divided by its rank.")
    importance_cap: float | None = Field(2.0, gt=0, description="Upper bound of the weight trainer/engine; null: none.")
    micro_batch_tokens: int = Field(2048, ge=1, description="Maximum tokens of one forward pass.")
    gradient_checkpointing: bool = Field(False, description="Saves memory at the cost of a second forward pass.")
    checkpoint_every: int = Field(2, ge=1, description="Steps between checkpoints.")

    # Warm start
    warm_start: WarmStart = Field(
        WarmStart.AUTO, description="Whether fine-tuning teaches the format of critiques first."
    )
    warm_start_below: Share = Field(
        0.5, description="auto: warm start when a smaller share states exactly one verdict."
    )
    warm_start_prompts: int = Field(
        64, ge=1, description="Pairs for which the critic writes critiques, to be filtered."
    )
    warm_start_epochs: int = Field(2, ge=1, description="The paper's is 5, on 6,000 critiques.")
    warm_start_learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of the fine-tuning.")

    # Gate
    evaluation_items: int = Field(400, ge=1, description="Maximum held-out answers that both critics judge.")
    gate_confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the intervals of both axes.")
    gate_margin: Share = Field(0.05, description="Accepted loss on one axis for a gain on the other.")
    gate_samples: int = Field(4, ge=1, description="Critiques per held-out answer, at the served temperature.")
    gate_attacks: int = Field(
        50,
        ge=0,
        description="Maximum wrong held-out answers that are judged once more with made-up turns and claims around "
        "them; reported, does not decide. 0: none.",
    )
    gate_floor: Share | None = Field(
        None, description="Lowest verdict accuracy in either class for a promotion; null: no limit."
    )
    continue_candidate: bool = Field(True, description="Start from an undecided candidate and add to its evidence.")
    gate_min_items: int = Field(20, ge=1, description="Fewest held-out answers of each class, right and wrong.")
    bootstrap_resamples: int = Field(2000, ge=100, description="Without effect; kept for configs of the first release.")

    alarms: AlarmLimits = AlarmLimits()

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.steps_stage_1 + self.steps_stage_2 == 0:
            raise ValueError("steps_stage_1 and steps_stage_2 cannot both be 0")
        if self.steps > _MOST_STEPS:
            raise ValueError(f"cycles of steps_stage_1 and steps_stage_2 cannot be more than {_MOST_STEPS:,} steps")
        if self.recipe is Recipe.EXAMPLES and self.examples < 2:
            raise ValueError("the recipe examples needs `examples` of 2 or more: one of each class")
        if self.minibatches > self.prompts_per_step:
            raise ValueError("minibatches cannot be more than prompts_per_step: a group is not split")
        return self

    @property
    def fixed_seed(self) -> int:
        """The seed of a run's config, which always has one; 0 for a config of no run that leaves it open."""
        return 0 if self.seed is None else self.seed

    def seeded(self, run_id: UUID) -> Self:
        """The config of this run: with the given seed, else with one that follows from the run's id."""
        return self if self.seed is not None else self.model_copy(update={"seed": run_id.int % 2**31})

    @property
    def validates(self) -> bool:
        """Whether some of the training questions are reserved for measuring progress."""
        return self.validate_every > 0 and self.validation_items > 1 and self.validation_share > 0

    @property
    def steps(self) -> int:
        """Rollout steps of the whole run."""
        return 0 if self.recipe is Recipe.EXAMPLES else self.cycles * (self.steps_stage_1 + self.steps_stage_2)

    @property
    def pool_questions_to_learn_from(self) -> int:
        """Questions of the training side that the actor answers; a few examples need few answers."""
        few = 8 * self.examples
        return min(self.pool_questions, few) if self.recipe is Recipe.EXAMPLES else self.pool_questions

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """A config from a caller's values.

        Raises:
            BadInput: names the first bad field.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            field = ".".join(map(str, ("config", *first["loc"])))
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                message = cls._unknown(first["loc"])
            raise BadInput(f"{field}: {message}", field=field) from None

    @classmethod
    def _unknown(cls, place: tuple[int | str, ...]) -> str:
        known = AlarmLimits.model_fields if place[0] == "alarms" and len(place) > 1 else cls.model_fields
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`gadfly retrain --options` lists them"
        return f"there is no such option: {hint}"

    @classmethod
    def effective(
        cls,
        file: Path | None,
        changes: Mapping[str, Any],
        *,
        served: Mapping[str, Any] | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> Self:
        """The config of a run: the defaults, then `served`, the deployment's file, `own`, and the caller's `changes`.

        Each overrides those before it. `served` are the options that the deployment serves with
        (`Settings.served_options`): a critic learns at the temperature and the lengths at which it answers, unless
        another place says otherwise. `own` are the options of the task, which are valid by themselves.

        Raises:
            BadInput: the file cannot be used, the task's options do not fit to it, or names the first bad field of
                `changes`.
        """
        base, own = read_config_file(file), own or {}
        try:
            cls.read(base)
        except BadInput as error:
            raise BadInput(f"the training config {file} cannot be used: {error}") from None
        known = {**(served or {}), **_merged(base, own)}
        if own:
            try:
                cls.read(known)
            except BadInput as error:
                raise BadInput(
                    f"the table [training] of the task contradicts the training config {file}: {error}"
                ) from None
        return cls.read(_merged(known, changes))


def options_of() -> list[dict[str, Any]]:
    """Name, default and description of every training option; those of a group as `group.name`."""
    defaults = TrainConfig().model_dump(mode="json")
    options = []
    for name, field in TrainConfig.model_fields.items():
        if name == "alarms":
            options += [
                {"name": f"alarms.{inner}", "default": defaults[name][inner], "description": inner_field.description}
                for inner, inner_field in AlarmLimits.model_fields.items()
            ]
        else:
            options.append({"name": name, "default": defaults[name], "description": field.description})
    return options


class OptionSource(StrEnum):
    """Where the value of a training option comes from; each overrides those before it."""

    DEFAULT = "default"
    SERVED = "served"  # from the settings of the service: how it answers
    FILE = "file"  # the deployment's training config
    TASK = "task"  # the task's own table [training]
    REQUEST = "request"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenOption:
    """A training option that is not left at its default. Those of a group are named `group.name`."""

    name: str
    value: Any
    source: OptionSource


def chosen_options(config: TrainConfig, layers: Mapping[OptionSource, Mapping[str, Any]]) -> tuple[ChosenOption, ...]:
    """The options of `config` that one of its layers sets, in the order of the config, each with the last layer."""
    sources: dict[str, OptionSource] = {}
    for source in OptionSource:
        sources |= dict.fromkeys(_flat(layers.get(source, {})), source)
    values = _flat(config.model_dump(mode="json"))
    return tuple(
        ChosenOption(name=name, value=value, source=sources[name]) for name, value in values.items() if name in sources
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return flat


def read_config_file(path: Path | None) -> dict[str, Any]:
    """The options in a deployment's training config file; empty without a file.

    Raises:
        BadInput: the file cannot be read, or is not a JSON object.
    """
    if path is None:
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"the training config {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise BadInput(f"the training config {path} is not a JSON object")
    return values


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        known = merged.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            merged[name] = _merged(known, value)
        else:
            merged[name] = value
    return merged


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The progress of a run. `steps` counts rollout steps over all stages and cycles."""

    stage: Stage | None = None
    step: int = 0
    steps: int = 0
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A training run, as stored."""

    id: UUID
    status: RunStatus
    trigger: Trigger
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    key_id: UUID | None
    request_id: str | None  # idempotency key, unique per caller
    config: TrainConfig
    reproduces: UUID | None
    attempt: int  # how often the run was started
    cancel_requested_at: datetime | None
    progress: Progress
    manifest: dict[str, Any] | None  # row ids, seeds, hashes, versions: everything needed to reproduce the run
    gate: dict[str, Any] | None  # the gate's report
    outcome: GateOutcome | None
    version: int | None  # the critic it published
    error: str | None
    task: str = DEFAULT_TASK  # whose labels it learns from, and whose critic it makes


class EventKind(StrEnum):
    STATUS = "status"
    STAGE = "stage"
    STEP = "step"  # a step's metrics
    VALIDATION = "validation"
    NOTE = "note"
    ALARM = "alarm"
    GATE = "gate"
    PUBLISHED = "published"
    SAMPLES = "samples"  # a few critiques of a step


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEvent:
    """An event of a run. Ids increase within a run: an event stream resumes after the last one received."""

    id: int
    run_id: UUID
    created_at: datetime
    kind: EventKind
    data: dict[str, Any]
