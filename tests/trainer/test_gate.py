"""The gate: constructed critics for every outcome, and its error rates in simulation."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from bench.gate import Worn
from gadfly.evidence import MeanTest, interval
from gadfly.grading import Grade
from gadfly.planning import MARGIN_ERROR
from gadfly.trainer.measure.gate import (
    LEAST_APART,
    LOSS_ERROR,
    Axis,
    Evidence,
    Traffic,
    Unit,
    _more,
    decide,
    threshold_alone,
    units_of,
    wealth_needed,
)
from gadfly.trainer.measure.metrics import Judged
from gadfly.training import GateOutcome, TrainConfig
from gadfly.verdict import Verdict

CONFIG = TrainConfig(gate_margin=0.1)
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


BOTH = [True] * 80 + [False] * 80  # 80 right answers, then 80 wrong ones
LIVE = critic(BOTH, first(120, 160), first(60, 160))  # judges all right ones and half of the wrong ones correctly


def asked_again(items: Sequence[Judged], sample: int) -> list[Judged]:
    return [replace(item, sample=sample) for item in items]


# ------------------------------------------------------------------------------------------------------ observations


def test_a_unit_holds_both_classes_of_whole_questions() -> None:
    # Question 0 has an answer of each class, 1 and 2 a right one, 3 and 4 and 5 a wrong one.
    classes, questions = [True, False, True, True, False, False, False], [0, 0, 1, 2, 3, 4, 5]
    before = critic(classes, [False] * 7, [False, None, False, None, None, None, True], questions=questions)
    after = critic(
        classes,
        [True, False, True, False, True, True, False],
        [True, None, False, None, None, None, False],
        questions=questions,
    )
    found = units_of(before, after)
    assert found == [
        Unit(right=1.0, wrong=0.0, helpful=1.0),  # question 0, alone
        Unit(right=1.0, wrong=0.5, helpful=-0.5),  # question 1 with 3 and 5: helpful 0 over right, -1 over wrong
        Unit(right=0.0, wrong=1.0, helpful=None),  # question 2 with 4
    ]


def test_samples_of_an_answer_are_averaged() -> None:
    before = [*critic([True, False], [True, True]), *asked_again(critic([True, False], [False, True]), 1)]
    after = [*critic([True, False], [True, False]), *asked_again(critic([True, False], [True, True]), 1)]
    assert units_of(before, after) == [Unit(right=0.5, wrong=-0.5, helpful=None)]


def test_one_class_alone_shows_nothing() -> None:
    assert units_of(critic([True] * 3, [True] * 3), critic([True] * 3, [False] * 3)) == []


def test_what_a_unit_says_on_each_axis() -> None:
    unit = Unit(right=-0.2, wrong=0.6, helpful=0.4)
    assert unit.balanced == pytest.approx(0.2)
    assert unit.both == pytest.approx(0.3)
    assert unit.at_share(0.9) == pytest.approx(-0.12)
    assert Unit(right=-0.2, wrong=0.6, helpful=None).both == pytest.approx(0.2)
    assert Unit.from_json(json.loads(json.dumps(unit.to_json()))) == unit


# ----------------------------------------------------------------------------------------------------------- outcomes


def test_a_proven_gain_without_a_loss_is_promoted() -> None:
    report = decide(LIVE, critic(BOTH, first(150, 160), first(60, 160)), CONFIG)
    assert report.outcome is PROMOTE
    found = report.numbers["discriminability"]
    assert found["live"] == pytest.approx((1 + 40 / 80) / 2)
    assert found["candidate"] == pytest.approx((1 + 70 / 80) / 2)
    assert found["difference"] == pytest.approx(30 / 80 / 2)
    assert found["units"] == 80
    expected = MeanTest.of([0.0] * 40 + [0.5] * 30 + [0.0] * 10).wealth
    assert found["gain"] == pytest.approx(expected)
    assert found["low"] < found["difference"] < found["high"]
    observations = [unit.balanced for unit in units_of(LIVE, critic(BOTH, first(150, 160), first(60, 160)))]
    assert (found["low"], found["high"]) == pytest.approx(interval(observations, alpha=0.05))
    assert report.numbers["wealth"] >= report.numbers["wealth_needed"] == pytest.approx(25.0)
    assert "A gain is proven" in report.reasons[-1]


def test_what_is_reported_beside_a_decision_changes_none() -> None:
    report = decide([], [], CONFIG)
    more = report.beside({"wear": {"looks_most": 3}}, ["The set is worn."])
    assert (more.outcome, more.numbers["wear"]) == (report.outcome, {"looks_most": 3})
    assert more.reasons == [*report.reasons, "The set is worn."]
    assert more.numbers | report.numbers == more.numbers
    assert "wear" not in report.numbers


def test_a_gain_in_helpfulness_is_promoted_too() -> None:
    report = decide(LIVE, critic(BOTH, first(120, 160), first(120, 160)), CONFIG)
    assert report.outcome is PROMOTE
    assert report.numbers["helpfulness"]["difference"] > 0.3


def test_helpfulness_is_not_bought_with_discriminability() -> None:
    report = decide(LIVE, critic(BOTH, first(85, 160), first(140, 160)), CONFIG)
    assert report.numbers["helpfulness"]["low"] > 0
    assert report.outcome is REJECT
    assert report.reasons[-1] == "The candidate is worse in discriminability."


def test_nor_the_other_way_round() -> None:
    report = decide(LIVE, critic(BOTH, first(150, 160), first(10, 160)), CONFIG)
    assert report.outcome is REJECT
    assert "worse in helpfulness" in report.reasons[-1]


def test_always_saying_correct_is_no_gain() -> None:
    mostly_right = [True] * 180 + [False] * 40
    live = critic(mostly_right, [number % 4 > 0 for number in range(220)])
    flatterer = critic(mostly_right, mostly_right)
    report = decide(live, flatterer, CONFIG)
    assert report.numbers["candidate"]["discrimination"]["value"] > 0.81  # the plain rate rose from 0.75
    assert report.numbers["discriminability"]["difference"] == pytest.approx(0.5 - 0.75, abs=0.01)
    assert report.outcome is REJECT


def test_what_the_deployments_own_traffic_would_lose() -> None:
    """97 % and 45 % of right and wrong answers judged correctly before, 85 % and 80 % after."""
    classes = [True] * 400 + [False] * 400
    live = critic(classes, [*first(388, 400), *first(180, 400)])
    candidate = critic(classes, [*first(340, 400), *first(320, 400)])
    assert decide(live, candidate, CONFIG).outcome is PROMOTE
    report = decide(live, candidate, CONFIG, traffic=Traffic(right=950, wrong=50))
    assert report.outcome is REJECT
    assert "worse in utility" in report.reasons[-1]
    low, high = report.numbers["utility"]
    assert low["difference"] > high["difference"] == pytest.approx(-0.12 * 0.962 + 0.35 * 0.038, abs=0.01)
    balanced = decide(live, candidate, CONFIG, traffic=Traffic(right=500, wrong=500))
    assert balanced.outcome is PROMOTE


def test_a_gain_beside_an_uncertain_loss_waits() -> None:
    few = [*range(2), *range(80, 82)]
    live = [replace(item, refined=None) if number % 80 >= 25 else item for number, item in enumerate(LIVE)]
    candidate = [
        replace(item, refined=None if item.refined is None else Grade.WRONG if number in few else item.refined)
        for number, item in enumerate(critic(BOTH, first(150, 160), first(60, 160)))
    ]
    candidate = [replace(item, refined=None) if number % 80 >= 25 else item for number, item in enumerate(candidate)]
    report = decide(live, candidate, CONFIG)
    assert report.outcome is UNKNOWN
    assert "is not ruled out in helpfulness" in report.reasons[-2]
    assert "fresh held-out answers" in report.reasons[-1]


def test_equal_critics_are_not_promoted() -> None:
    report = decide(LIVE, LIVE, CONFIG)
    assert report.outcome is UNKNOWN
    assert report.numbers["discriminability"]["difference"] == 0
    assert report.numbers["wealth"] == pytest.approx(1.0)
    assert "No gain is proven yet" in report.reasons[-2]


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
    live = critic(BOTH, first(120, 160), [True if number < references else None for number in range(160)])
    candidate = critic(BOTH, first(150, 160), [False if number < references else None for number in range(160)])
    report = decide(live, candidate, CONFIG)
    assert report.outcome is PROMOTE
    assert report.numbers["helpfulness"] is None
    assert any("Helpfulness does not count" in reason for reason in report.reasons)


def test_a_class_under_the_floor_is_not_promoted() -> None:
    config = CONFIG.model_copy(update={"gate_floor": 0.9})
    candidate = critic(BOTH, first(150, 160), first(60, 160))
    report = decide(LIVE, candidate, config)
    assert report.outcome is UNKNOWN
    assert any("Of the wrong answers the candidate judges 87.5 % rightly" in reason for reason in report.reasons)
    assert decide(LIVE, candidate, CONFIG.model_copy(update={"gate_floor": 0.87})).outcome is PROMOTE


def test_a_chain_of_small_losses_ends_at_the_anchor() -> None:
    anchor = critic(BOTH, first(120, 160), first(100, 160))  # as good in verdicts as live, and better in helpfulness
    candidate = critic(BOTH, first(150, 160), first(60, 160))
    assert decide(LIVE, candidate, CONFIG).outcome is PROMOTE
    report = decide(LIVE, candidate, CONFIG, anchor=anchor)
    assert report.outcome is REJECT
    assert report.reasons[-1] == "The candidate is worse in helpfulness against the anchor."
    assert decide(LIVE, candidate, CONFIG, anchor=LIVE).outcome is PROMOTE


def test_answers_to_one_question_are_one_piece_of_evidence() -> None:
    candidate = critic(BOTH, first(150, 160), first(60, 160))
    questions = [number % 80 // 10 for number in range(160)]

    def asked(items: Sequence[Judged]) -> list[Judged]:
        return [replace(item, question_hash=bytes([q])) for item, q in zip(items, questions, strict=True)]

    together = decide(asked(LIVE), asked(candidate), CONFIG)
    assert together.numbers["discriminability"]["difference"] == pytest.approx(30 / 160)
    assert together.numbers["discriminability"]["units"] == 8
    assert together.outcome is UNKNOWN


# ----------------------------------------------------------------------------------------------------- many nights


def night(number: int, verdicts: int) -> list[Judged]:
    """20 right and 20 wrong answers to questions of this night's own."""
    questions = [1000 * number + each for each in range(40)]
    items = critic([True] * 20 + [False] * 20, first(verdicts, 40), questions=questions)
    return [replace(item, answer_id=UUID(int=1000 * number + index)) for index, item in enumerate(items)]


