"""May the candidate answer in place of the live critic? Decided by evidence that adds up over nights.

Candidate and live critic judge the same held-out answers at the served temperature, several samples an answer. Four
axes are compared, candidate - live: discriminability is verdict accuracy, balanced over right and wrong answers;
helpfulness is accuracy after refinement, over answers with a reference; utility is verdict accuracy at the share of
right answers that the deployment's own traffic has, at both ends of that share's interval. What decides is a bet on
each axis (`gadfly.evidence`): its error is counted once over all nights. Why these rules: docs/decisions/the-gate.md.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any, Self

from gadfly.calibration import log_odds
from gadfly.evidence import MeanTest, interval
from gadfly.grading import Grade
from gadfly.planning import FIRST_LINEAGE, GAIN_SHARES, MARGIN_ERROR
from gadfly.rates import Estimate, proportion
from gadfly.scoreboard import Threshold, fitted_threshold
from gadfly.trainer.measure.metrics import Judged, measure
from gadfly.training import GateOutcome, TrainConfig

LOSS_ERROR = 0.05  # chance to reject a candidate that lost nothing, per axis
LEAST_APART = 10  # units of answers apart from training, from which on the report compares the critics on them
LEAST_TRAFFIC = 30  # labelled answers of the deployment, from which on their share of right ones counts


# ------------------------------------------------------------------------------------------------------- observations


@dataclass(frozen=True, slots=True)
class Unit:
    """What a few questions show: changes from live to candidate, each a mean in [-1, 1].

    A unit holds answers of both classes, so that every axis is a weighted mean of its numbers. Answers to one question
    are right or wrong together, so they are never in two units.
    """

    right: float  # change in verdict accuracy over right answers
    wrong: float  # over wrong answers
    helpful: float | None  # change in accuracy after refinement; None without a reference

    def at_share(self, right_share: float) -> float:
        """The change in verdict accuracy where this share of all answers is right."""
        return right_share * self.right + (1 - right_share) * self.wrong

    @property
    def balanced(self) -> float:
        return self.at_share(0.5)

    @property
    def both(self) -> float:
        return self.balanced if self.helpful is None else (self.balanced + self.helpful) / 2

    def to_json(self) -> list[float | None]:
        return [_short(self.right), _short(self.wrong), None if self.helpful is None else _short(self.helpful)]

    @classmethod
    def from_json(cls, values: Sequence[float | None]) -> Self:
        right, wrong, helpful = values
        assert right is not None
        assert wrong is not None
        return cls(right, wrong, helpful)


@dataclass(slots=True)
class _Question:
    right: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)
    helpful_right: list[float] = field(default_factory=list)
    helpful_wrong: list[float] = field(default_factory=list)

    def __add__(self, other: "_Question") -> "_Question":
        return _Question(
            self.right + other.right,
            self.wrong + other.wrong,
            self.helpful_right + other.helpful_right,
            self.helpful_wrong + other.helpful_wrong,
        )

    def to_unit(self) -> Unit:
        helpful = [_mean(changes) for changes in (self.helpful_right, self.helpful_wrong) if changes]
        return Unit(_mean(self.right), _mean(self.wrong), _mean(helpful) if helpful else None)


def units_of(before: Sequence[Judged], after: Sequence[Judged]) -> list[Unit]:
    """The changes from one critic to another, in units of whole questions, in the order of the questions' hashes.

    A question with answers of both classes is a unit of its own. Of the others, those of the rarer class are dealt the
    questions of the commoner class; where one class is missing, there is no unit.

    Raises:
        ValueError: the two did not judge the same items, or one was not asked for a verdict.
    """
    questions: dict[bytes, _Question] = {}
    answers: dict[tuple[bytes, str], list[tuple[Judged, Judged]]] = {}
    for one, other in paired(before, after):
        answers.setdefault((one.question_hash, str(one.answer_id)), []).append((one, other))
    for (hash_, _), samples in sorted(answers.items()):
        question = questions.setdefault(hash_, _Question())
        was_right = samples[0][0].was_right
        verdict = _mean([other.is_verdict_right - one.is_verdict_right for one, other in samples])
        (question.right if was_right else question.wrong).append(verdict)
        refined = [
            (other.refined is Grade.RIGHT) - (one.refined is Grade.RIGHT)
            for one, other in samples
            if one.refined is not None
        ]
        if refined:
            (question.helpful_right if was_right else question.helpful_wrong).append(_mean(refined))
    whole = [question for question in questions.values() if question.right and question.wrong]
    right = [question for question in questions.values() if not question.wrong]
    wrong = [question for question in questions.values() if not question.right]
    rarer, commoner = sorted((right, wrong), key=len)
    groups = list(rarer)
    for number, question in enumerate(commoner if rarer else ()):
        groups[number % len(groups)] += question
    return [group.to_unit() for group in (*whole, *groups)]


def paired(before: Sequence[Judged], after: Sequence[Judged]) -> list[tuple[Judged, Judged]]:
    """The items of two critics side by side, in the order of their keys. Raises as `units_of`."""
    ours, theirs = ({item.key: item for item in items} for items in (before, after))
    if len(ours) != len(before) or len(theirs) != len(after):
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All observations of a lineage of candidates under one live critic: of earlier nights, and of this one.

    A lineage is a candidate and those that later runs made from it. `lineage` counts the lineages under this live
    critic, from 1; each may spend a share of the error budget.
    """

    units: tuple[Unit, ...] = ()
    anchored: tuple[Unit, ...] = ()  # changes from the anchor to the candidate
    apart: tuple[Unit, ...] = ()  # of questions without a near neighbour in training alone; they do not decide
    right: int = 0  # answers seen, by class
    wrong: int = 0
    questions: frozenset[str] = frozenset()  # the first bytes of their hashes (hex); none is counted twice
    nights: int = 0
    lineage: int = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "units": [unit.to_json() for unit in self.units],
            "anchored": [unit.to_json() for unit in self.anchored],
            "apart": [unit.to_json() for unit in self.apart],
            "right": self.right,
            "wrong": self.wrong,
            "questions": sorted(self.questions),
            "nights": self.nights,
            "lineage": self.lineage,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            units=tuple(map(Unit.from_json, values["units"])),
            anchored=tuple(map(Unit.from_json, values["anchored"])),
            apart=tuple(map(Unit.from_json, values.get("apart", ()))),  # earlier releases did not measure them
            right=values["right"],
            wrong=values["wrong"],
            questions=frozenset(values["questions"]),
            nights=values["nights"],
            lineage=values["lineage"],
        )

    def with_night(
        self,
        live: Sequence[Judged],
        candidate: Sequence[Judged],
        anchor: Sequence[Judged] | None,
        apart: Collection[bytes] = frozenset(),
    ) -> "Evidence":
        """This evidence and a night's. Answers to questions that it holds already add nothing to it.

        `apart` has the hashes of the questions without a near neighbour in training.

        Raises:
            ValueError: as `units_of`.
        """
        paired(live, candidate)
        fresh, fresh_candidate = self._fresh(live), self._fresh(candidate)
        if not fresh:
            return self
        questions = {question_key(item.question_hash) for item in fresh}
        classes = {item.answer_id: item.was_right for item in fresh}
        anchored = units_of(self._fresh(anchor), fresh_candidate) if anchor is not None else []
        return Evidence(
            units=(*self.units, *units_of(fresh, fresh_candidate)),
            anchored=(*self.anchored, *anchored),
            apart=(*self.apart, *units_of(_of(fresh, apart), _of(fresh_candidate, apart))),
            right=self.right + sum(classes.values()),
            wrong=self.wrong + len(classes) - sum(classes.values()),
            questions=self.questions | questions,
            nights=self.nights + 1,
            lineage=self.lineage,
        )

    def _fresh(self, items: Sequence[Judged]) -> list[Judged]:
        return [item for item in items if question_key(item.question_hash) not in self.questions]


