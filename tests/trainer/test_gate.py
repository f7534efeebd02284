"""The gate: constructed critics for every outcome, and whether its intervals and promotions hold what they promise."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from gadfly.grading import Grade
from gadfly.trainer.measure.gate import Axis, decide
from gadfly.trainer.measure.metrics import Judged
from gadfly.training import GateOutcome, TrainConfig
from gadfly.verdict import Verdict

CONFIG = TrainConfig(seed=3, gate_margin=0.02)
PROMOTE, REJECT, UNKNOWN = GateOutcome.PROMOTE, GateOutcome.REJECT, GateOutcome.NOT_ENOUGH_EVIDENCE


def critic(
    was_right: Sequence[bool],
    verdicts_right: Sequence[bool],
    refined_right: Sequence[bool | None] | None = None,
    *,
    questions: Sequence[int] | None = None,
) -> list[Judged]:
    """A critic's work: per answer whether it was right, whether the verdict is, and whether the refinement is."""
    questions = range(len(was_right)) if questions is None else questions
    refined_right = [None] * len(was_right) if refined_right is None else refined_right
    return [
        Judged(
            answer_id=UUID(int=number),
            question_hash=question.to_bytes(4, "big"),
            was_right=was,
            stated=Verdict.CORRECT if verdict is was else Verdict.INCORRECT,
            refined=None if refined is None else Grade.RIGHT if refined else Grade.WRONG,
        )
        for number, (question, was, verdict, refined) in enumerate(
            zip(questions, was_right, verdicts_right, refined_right, strict=True)
        )
    ]


def first(count: int, of: int) -> list[bool]:
    return [number < count for number in range(of)]


BOTH = [True] * 40 + [False] * 40  # 40 right answers, then 40 wrong ones
LIVE = critic(BOTH, first(60, 80), first(30, 80))  # all right ones and half of the wrong ones judged rightly


def test_a_proven_gain_without_a_loss_is_promoted() -> None:
    report = decide(LIVE, critic(BOTH, first(70, 80), first(30, 80)), CONFIG)
    assert report.outcome is PROMOTE
    found = report.numbers["discriminability"]
    assert found["live"] == pytest.approx((1 + 20 / 40) / 2)
    assert found["candidate"] == pytest.approx((1 + 30 / 40) / 2)
    assert found["difference"] == pytest.approx(10 / 40 / 2)
    assert (found["gained"], found["lost"], found["items"], found["questions"]) == (10, 0, 80, 80)
    assert found["p_better"] == 1 / 2**10  # all ten changes on one side, of all signs
    # Ten of 40 with the rate p = 1/4: standard deviation of the halved mean, sqrt(3/16 / 40) / 2
    assert found["error"] == pytest.approx((3 / 16 / 40) ** 0.5 / 2, rel=0.1)
    assert 0.05 < found["low"] < 0.125 < found["high"] < 0.2
    assert "better in discriminability" in report.reasons[-1]
    assert "Changes on less than 4.5 % of questions" in report.reasons[1]  # 1 - 0.025 ** (1 / 80)


def test_a_gain_in_helpfulness_is_promoted_too() -> None:
    report = decide(LIVE, critic(BOTH, first(60, 80), first(45, 80)), CONFIG)
    assert report.outcome is PROMOTE
    assert report.numbers["helpfulness"]["difference"] == pytest.approx(15 / 80)


def test_helpfulness_is_not_bought_with_discriminability() -> None:
    report = decide(LIVE, critic(BOTH, first(50, 80), first(60, 80)), CONFIG)
    assert report.numbers["helpfulness"]["low"] > 0
    assert report.outcome is REJECT
    assert report.reasons[-1] == (
        "The candidate is worse in discriminability. A gain in helpfulness does not pay for that."
    )


def test_nor_the_other_way_round() -> None:
    report = decide(LIVE, critic(BOTH, first(70, 80), first(15, 80)), CONFIG)
    assert report.outcome is REJECT
    assert "worse in helpfulness" in report.reasons[-1]


def test_always_saying_correct_is_no_gain() -> None:
    mostly_right = [True] * 180 + [False] * 20
    live = critic(mostly_right, [number % 4 > 0 for number in range(200)])
    flatterer = critic(mostly_right, mostly_right)
    report = decide(live, flatterer, CONFIG)
    assert report.numbers["candidate"]["discrimination"]["value"] == 0.9  # the plain rate rose from 0.75
    assert report.numbers["discriminability"]["difference"] == pytest.approx(0.5 - 0.75)
    assert report.outcome is REJECT