def test_evidence_adds_up_over_nights() -> None:
    outcomes, past = [], None
    for number in range(12):
        report = decide(night(number, 30), night(number, 33), CONFIG, past=past)
        outcomes.append(report.outcome)
        past = Evidence.from_json(json.loads(json.dumps(report.numbers["evidence"])))
        if report.outcome is not UNKNOWN:
            break
    assert outcomes[0] is UNKNOWN
    assert outcomes[-1] is PROMOTE
    assert 2 <= len(outcomes) <= 10
    assert past is not None
    assert (past.nights, past.right, past.wrong) == (len(outcomes), 20 * len(outcomes), 20 * len(outcomes))
    units = [unit.balanced for unit in past.units]
    assert report.numbers["discriminability"]["gain"] == pytest.approx(MeanTest.of(units).wealth)


def test_a_question_counts_once() -> None:
    first_report = decide(night(1, 30), night(1, 33), CONFIG)
    past = Evidence.from_json(first_report.numbers["evidence"])
    again = decide(night(1, 30), night(1, 33), CONFIG, past=past)
    assert again.numbers["evidence"] == first_report.numbers["evidence"]
    assert again.numbers["items"] == 40, "its rates are measured all the same"
    both = decide([*night(1, 30), *night(2, 30)], [*night(1, 33), *night(2, 33)], CONFIG, past=past)
    assert both.numbers["evidence"]["right"] == 40
    assert both.numbers["evidence"]["nights"] == 2


