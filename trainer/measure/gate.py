"""May the candidate answer in place of the live critic? Two axes, three outcomes, on the same held-out answers.

Discriminability is balanced verdict accuracy: the mean over answers that are right and answers that are wrong, of the
verdict as stated. Helpfulness is accuracy after refinement, over answers with a reference. Both are compared as paired
differences, candidate - live, with a percentile interval from a bootstrap over questions: answers to one question fail
together, so the question is what varies independently. Why these rules: docs/decisions/the-gate.md.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadfly.grading import Grade
from gadfly.trainer.measure.metrics import Judged, measure, z_score
from gadfly.training import GateOutcome, TrainConfig

POWER = 0.8  # the chance to show a real difference, where the report says how many answers that takes

_CHUNK = 256  # resamples drawn at once: bounds memory
_AXES = ("discriminability", "helpfulness")

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One paired comparison. Accuracies and differences are shares in [0, 1] and [-1, 1]."""

    name: str
    items: int
    questions: int
    live: float
    candidate: float
    difference: float
    low: float  # of the difference
    high: float
    error: float  # standard deviation of the bootstrapped differences
    gained: int  # answers on which only the candidate is right
    lost: int  # answers on which only the live critic is right
    p_better: float  # chance of this difference or a greater one if the two critics were interchangeable

    def is_better(self, confidence: float) -> bool:
        """Whether a gain is proven: by the interval, and by the randomisation test, which holds for few changes too."""
        return self.low > 0 and self.p_better <= (1 - confidence) / 2

    @property
    def is_worse(self) -> bool:
        return self.high < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """What the gate says, the numbers that decided, and the same in sentences."""

    outcome: GateOutcome
    numbers: dict[str, Any]
    reasons: list[str]

    def to_json(self) -> dict[str, Any]:
        return {"outcome": self.outcome.value, "numbers": self.numbers, "reasons": self.reasons}


def decide(live: Sequence[Judged], candidate: Sequence[Judged], config: TrainConfig) -> GateReport:
    """Compare two critics on the answers that both judged, in any order.

    - Fewer than `gate_min_items` right or wrong answers: not enough evidence.
    - A proven loss (the interval lies below 0) on either axis: reject, whatever the other axis gained.
    - A proven gain on one axis, and no axis whose interval reaches below -`gate_margin`: promote.
    - Else: not enough evidence, and how many more answers would be.

    With fewer than `gate_min_items` references, discriminability decides alone.

    Raises:
        ValueError: the two did not judge the same items, or one was not asked for a verdict.
    """
    pairs = _paired(live, candidate)
    right = sum(one.was_right for one, _ in pairs)
    wrong = len(pairs) - right
    refined = [(one, other) for one, other in pairs if one.refined is not None]
    discriminability = _compare(
        "discriminability",
        [_Pair(one.question_hash, one.was_right, one.is_verdict_right, other.is_verdict_right) for one, other in pairs],
        config,
    )
    helpfulness = _compare(
        "helpfulness",
        [
            _Pair(one.question_hash, True, one.refined is Grade.RIGHT, other.refined is Grade.RIGHT)
            for one, other in refined
        ],
        config,
    )
    numbers = {
        "items": len(pairs),
        "right": right,
        "wrong": wrong,
        "questions": len({one.question_hash for one, _ in pairs}),
        "with_reference": len(refined),
        "confidence": config.gate_confidence,
        "margin": config.gate_margin,
        "min_items": config.gate_min_items,
        "resamples": config.bootstrap_resamples,
        "seed": config.seed,
        "discriminability": None if discriminability is None else asdict(discriminability),
        "helpfulness": None if helpfulness is None else asdict(helpfulness),
        "live": measure(live, confidence=config.gate_confidence).to_json(),
        "candidate": measure(candidate, confidence=config.gate_confidence).to_json(),
    }

    if discriminability is None or min(right, wrong) < config.gate_min_items:
        lacks = [
            f"{config.gate_min_items - count} more {name} ones"
            for name, count in (("right", right), ("wrong", wrong))
            if count < config.gate_min_items
        ]
        reason = (
            f"Of the held-out answers {right} are right and {wrong} are wrong, and the gate needs "
            f"{config.gate_min_items} of each: {' and '.join(lacks)}."
        )
        return GateReport(outcome=GateOutcome.NOT_ENOUGH_EVIDENCE, numbers=numbers, reasons=[reason])

    axes, reasons = [discriminability], [_sentence(discriminability, config)]
    if helpfulness is not None and len(refined) >= config.gate_min_items:
        axes.append(helpfulness)
        reasons.append(_sentence(helpfulness, config))
    else:
        count = f"only {len(refined)} held-out answers have" if refined else "no held-out answer has"
        reasons.append(f"Helpfulness does not count, since {count} a reference: discriminability decides alone.")
    outcome, why = _outcome(axes, config)
    return GateReport(outcome=outcome, numbers=numbers, reasons=reasons + why)


