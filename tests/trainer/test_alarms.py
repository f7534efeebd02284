"""The statistics of a step worked out by hand, and the conditions of each alarm."""

import json
import math
from uuid import UUID

import pytest
from pydantic import TypeAdapter

from gadfly.grading import Grade
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.measure.alarms import Alarm, Alarms, AlarmState, step_examples, step_statistics
from gadfly.trainer.rollouts import Rollout, RolloutGroup
from gadfly.training import AlarmLimits
from gadfly.verdict import count_verdicts, parse_critique
from gadfly.votes import LabelSource

FINAL = "Correctness of the final answer:"


def group(
    *critiques: tuple[str, float, int], is_right: bool, reference: str | None = "21", refined: Grade | None = None
) -> RolloutGroup:
    """A group of critiques, each given as its text, its score and its number of tokens."""
    return RolloutGroup(
        item=LabelledAnswer(
            interaction_id=UUID(int=7),
            question_hash=b"",
            question="What is 24 - 3?",
            response="It is 21." if is_right else "It is 27.",
            is_right=is_right,
            source=LabelSource.REFERENCE,
            reference=reference,
        ),
        prompt=(1,),
        rollouts=tuple(
            Rollout(
                text=text,
                verdict=parse_critique(text).verdict,
                verdict_lines=count_verdicts(text),
                finish_reason="stop",
                tokens=(2,) * tokens,
                logprobs=(-1.0,) * tokens,
                refined=refined,
                score=score,
            )
            for text, score, tokens in critiques
        ),
    )


STEP = [
    group((f"{FINAL} Correct", 1, 10), (f"{FINAL} Wrong", 0, 20), is_right=True, refined=Grade.RIGHT),
    group(
        (f"{FINAL} Correct", 0, 30), (f"{FINAL} Correct\n{FINAL} Wrong", 0, 40), is_right=False, refined=Grade.NO_ANSWER
    ),
    group((f"{FINAL} Wrong\nExplanation: It is 21.", 1, 50), ("I cannot say.", 0, 60), is_right=False),
    group((f"{FINAL} Correct", 1, 70), is_right=True, refined=Grade.WRONG),
    group((f"{FINAL} Wrong\nExplanation: It is 21.", 1, 80), is_right=False, reference=None),
]


def test_a_step_by_hand() -> None:
    assert step_statistics(STEP) == pytest.approx(
        {
            "mean_score": 4 / 8,
            "mean_tokens": 45,
            "no_verdict": 2 / 8,  # two verdicts are none
            "double_verdict": 1 / 8,
            "zero_advantage": 3 / 5,  # groups 1, 3 and 4
            "called_correct": 3 / 6,
            "share_right": 3 / 6,
            "verdict_drift": 0,
            "discrimination_right": 2 / 3,
            "discrimination_wrong": 2 / 5,
            "discrimination_balanced": (2 / 3 + 2 / 5) / 2,
            "kept_right": 2 / 3,
            "fixed_wrong": 0 / 2,  # group 2 was not refined
            "answer_leakage": 1 / 4,  # of the wrong ones the fifth has no reference
        }
    )


def test_a_statistic_without_anything_to_measure_is_left_out() -> None:
    assert step_statistics([]) == {}
    silent = step_statistics([group(("Hm.", 0, 1), is_right=True)])
    assert silent["no_verdict"] == 1
    assert silent.keys().isdisjoint(
        {"verdict_drift", "discrimination_wrong", "discrimination_balanced", "answer_leakage"}
    )


def test_examples_show_the_cause_of_the_alarm_and_name_the_interaction() -> None:
    found = step_examples(STEP)
    texts = [f"{UUID(int=7)}: {rollout.text}" for each in STEP for rollout in each.rollouts]
    assert found["no_verdict"] == [texts[3], texts[5]]
    assert found["double_verdict"] == [texts[3]]
    assert found["verdict_drift"] == [texts[1], texts[2]]
    assert found["answer_leakage"] == [texts[4]]
    assert found["length_growth"] == [texts[7], texts[6], texts[5]]


LIMITS = AlarmLimits(patience=2)
BEYOND = [  # alarm, statistic, a value within the limit, the limit, a value beyond it
    ("verdict_drift", "verdict_drift", 0.1, 0.45, 0.46),
    ("answer_leakage", "answer_leakage", 0.1, 0.9, 0.91),
    ("no_verdict", "no_verdict", 0.1, 0.9, 0.91),
    ("double_verdict", "double_verdict", 0.1, 0.5, 0.51),
    ("kl", "kl", 0.1, 2.0, 2.1),
    ("entropy", "entropy", 0.1, 0.005, 0.004),
    ("zero_advantage", "zero_advantage", 0.1, 0.98, 0.99),
    ("logprob_gap", "logprob_gap_mean", 0.01, 0.1, 0.11),
    ("kl", "kl", 0.1, 2.0, math.nan),
    ("entropy", "entropy", 0.1, 0.005, math.nan),
]


def stored(alarms: Alarms) -> AlarmState:
    """The state after a checkpoint and a restart."""
    adapter = TypeAdapter(AlarmState)
    return adapter.validate_json(adapter.dump_json(alarms.state))