# --------------------------------------------------------------------------- questions without a neighbour in training


def hashes(*questions: range) -> frozenset[bytes]:
    return frozenset(each.to_bytes(4, "big") for numbers in questions for each in numbers)


def test_questions_without_a_near_neighbour_are_reported_apart_and_decide_nothing() -> None:
    candidate = critic(BOTH, first(150, 160), first(60, 160))
    report = decide(LIVE, candidate, CONFIG, apart=hashes(range(40), range(80, 120)), traffic=Traffic(80, 20))
    plain = decide(LIVE, candidate, CONFIG, traffic=Traffic(80, 20))
    assert (report.outcome, report.numbers["discriminability"]) == (plain.outcome, plain.numbers["discriminability"])
    apart = report.numbers["apart"]
    # Both critics judge all those right answers, and the first 40 of the wrong ones, correctly.
    assert (apart["items"], apart["questions"]) == (80, 80)
    assert (apart["discriminability"]["live"], apart["discriminability"]["candidate"]) == (1.0, 1.0)
    assert (apart["discriminability"]["difference"], apart["discriminability"]["units"]) == (0.0, 40)
    assert apart["helpfulness"]["difference"] == 0.0
    assert len(apart["utility"]) == 2
    [sentence] = [each for each in report.reasons if "near neighbour" in each]
    assert sentence.startswith("80 of the 160 held-out answers are to questions without a near neighbour in training;")
    assert "Discriminability: 100.0 % live, 100.0 % candidate; difference +0.0 points" in sentence
    assert plain.numbers["apart"] is None
    assert not any("near neighbour" in each for each in plain.reasons)