def _of(items: Sequence[Judged], questions: Collection[bytes]) -> list[Judged]:
    return [item for item in items if item.question_hash in questions]


def question_key(question_hash: bytes) -> str:
    """How `Evidence` names a question: 16 hex digits, enough to tell millions apart."""
    return question_hash[:8].hex()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Labelled answers of the deployment's own traffic."""

    right: int
    wrong: int

    def share_interval(self, confidence: float) -> tuple[float, float]:
        """Wilson's interval of the share of right answers."""
        share = proportion(self.right, self.right + self.wrong, confidence=confidence)
        assert share is not None
        return share.low, share.high


# ----------------------------------------------------------------------------------------------------------- the axes


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One comparison over all evidence. Accuracies and differences are shares in [0, 1] and [-1, 1].

    `live` and `candidate` are of this night alone. The wealths are e-values: 20 is an error of at most 1 in 20, however
    often the evidence is looked at.
    """

    name: str
    units: int
    live: float | None
    candidate: float | None
    difference: float
    low: float  # of the difference: a confidence sequence
    high: float
    gain: float  # wealth against "no gain"
    within_margin: float  # wealth against "a loss of the margin or more"
    loss: float  # wealth against "no loss"

    @property
    def is_worse(self) -> bool:
        return self.loss >= 1 / LOSS_ERROR

    @property
    def is_within_margin(self) -> bool:
        return self.within_margin >= 1 / MARGIN_ERROR


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """The gate's decision, the numbers that decided, and the same in sentences."""

    outcome: GateOutcome
    numbers: dict[str, Any]
    reasons: list[str]

    def beside(self, numbers: Mapping[str, Any], sentences: Iterable[str]) -> "GateReport":
        """The same decision with more numbers and sentences in its report."""
        return replace(self, numbers=self.numbers | dict(numbers), reasons=[*self.reasons, *sentences])

    def to_json(self) -> dict[str, Any]:
        return {"outcome": self.outcome.value, "numbers": self.numbers, "reasons": self.reasons}


