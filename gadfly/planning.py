"""The plan of a training run before it starts: its answers, their number per stage, what its gate can detect.

Pure functions, because the service answers a dry run with them. The trainer selects its validation questions and its
held-out answers with the same functions, so that a run follows its plan.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import NormalDist
from uuid import UUID

from gadfly.guessing import Guessing
from gadfly.scoreboard import Scoreboard, Threshold
from gadfly.settings import Settings
from gadfly.store.training_data import LabelledAnswer, source_counts
from gadfly.training import ChosenOption, Recipe, TrainConfig, WarmStart
from gadfly.votes import Contradiction, LabelModel

POWER = 0.8  # the probability that the gate detects a difference of the given size
DISCORDANCE = 0.2  # assumed share of answers on which one sample of candidate and live critic differ
FIRST_LINEAGE = 0.8  # share of the gate's error budget for the first candidates under one live critic
GAIN_SHARES = {  # of the first wealth that the gate bets on a gain, by axis
    "discriminability": 0.15,
    "helpfulness": 0.15,
    "both": 0.5,
    "utility": 0.2,
}
MARGIN_ERROR = 0.1  # the gate's chance to take a loss of the margin for a smaller one, per axis

_LASTING = 0.03  # share of the discordance that more samples of an answer do not average out
_BETTING_NATS = 1.5  # the cost of not knowing the best bet beforehand


@dataclass(frozen=True, kw_only=True, slots=True)
class Portion:
    """Counts over a set of answers."""

    answers: int
    questions: int
    right: int
    wrong: int
    by_source: dict[str, int]

    @classmethod
    def of(cls, answers: Sequence[LabelledAnswer]) -> "Portion":
        right = sum(answer.is_right for answer in answers)
        return cls(
            answers=len(answers),
            questions=len({answer.question_hash for answer in answers}),
            right=right,
            wrong=len(answers) - right,
            by_source=source_counts(answers),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The answers that a run learns from and is measured on. Detectable differences are shares; None: too few answers.

    `seconds` estimates sampling and learning in both stages and the evaluation; None without an earlier run as a basis.
    """

    train_ids: (
        tuple[UUID, ...] | None
    )  # learned from: interactions, and refinements that were served; None: not asked for
    validation_ids: tuple[UUID, ...] | None  # of the train side, never learned from
    heldout_ids: tuple[UUID, ...] | None  # judged by both critics
    ids_sha256: str  # of the three lists: two plans with the same hash are about the same answers
    stage_1: Portion  # all labelled
    stage_2: Portion  # those with a reference
    pool_answers: int  # first answers that the actor samples in addition
    validation: Portion
    heldout: Portion
    heldout_with_reference: Portion
    steps: int
    detectable_discriminability: float | None
    detectable_helpfulness: float | None
    questions_for_margin: int | None  # needed to rule out a loss beyond the margin on an axis that did not change
    assumed_discordance: float
    power: float
    seconds: float | None
    expected_mislabelled: dict[str, float]  # of `stage_1`, by label: answers whose label is probably false
    beyond_key_share: int  # labelled answers that are left out because of the setting max_key_share
    contradicting_keys: tuple[UUID | None, ...]  # whose labels contradict those of the others
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    actor_answers: int = 0  # the most that the actor is asked for: first answers and refinements, with the evaluation's
    threshold_alone: Threshold | None = None  # of the live critic, without training; None: too few judged answers
    guessing: Guessing | None = None  # of `stage_1`; None: the number of possible answers is not known
    next_step: str = ""  # what to do next, in a sentence
    options: tuple[ChosenOption, ...] = ()  # of the run, where they are not left at their defaults

    def without_ids(self) -> "Plan":
        """The same plan without the lists of ids, which are long; their hash and the counts stay."""
        return replace(self, train_ids=None, validation_ids=None, heldout_ids=None)