def test_a_held_out_set_without_such_questions_says_so() -> None:
    report = decide(LIVE, critic(BOTH, first(150, 160), first(60, 160)), CONFIG, apart=frozenset())
    assert report.numbers["apart"] == {
        "items": 0, "questions": 0, "discriminability": None, "helpfulness": None, "utility": [],
    }  # fmt: skip
    assert any(each.startswith("0 of the 160 held-out answers are to questions without") for each in report.reasons)


def test_few_such_questions_are_counted_and_not_compared() -> None:
    hashes = frozenset(item.question_hash for item in (*LIVE[:2], *LIVE[80:82]))
    report = decide(LIVE, critic(BOTH, first(150, 160), first(60, 160)), CONFIG, apart=hashes)
    assert report.numbers["apart"]["discriminability"]["units"] < LEAST_APART
    [sentence] = [each for each in report.reasons if "near neighbour" in each]
    assert sentence.endswith("They are too few to compare the critics on them.")
    assert "Discriminability" not in sentence


def test_their_evidence_adds_up_over_nights_too() -> None:
    past = None
    for number in range(3):
        apart = hashes(range(1000 * number + 10, 1000 * number + 30))  # ten right and ten wrong answers a night
        report = decide(night(number, 30), night(number, 33), CONFIG, past=past, apart=apart)
        past = Evidence.from_json(json.loads(json.dumps(report.numbers["evidence"])))
    assert past is not None
    assert (len(past.units), len(past.apart)) == (60, 30)
    assert report.numbers["apart"]["discriminability"]["units"] == 30
    earlier = {name: value for name, value in report.numbers["evidence"].items() if name != "apart"}
    assert Evidence.from_json(earlier).apart == (), "a report of an earlier release"