def run(alarms: Alarms, statistic: str, values: list[float]) -> list[Alarm | None]:
    return [alarms.observe(step, {statistic: value}) for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(("name", "statistic", "within", "at", "beyond"), BEYOND)
def test_an_alarm_is_raised_after_its_patience(
    name: str, statistic: str, within: float, at: float, beyond: float
) -> None:
    raised = run(Alarms(LIMITS), statistic, [within, beyond, within, beyond, at, beyond, beyond])
    assert raised[:6] == [None] * 6
    alarm = raised[6]
    assert alarm is not None
    assert alarm.name == name
    assert alarm.evidence["steps"] == [6, 7]
    assert alarm.evidence["limit"] == getattr(LIMITS, name)
    assert json.loads(json.dumps(alarm.evidence, allow_nan=False)) == alarm.evidence
    off = AlarmLimits(patience=2, **{name: None})
    assert run(Alarms(off), statistic, [beyond, beyond, beyond]) == [None] * 3


def test_verdict_drift_is_watched_from_the_first_step_within_the_limit() -> None:
    alarms = Alarms(LIMITS)
    assert run(alarms, "verdict_drift", [0.5, 0.5, 0.5]) == [None] * 3
    resumed = Alarms(LIMITS, stored(alarms))
    assert run(resumed, "verdict_drift", [0.5, 0.5, 0.4]) == [None] * 3
    resumed = Alarms(LIMITS, stored(resumed))
    assert run(resumed, "verdict_drift", [0.5, 0.5])[1] is not None


def test_an_alarm_has_a_message_and_evidence() -> None:
    alarms = Alarms(LIMITS)
    alarms.observe(6, {"double_verdict": 0.75}, {"double_verdict": ["old"]})
    alarm = alarms.observe(7, {"double_verdict": 1.0}, {"double_verdict": ["a", "b", "c", "d"]})
    assert alarm == Alarm(
        name="double_verdict",
        message="The share of critiques with two verdicts is 1 in step 7, above 0.5 for 2 steps in a row.",
        evidence={"limit": 0.5, "steps": [6, 7], "values": [0.75, 1.0], "examples": ["a", "b", "c"]},
    )


def test_length_is_compared_with_the_first_step() -> None:
    raised = run(Alarms(LIMITS), "mean_tokens", [50, 150, 151, 160])
    assert raised[:3] == [None] * 3
    assert raised[3] is not None
    assert raised[3].name == "length_growth"
    assert raised[3].evidence["values"] == [151 / 50, 160 / 50]


def test_a_step_without_the_statistic_does_not_end_the_streak() -> None:
    alarms = Alarms(LIMITS)
    assert alarms.observe(1, {"answer_leakage": 1.0}) is None
    assert alarms.observe(2, {}) is None
    alarm = alarms.observe(3, {"answer_leakage": 1.0})
    assert alarm is not None
    assert alarm.evidence["steps"] == [1, 3]


def test_of_several_alarms_in_a_step_the_cause_is_raised() -> None:
    alarms = Alarms(AlarmLimits(patience=1))
    alarm = alarms.observe(1, {"zero_advantage": 1.0, "no_verdict": 1.0, "logprob_gap_mean": 5.0})
    assert alarm is not None
    assert alarm.name == "logprob_gap"


def test_reward_that_rises_while_accuracy_falls_raises_an_alarm() -> None:
    alarms = Alarms(AlarmLimits(no_gain=2))
    seen = [(0.1, 0.6), (0.2, 0.55), (0.3, 0.55), (0.4, 0.5), (0.5, 0.45)]
    raised = [alarms.observe_validation(step, reward=r, accuracy=a) for step, (r, a) in enumerate(seen)]
    assert raised[:4] == [None] * 4  # an unchanged accuracy ends the streak
    assert raised[4] is not None
    assert raised[4].name == "no_gain"
    assert raised[4].evidence == {
        "limit": 2,
        "steps": [3, 4],
        "rewards": [0.4, 0.5],
        "accuracies": [0.5, 0.45],
        "examples": [],
    }
    off = Alarms(AlarmLimits(no_gain=None))
    assert [off.observe_validation(step, reward=step, accuracy=-step) for step in range(9)] == [None] * 9


def test_a_new_stage_starts_new_streaks() -> None:
    alarms = Alarms(AlarmLimits(patience=2, no_gain=1))
    alarms.observe(1, {"kl": 9.0, "mean_tokens": 10})
    alarms.observe_validation(1, reward=0.1, accuracy=0.9)
    alarms.begin_stage()
    assert alarms.observe(2, {"kl": 9.0}) is None
    assert alarms.observe_validation(2, reward=0.2, accuracy=0.1) is None
    assert alarms.observe(3, {"kl": 0.0, "mean_tokens": 31}) is None
    alarm = alarms.observe(4, {"mean_tokens": 31})  # compared with the first step of the run, not of the stage
    assert alarm is not None
    assert alarm.name == "length_growth"


def test_a_resumed_run_continues_its_streaks() -> None:
    alarms = Alarms(AlarmLimits(patience=3, no_gain=2))
    for step in (1, 2):
        alarms.observe(step, {"kl": math.inf, "mean_tokens": 10.0})
        alarms.observe_validation(step, reward=step, accuracy=-step)
    resumed = Alarms(AlarmLimits(patience=3, no_gain=2), stored(alarms))
    assert resumed.state == alarms.state
    for each in (alarms, resumed):
        found = each.observe(3, {"kl": 3.0, "mean_tokens": 40.0})
        assert found is not None
        assert found.evidence["values"] == ["inf", "inf", 3.0]
        assert each.observe_validation(3, reward=3, accuracy=-3) is not None