def plan(
    train: Sequence[LabelledAnswer],
    heldout: Sequence[LabelledAnswer],
    config: TrainConfig,
    *,
    seconds_per_step_history: float | None,
    max_key_share: float = 1.0,
    train_questions: int = 0,
    heldout_questions: int = 0,
) -> Plan:
    """The plan of a run with `config` over the labelled answers on either side of the training wall.

    `train_questions` and `heldout_questions` count the questions on either side that only the actor answers.
    `seconds_per_step_history` is the duration of a rollout step in an earlier run with steps of the same size.
    """
    labelled = len(train) + len(heldout)
    train, heldout = within_key_share(train, max_key_share), within_key_share(by_hash(heldout), max_key_share)
    share = config.validation_share if config.validates else 0.0
    learn, validate = validation_split(train, share)
    referenced = [answer for answer in learn if answer.reference is not None]
    judged = evaluation_items(heldout, config.evaluation_items)
    judged_referenced = [answer for answer in judged if answer.reference is not None]
    stage_2 = Portion.of(referenced)
    pool_questions = min(config.pool_questions_to_learn_from, stage_2.questions + train_questions)
    pool_answers = pool_questions * config.pool_samples
    units = min(_questions(judged, is_right=True), _questions(judged, is_right=False))
    detectable = (
        _detectable("discriminability", units, config),
        _detectable("helpfulness", Portion.of(judged_referenced).questions / 2, config),
    )
    seconds = None if seconds_per_step_history is None else _seconds(seconds_per_step_history, len(judged), config)
    ids = [tuple(answer.id for answer in part) for part in (learn, validate, judged)]
    return Plan(
        train_ids=ids[0],
        validation_ids=ids[1],
        heldout_ids=ids[2],
        ids_sha256=hashlib.sha256(repr([list(map(str, part)) for part in ids]).encode()).hexdigest(),
        stage_1=Portion.of(learn),
        stage_2=stage_2,
        pool_answers=pool_answers,
        actor_answers=_actor_answers(
            pool_answers,
            Portion.of(judged_referenced),
            config,
            heldout_questions=heldout_questions,
            refines=bool(referenced or train_questions),
        ),
        validation=Portion.of(validate),
        heldout=Portion.of(judged),
        heldout_with_reference=Portion.of(judged_referenced),
        steps=config.steps,
        detectable_discriminability=detectable[0],
        detectable_helpfulness=detectable[1],
        questions_for_margin=_questions_for_margin(config),
        assumed_discordance=DISCORDANCE,
        power=POWER,
        seconds=seconds,
        expected_mislabelled=expected_mislabelled(learn),
        beyond_key_share=labelled - len(train) - len(heldout),
        contradicting_keys=(),
        warnings=tuple(
            _warnings(
                learn,
                referenced,
                judged,
                judged_referenced,
                config,
                train_questions=train_questions,
                heldout_questions=heldout_questions,
            )
        ),
        next_step=_next_step(Portion.of(heldout), Portion.of([*learn, *validate]), config),
        notes=tuple(_notes(detectable, len(judged_referenced) >= config.gate_min_items, seconds, config)),
    )


def _actor_answers(
    pool_answers: int, heldout: Portion, config: TrainConfig, *, heldout_questions: int, refines: bool
) -> int:
    heldout_pool = min(config.pool_questions, heldout.questions + heldout_questions) * config.pool_samples
    judged = min(config.evaluation_items, heldout.answers + heldout_pool)
    refinements = 3 * judged * config.gate_samples  # for the candidate, the live critic, and at times a third one
    if config.recipe is Recipe.EXAMPLES:
        return pool_answers + heldout_pool + refinements
    if config.examples >= 2:
        refinements += judged  # for the critic by examples, which every candidate is compared with
    if refines:
        refinements += config.cycles * config.steps_stage_2 * config.prompts_per_step * config.samples_per_prompt
    if refines and config.warm_start is not WarmStart.NEVER:
        refinements += config.warm_start_prompts * config.samples_per_prompt
    return pool_answers + heldout_pool + refinements


def _detectable(axis: str, units: float, config: TrainConfig) -> float | None:
    nats = nats_needed(config, share=GAIN_SHARES[axis])
    return detectable_difference(units, nats=nats, samples=config.gate_samples)


