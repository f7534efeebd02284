"""What goes wrong in reinforcement learning of a critic, seen early: a step's statistics, and alarms over them.

Rewards can be earned in ways that help nobody: saying one verdict always, hedging, handing over the answer, growing
without end; and the optimiser can leave the model it came from. Every measure is of one step's rollouts or of one
update. An alarm goes off after `patience` steps in a row, and brings its numbers and texts along.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from gadfly.trainer.measure.leakage import leaks_gold
from gadfly.trainer.rl.rewards import states_the_truth
from gadfly.training import AlarmLimits
from gadfly.verdict import Verdict, count_verdicts, parse_critique

EXAMPLES = 3  # texts an alarm shows
_EXAMPLE_CHARS = 500  # of a text that an alarm shows
_NO_EXAMPLES: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredCritique:
    """One sampled critique with what it earned. Critiques of one `group` share question and answer."""

    group: int
    question: str
    response: str
    reference: str | None
    was_right: bool
    text: str
    tokens: int
    score: float
    source: str = ""  # the interaction it is about: whoever forgets that one forgets the examples that name it


# ----------------------------------------------------------------------------------------------------------- statistics


def step_statistics(critiques: Sequence[ScoredCritique]) -> dict[str, float]:
    """One step's rollouts in numbers. What has no item to be measured on is left out.

    - `mean_score`, `mean_tokens`
    - `no_verdict`, `double_verdict`: shares of critiques; both are unparsed
    - `called_correct`, `share_right`, `verdict_drift`: of critiques with a verdict, the share that says correct, the
      share whose answer is right, and how far these are apart
    - `discrimination_right`, `discrimination_wrong`, `discrimination_balanced`: right verdicts by class, and their mean
    - `answer_leakage`: of critiques of wrong answers with a reference, the share that gives it away
    - `zero_advantage`: share of groups whose scores are all equal, from which nothing is learned
    """
    if not critiques:
        return {}
    verdicts = [parse_critique(critique.text).verdict for critique in critiques]
    parsed = [pair for pair in zip(critiques, verdicts, strict=True) if pair[1] is not Verdict.UNPARSED]
    statistics = {
        "mean_score": _mean([critique.score for critique in critiques]),
        "mean_tokens": _mean([critique.tokens for critique in critiques]),
        "no_verdict": 1 - len(parsed) / len(critiques),
        "double_verdict": _mean([count_verdicts(critique.text) > 1 for critique in critiques]),
        "zero_advantage": _mean([len(scores) == 1 for scores in _scores_by_group(critiques).values()]),
    }
    if parsed:
        called_correct = _mean([verdict is Verdict.CORRECT for _, verdict in parsed])
        share_right = _mean([critique.was_right for critique, _ in parsed])
        statistics |= {
            "called_correct": called_correct,
            "share_right": share_right,
            "verdict_drift": abs(called_correct - share_right),
        }
    for name, kind in (("discrimination_right", True), ("discrimination_wrong", False)):
        found = [
            states_the_truth(verdict, was_right=kind)
            for critique, verdict in zip(critiques, verdicts, strict=True)
            if critique.was_right is kind
        ]
        if found:
            statistics[name] = _mean(found)
    if "discrimination_right" in statistics and "discrimination_wrong" in statistics:
        both = statistics["discrimination_right"], statistics["discrimination_wrong"]
        statistics["discrimination_balanced"] = _mean(both)
    leaks = [leaks for _, leaks in _leaks(critiques)]
    if leaks:
        statistics["answer_leakage"] = _mean(leaks)
    return statistics


def step_examples(critiques: Sequence[ScoredCritique]) -> dict[str, list[str]]:
    """Up to `EXAMPLES` critiques of one step for each alarm about texts: those that it would be about."""
    verdicts = [(critique, parse_critique(critique.text).verdict) for critique in critiques]
    mistaken = [
        critique
        for critique, verdict in verdicts
        if verdict is not Verdict.UNPARSED and not states_the_truth(verdict, was_right=critique.was_right)
    ]
    shown = {
        "verdict_drift": mistaken,
        "length_growth": sorted(critiques, key=lambda critique: -critique.tokens),
        "answer_leakage": [critique for critique, leaks in _leaks(critiques) if leaks],
        "no_verdict": [critique for critique, verdict in verdicts if verdict is Verdict.UNPARSED],
        "double_verdict": [critique for critique in critiques if count_verdicts(critique.text) > 1],
    }
    return {name: [_example(each) for each in found[:EXAMPLES]] for name, found in shown.items()}


def _example(critique: ScoredCritique) -> str:
    text = critique.text[:_EXAMPLE_CHARS]
    return f"{critique.source}: {text}" if critique.source else text


def _leaks(critiques: Sequence[ScoredCritique]) -> list[tuple[ScoredCritique, bool]]:
    """Critiques of wrong answers that have a reference, and whether they give it away."""
    return [
        (
            critique,
            leaks_gold(
                critique.text,
                question=critique.question,
                response=critique.response,
                reference=critique.reference,
            ),
        )
        for critique in critiques
        if not critique.was_right and critique.reference is not None
    ]


def _scores_by_group(critiques: Sequence[ScoredCritique]) -> dict[int, set[float]]:
    groups: dict[int, set[float]] = {}
    for critique in critiques:
        groups.setdefault(critique.group, set()).add(critique.score)
    return groups


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --------------------------------------------------------------------------------------------------------------- alarms


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """Why a run was stopped: `message` in one sentence, `evidence` as JSON (limit, steps, values, texts)."""

    name: str
    message: str
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Watch:
    """One limit: the statistic it is about, which side of it is bad, and how its sentence begins.

    With `must_begin_within` it is watched from the first step on that keeps it.
    """

    name: str
    statistic: str
    says: str
    is_beyond: Callable[[float, float], bool]
    must_begin_within: bool = False


def _above(value: float, limit: float) -> bool:
    return not value <= limit  # what is no number is beyond every limit


def _below(value: float, limit: float) -> bool:
    return not value >= limit


_WATCHES = (  # of several alarms in one step the first is told: the likelier cause stands before what follows from it
    _Watch("logprob_gap", "logprob_gap_mean", "Engine and trainer disagree about a token by", _above),
    _Watch("double_verdict", "double_verdict", "The share of critiques with two verdicts is", _above),
    _Watch("no_verdict", "no_verdict", "The share of critiques without a verdict is", _above),
    _Watch("answer_leakage", "answer_leakage", "The share of critiques that give the answer away is", _above),
    # An untrained critic may call everything correct. That is where stage I begins, and no drift.
    _Watch(
        "verdict_drift",
        "verdict_drift",
        "The shares of answers called correct and being so are apart by",
        _above,
        must_begin_within=True,
    ),
    _Watch("length_growth", "length_growth", "Against the first step a critique is longer by a factor of", _above),
    _Watch("entropy", "entropy", "The entropy of a token in nats is", _below),
    _Watch("kl", "kl", "The divergence from the stage's anchor in nats is", _above),
    _Watch("zero_advantage", "zero_advantage", "The share of groups that teach nothing is", _above),
)


class Alarms:
    """Watches a run step by step. Its state survives a restart as JSON, so a resumed run counts on."""

    def __init__(self, limits: AlarmLimits) -> None:
        self._limits = limits
        self._first_tokens: float | None = None
        self._streaks: dict[str, list[tuple[int, float]]] = {}  # by alarm: (step, value) beyond the limit, in a row
        self._was_within: set[str] = set()  # alarms whose limit was kept once
        self._last_validation: tuple[float, float] | None = None  # reward, accuracy
        self._no_gain: list[tuple[int, float, float]] = []  # step, reward, accuracy

    def observe(
        self, step: int, statistics: Mapping[str, float], examples: Mapping[str, Sequence[str]] = _NO_EXAMPLES
    ) -> Alarm | None:
        """Take in one step: `step_statistics` and the learner's `kl`, `entropy` and `logprob_gap_mean`.

        A statistic that the step lacks leaves its streak as it is. `examples` are `step_examples`. The alarm that goes
        off, if one does.
        """
        statistics = {**statistics, **self._growth(statistics)}
        raised = None
        for watch in _WATCHES:
            limit, value = getattr(self._limits, watch.name), statistics.get(watch.statistic)
            if limit is None or value is None:
                continue
            if not watch.is_beyond(value, limit):
                self._streaks.pop(watch.name, None)
                self._was_within.add(watch.name)
                continue
            if watch.must_begin_within and watch.name not in self._was_within:
                continue
            streak = [*self._streaks.get(watch.name, []), (step, value)][-self._limits.patience :]
            self._streaks[watch.name] = streak
            if len(streak) == self._limits.patience and raised is None:
                raised = _alarm(watch, limit, streak, examples.get(watch.name, ()))
        return raised

    def observe_validation(self, step: int, *, reward: float, accuracy: float) -> Alarm | None:
        """Take in one validation: the mean score since the last one, and the accuracy measured now.

        The alarm goes off when, `no_gain` times in a row, accuracy fell while reward rose.
        """
        before, self._last_validation = self._last_validation, (reward, accuracy)
        if self._limits.no_gain is None or before is None:
            return None
        if not (reward > before[0] and accuracy < before[1]):
            self._no_gain = []
            return None
        self._no_gain = [*self._no_gain, (step, reward, accuracy)][-self._limits.no_gain :]
        if len(self._no_gain) < self._limits.no_gain:
            return None
        message = (
            f"Accuracy on validation questions fell {self._limits.no_gain} times in a row while the reward rose, to "
            f"{accuracy:.3f} at a reward of {reward:.3f} in step {step}."
        )
        evidence = {
            "limit": self._limits.no_gain,
            "steps": [each[0] for each in self._no_gain],
            "rewards": [_plain(each[1]) for each in self._no_gain],
            "accuracies": [_plain(each[2]) for each in self._no_gain],
            "examples": [],
        }
        return Alarm(name="no_gain", message=message, evidence=evidence)

    def begin_stage(self) -> None:
        """Forget what the next stage cannot be compared with: its reward and its anchor are others."""
        self._streaks = {}
        self._last_validation = None
        self._no_gain = []

    def _growth(self, statistics: Mapping[str, float]) -> dict[str, float]:
        tokens = statistics.get("mean_tokens")
        if tokens is None:
            return {}
        if self._first_tokens is None:
            self._first_tokens = max(tokens, 1.0)
        return {"length_growth": tokens / self._first_tokens}

    def to_json(self) -> dict[str, Any]:
        return {
            "first_tokens": self._first_tokens,
            "streaks": {
                name: [[step, _plain(value)] for step, value in streak] for name, streak in self._streaks.items()
            },
            "was_within": sorted(self._was_within),
            "last_validation": None if self._last_validation is None else [*map(_plain, self._last_validation)],
            "no_gain": [[step, _plain(reward), _plain(accuracy)] for step, reward, accuracy in self._no_gain],
        }

    @classmethod
    def from_json(cls, limits: AlarmLimits, values: Mapping[str, Any]) -> Self:
        alarms = cls(limits)
        alarms._first_tokens = values["first_tokens"]
        alarms._streaks = {
            name: [(step, float(value)) for step, value in streak] for name, streak in values["streaks"].items()
        }
        last = values["last_validation"]
        alarms._was_within = set(values["was_within"])
        alarms._last_validation = None if last is None else (float(last[0]), float(last[1]))
        alarms._no_gain = [(step, float(reward), float(accuracy)) for step, reward, accuracy in values["no_gain"]]
        return alarms


def _alarm(watch: _Watch, limit: float, streak: Sequence[tuple[int, float]], examples: Sequence[str]) -> Alarm:
    steps, values = [step for step, _ in streak], [value for _, value in streak]
    side = "above" if watch.is_beyond is _above else "below"
    how_long = f" for {len(steps)} steps in a row" if len(steps) > 1 else ""
    message = f"{watch.says} {values[-1]:.4g} in step {steps[-1]}, {side} {limit:g}{how_long}."
    evidence = {
        "limit": limit,
        "steps": steps,
        "values": [_plain(value) for value in values],
        "examples": list(examples[:EXAMPLES]),
    }
    return Alarm(name=watch.name, message=message, evidence=evidence)


def _plain(value: float) -> float | str:
    """A number as JSON knows it: what is none ("nan", "inf") becomes text."""
    return value if math.isfinite(value) else str(value)