def _paired(live: Sequence[Judged], candidate: Sequence[Judged]) -> list[tuple[Judged, Judged]]:
    ours, theirs = ({item.key: item for item in items} for items in (live, candidate))
    if len(ours) != len(live) or len(theirs) != len(candidate):
        raise ValueError("an item was judged twice by one critic")
    if ours.keys() != theirs.keys():
        raise ValueError(f"the critics judged different items: {len(ours.keys() ^ theirs.keys())} have no counterpart")
    pairs = [(ours[key], theirs[key]) for key in sorted(ours)]
    for one, other in pairs:
        if (one.was_right, one.question_hash) != (other.was_right, other.question_hash):
            raise ValueError(f"the critics judged different answers under {one.key}")
        if one.stated is None or other.stated is None:
            raise ValueError(f"a critic was not asked about {one.key}")
        if (one.refined is None) is not (other.refined is None):
            raise ValueError(f"only one critic's refinement of {one.key} was graded")
    return pairs


# ------------------------------------------------------------------------------------------------------- the comparison


@dataclass(frozen=True, slots=True)
class _Pair:
    """One answer under both critics. Accuracy is the mean over classes of the accuracy within each."""

    question: bytes
    is_right: bool  # the class
    live: bool
    candidate: bool


def _compare(name: str, pairs: Sequence[_Pair], config: TrainConfig) -> Axis | None:
    """The comparison on one axis; None without items, and for discriminability without both classes."""
    classes = (True,) if name == "helpfulness" else (True, False)
    index = {question: number for number, question in enumerate(sorted({pair.question for pair in pairs}))}
    # C classes, Q questions
    items_CQ, live_CQ, candidate_CQ = (np.zeros((len(classes), len(index))) for _ in range(3))
    for pair in pairs:
        at = classes.index(pair.is_right), index[pair.question]
        items_CQ[at] += 1
        live_CQ[at] += pair.live
        candidate_CQ[at] += pair.candidate
    items_C = items_CQ.sum(axis=1)
    if not items_C.all():
        return None
    change_CQ = candidate_CQ - live_CQ
    random = np.random.default_rng([config.seed, _AXES.index(name)])
    differences = _bootstrap(change_CQ, items_CQ, config.bootstrap_resamples, random)
    low, high = np.quantile(differences, [(1 - config.gate_confidence) / 2, (1 + config.gate_confidence) / 2])
    shares_Q = (change_CQ / items_C[:, None]).mean(axis=0)
    return Axis(
        name=name,
        items=len(pairs),
        questions=len(index),
        live=float((live_CQ.sum(axis=1) / items_C).mean()),
        candidate=float((candidate_CQ.sum(axis=1) / items_C).mean()),
        difference=float(shares_Q.sum()),
        low=float(low),
        high=float(high),
        error=float(differences.std()),
        gained=sum(pair.candidate and not pair.live for pair in pairs),
        lost=sum(pair.live and not pair.candidate for pair in pairs),
        p_better=_p_better(shares_Q, config.bootstrap_resamples, random),
    )


def _bootstrap(change_CQ: Floats, items_CQ: Floats, resamples: int, random: np.random.Generator) -> Floats:
    """Differences over resampled questions. A resample that misses a class has none and is left out."""
    questions = items_CQ.shape[1]
    found = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        times_RQ = random.multinomial(questions, np.full(questions, 1 / questions), size=count).astype(float)
        items_RC = times_RQ @ items_CQ.T
        whole = items_RC.all(axis=1)
        found.append(((times_RQ @ change_CQ.T)[whole] / items_RC[whole]).mean(axis=1))
    return np.concatenate(found)


