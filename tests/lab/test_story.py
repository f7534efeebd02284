"""The demo's report shows the measurements, on a terminal and as a page, also if nothing was published."""

import io
import random
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from rich.console import Console

from gadfly.lab.picture import picture
from gadfly.lab.story import Case, Comparison, Story, page, show

RECEIPT: dict[str, Any] = {
    "from_version": 0,
    "adapter_sha256": "ab" * 32,
    "times": {
        "requested_at": "2026-11-25T22:43:37.500000+00:00",
        "proved_at": "2026-11-25T22:43:39.250000+00:00",
        "moved_at": "2026-11-25T22:43:39.500000+00:00",
    },
    "in_flight": 3,
    "lost": 0,
    "mixed": {"mixed": 0, "probes": 4},
    "engines": [
        {
            "engine": "unix:///engine.sock",
            "vllm": "0.32.0",
            "load_s": 0.0352,
            "probes": 4,
            "probe_s": 1.74,
            "deltas": {"tokens": 128, "from_base": 2.196, "from_trainer": 7.5e-06},
        }
    ],
}


def comparison(*, wrong: bool, old: str, new: str) -> Comparison:
    def result(verdict: str) -> dict[str, Any]:
        grade = "right" if (verdict == "incorrect") is wrong else "wrong"
        return {"verdict": verdict, "critique": "a <b> critique [x]", "refined": "1 + 1 = 2.", "grade": grade}

    return Comparison(Case.make(random.Random(1), wrong=wrong), {0: result(old), 1: result(new)})


def story(**changes: Any) -> Story:
    whole: dict[str, Any] = {
        "seconds": 420.0,
        "callers": 12,
        "requests": 700,
        "failures": 1,
        "run": {
            "outcome": "promote",
            "version": 1,
            "gate": {"reasons": ["Discriminability: 50.0 % live"]},
            "config": {"steps_stage_1": 2},
        },
        "events": [
            {"kind": "validation", "data": {"step": 0, "metrics": {"discrimination_right": 1.0}}},
            {"kind": "step", "data": {"step": 1, "metrics": {"reward_mean": 0.5}}},
        ],
        "history": {"receipts": [{"details": RECEIPT}]},
        "comparisons": [
            comparison(wrong=True, old="correct", new="incorrect"),
            comparison(wrong=False, old="correct", new="correct"),
        ],
    }
    return Story(**whole | changes)


def printed(shown: Story) -> str:
    output = io.StringIO()
    show(shown, Console(file=output, width=200))
    return output.getvalue()


@pytest.mark.parametrize("render", [printed, page])
def test_the_report_shows_rates_gate_and_receipt(render: Any) -> None:
    text = render(story())
    assert "50.0%" in text
    assert "100.0%" in text
    assert "Discriminability: 50.0 % live" in text
    assert "critic@0 to critic@1" in text
    assert "1.75 s later and 2.00 s later" in text
    assert "0 of 4 probes" in text
    assert "7e-06" in text or "8e-06" in text


def test_a_critique_is_shown_without_interpreting_markup() -> None:
    assert "a &lt;b&gt; critique [x]" in page(story())
    assert "a <b> critique [x]" in printed(story())


@pytest.mark.parametrize("render", [printed, page])
def test_a_run_that_published_nothing_is_reported(render: Any) -> None:
    run = {"outcome": "reject", "version": None, "gate": {"reasons": ["worse"]}, "config": {"steps_stage_1": 2}}
    events = [{"kind": "note", "data": {"message": "rejected"}}]
    text = render(story(run=run, events=events, history=None, comparisons=[]))
    assert "reject" in text
    assert "worse" in text


def test_an_incomplete_swap_is_marked() -> None:
    receipt = RECEIPT | {"lost": None, "mixed": None, "times": RECEIPT["times"] | {"moved_at": None}}
    text = printed(story(history={"receipts": [{"details": receipt}]}))
    assert text.count("not counted yet") == 2
    assert "1.75 s later and not yet" in text


def test_the_picture_shows_both_critics_of_one_answer() -> None:
    svg = ET.fromstring(picture(story()))
    texts = ["".join(each.itertext()) for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "critic@0 (untrained): correct" in texts
    assert "critic@1: incorrect" in texts
    assert texts.count("a <b> critique [x]") == 2
    assert "50%  critic@0" in texts
    assert "100%  critic@1" in texts


def test_no_picture_without_a_new_critic() -> None:
    with pytest.raises(ValueError, match="published no critic"):
        picture(story(run={"outcome": "reject", "version": None, "gate": {}, "config": {}}, comparisons=[]))
