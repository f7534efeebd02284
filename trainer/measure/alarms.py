"""Early detection of failures in reinforcement learning of a critic: statistics of each step, and alarms over them.

A critic can earn rewards without helping: by one constant verdict, by hedging, by giving the answer away, by ever
longer texts; and the optimiser can leave the neighbourhood of the initial model. Each statistic is of one step's
rollouts or of one update. An alarm is raised after `patience` steps in a row beyond a limit, with numbers and texts as
evidence.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import PlainSerializer

from gadfly.grading import Grade
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.measure.leakage import leaks_gold
from gadfly.trainer.rl.rewards import states_the_truth
from gadfly.trainer.rollouts import Rollout, RolloutGroup
from gadfly.training import AlarmLimits
from gadfly.verdict import Verdict

EXAMPLES = 3  # texts in the evidence of an alarm
_EXAMPLE_CHARS = 500  # of each of these texts
_NO_EXAMPLES: Mapping[str, Sequence[str]] = {}


# ----------------------------------------------------------------------------------------------------------- statistics


def step_statistics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """The statistics of one step's rollouts. A statistic with nothing to measure is left out.

    - `mean_score`, `mean_tokens`: per critique
    - `no_verdict`, `double_verdict`: shares of critiques; both kinds are unparsed
    - `called_correct`, `share_right`, `verdict_drift`: of the critiques with a verdict, the share that states correct,
      the share whose answer is right, and the distance between the two
    - `discrimination_right`, `discrimination_wrong`, `discrimination_balanced`: right verdicts by class, and their mean
    - `kept_right`, `fixed_wrong`: right refinements by class, in stage II
    - `answer_leakage`: of the critiques of wrong answers with a reference, the share that gives the reference away
    - `zero_advantage`: share of groups whose scores are all equal, from which nothing is learned
    """
    critiques = _critiques(groups)
    if not critiques:
        return {}
    parsed = [(item, rollout) for item, rollout in critiques if rollout.verdict is not Verdict.UNPARSED]
    statistics = {
        "mean_score": _mean([rollout.score for _, rollout in critiques]),
        "mean_tokens": _mean([len(rollout.tokens) for _, rollout in critiques]),
        "no_verdict": 1 - len(parsed) / len(critiques),
        "double_verdict": _mean([rollout.verdict_lines > 1 for _, rollout in critiques]),
        "zero_advantage": _mean([len({rollout.score for rollout in group.rollouts}) == 1 for group in groups]),
    }
    if parsed:
        called_correct = _mean([rollout.verdict is Verdict.CORRECT for _, rollout in parsed])
        share_right = _mean([item.is_right for item, _ in parsed])
        statistics |= {
            "called_correct": called_correct,
            "share_right": share_right,
            "verdict_drift": abs(called_correct - share_right),
        }
    for is_right, discrimination, refinement in (
        (True, "discrimination_right", "kept_right"),
        (False, "discrimination_wrong", "fixed_wrong"),
    ):
        of_class = [rollout for item, rollout in critiques if item.is_right is is_right]
        refined = [rollout.refined is Grade.RIGHT for rollout in of_class if rollout.refined is not None]
        if of_class:
            statistics[discrimination] = _mean(
                [states_the_truth(rollout.verdict, was_right=is_right) for rollout in of_class]
            )
        if refined:
            statistics[refinement] = sum(refined) / len(refined)
    if "discrimination_right" in statistics and "discrimination_wrong" in statistics:
        both = statistics["discrimination_right"], statistics["discrimination_wrong"]
        statistics["discrimination_balanced"] = _mean(both)
    leaks = [leaks for _, _, leaks in _leaks(critiques)]
    if leaks:
        statistics["answer_leakage"] = _mean(leaks)
    return statistics


def step_examples(groups: Sequence[RolloutGroup]) -> dict[str, list[str]]:
    """For each alarm about texts, up to `EXAMPLES` critiques of one step that show its cause."""
    critiques = _critiques(groups)
    shown = {
        "verdict_drift": [
            (item, rollout)
            for item, rollout in critiques
            if rollout.verdict is not Verdict.UNPARSED
            and not states_the_truth(rollout.verdict, was_right=item.is_right)
        ],
        "length_growth": sorted(critiques, key=lambda critique: -len(critique[1].tokens)),
        "answer_leakage": [(item, rollout) for item, rollout, leaks in _leaks(critiques) if leaks],
        "no_verdict": [(item, rollout) for item, rollout in critiques if rollout.verdict is Verdict.UNPARSED],
        "double_verdict": [(item, rollout) for item, rollout in critiques if rollout.verdict_lines > 1],
    }
    # The interaction is named so that the examples can be deleted with it.
    return {
        name: [f"{item.interaction_id}: {rollout.text[:_EXAMPLE_CHARS]}" for item, rollout in examples[:EXAMPLES]]
        for name, examples in shown.items()
    }


def _critiques(groups: Sequence[RolloutGroup]) -> list[tuple[LabelledAnswer, Rollout]]:
    return [(group.item, rollout) for group in groups for rollout in group.rollouts]


def _leaks(critiques: Sequence[tuple[LabelledAnswer, Rollout]]) -> list[tuple[LabelledAnswer, Rollout, bool]]:
    """The critiques of wrong answers with a reference, and whether each gives the reference away."""
    return [
        (
            item,
            rollout,
            leaks_gold(rollout.text, question=item.question, response=item.response, reference=item.reference),
        )
        for item, rollout in critiques
        if not item.is_right and item.reference is not None
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --------------------------------------------------------------------------------------------------------------- alarms


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """The reason to stop a run: `message` in one sentence, `evidence` as JSON (limit, steps, values, texts)."""

    name: str
    message: str
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Watch:
    """One limit, its statistic, and the beginning of the alarm's message.

    With `must_begin_within`, the statistic is watched from the first step that is within the limit.
    """

    name: str
    statistic: str
    message: str
    is_beyond: Callable[[float, float], bool]
    must_begin_within: bool = False


def _above(value: float, limit: float) -> bool:
    return not value <= limit  # NaN is beyond every limit


def _below(value: float, limit: float) -> bool:
    return not value >= limit


_WATCHES = (  # causes before their consequences: of several alarms in one step the first is raised
    _Watch("logprob_gap", "logprob_gap_mean", "The mean difference of engine and trainer in nats is", _above),
    _Watch("double_verdict", "double_verdict", "The share of critiques with two verdicts is", _above),
    _Watch("no_verdict", "no_verdict", "The share of critiques without a verdict is", _above),
    _Watch("answer_leakage", "answer_leakage", "The share of critiques that give the answer away is", _above),
    # An untrained critic may call every answer correct. Stage I starts from that; it is not a drift.
    _Watch(
        "verdict_drift",
        "verdict_drift",
        "The share of answers called correct differs from the share of right answers by",
        _above,
        must_begin_within=True,
    ),
    _Watch("length_growth", "length_growth", "The length of a critique relative to the first step is", _above),
    _Watch("entropy", "entropy", "The entropy of a token in nats is", _below),
    _Watch("kl", "kl", "The divergence from the stage's anchor in nats is", _above),
    _Watch("zero_advantage", "zero_advantage", "The share of groups whose scores are all equal is", _above),
)


def _plain(value: float) -> float | str:
    """A number as a JSON value: NaN and infinities become text."""
    return value if math.isfinite(value) else str(value)


Number = Annotated[float, PlainSerializer(_plain, return_type=Any, when_used="json")]


@dataclass(kw_only=True, slots=True)
class AlarmState:
    """The memory of the alarms between steps. Stored with every checkpoint."""

    first_tokens: float | None = None  # mean tokens of a critique in the first step
    # By alarm: (step, value) of the latest consecutive steps beyond the limit.
    streaks: dict[str, list[tuple[int, Number]]] = field(default_factory=dict)
    was_within: set[str] = field(default_factory=set)  # alarms whose statistic has been within its limit
    last_validation: tuple[Number, Number] | None = None  # reward, accuracy
    no_gain: list[tuple[int, Number, Number]] = field(default_factory=list)  # step, reward, accuracy


class Alarms:
    """Watches a run step by step. A resumed run passes the `state` of its checkpoint."""

    def __init__(self, limits: AlarmLimits, state: AlarmState | None = None) -> None:
        self._limits = limits
        self.state = state or AlarmState()

    def observe(
        self, step: int, statistics: Mapping[str, float], examples: Mapping[str, Sequence[str]] = _NO_EXAMPLES
    ) -> Alarm | None:
        """Process one step: `step_statistics`, the learner's metrics, and `step_examples`; the raised alarm, if any.

        A statistic that is missing in a step neither continues nor ends its streak.
        """
        statistics = {**statistics, **self._growth(statistics)}
        raised = None
        for watch in _WATCHES:
            limit, value = getattr(self._limits, watch.name), statistics.get(watch.statistic)
            if limit is None or value is None:
                continue
            if not watch.is_beyond(value, limit):
                self.state.streaks.pop(watch.name, None)
                self.state.was_within.add(watch.name)
                continue
            if watch.must_begin_within and watch.name not in self.state.was_within:
                continue
            streak = [*self.state.streaks.get(watch.name, []), (step, value)][-self._limits.patience :]
            self.state.streaks[watch.name] = streak
            if len(streak) == self._limits.patience and raised is None:
                raised = _alarm(watch, limit, streak, examples.get(watch.name, ()))
        return raised

    def observe_validation(self, step: int, *, reward: float, accuracy: float) -> Alarm | None:
        """Process one validation: its accuracy, and the mean score of the steps since the last one.

        The alarm is raised when accuracy fell while reward rose, `no_gain` times in a row.
        """
        before, self.state.last_validation = self.state.last_validation, (reward, accuracy)
        if self._limits.no_gain is None or before is None:
            return None
        if not (reward > before[0] and accuracy < before[1]):
            self.state.no_gain = []
            return None
        self.state.no_gain = [*self.state.no_gain, (step, reward, accuracy)][-self._limits.no_gain :]
        if len(self.state.no_gain) < self._limits.no_gain:
            return None
        message = (
            f"Accuracy on validation questions fell {self._limits.no_gain} times in a row while the reward rose, to "
            f"{accuracy:.3f} at a reward of {reward:.3f} in step {step}."
        )
        evidence = {
            "limit": self._limits.no_gain,
            "steps": [each[0] for each in self.state.no_gain],
            "rewards": [_plain(each[1]) for each in self.state.no_gain],
            "accuracies": [_plain(each[2]) for each in self.state.no_gain],
            "examples": [],
        }
        return Alarm(name="no_gain", message=message, evidence=evidence)

    def begin_stage(self) -> None:
        """Reset the streaks and validations: the next stage has another reward and another anchor."""
        self.state.streaks = {}
        self.state.last_validation = None
        self.state.no_gain = []

    def _growth(self, statistics: Mapping[str, float]) -> dict[str, float]:
        tokens = statistics.get("mean_tokens")
        if tokens is None:
            return {}
        if self.state.first_tokens is None:
            self.state.first_tokens = max(tokens, 1.0)
        return {"length_growth": tokens / self.state.first_tokens}


def _alarm(watch: _Watch, limit: float, streak: Sequence[tuple[int, float]], examples: Sequence[str]) -> Alarm:
    steps, values = [step for step, _ in streak], [value for _, value in streak]
    side = "above" if watch.is_beyond is _above else "below"
    duration = f" for {len(steps)} steps in a row" if len(steps) > 1 else ""
    message = f"{watch.message} {values[-1]:.4g} in step {steps[-1]}, {side} {limit:g}{duration}."
    evidence = {
        "limit": limit,
        "steps": steps,
        "values": [_plain(value) for value in values],
        "examples": list(examples[:EXAMPLES]),
    }
    return Alarm(name=watch.name, message=message, evidence=evidence)
