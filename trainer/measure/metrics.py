"""Metrics of a critic: from judged answers to rates with their counts and intervals.

Names are those of Critique-RL (arXiv 2510.24320). This module differs from the code released with it in two ways: items
without a verdict count in Acc@Dis (the rate over the parseable ones alone is reported beside it), and a text with two
verdicts is never right. An empty class has no rate: None, not 0.

The intervals treat answers as independent. Several answers share a question, so the intervals are slightly too narrow;
the gate (`trainer/measure/gate.py`) takes whole questions as units instead.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import numpy as np

from gadfly.fields import HexBytes
from gadfly.grading import Grade
from gadfly.rates import Estimate, Proportion, auroc, balanced, proportion, z_score
from gadfly.trainer.rl.rewards import states_the_truth
from gadfly.verdict import Verdict

CALIBRATION_BINS = 10  # of equal width over [0, 1]


# ------------------------------------------------------------------------------------------------------------ the items


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One answer, a critic's verdict on it, and the grade of the actor's refinement with that critique.

    `stated` is the verdict in the text and counts in every rate. `served` is the verdict that callers see: the stated
    one, or the one read from the engine. Both are None without a critic.
    """

    answer_id: UUID
    question_hash: HexBytes
    was_right: bool
    stated: Verdict | None = None
    served: Verdict | None = None
    verdict_lines: int = 0  # more than one is hedging
    p_correct: float | None = None  # probability of the verdict word, over the full vocabulary
    p_incorrect: float | None = None
    refined: Grade | None = None  # None: not refined, or no reference
    critique_tokens: int = 0
    refinement_tokens: int = 0
    leaks_gold: bool | None = None  # None: no reference
    is_too_long: bool = False  # question, answer (and critique) do not fit the model; counts as a wrong verdict
    round: int = 0
    sample: int = 0

    @property
    def key(self) -> str:
        """Identifies the item, equally under every critic."""
        return f"{self.answer_id}/{self.round}/{self.sample}"

    @property
    def is_verdict_right(self) -> bool:
        return states_the_truth(self.stated, was_right=self.was_right)

    @property
    def p_right(self) -> float | None:
        """The critic's probability that the answer is right, among the two verdict words."""
        if self.p_correct is None or self.p_incorrect is None or self.p_correct + self.p_incorrect <= 0:
            return None
        return self.p_correct / (self.p_correct + self.p_incorrect)


# ---------------------------------------------------------------------------------------------------------------- rates


@dataclass(frozen=True, slots=True)
class MeasuredBin:
    """The items whose probability is in one bin: their mean probability, and the proportion of right answers."""

    mean_p: float
    right: Proportion


@dataclass(frozen=True, slots=True)
class MeasuredCalibration:
    """The agreement of the probability that an answer is right with whether it is right.

    `ece` is the expected calibration error over `CALIBRATION_BINS` bins of equal width: the mean of |mean probability -
    share right|, weighted by items. `auroc` is the chance that a right answer has a higher probability than a wrong
    one.
    """

    items: int
    ece: float
    bins: tuple[MeasuredBin, ...]  # the non-empty ones
    auroc: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticMetrics:
    """All rates of one evaluation. `joint` rates are per item, `conditional` ones per item of the class."""

    items: int
    questions: int
    too_long: int
    accuracy: Proportion | None  # Acc, no critic: all items
    # Of the items that were refined and graded
    accuracy_before: Proportion | None
    accuracy_refined: Proportion | None  # Acc@Refine
    delta: Estimate | None  # Acc@Refine - Acc = fixed_joint - broken_joint
    fixed_joint: Proportion | None  # wrong -> right
    broken_joint: Proportion | None  # right -> wrong
    fixed_conditional: Proportion | None
    broken_conditional: Proportion | None
    # Of the items that a critic judged
    discrimination: Proportion | None  # Acc@Dis: a missing verdict is not right
    discrimination_parseable: Proportion | None  # Acc@Dis as published, without the items that have no verdict
    discrimination_right: Proportion | None  # over originally right answers
    discrimination_wrong: Proportion | None
    discrimination_balanced: Estimate | None  # mean of the two
    served_discrimination: Proportion | None  # by the verdict that callers see
    served_balanced: Estimate | None
    coverage: Proportion | None  # of critiques with exactly one verdict
    double_verdicts: Proportion | None
    called_correct: Proportion | None  # of the parseable ones
    leakage: Proportion | None  # of the critiques of wrong answers with a reference, those that give it away
    calibration: MeasuredCalibration | None
    mean_critique_tokens: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _share(flags: Iterable[bool], confidence: float) -> Proportion | None:
    flags = list(flags)
    return proportion(sum(flags), len(flags), confidence=confidence)