def decide(
    live: Sequence[Judged],
    candidate: Sequence[Judged],
    config: TrainConfig,
    *,
    anchor: Sequence[Judged] | None = None,
    past: Evidence | None = None,
    traffic: Traffic | None = None,
    apart: Collection[bytes] | None = None,
) -> GateReport:
    """Add a night's items to the evidence of earlier nights, and decide.

    - Fewer than `gate_min_items` right or wrong answers: not enough evidence.
    - A proven loss on any axis: reject, even if other axes gained.
    - A proven gain, no axis where a loss of `gate_margin` is still possible, and no class under `gate_floor`: promote.
    - Else: not enough evidence. The next run starts from this candidate and adds fresh answers.

    With fewer than `gate_min_items` referenced answers helpfulness does not count; with fewer than `LEAST_TRAFFIC`
    labelled answers of the deployment's own, neither does utility.

    Args:
        live: this night's items, at the served temperature. Those of questions that `past` holds count in the rates
            of this night, and not as evidence.
        candidate: the same items, in any order.
        config: margin, confidence and the other options of the gate.
        anchor: the same items, judged by a fixed critic that no chain of small losses may fall behind; None where that
            is the live one.
        past: the evidence of the candidates that this one was made from, under the same live critic.
        traffic: labelled answers of the deployment's own traffic, by class.
        apart: the hashes of the questions without a near neighbour in training. Their result is reported beside that
            of all, and does not decide. None: not known.

    Raises:
        ValueError: the critics did not judge the same items, or one was not asked for a verdict.
    """
    evidence = (past or Evidence()).with_night(live, candidate, anchor, apart or frozenset())
    helpful = [unit.helpful for unit in evidence.units if unit.helpful is not None]
    axes = _axes(evidence.units, live, candidate, config, traffic)
    set_apart = None if apart is None else _set_apart(evidence, live, candidate, config, traffic, apart)
    anchored = _anchored(evidence, config)
    measured = {
        name: measure(items, confidence=config.gate_confidence)
        for name, items in (("live", live), ("candidate", candidate))
    }
    alone = threshold_alone(live)
    needed = wealth_needed(config, evidence.lineage)
    wealth = _gain(evidence, axes)
    by_name = {axis.name: axis for axis in axes}
    numbers = {
        "items": len({item.answer_id for item in live}),
        "right": evidence.right,
        "wrong": evidence.wrong,
        "questions": len({item.question_hash for item in live}),
        "with_reference": len({item.answer_id for item in live if item.refined is not None}),
        "confidence": config.gate_confidence,
        "margin": config.gate_margin,
        "min_items": config.gate_min_items,
        "samples": 1 + max((item.sample for item in live), default=0),
        "seed": config.fixed_seed,
        "wealth": wealth,
        "wealth_needed": needed,
        "discriminability": _plain(by_name.get("discriminability")),
        "helpfulness": _plain(by_name.get("helpfulness")),
        "utility": [_plain(axis) for axis in axes if axis.name.startswith("utility")],
        "anchor": [_plain(axis) for axis in anchored],
        "apart": None if set_apart is None else set_apart.to_json(),
        "traffic": None if traffic is None else asdict(traffic),
        "live": measured["live"].to_json(),
        "candidate": measured["candidate"].to_json(),
        "threshold_alone": None if alone is None else asdict(alone),
        "evidence": evidence.to_json(),
    }

    if not axes or min(evidence.right, evidence.wrong) < config.gate_min_items:
        return GateReport(
            outcome=GateOutcome.NOT_ENOUGH_EVIDENCE, numbers=numbers, reasons=[_too_few(evidence, config)]
        )
    reasons = [_sentence(axis, nights=evidence.nights) for axis in axes]
    if set_apart is not None:
        reasons.append(set_apart.sentence(of=len({item.answer_id for item in live})))
    if "helpfulness" not in by_name:
        count = f"only {len(helpful)} units have" if helpful else "no held-out answer has"
        reasons.append(f"Helpfulness does not count, since {count} a reference.")
    if traffic is None:
        reasons.append(
            f"Utility on the deployment's own traffic does not count: fewer than {LEAST_TRAFFIC} of its answers have "
            "a label."
        )
    if alone is not None:
        reasons.append(_about_threshold(alone, measured["candidate"].discrimination_balanced))
    low_classes = _below_floor(measured["candidate"].to_json(), config)
    outcome, why = _outcome(axes, anchored, low_classes, wealth=wealth, needed=needed, config=config)
    return GateReport(outcome=outcome, numbers=numbers, reasons=reasons + why)