def _p_better(shares_Q: Floats, resamples: int, random: np.random.Generator) -> float:
    """One-sided paired randomisation test: were the critics interchangeable, each question's change could have had the
    other sign. All signs when they are few, else `resamples` draws of them.
    """
    changes = shares_Q[shares_Q != 0]
    observed = changes.sum() - 1e-12  # the same sum in another order may round otherwise
    if len(changes) == 0:
        return 1.0
    if 2 ** len(changes) <= resamples:
        numbers = np.arange(2 ** len(changes))[:, None] >> np.arange(len(changes))
        return float(((1 - 2.0 * (numbers & 1)) @ changes >= observed).mean())
    reached = 0
    for start in range(0, resamples, _CHUNK):
        signs = 1 - 2.0 * random.integers(0, 2, size=(min(_CHUNK, resamples - start), len(changes)))
        reached += int((signs @ changes >= observed).sum())
    return (1 + reached) / (1 + resamples)


# ------------------------------------------------------------------------------------------------------------- the rule


def _outcome(axes: Sequence[Axis], config: TrainConfig) -> tuple[GateOutcome, list[str]]:
    worse = [axis.name for axis in axes if axis.is_worse]
    better = [axis.name for axis in axes if axis.is_better(config.gate_confidence)]
    uncertain = [axis for axis in axes if axis.low < -config.gate_margin]
    if worse:
        bought = f" A gain in {' and '.join(better)} does not pay for that." if better else ""
        return GateOutcome.REJECT, [f"The candidate is worse in {' and '.join(worse)}.{bought}"]
    if better and not uncertain:
        others = " and ".join(axis.name for axis in axes if axis.name not in better)
        rest = f" and shows no loss beyond the margin in {others}" if others else ""
        return GateOutcome.PROMOTE, [f"The candidate is better in {' and '.join(better)}{rest}."]
    return GateOutcome.NOT_ENOUGH_EVIDENCE, [
        *([f"The candidate is better in {' and '.join(better)}."] if better else ["No gain is proven."]),
        *(_lack(axis, better, config) for axis in (uncertain if better else axes)),
    ]


def _lack(axis: Axis, better: Sequence[str], config: TrainConfig) -> str:
    """What it would take to decide about an axis that was not: a proven gain, or a loss beyond the margin ruled out."""
    margin = config.gate_margin
    if better:
        if axis.difference <= -margin:
            return f"In {axis.name} it lost as much as the margin or more; more answers would hardly rule that out."
        return (
            f"In {axis.name} a loss beyond the margin of {100 * margin:g} points is not ruled out: "
            f"{_more(axis, axis.difference + margin, config)} would."
        )
    if -margin <= axis.low and axis.high <= margin:
        return f"In {axis.name} the critics are equal within the margin; more answers would hardly change that."
    if axis.difference <= 0:
        return f"In {axis.name} there is no gain that more answers could prove."
    return f"A gain of this size in {axis.name} would be proven by {_more(axis, axis.difference, config)}."


def _more(axis: Axis, distance: float, config: TrainConfig) -> str:
    """Answers beyond those there are that a difference of `distance` takes, if their variance stays as observed."""
    if axis.error == 0:
        return "more answers"
    needed = axis.items * ((z_score(config.gate_confidence) + NormalDist().inv_cdf(POWER)) * axis.error / distance) ** 2
    return f"roughly {max(1, math.ceil(needed) - axis.items)} more held-out answers"


def _sentence(axis: Axis, config: TrainConfig) -> str:
    text = (
        f"{axis.name.capitalize()}: {100 * axis.live:.1f} % live, {100 * axis.candidate:.1f} % candidate, on "
        f"{axis.items} answers to {axis.questions} questions; difference {100 * axis.difference:+.1f} points "
        f"[{100 * axis.low:+.1f}, {100 * axis.high:+.1f}], {axis.gained} answers gained and {axis.lost} lost."
    )
    if axis.gained == axis.lost == 0:
        # An interval without width claims too much: an event that n questions did not show can have this probability.
        unseen = 1 - ((1 - config.gate_confidence) / 2) ** (1 / axis.questions)
        text += f" Changes on less than {100 * unseen:.1f} % of questions would have gone unseen."
    elif axis.low > 0 and not axis.is_better(config.gate_confidence):
        text += f" On so few changes that may be chance (p = {axis.p_better:.3f})."
    return text
