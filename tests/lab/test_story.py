"""The demo's report says what was measured, on a terminal and as a page, also when nothing was published."""

import io
import random
from typing import Any

import pytest
from rich.console import Console

from gadfly.lab.story import Asked, Compared, Story, page, show

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


def compared(*, wrong: bool, old: str, new: str) -> Compared:
    asked = Asked.make(random.Random(1), wrong=wrong)

    def said(verdict: str) -> dict[str, Any]:
        grade = "right" if (verdict == "incorrect") is wrong else "wrong"
        return {"verdict": verdict, "critique": "a <b> critique [x]", "refined": "1 + 1 = 2.", "grade": grade}

    return Compared(asked, {0: said(old), 1: said(new)})


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
        "compared": [
            compared(wrong=True, old="correct", new="incorrect"),
            compared(wrong=False, old="correct", new="correct"),
        ],
    }
    return Story(**whole | changes)


def printed(told: Story) -> str:
    output = io.StringIO()
    show(told, Console(file=output, width=200))
    return output.getvalue()


@pytest.mark.parametrize("tell", [printed, page])
def test_numbers_before_and_after_are_those_of_the_answers(tell: Any) -> None:
    text = tell(story())
    assert "50.0%" in text
    assert "100.0%" in text
    assert "Discriminability: 50.0 % live" in text
    assert "critic@0 to critic@1" in text
    assert "1.75 s later and 2.00 s later" in text
    assert "0 of 4 probes" in text
    assert "7e-06" in text or "8e-06" in text


def test_a_critics_text_is_text() -> None:
    assert "a &lt;b&gt; critique [x]" in page(story())
    assert "a <b> critique [x]" in printed(story()), "no markup of the terminal either"


@pytest.mark.parametrize("tell", [printed, page])
def test_a_run_that_published_nothing_is_told_too(tell: Any) -> None:
    run = {"outcome": "reject", "version": None, "gate": {"reasons": ["worse"]}, "config": {"steps_stage_1": 2}}
    events = [{"kind": "note", "data": {"message": "the gate said no"}}]
    text = tell(story(run=run, events=events, history=None, compared=[]))
    assert "reject" in text
    assert "worse" in text


def test_a_swap_that_is_not_complete_says_so() -> None:
    receipt = RECEIPT | {"lost": None, "mixed": None, "times": RECEIPT["times"] | {"moved_at": None}}
    text = printed(story(history={"receipts": [{"details": receipt}]}))
    assert text.count("not counted yet") == 2
    assert "1.75 s later and not yet" in text