def wealth_needed(config: TrainConfig, lineage: int) -> float:
    """The evidence of a gain that the n-th lineage under one live critic needs.

    The error budget, 1 - `gate_confidence`, is shared out over all lineages that there may be, most of it to the first.
    """
    share = FIRST_LINEAGE if lineage == 1 else (1 - FIRST_LINEAGE) * 6 / math.pi**2 / (lineage - 1) ** 2
    return 1 / ((1 - config.gate_confidence) * share)


def threshold_alone(live: Sequence[Judged]) -> Threshold | None:
    """What the live critic would reach without training, by a verdict threshold fitted to the same held-out answers.

    Cross-fitted over questions; the first sample of one answer of either class to each question counts.
    """
    judged: dict[tuple[bytes, bool], tuple[bytes, float, bool]] = {}
    for item in sorted(live, key=lambda each: (each.round, each.sample, each.answer_id)):
        odds = log_odds(item.p_correct, item.p_incorrect)
        if odds is not None:
            judged.setdefault((item.question_hash, item.was_right), (item.question_hash, odds, item.was_right))
    return fitted_threshold(list(judged.values()))


def _about_threshold(alone: Threshold, candidate: Estimate | None) -> str:
    reached = "" if candidate is None else f"; the candidate judges {100 * candidate.value:.1f} %"
    value, low, high = (100 * share for share in (alone.balanced.value, alone.balanced.low, alone.balanced.high))
    return (
        f"Without training, a threshold fitted to the live critic's probabilities would judge {value:.1f} % of both "
        f"classes rightly ({low:.1f} to {high:.1f} %, cross-fitted){reached}. This does not decide."
    )


@dataclass(frozen=True, slots=True)
class _SetApart:
    """The result on questions without a near neighbour in training, where no critic can remember a near-duplicate."""

    items: int  # of this night
    questions: int
    axes: Sequence[Axis]

    def to_json(self) -> dict[str, Any]:
        by_name = {axis.name: axis for axis in self.axes}
        return {
            "items": self.items,
            "questions": self.questions,
            "discriminability": _plain(by_name.get("discriminability")),
            "helpfulness": _plain(by_name.get("helpfulness")),
            "utility": [_plain(axis) for axis in self.axes if axis.name.startswith("utility")],
        }

    def sentence(self, *, of: int) -> str:
        enough = [axis for axis in self.axes if axis.units >= LEAST_APART]
        found = " ".join(map(_sentence, enough)) or "They are too few to compare the critics on them."
        return (
            f"{self.items} of the {of} held-out answers are to questions without a near neighbour in training; "
            f"these do not decide by themselves. {found}"
        )


def _set_apart(
    evidence: Evidence,
    live: Sequence[Judged],
    candidate: Sequence[Judged],
    config: TrainConfig,
    traffic: Traffic | None,
    apart: Collection[bytes],
) -> _SetApart:
    ours, theirs = _of(live, apart), _of(candidate, apart)
    return _SetApart(
        items=len({item.answer_id for item in ours}),
        questions=len({item.question_hash for item in ours}),
        axes=_axes(evidence.apart, ours, theirs, config, traffic),
    )


