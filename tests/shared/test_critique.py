"""The pure parts of the critique pipeline."""

from uuid import UUID

import pytest

from gadfly.critique import majority_verdict, read_verdict, supplied_critique
from gadfly.records import Critique
from gadfly.verdict import Verdict, VerdictSource

C, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSED


@pytest.mark.parametrize(
    ("verdicts", "majority"),
    [((), U), ((C,), C), ((C, W), U), ((C, W, W), W), ((U, U, C), C), ((U, U), U), ((C, C, W, W, U), U)],
)
def test_majority(verdicts: tuple[Verdict, ...], majority: Verdict) -> None:
    assert majority_verdict(verdicts) is majority


def test_the_likelier_verdict_is_read() -> None:
    assert read_verdict(0.3, 0.1) == (C, VerdictSource.READ)
    assert read_verdict(0.1, 0.3) == (W, VerdictSource.READ)
    assert read_verdict(0.0, 0.0) == (U, VerdictSource.NONE)
    assert read_verdict(None, None) == (U, VerdictSource.NONE)


@pytest.mark.parametrize(
    ("verdict", "p_correct", "p_incorrect", "confidence"),
    [
        (C, 0.3, 0.1, 0.75),
        (W, 0.3, 0.1, 0.25),  # stated against the odds
        (U, 0.3, 0.1, None),
        (C, None, None, None),
        (C, 0.0, 0.0, None),
    ],
)
def test_confidence_is_the_share_of_the_reported_verdict(
    verdict: Verdict, p_correct: float | None, p_incorrect: float | None, confidence: float | None
) -> None:
    critique = Critique(
        id=UUID(int=0),
        round=0,
        sample=0,
        text="",
        stated=verdict,
        verdict=verdict,
        verdict_source=VerdictSource.STATED,
        p_correct=p_correct,
        p_incorrect=p_incorrect,
        finish_reason="stop",
    )
    assert critique.confidence == (None if confidence is None else pytest.approx(confidence))


def test_a_callers_critique_is_parsed_like_any_other() -> None:
    stated = supplied_critique("Correctness of the final answer: Wrong")
    assert (stated.verdict, stated.verdict_source, stated.supplied) == (W, VerdictSource.STATED, True)
    silent = supplied_critique("Add the loose pen.")
    assert (silent.verdict, silent.verdict_source) == (U, VerdictSource.NONE)