def test_a_gain_beside_an_uncertain_loss_waits() -> None:
    changed = [number in (70, 71) or 2 <= number < 30 for number in range(80)]
    report = decide(LIVE, critic(BOTH, first(70, 80), changed), CONFIG)
    assert (report.numbers["helpfulness"]["gained"], report.numbers["helpfulness"]["lost"]) == (2, 2)
    assert report.outcome is UNKNOWN
    more = int(report.reasons[-1].partition("roughly ")[2].split()[0])
    # 80 answers with an error of sqrt(4) / 80 and a margin of 0.02: 80 * ((1.96 + 0.84) * 0.025 / 0.02) ** 2 - 80
    assert more == pytest.approx(901, rel=0.15)


def test_few_changes_may_be_chance() -> None:
    report = decide(LIVE, critic(BOTH, first(64, 80), first(30, 80)), CONFIG)
    found = report.numbers["discriminability"]
    assert found["low"] > 0  # what the bootstrap alone would promote
    assert found["p_better"] == 1 / 16
    assert report.outcome is UNKNOWN
    assert "may be chance (p = 0.062)" in report.reasons[0]


def axis(**numbers: float) -> Axis:
    """A difference that is neither a gain nor a loss, but for these numbers."""
    shares = {"live": 0.7, "candidate": 0.7, "difference": 0.0, "low": -0.2, "high": 0.2, "error": 0.1, "p_better": 0.5}
    return Axis(name="discriminability", items=80, questions=80, gained=5, lost=5, **(shares | numbers))


PROOFS = [  # low end of the interval, p_better, is it a proven gain at 95 %, why this row exists
    (0.01, 0.001, True, "both agree"),
    (0.01, 0.025, True, "the limit itself: half of 5 %"),
    (0.01, 0.026, False, "the randomisation test does not agree"),
    (0.0, 0.001, False, "the interval holds no difference"),
    (-0.01, 0.001, False, "the interval holds a loss, however small p is"),
]


@pytest.mark.parametrize(("low", "p_better", "is_better", "why"), PROOFS)
def test_a_gain_is_proven_by_interval_and_randomisation_test(
    low: float, p_better: float, is_better: bool, why: str
) -> None:
    assert axis(low=low, p_better=p_better).is_better(0.95) is is_better, why


LOSSES = [(-0.01, True, "all of it is a loss"), (0.0, False, "no difference is in it"), (0.1, False, "a gain is in it")]


@pytest.mark.parametrize(("high", "is_worse", "why"), LOSSES)
def test_a_loss_is_proven_by_the_interval(high: float, is_worse: bool, why: str) -> None:
    assert axis(high=high).is_worse is is_worse, why


def test_equal_critics_are_not_promoted() -> None:
    report = decide(LIVE, LIVE, CONFIG)
    assert report.outcome is UNKNOWN
    assert report.numbers["discriminability"]["difference"] == 0
    assert report.numbers["discriminability"]["p_better"] == 1
    assert "equal within the margin" in report.reasons[-1]


def test_too_few_of_a_class() -> None:
    answers = [True] * 40 + [False] * 12
    report = decide(critic(answers, first(0, 52)), critic(answers, first(52, 52)), CONFIG)
    assert report.outcome is UNKNOWN
    assert report.reasons == [
        "Of the held-out answers 40 are right and 12 are wrong, and the gate needs 20 of each: 8 more wrong ones."
    ]
    assert decide([], [], CONFIG).outcome is UNKNOWN


@pytest.mark.parametrize("references", [0, 19])
def test_without_references_discriminability_decides_alone(references: int) -> None:
    live = critic(BOTH, first(60, 80), [True if number < references else None for number in range(80)])
    candidate = critic(BOTH, first(70, 80), [False if number < references else None for number in range(80)])
    report = decide(live, candidate, CONFIG)
    assert report.outcome is PROMOTE
    assert "discriminability decides alone" in report.reasons[1]