def compare(
    before: Sequence[Judged], after: Sequence[Judged], config: TrainConfig, *, traffic: Traffic | None = None
) -> list[Axis]:
    """The axes of one critic against another on these items alone; empty without answers of both classes.

    Raises:
        ValueError: as `units_of`.
    """
    return _axes(units_of(before, after), before, after, config, traffic)


def _axes(
    units: Sequence[Unit],
    live: Sequence[Judged],
    candidate: Sequence[Judged],
    config: TrainConfig,
    traffic: Traffic | None,
) -> list[Axis]:
    if not units:
        return []
    before, after = _by_class(live), _by_class(candidate)
    axes = [
        _axis("discriminability", [unit.balanced for unit in units], config, _at(before, 0.5), _at(after, 0.5)),
    ]
    helpful = [unit.helpful for unit in units if unit.helpful is not None]
    references = len({item.answer_id for item in live if item.refined is not None})
    if helpful and (references >= config.gate_min_items or len(helpful) >= config.gate_min_items):
        axes.append(_axis("helpfulness", helpful, config, _refined(live), _refined(candidate)))
    if traffic is not None:
        low, high = traffic.share_interval(config.gate_confidence)
        axes += [
            _axis(
                f"utility at {100 * share:.0f} % right answers",
                [unit.at_share(share) for unit in units],
                config,
                _at(before, share),
                _at(after, share),
            )
            for share in (low, high)
        ]
    return axes


def _anchored(evidence: Evidence, config: TrainConfig) -> list[Axis]:
    units = evidence.anchored
    if not units:
        return []
    axes = [_axis("discriminability against the anchor", [unit.balanced for unit in units], config)]
    helpful = [unit.helpful for unit in units if unit.helpful is not None]
    if len(helpful) >= config.gate_min_items:
        axes.append(_axis("helpfulness against the anchor", helpful, config))
    return axes


def _axis(
    name: str,
    observations: Sequence[float],
    config: TrainConfig,
    live: float | None = None,
    candidate: float | None = None,
) -> Axis:
    low, high = interval(observations, alpha=1 - config.gate_confidence)
    return Axis(
        name=name,
        units=len(observations),
        live=live,
        candidate=candidate,
        difference=_mean(observations),
        low=low,
        high=high,
        gain=MeanTest.of(observations).wealth,
        within_margin=MeanTest.of(observations, null=-config.gate_margin).wealth,
        loss=MeanTest.of([-observation for observation in observations]).wealth,
    )


def _gain(evidence: Evidence, axes: Sequence[Axis]) -> float:
    """The wealth of one bet, shared out over all axes, on there being any gain."""
    tests = {
        "discriminability": [MeanTest.of(unit.balanced for unit in evidence.units)],
        "both": [MeanTest.of(unit.both for unit in evidence.units)],
        "helpfulness": [
            MeanTest.of(unit.helpful for unit in evidence.units if unit.helpful is not None)
            for axis in axes
            if axis.name == "helpfulness"
        ],
    }
    wealths = {name: found[0].wealth for name, found in tests.items() if found}
    utility = [axis.gain for axis in axes if axis.name.startswith("utility")]
    if utility:  # the smaller one: a gain at every share that the traffic may have
        wealths["utility"] = min(utility)
    if "helpfulness" not in wealths:  # then `both` is discriminability
        wealths["both"] = wealths["discriminability"]
    total = math.fsum(GAIN_SHARES[name] for name in wealths)
    return math.fsum(GAIN_SHARES[name] / total * wealth for name, wealth in wealths.items())


# ----------------------------------------------------------------------------------------------------------- the rule