def test_later_lineages_need_more() -> None:
    needed = [wealth_needed(CONFIG, lineage) for lineage in range(1, 200)]
    assert needed[0] == pytest.approx(25.0)
    # A fifth of 5 % for all later ones: 1 / (0.05 x 0.2 x 6 / pi^2), and four times that for the one after it.
    assert needed[1:3] == pytest.approx([164.493, 657.974], rel=1e-5)
    assert needed == sorted(needed)
    assert sum(1 / each for each in needed) <= 0.05
    report = decide(LIVE, critic(BOTH, first(150, 160), first(60, 160)), CONFIG, past=Evidence(lineage=3))
    assert report.numbers["wealth_needed"] == pytest.approx(needed[2])
    assert report.numbers["evidence"]["lineage"] == 3


# ------------------------------------------------------------------------------------------------------------- limits


def axis(**numbers: float) -> Axis:
    shares = {"difference": 0.0, "low": -0.2, "high": 0.2, "gain": 1.0, "within_margin": 1.0, "loss": 1.0}
    return Axis(name="discriminability", units=80, live=None, candidate=None, **(shares | numbers))


@pytest.mark.parametrize(("wealth", "proven"), [(1 / LOSS_ERROR, True), (1 / LOSS_ERROR - 1e-6, False)])
def test_a_loss_is_proven_at_its_limit(wealth: float, proven: bool) -> None:
    assert axis(loss=wealth).is_worse is proven


@pytest.mark.parametrize(("wealth", "ruled_out"), [(1 / MARGIN_ERROR, True), (1 / MARGIN_ERROR - 1e-6, False)])
def test_a_margin_is_ruled_out_at_its_limit(wealth: float, ruled_out: bool) -> None:
    assert axis(within_margin=wealth).is_within_margin is ruled_out


def test_the_order_of_items_does_not_matter() -> None:
    candidate = critic(BOTH, first(150, 160), first(64, 160))
    report = decide(LIVE, candidate, CONFIG)
    assert decide(LIVE[::-1], candidate[3:] + candidate[:3], CONFIG).to_json() == report.to_json()
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


def test_an_equal_candidate_is_rarely_promoted_over_many_nights() -> None:
    """Nightly candidates that are as good as the live critic, each on fresh answers: 5 % of deployments at most."""
    random = np.random.default_rng(12)
    promoted = 0
    for _ in range(40):
        past = None
        for number in range(15):
            live, candidate = (
                [
                    replace(item, stated=item.stated if random.random() < 0.7 else Verdict.UNPARSED)
                    for item in night(number, 40)
                ]
                for _ in range(2)
            )
            report = decide(live, candidate, CONFIG, past=past)
            past = Evidence.from_json(report.numbers["evidence"])
            if report.outcome is PROMOTE:
                promoted += 1
            if report.outcome is not UNKNOWN:
                break
    assert promoted / 40 <= 0.05


def test_the_report_says_what_a_threshold_alone_would_give() -> None:
    """The live critic calls all correct, with a higher probability for right answers: a threshold would do."""

    def sure(items: list[Judged]) -> list[Judged]:
        return [
            replace(item, p_correct=0.9 if item.was_right else 0.7, p_incorrect=0.1 if item.was_right else 0.3)
            for item in items
        ]

    live = sure(critic(BOTH, first(80, 160)))
    report = decide(live, critic(BOTH, first(120, 160)), CONFIG)
    alone = report.numbers["threshold_alone"]
    assert (alone["balanced"]["value"], alone["balanced"]["of"]) == (1, 160)
    assert 0.7 < alone["p_correct"] < 0.9
    [sentence] = [each for each in report.reasons if each.startswith("Without training")]
    assert "would judge 100.0 % of both classes rightly (" in sentence
    assert "the candidate judges 75.0 %" in sentence
    unread = decide(critic(BOTH, first(80, 160)), critic(BOTH, first(120, 160)), CONFIG)
    assert unread.numbers["threshold_alone"] is None, "no verdict words were read"
    assert not any(each.startswith("Without training") for each in unread.reasons)
    assert unread.outcome is report.outcome, "it does not decide"