def paired_difference(gained: int, lost: int, of: int, *, confidence: float = 0.95) -> Estimate | None:
    """(gained - lost) / of, with Agresti and Min's interval (2005): Wald's with half an item added to each cell."""
    if of == 0:
        return None
    n, difference = of + 2, gained - lost
    error = math.sqrt((gained + lost + 1) - difference**2 / n) / n
    z = z_score(confidence)
    return Estimate(difference / of, of, max(-1.0, difference / n - z * error), min(1.0, difference / n + z * error))


def calibration(
    scores: Sequence[float], labels: Sequence[bool], *, confidence: float = 0.95
) -> MeasuredCalibration | None:
    """ECE with its bins and AUROC, where `scores` are the probabilities that `labels` are true; None without items."""
    if not scores:
        return None
    members: dict[int, list[int]] = {}
    for index, (score, _) in enumerate(zip(scores, labels, strict=True)):
        members.setdefault(min(int(score * CALIBRATION_BINS), CALIBRATION_BINS - 1), []).append(index)
    bins: list[MeasuredBin] = []
    error = 0.0
    for _, indices in sorted(members.items()):
        mean_p = math.fsum(scores[index] for index in indices) / len(indices)
        right = proportion(sum(labels[index] for index in indices), len(indices), confidence=confidence)
        assert right is not None
        bins.append(MeasuredBin(mean_p, right))
        error += abs(mean_p - right.value) * len(indices) / len(scores)
    return MeasuredCalibration(len(scores), error, tuple(bins), auroc(scores, labels, confidence=confidence))


def _stated(item: Judged) -> Verdict | None:
    return item.stated


def _served(item: Judged) -> Verdict | None:
    return item.served


