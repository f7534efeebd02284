"""What a critique states, as a table; and that no text takes long to read."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadfly.verdict import Verdict, count_verdicts, parse_critique

FINAL = "Correctness of the final answer"
STEPS = """Step sentence: 2 + 2 = 5
Correctness of the step: Wrong
Explanation: it is 4
"""

CASES = [  # critique, verdict, why this row exists
    (f"{FINAL}: Correct", Verdict.CORRECT, "the plain form"),
    (f"{FINAL}: Wrong", Verdict.INCORRECT, "the plain form"),
    (f"{FINAL}: Incorrect", Verdict.INCORRECT, "the other word for it"),
    (f"{FINAL}: Right", Verdict.CORRECT, "the other word for it"),
    (f"{FINAL.lower()}: wrong", Verdict.INCORRECT, "case does not count"),
    (f"  {FINAL}  :   Correct  ", Verdict.CORRECT, "space does not count"),
    (f"{FINAL}:Correct", Verdict.CORRECT, "nor does its absence"),
    (f"**{FINAL}:** Wrong", Verdict.INCORRECT, "marked bold"),
    (f"**{FINAL}**: **Wrong**", Verdict.INCORRECT, "both marked bold"),
    (f"- {FINAL}: Correct.", Verdict.CORRECT, "a list item with a full stop"),
    (f"### {FINAL}: `Correct`", Verdict.CORRECT, "a heading and code marks"),
    (f"{STEPS}{FINAL}: Wrong\nExplanation: 4", Verdict.INCORRECT, "after its steps"),
    ("", Verdict.UNPARSED, "nothing"),
    ("The answer is correct.", Verdict.UNPARSED, "prose is no verdict line"),
    (STEPS, Verdict.UNPARSED, "a step's verdict is not the final one"),
    (f"{FINAL}:", Verdict.UNPARSED, "cut off before the word"),
    (f"{FINAL}: maybe", Verdict.UNPARSED, "no verdict word"),
    (f"{FINAL}: Correct or Wrong", Verdict.UNPARSED, "both words on one line"),
    (f"{FINAL}: Correct, I think", Verdict.UNPARSED, "a hedge on the line"),
    (f"{FINAL}: <Correct or Wrong>", Verdict.UNPARSED, "the format copied, not filled"),
    (f"{FINAL}: Not correct", Verdict.UNPARSED, "a negation is not read as its opposite"),
    (f"{FINAL}: Correct\n{FINAL}: Wrong", Verdict.UNPARSED, "two verdicts are hedging"),
    (f"{FINAL}: Wrong\n{FINAL}: Wrong", Verdict.UNPARSED, "even when they agree"),
    (f"{FINAL}: Correct\n**{FINAL}**: hmm", Verdict.UNPARSED, "a second line counts whatever it says"),
    (f"I say {FINAL}: Correct", Verdict.UNPARSED, "inside a sentence it is no line of its own"),
]


@pytest.mark.parametrize(("text", "verdict", "why"), CASES, ids=[row[2] for row in CASES])
def test_states(text: str, verdict: Verdict, why: str) -> None:
    parsed = parse_critique(text)
    assert parsed.verdict is verdict
    if verdict is Verdict.UNPARSED:
        assert parsed.verdict_end is None
    else:
        assert parsed.verdict_end is not None
        assert text[: parsed.verdict_end].endswith(":")
        assert FINAL.lower() in text[: parsed.verdict_end].lower()


def test_steps_keep_the_exact_text() -> None:
    text = (
        "Step sentence: 16 - 3 = <<16-3=13>>13 eggs\nCorrectness of the step: Correct\nExplanation: three are eaten\n"
        "and the rest is sold\n"
        "Step sentence: $13 × 2\nCorrectness of the step: Wrong\nExplanation: four are baked\n"
        f"{FINAL}: Wrong\nExplanation: it is $18"
    )
    parsed = parse_critique(text)
    assert [step.text for step in parsed.steps] == ["16 - 3 = <<16-3=13>>13 eggs", "$13 × 2"]
    assert [step.verdict for step in parsed.steps] == [Verdict.CORRECT, Verdict.INCORRECT]
    assert [step.explanation for step in parsed.steps] == ["three are eaten\nand the rest is sold", "four are baked"]
    assert parsed.explanation == "it is $18"


def test_a_step_without_a_verdict_is_still_a_step() -> None:
    parsed = parse_critique("Step sentence: a\nStep sentence: b\nCorrectness of the step: hm\nStep sentence: c")
    assert [(step.text, step.verdict) for step in parsed.steps] == [(name, Verdict.UNPARSED) for name in "abc"]


def test_an_explanation_before_the_verdict_is_not_the_verdicts() -> None:
    assert parse_critique(f"Explanation: too early\n{FINAL}: Wrong").explanation == ""


@given(st.text(alphabet=st.sampled_from(list("Correctness of the final answer: Wrong\n*-# \t"))))
def test_any_text_is_read(text: str) -> None:
    parse_critique(text)


@pytest.mark.parametrize(
    "text",
    ["*" * 200_000, "- " * 100_000, " " * 200_000, f"{FINAL}" + " " * 200_000, f"{FINAL}:\n" * 5_000, "\n" * 200_000],
)
def test_hostile_text_is_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    parse_critique(text)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), (STEPS, 0), (f"{FINAL}: Correct", 1), (f"{FINAL}: Correct\n**{FINAL}**: hmm", 2), (f"{FINAL}:\n" * 3, 3)],
)
def test_counts_verdict_lines(text: str, count: int) -> None:
    assert count_verdicts(text) == count