def test_samples_of_an_answer_count_once_for_the_threshold() -> None:
    item = replace(critic([True], [True])[0], p_correct=0.6, p_incorrect=0.4)
    few = [replace(item, sample=sample, was_right=right) for sample in range(30) for right in (True, False)]
    assert threshold_alone(few) is None


def test_the_report_states_how_often_each_answer_was_judged() -> None:
    again = [*LIVE, *asked_again(LIVE, 1), *asked_again(LIVE, 2)]
    assert decide(LIVE, LIVE, CONFIG).numbers["samples"] == 1
    report = decide(again, again, CONFIG)
    assert (report.numbers["samples"], report.numbers["items"]) == (3, len(LIVE))


# Units that decide, per unit of the evidence, at an interval of +-0.2: 2 (0.2 / 2.748)^2 ln(wealth) / distance^2, where
# 2.748 is the normal quantile of 0.997. With ln 25 and a distance of 0.1 that is 3.411; ln 10 is the least.
MORE = [  # difference, half of the interval, units, whether a gain is proven, wealth needed, answers, why
    (0.1, 0.2, 100, False, 25, 484, "2 (342 - 100): the gain is to be proven"),
    (0.1, 0.2, 100, False, 5, 288, "2 (244 - 100): at least what rules out a loss"),
    (0.1, 0.2, 100, True, 25, 0, "86 units at a distance of 0.2 would do, and there are more"),
    (-0.05, 0.2, 100, True, 25, 2530, "2 (1365 - 100): a loss of the margin is to be ruled out, at a distance of 0.05"),
    (-0.05, 0.2, 100, False, 25, 2530, "no gain to prove"),
    (0.0, 0.2, 100, False, 25, 484, "nor here"),
    (-0.1, 0.2, 100, True, 25, 0, "just the margin: no number of answers decides"),
    (-0.2, 0.2, 100, False, 25, 0, "a loss of more than the margin"),
    (0.1, 0.2, 1, False, 25, 0, "one unit tells nothing about the spread"),
    (0.1, 0.2, 2, False, 25, 10, "2 (7 - 2)"),
    (0.1, 0.0, 100, False, 25, 0, "without a spread"),
]


@pytest.mark.parametrize(("difference", "half", "units", "has_gained", "needed", "answers", "why"), MORE)
def test_how_many_more_answers_would_decide_by_hand(
    difference: float, half: float, units: int, has_gained: bool, needed: float, answers: int, why: str
) -> None:
    axis = Axis(
        name="discriminability",
        units=units,
        live=None,
        candidate=None,
        difference=difference,
        low=difference - half,
        high=difference + half,
        gain=1.0,
        within_margin=1.0,
        loss=1.0,
    )
    assert _more(axis, has_gained=has_gained, needed=needed, config=CONFIG) == answers, why


def test_without_helpfulness_the_evidence_is_that_of_discriminability() -> None:
    live, candidate = critic(BOTH, first(120, 160)), critic(BOTH, first(150, 160))
    report = decide(live, candidate, CONFIG)
    numbers = report.numbers
    assert numbers["helpfulness"] is None
    assert "Helpfulness does not count, since no held-out answer has a reference." in report.reasons
    assert any(reason.startswith("Utility on the deployment's own traffic does not count") for reason in report.reasons)
    assert numbers["wealth"] == pytest.approx(numbers["discriminability"]["gain"])


