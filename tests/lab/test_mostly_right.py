"""The traffic of the run that is mostly right, and the report of its result, without training."""

from bench.mostly_right import answers, lines
from gadfly.trainer.measure.gate import Traffic


def test_traffic_has_the_share_of_right_answers_and_one_answer_per_question() -> None:
    found = answers(400, right=0.95, seed="a")
    assert len({answer.question_hash for answer in found}) == 400
    assert 0.92 < sum(answer.is_right for answer in found) / 400 < 0.98
    assert all(answer.reference for answer in found)
    assert found == answers(400, right=0.95, seed="a") != answers(400, right=0.95, seed="b")
    for answer in found:
        stated = answer.response.rstrip(".").split()[-1]
        assert (stated == answer.reference) is answer.is_right, answer.response


def test_the_report_weighs_the_classes_as_the_traffic_does() -> None:
    low, high = Traffic(right=190, wrong=10).share_interval(0.95)
    assert low < 0.95 < high
    result = {
        "logged": {"right": 190, "wrong": 10},
        "learn": {"right": 300, "wrong": 200},
        "fresh": {
            "live": {"right": 97, "all_right": 100, "wrong": 45, "all_wrong": 100},
            "candidate": {"right": 85, "all_right": 100, "wrong": 80, "all_wrong": 100},
        },
        "gate": {"outcome": "reject", "reasons": ["Utility: worse."]},
    }
    text = lines(result, seed=2, right=0.95)
    assert text[0].startswith("Seed 2: callers' answers 190 right and 10 wrong;")
    assert text[4].endswith("| 71.0 % | 94.4 % |"), "0.95 x 97 + 0.05 x 45"
    assert text[5].endswith("| 82.5 % | 84.8 % |")
    assert text[7:9] == ["The gate: **reject**.", "- Utility: worse."]