def detectable_gain(questions: int, config: TrainConfig) -> float | None:
    """The smallest gain in discriminability that the gate sees with power `POWER`; None: there is none.

    `questions` are the held-out ones of the smaller class, right or wrong.
    """
    return _detectable("discriminability", min(questions, config.evaluation_items // 2), config)


def questions_for_gain(gain: float, config: TrainConfig) -> int:
    """Held-out questions of each class with which the gate sees such a gain in discriminability with power `POWER`."""
    nats = nats_needed(config, share=GAIN_SHARES["discriminability"])
    return max(config.gate_min_items, math.ceil(units_needed(gain, nats=nats, samples=config.gate_samples)))


def _questions_for_margin(config: TrainConfig) -> int | None:
    """Questions on which a loss of the margin is ruled out on an axis without a difference; None for a margin of 0."""
    if config.gate_margin == 0:
        return None
    nats = -math.log(MARGIN_ERROR) + _BETTING_NATS
    return math.ceil(2 * units_needed(config.gate_margin, nats=nats, samples=config.gate_samples))


def _questions(answers: Sequence[LabelledAnswer], *, is_right: bool) -> int:
    return len({answer.question_hash for answer in answers if answer.is_right is is_right})


def _seconds(per_step: float, judged: int, config: TrainConfig) -> float:
    # Sampling dominates the duration, so an evaluation counts as the steps that write as many critiques.
    evaluation = 2 * judged * config.gate_samples / (config.prompts_per_step * config.samples_per_prompt)
    return per_step * (config.steps + evaluation)


# ----------------------------------------------------------------------------------------------------------- selection


def validation_split(
    answers: Sequence[LabelledAnswer], share: float
) -> tuple[list[LabelledAnswer], list[LabelledAnswer]]:
    """Answers to learn from and answers to validate on, in order; about `share` of the questions are the latter's.

    The question's hash decides, so the split is the same in every run and all answers to a question are on one side.
    Its first eight bytes do not count: the first release decided by them between train and held-out.
    """
    learn: list[LabelledAnswer] = []
    validate: list[LabelledAnswer] = []
    for answer in answers:
        (validate if _is_validation(answer.question_hash, share) else learn).append(answer)
    return learn, validate


def is_for_validation(question_hash: bytes, config: TrainConfig) -> bool:
    """Whether answers to this question measure a run's progress and are never learned from."""
    return config.validates and _is_validation(question_hash, config.validation_share)


def _is_validation(question_hash: bytes, share: float) -> bool:
    return int.from_bytes(question_hash[8:16]) < share * 2**64


def evaluation_items(heldout: Sequence[LabelledAnswer], limit: int) -> list[LabelledAnswer]:
    """At most `limit` held-out answers for both critics to judge: classes balanced, from as many questions as possible.

    A shortage in one class is filled from the other. Questions are ordered by hash: the same answers give the same
    selection, and it favours neither new nor old questions.
    """
    right, wrong = (_spread([answer for answer in heldout if answer.is_right is kind]) for kind in (True, False))
    of_right = max(min(len(right), (limit + 1) // 2), min(len(right), limit - len(wrong)))
    return right[:of_right] + wrong[: limit - of_right]


def by_hash(answers: Sequence[LabelledAnswer]) -> list[LabelledAnswer]:
    """Answers in an order that depends on nothing but themselves, so that the same ones are kept every time."""
    return sorted(answers, key=lambda each: (each.question_hash, each.id))


def _spread(answers: Sequence[LabelledAnswer]) -> list[LabelledAnswer]:
    """One answer of every question, then a second one of every question that has two, and so on."""
    by_question: dict[bytes, list[LabelledAnswer]] = {}
    for answer in by_hash(answers):
        by_question.setdefault(answer.question_hash, []).append(answer)
    return [answer for turn in zip_longest(*by_question.values()) for answer in turn if answer is not None]


_SEVERAL_KEYS = 3  # the share of one key is limited from so many keys on
_LABELLING = 20  # answers of a class from which on a key counts as one that labels


def within_key_share(answers: Sequence[LabelledAnswer], share: float) -> list[LabelledAnswer]:
    """The answers without those that exceed a key's `share` of its class, in order; the first ones of a key are kept.

    Answers whose label several keys support, and the operator's, belong to no key and are all kept. In a class that
    fewer than three keys label with 20 answers each, nothing is left out: one of two keys is no majority to guard.
    """
    quotas = {
        is_right: _quota([each for each in answers if each.is_right is is_right], share) for is_right in (True, False)
    }
    taken: Counter[tuple[bool, UUID]] = Counter()
    kept = []
    for answer in answers:
        quota = quotas[answer.is_right]
        if answer.key_id is not None and quota is not None:
            if taken[answer.is_right, answer.key_id] >= quota:
                continue
            taken[answer.is_right, answer.key_id] += 1
        kept.append(answer)
    return kept


def _quota(answers: Sequence[LabelledAnswer], share: float) -> int | None:
    """The most answers that a key may have in one class; None: any number."""
    counts = Counter(answer.key_id for answer in answers if answer.key_id is not None)
    if sum(count >= _LABELLING for count in counts.values()) < _SEVERAL_KEYS:
        return None
    shared = sum(answer.key_id is None for answer in answers)
    # The largest total t with: shared answers + min(count, share * t) over the keys >= t.
    total = len(answers)
    while (kept := shared + sum(min(count, math.floor(share * total)) for count in counts.values())) < total:
        total = kept
    return math.floor(share * total)


# ---------------------------------------------------------------------------------------------- detectable differences


def variance_of_change(samples: int) -> float:
    """The assumed variance of an answer's change, candidate - live, when each critic judges it `samples` times.

    With one sample it is the discordance. Most of that is chance in sampling, which more samples average out.
    """
    return DISCORDANCE * (_LASTING + (1 - _LASTING) / samples)


def nats_needed(config: TrainConfig, *, share: float = 1.0) -> float:
    """The evidence of a gain, in nats, that a first candidate needs from a bet of `share` of the wealth."""
    return -math.log((1 - config.gate_confidence) * FIRST_LINEAGE * share) + _BETTING_NATS


def units_needed(distance: float, *, nats: float, samples: int) -> float:
    """Units of one right and one wrong answer that give `nats` of evidence with power `POWER`; see `gadfly.evidence`.

    A bet on observations with mean m and variance v gains m^2 / 2v nats each on average, with variance m^2 / v: n of
    them give t^2 / 2 + z t nats with the chance of z, where t = m sqrt(n / v).
    """
    variance = variance_of_change(samples) / 2  # a unit is the mean of two answers
    return variance * (_effect(nats) / distance) ** 2


def detectable_difference(units: float, *, nats: float, samples: int) -> float | None:
    """The smallest difference that gives `nats` of evidence on so many units with power `POWER`; None: none does."""
    if units <= 0:
        return None
    difference = _effect(nats) * math.sqrt(variance_of_change(samples) / 2 / units)
    return difference if difference < DISCORDANCE else None


def _effect(nats: float) -> float:
    z = NormalDist().inv_cdf(POWER)
    return z + math.sqrt(z**2 + 2 * nats)


# -------------------------------------------------------------------------------------------------- warnings and notes


def differences(config: TrainConfig, settings: Settings) -> list[str]:
    """Warnings where a critic would learn under other conditions than those it answers under."""
    served = settings.served_options() | {"temperature": settings.temperature}
    return [
        f"{name} is {getattr(config, name):g}, and the service answers with {value:g}: the critic learns under other "
        "conditions than it is used and measured under."
        for name, value in served.items()
        if getattr(config, name) != value
    ]


_WORTH_SAYING = 0.1  # the share of probably false labels in a class from which on the plan warns


def expected_mislabelled(answers: Sequence[LabelledAnswer]) -> dict[str, float]:
    """How many answers labelled right, and how many labelled wrong, probably are not."""
    sums = {
        name: math.fsum(1 - answer.certainty for answer in answers if answer.is_right is is_right)
        for name, is_right in (("right", True), ("wrong", False))
    }
    return {name: round(value, 1) for name, value in sums.items()}


def with_labels(
    found: Plan,
    model: LabelModel,
    contradicting: Sequence[Contradiction],
    *,
    names: Mapping[UUID, str],
    max_key_share: float,
) -> Plan:
    """The plan with the findings about labels: probably false ones, contradicting keys, the limit per key."""
    warnings = [_contradiction(case, names) for case in contradicting]
    for label, truth in (("wrong", "right"), ("right", "wrong")):
        count = getattr(found.stage_1, label)
        false = found.expected_mislabelled[label]
        if count and false >= _WORTH_SAYING * count:
            warnings.append(
                f"About {false:.0f} of the {count} answers labelled {label} are probably {truth}: about "
                f"{100 * model.right_share:.0f} % of all labelled answers are right, and errors gather in the rarer "
                f"class. {_basis(model)}"
            )
    if found.beyond_key_share:
        warnings.append(
            f"{found.beyond_key_share} labelled answers are left out, because one key has more than "
            f"{100 * max_key_share:g} % of a class (setting max_key_share)."
        )
    keys = dict.fromkeys(case.voter.key_id for case in contradicting)
    return replace(found, warnings=(*found.warnings, *warnings), contradicting_keys=tuple(keys))


def with_threshold(found: Plan, board: Scoreboard, *, live: int) -> Plan:
    """The plan with the result of a verdict threshold alone, the alternative to training with the same labels.

    `board` is the scoreboard of the live critic, whose version is `live`.
    """
    threshold, served = board.threshold, board.balanced
    if threshold is None or served is None:
        return found
    with_it = threshold.balanced
    note = (
        f"Without training, a threshold fitted to the probabilities of critic@{live} would judge "
        f"{100 * with_it.value:.0f} % ({100 * with_it.low:.0f} to {100 * with_it.high:.0f}) of both classes correctly, "
        f"and its verdicts judge {100 * served.value:.0f} %: on {board.answers} labelled answers of its traffic, "
        "cross-fitted."
    )
    return replace(found, threshold_alone=threshold, notes=(*found.notes, note))


def with_guessing(found: Plan, guess_rate: float | None) -> Plan:
    """The plan with what guessing does to its labels, for a task whose answers are right by chance at this rate."""
    if guess_rate is None:
        return found
    guessing = Guessing.of(right=found.stage_1.right, wrong=found.stage_1.wrong, rate=guess_rate)
    if guessing is None:
        return found
    note = (
        f"Guessing gives {guess_rate:.0%} right answers. Of the answers to learn from {guessing.right:.0%} are right, "
        f"which is {guessing.known:.0%} corrected for guessing: about {guessing.lucky:.0f} of {found.stage_1.right} "
        f"right answers were guessed, so their steps may be wrong. A gain of 10 points in what the actor knows shows "
        f"as {10 * (1 - guess_rate):.1f} points of right answers."
    )
    return replace(found, guessing=guessing, notes=(*found.notes, note))


def _basis(model: LabelModel) -> str:
    measured = sum(known.items_right + known.items_wrong for known in model.voters.values())
    if not measured:
        return "This assumes that a person errs in 5 % of labels: no answer has labels of several keys to measure it."
    return f"The errors were measured on {measured:.0f} labels of answers that several keys labelled."


def _contradiction(case: Contradiction, names: Mapping[UUID, str]) -> str:
    key_id = case.voter.key_id
    key = "the operator" if key_id is None else f"the key {names.get(key_id, 'without a name')} ({key_id})"
    take_out = "" if key_id is None else f", and take them out with `gadfly keys distrust {key_id}`"
    kind = {None: "", True: " that others call right", False: " that others call wrong"}[case.truth]
    return (
        f"The labels by {case.voter.source} of {key} contradict those of the others on {case.contradictions:.0f} of "
        f"{case.answers:.0f} answers{kind}, where {case.expected:.0f} would be normal: look at them with "
        f"`gadfly labels conflicts --disputed`{take_out}."
    )


def _warnings(
    learn: Sequence[LabelledAnswer],
    referenced: Sequence[LabelledAnswer],
    judged: Sequence[LabelledAnswer],
    judged_referenced: Sequence[LabelledAnswer],
    config: TrainConfig,
    *,
    train_questions: int,
    heldout_questions: int,
) -> list[str]:
    warnings = []
    if not learn and not judged and not train_questions and not heldout_questions:
        return ["There are no labelled answers: send feedback, or references with the requests."]
    if not learn and not train_questions:
        warnings.append("All labelled answers are on the held-out side: there is nothing to learn from.")
    if not judged and not heldout_questions:
        warnings.append("All labelled answers are on the train side: without held-out answers no critic is promoted.")
    samples_more = bool(referenced or train_questions) and config.pool_questions * config.pool_samples > 0
    for name, count in (("right", Portion.of(learn).right), ("wrong", Portion.of(learn).wrong)):
        if learn and count == 0:
            pool = "; the actor's own answers may add some" if samples_more else ""
            warnings.append(f"No answer to learn from is {name}, so the critic learns only one verdict{pool}.")
    if learn and not samples_more and not referenced and config.steps_stage_2:
        warnings.append("No answer to learn from has a reference: stage II cannot run.")
    held_out = Portion.of(judged)
    judges_more = bool(judged_referenced or heldout_questions) and config.pool_questions * config.pool_samples > 0
    for name, count in (("right", held_out.right), ("wrong", held_out.wrong)):
        if judged and count < config.gate_min_items:
            end = (
                "the actor's own answers to these questions may add some."
                if judges_more
                else "without them no critic is promoted."
            )
            warnings.append(f"{count} held-out answers are {name} and the gate needs {config.gate_min_items}: {end}")
    if judged and len(judged_referenced) < config.gate_min_items:
        warnings.append(
            f"{len(judged_referenced)} held-out answers have a reference and helpfulness needs "
            f"{config.gate_min_items}: discriminability alone decides."
        )
    return warnings


_WORTH_DETECTING = 0.1  # the gain in discriminability that the plan suggests to have enough held-out answers for
_USUAL_HELDOUT = 0.2  # share of held-out questions where there are none to count


def _next_step(heldout: Portion, train: Portion, config: TrainConfig) -> str:
    """How many labelled answers to import first, or that the run may start.

    New questions are held out with the share that the stored ones have, and each is taken to have one answer.
    """
    nats = nats_needed(config, share=GAIN_SHARES["discriminability"])
    units = math.ceil(units_needed(_WORTH_DETECTING, nats=nats, samples=config.gate_samples))
    wanted = max(config.gate_min_items, units)
    questions = heldout.questions + train.questions
    share = heldout.questions / questions if heldout.questions and train.questions else _USUAL_HELDOUT
    right, wrong = (_rounded(max(0, wanted - count) / share) for count in (heldout.right, heldout.wrong))
    if not right and not wrong:
        return "Start the run: `gadfly retrain --follow`."
    kinds = [f"{count} {name}" for name, count in (("right", right), ("wrong", wrong)) if count]
    return (
        f"Import about {right + wrong} more labelled answers to new questions, {' and '.join(kinds)}: then about "
        f"{wanted} of each are held out, and a gain of {100 * _WORTH_DETECTING:.0f} points would be seen in "
        f"{100 * POWER:.0f} % of cases. A run before that still learns, and its evidence adds up with that of the next "
        "ones."
    )


def _rounded(count: float) -> int:
    """Rounded up, to tens from 20 on."""
    return math.ceil(count) if count < 20 else 10 * math.ceil(count / 10)


def _notes(
    detectable: tuple[float | None, float | None], helpfulness_counts: bool, seconds: float | None, config: TrainConfig
) -> list[str]:
    notes = []
    for name, difference in zip(("discriminability", "helpfulness"), detectable, strict=True):
        if difference is None:
            notes.append(f"The held-out answers are too few to detect a gain in {name}.")
        else:
            notes.append(
                f"A gain of {100 * difference:.1f} points in {name} would be detected in {100 * POWER:.0f} % of cases, "
                f"at {100 * config.gate_confidence:g} % confidence."
            )
    if helpfulness_counts:
        margin = _questions_for_margin(config)
        notes.append(
            "With a margin of 0 points no number of questions proves that an axis without a gain has no loss."
            if margin is None
            else f"About {margin} questions are needed to prove that an axis without a gain lost no more than the "
            f"margin of {100 * config.gate_margin:g} points."
        )
    notes.append(
        f"This assumes that the critics differ on {100 * DISCORDANCE:.0f} % of answers, and counts each question once: "
        "answers to one question tend to fail together."
    )
    if seconds is None:
        notes.append("The duration is not known: no earlier run has finished a step.")
    return notes