def test_the_reasons_state_shares_as_percentages() -> None:
    candidate = critic(BOTH, first(150, 160), first(60, 160))
    report = decide(LIVE, candidate, CONFIG, traffic=Traffic(right=950, wrong=50))
    found = report.numbers["discriminability"]
    words = " ".join(report.reasons)
    assert "Discriminability: 75.0 % live, 93.8 % candidate; difference +18.8 points" in words
    assert f"points [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}] on 80 units." in words
    assert "10 points is ruled out on every axis" in words
    assert "does not count" not in words
    assert [axis["name"] for axis in report.numbers["utility"]] == [
        "utility at 93 % right answers",
        "utility at 96 % right answers",
    ]
    few = decide(critic(BOTH, first(120, 160)), critic(BOTH, first(121, 160)), TrainConfig(gate_margin=0.01))
    assert "A loss of 1 points is not ruled out in discriminability." in few.reasons
    low = decide(LIVE, candidate, TrainConfig(gate_margin=0.1, gate_floor=0.9))
    assert "Of the wrong answers the candidate judges 87.5 % rightly, and the floor is 90 %." in low.reasons


@pytest.mark.parametrize(("references", "is_compared"), [(39, False), (40, True)])
def test_helpfulness_is_compared_from_the_least_number_of_references_on(references: int, is_compared: bool) -> None:
    refined: list[bool | None] = [None] * 160
    places = [place for pair in zip(range(80), range(80, 160), strict=True) for place in pair][:references]
    for place in places:
        refined[place] = True
    items = critic(BOTH, first(120, 160), refined)
    report = decide(items, items, CONFIG.model_copy(update={"gate_min_items": 40}))
    assert (report.numbers["helpfulness"] is not None) is is_compared
    assert ("Helpfulness does not count, since only 20 units have a reference." in report.reasons) is not is_compared


def test_helpfulness_is_over_the_answers_that_have_a_reference() -> None:
    nothing: list[bool | None] = [None] * 50
    before = [*first(20, 30), *nothing, *first(10, 30), *nothing]
    after = [*first(26, 30), *nothing, *first(16, 30), *nothing]
    numbers = decide(critic(BOTH, BOTH, before), critic(BOTH, BOTH, after), CONFIG).numbers
    assert (numbers["items"], numbers["with_reference"]) == (160, 60)
    found = numbers["helpfulness"]
    assert (found["live"], found["candidate"]) == (30 / 60, 42 / 60)
    assert found["difference"] == pytest.approx((6 / 30 + 6 / 30) / 2)


def test_the_least_numbers_themselves_are_enough() -> None:
    candidate = critic(BOTH, first(150, 160), first(60, 160))  # judges 87.5 % of the wrong answers correctly
    assert decide(LIVE, candidate, CONFIG.model_copy(update={"gate_min_items": 80})).outcome is PROMOTE
    assert decide(LIVE, candidate, CONFIG.model_copy(update={"gate_floor": 0.875})).outcome is PROMOTE
    few = critic(BOTH[:120], first(120, 120))
    report = decide(few, few, CONFIG.model_copy(update={"gate_min_items": 80}))
    assert report.outcome is UNKNOWN
    assert report.reasons == [
        "Of the held-out answers 80 are right and 40 are wrong, and the gate needs 80 of each: 40 more wrong ones."
    ]


def test_lineages_on_the_same_answers_are_not_promoted_by_chance() -> None:
    worn = Worn(40, 200, seed=5, most_looks=None, spread=0.0)
    for _ in range(25):
        worn.night()
    assert worn.promotions.sum() == 0
    assert abs(worn.optimism()) < 0.02
    better = Worn(10, 400, seed=5, most_looks=5, spread=1.0)
    for _ in range(10):
        better.night()
    assert better.promotions.sum() > 0, "large true gains are found"
    assert better.harmful.sum() == 0
    assert better.merit.mean() > 0