def _outcome(
    axes: Sequence[Axis],
    anchored: Sequence[Axis],
    low_classes: Sequence[str],
    *,
    wealth: float,
    needed: float,
    config: TrainConfig,
) -> tuple[GateOutcome, list[str]]:
    worse = [axis.name for axis in (*axes, *anchored) if axis.is_worse]
    if worse:
        return GateOutcome.REJECT, [f"The candidate is worse in {' and '.join(worse)}."]
    has_gained = wealth >= needed
    open_axes = [axis for axis in (*axes, *anchored) if not axis.is_within_margin]
    if has_gained and not open_axes and not low_classes:
        return GateOutcome.PROMOTE, [
            f"A gain is proven (evidence {wealth:.3g}, needed {needed:.3g}), and a loss of "
            f"{100 * config.gate_margin:g} points is ruled out on every axis."
        ]
    reasons = [
        f"A gain is proven (evidence {wealth:.3g}, needed {needed:.3g})."
        if has_gained
        else f"No gain is proven yet: the evidence is {wealth:.3g} and {needed:.3g} is needed."
    ]
    if open_axes:
        names = " and ".join(axis.name for axis in open_axes)
        reasons.append(f"A loss of {100 * config.gate_margin:g} points is not ruled out in {names}.")
    reasons += low_classes
    more = max((_more(axis, has_gained=has_gained, needed=needed, config=config) for axis in axes), default=0)
    reasons.append(
        f"The next run starts from this candidate and adds fresh held-out answers; roughly {more} more would decide."
        if more
        else "The next run starts from this candidate and adds fresh held-out answers."
    )
    return GateOutcome.NOT_ENOUGH_EVIDENCE, reasons


def _more(axis: Axis, *, has_gained: bool, needed: float, config: TrainConfig) -> int:
    """Answers beyond the present ones that would decide about an axis, if its difference and spread stay as they are.

    A bet on a mean m with variance v gains about m^2 / 2v nats per unit, and a unit holds at least two answers.
    """
    distance = axis.difference + config.gate_margin if has_gained or axis.difference <= 0 else axis.difference
    if distance <= 0 or axis.units < 2 or axis.high <= axis.low:
        return 0
    width = (axis.high - axis.low) / 2
    variance = axis.units * (width / NormalDist().inv_cdf(0.997)) ** 2
    units = 2 * variance * math.log(max(needed, 1 / MARGIN_ERROR)) / distance**2
    return max(0, 2 * (math.ceil(units) - axis.units))


def _below_floor(candidate: Mapping[str, Any], config: TrainConfig) -> list[str]:
    if config.gate_floor is None:
        return []
    found = []
    for name, key in (("right", "discrimination_right"), ("wrong", "discrimination_wrong")):
        share = candidate.get(key)
        if share is not None and share["value"] < config.gate_floor:
            found.append(
                f"Of the {name} answers the candidate judges {100 * share['value']:.1f} % rightly, and the floor is "
                f"{100 * config.gate_floor:g} %."
            )
    return found


def _too_few(evidence: Evidence, config: TrainConfig) -> str:
    lacks = [
        f"{config.gate_min_items - count} more {name} ones"
        for name, count in (("right", evidence.right), ("wrong", evidence.wrong))
        if count < config.gate_min_items
    ]
    return (
        f"Of the held-out answers {evidence.right} are right and {evidence.wrong} are wrong, and the gate needs "
        f"{config.gate_min_items} of each: {' and '.join(lacks) or 'more questions of both kinds'}."
    )


def _sentence(axis: Axis, *, nights: int = 1) -> str:
    tonight = (
        ""
        if axis.live is None or axis.candidate is None
        else f" {100 * axis.live:.1f} % live, {100 * axis.candidate:.1f} % candidate;"
    )
    runs = f" over {nights} runs" if nights > 1 else ""
    return (
        f"{axis.name[0].upper()}{axis.name[1:]}:{tonight} difference {100 * axis.difference:+.1f} points "
        f"[{100 * axis.low:+.1f}, {100 * axis.high:+.1f}] on {axis.units} units{runs}."
    )


# ------------------------------------------------------------------------------------------------------------ numbers


def _by_class(items: Sequence[Judged]) -> dict[bool, list[bool]]:
    found: dict[bool, list[bool]] = {True: [], False: []}
    for item in items:
        found[item.was_right].append(item.is_verdict_right)
    return found


def _at(by_class: Mapping[bool, Sequence[bool]], share: float) -> float | None:
    if not by_class[True] or not by_class[False]:
        return None
    return share * _mean(by_class[True]) + (1 - share) * _mean(by_class[False])


def _refined(items: Sequence[Judged]) -> float | None:
    refined = [item.refined is Grade.RIGHT for item in items if item.refined is not None]
    return _mean(refined) if refined else None


def _plain(axis: Axis | None) -> dict[str, Any] | None:
    return None if axis is None else asdict(axis)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _short(value: float) -> float:
    return round(value, 6)