def measure(items: Sequence[Judged], *, confidence: float = 0.95) -> CriticMetrics:
    """Every rate of an evaluation. The fields of `CriticMetrics` define which items count in each."""
    refined = [item for item in items if item.refined is not None]
    now_right = [item.refined is Grade.RIGHT for item in refined]
    fixed = sum(is_right and not item.was_right for item, is_right in zip(refined, now_right, strict=True))
    broken = sum(item.was_right and not is_right for item, is_right in zip(refined, now_right, strict=True))
    were_right = sum(item.was_right for item in refined)

    judged = [item for item in items if item.stated is not None]
    parseable = [item for item in judged if item.stated is not Verdict.UNPARSED]
    leaks = [item.leaks_gold for item in judged if item.leaks_gold is not None and not item.was_right]
    probabilities = [(item.p_right, item.was_right) for item in judged if item.p_right is not None]

    def of_class(pick: Callable[[Judged], Verdict | None], was_right: bool) -> Proportion | None:
        same = (item for item in judged if item.was_right is was_right)
        return _share((states_the_truth(pick(item), was_right=was_right) for item in same), confidence)

    stated_of_right, stated_of_wrong = of_class(_stated, True), of_class(_stated, False)

    def rate(hits: int, of: int) -> Proportion | None:
        return proportion(hits, of, confidence=confidence)

    return CriticMetrics(
        items=len(items),
        questions=len({item.question_hash for item in items}),
        too_long=sum(item.is_too_long for item in items),
        accuracy=_share((item.was_right for item in items), confidence),
        accuracy_before=rate(were_right, len(refined)),
        accuracy_refined=rate(sum(now_right), len(refined)),
        delta=paired_difference(fixed, broken, len(refined), confidence=confidence),
        fixed_joint=rate(fixed, len(refined)),
        broken_joint=rate(broken, len(refined)),
        fixed_conditional=rate(fixed, len(refined) - were_right),
        broken_conditional=rate(broken, were_right),
        discrimination=_share((item.is_verdict_right for item in judged), confidence),
        discrimination_parseable=_share((item.is_verdict_right for item in parseable), confidence),
        discrimination_right=stated_of_right,
        discrimination_wrong=stated_of_wrong,
        discrimination_balanced=balanced(stated_of_right, stated_of_wrong),
        served_discrimination=_share(
            (states_the_truth(item.served, was_right=item.was_right) for item in judged), confidence
        ),
        served_balanced=balanced(of_class(_served, True), of_class(_served, False)),
        coverage=rate(len(parseable), len(judged)),
        double_verdicts=_share((item.verdict_lines > 1 for item in judged), confidence),
        called_correct=_share((item.stated is Verdict.CORRECT for item in parseable), confidence),
        leakage=_share(leaks, confidence),
        calibration=calibration(
            [p for p, _ in probabilities], [was_right for _, was_right in probabilities], confidence=confidence
        ),
        mean_critique_tokens=math.fsum(item.critique_tokens for item in judged) / len(judged) if judged else None,
    )


# -------------------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """The results of several chains of critique and refinement of one answer, in order of sample."""

    answer_id: UUID
    question_hash: bytes
    groups: tuple[int, ...]  # number of each chain's final answer; equal answers have equal numbers
    rights: tuple[bool, ...]  # whether that answer is right
    tokens: tuple[int, ...]  # of the chain's critiques and refinements: its cost


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMetrics:
    """Rates at K samples an answer."""

    k: int
    majority: Proportion  # MV@K: the commonest of the first K final answers is right; of equally common ones the first
    any_hit: Proportion  # Pass@K as published: any of the first K is right
    pass_unbiased: Estimate  # Pass@K estimated from all samples (Chen et al. 2021, arXiv 2107.03374)
    mean_tokens: float  # of the first K, per answer


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of c right ones: 1 - C(n-c, k) / C(n, k)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def is_majority_right(samples: Samples, k: int) -> bool:
    """Whether the commonest of the first k final answers is right."""
    groups = samples.groups[:k]
    commonest, _ = Counter(groups).most_common(1)[0]  # of equally common ones the first
    return samples.rights[groups.index(commonest)]


def measure_samples(items: Sequence[Samples], k: int, *, confidence: float = 0.95) -> SampleMetrics | None:
    """MV@K and both kinds of Pass@K; None without items. The unbiased Pass@K has the normal interval of a mean.

    Raises:
        ValueError: an item has fewer than k samples.
    """
    if any(len(item.rights) < k for item in items):
        raise ValueError(f"every item needs at least {k} samples")
    majority = _share((is_majority_right(item, k) for item in items), confidence)
    any_hit = _share((any(item.rights[:k]) for item in items), confidence)
    if majority is None or any_hit is None:
        return None
    passes = np.array([pass_at_k(len(item.rights), sum(item.rights), k) for item in items])
    mean = float(passes.mean())
    half = z_score(confidence) * float(passes.std(ddof=1)) / math.sqrt(len(items)) if len(items) > 1 else 1.0
    return SampleMetrics(
        k=k,
        majority=majority,
        any_hit=any_hit,
        pass_unbiased=Estimate(mean, len(items), max(0.0, mean - half), min(1.0, mean + half)),
        mean_tokens=sum(sum(item.tokens[:k]) for item in items) / len(items),
    )