def test_answers_to_one_question_are_one_piece_of_evidence() -> None:
    alone = decide(LIVE, critic(BOTH, first(70, 80), first(30, 80)), CONFIG)
    questions = [number // 10 for number in range(80)]  # the ten gained answers are those of one question
    live = [replace(item, question_hash=bytes([q])) for item, q in zip(LIVE, questions, strict=True)]
    candidate = critic(BOTH, first(70, 80), first(30, 80), questions=questions)
    candidate = [replace(item, question_hash=bytes([q])) for item, q in zip(candidate, questions, strict=True)]
    together = decide(live, candidate, CONFIG)
    assert together.numbers["discriminability"]["difference"] == alone.numbers["discriminability"]["difference"]
    assert together.numbers["discriminability"]["p_better"] == 0.5
    assert (alone.outcome, together.outcome) == (PROMOTE, UNKNOWN)


def test_the_same_seed_gives_the_same_numbers_in_any_order() -> None:
    candidate = critic(BOTH, first(70, 80), first(34, 80))
    report = decide(LIVE, candidate, CONFIG)
    assert decide(LIVE[::-1], candidate[3:] + candidate[:3], CONFIG).to_json() == report.to_json()
    other = decide(LIVE, candidate, CONFIG.model_copy(update={"seed": 4})).numbers["discriminability"]
    assert other["difference"] == report.numbers["discriminability"]["difference"]
    assert other["error"] != report.numbers["discriminability"]["error"]
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[1:], "different items: 1 have"),
        (lambda items: [*items, items[0]], "judged twice"),
        (lambda items: [replace(items[0], was_right=False), *items[1:]], "different answers"),
        (lambda items: [replace(items[0], question_hash=b"x"), *items[1:]], "different answers"),
        (lambda items: [replace(items[0], stated=None), *items[1:]], "not asked"),
        (lambda items: [replace(items[0], refined=None), *items[1:]], "only one critic's refinement"),
    ],
)
def test_only_identical_items_are_compared(change: Callable[[list[Judged]], list[Judged]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decide(LIVE, change(LIVE), CONFIG)


# ------------------------------------------------------------------------------------------- what the numbers are worth


def simulated(random: np.random.Generator, *, gain: float) -> tuple[list[Judged], list[Judged]]:
    """50 questions of 4 answers. Whether a question is easy is shared by its answers, and by both critics."""
    questions = np.repeat(np.arange(50), 4)
    was_right = random.random(200) < 0.5
    easy = np.repeat(random.random(50) < 0.6, 4)
    rates = np.where(easy, 0.85, 0.35)
    # A change befalls a whole question: its answers win or lose together half of the time.
    shift = np.repeat(random.choice([-0.3, 0.3], size=50), 4) + gain
    live = random.random(200) < rates
    candidate = random.random(200) < np.clip(rates * 0.4 + 0.3 + shift, 0, 1)
    listed = [bool(value) for value in was_right]
    return (
        critic(listed, [bool(v) for v in live], questions=[int(q) for q in questions]),
        critic(listed, [bool(v) for v in candidate], questions=[int(q) for q in questions]),
    )


def test_intervals_cover_the_true_difference() -> None:
    random = np.random.default_rng(11)
    config = TrainConfig(bootstrap_resamples=300, gate_min_items=1)
    # Rates: live 0.6 * 0.85 + 0.4 * 0.35 = 0.65; candidate 0.4 * 0.65 + 0.3 + 0.05, nothing clipped.
    truth = 0.4 * 0.65 + 0.3 + 0.05 - 0.65
    covered = 0
    for _ in range(300):
        found = decide(*simulated(random, gain=0.05), config).numbers["discriminability"]
        covered += found["low"] <= truth <= found["high"]
    assert 0.90 <= covered / 300 <= 0.98  # nominal 0.95, standard error 0.013


def test_an_equal_candidate_is_rarely_promoted() -> None:
    """25 questions of 4 answers that change together: there the interval alone would promote 6 % instead of 2.5 %."""
    random = np.random.default_rng(12)
    config = TrainConfig(bootstrap_resamples=300)
    questions = [number // 4 for number in range(100)]
    promoted = by_interval = 0
    for _ in range(400):
        right = [bool(value) for value in random.random(100) < 0.5]
        base = random.random(100) < 0.6
        flips = np.repeat(random.random((2, 25)) < 0.2, 4, axis=1)
        live, candidate = (critic(right, [bool(v) for v in base ^ each], questions=questions) for each in flips)
        report = decide(live, candidate, config)
        promoted += report.outcome is PROMOTE
        by_interval += report.numbers["discriminability"]["low"] > 0
    assert promoted / 400 <= 0.025
    assert by_interval / 400 > 0.04
