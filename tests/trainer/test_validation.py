"""The checkpoint that is published, by its validations."""

from uuid import UUID

import pytest

from gadfly.grading import Grade
from gadfly.trainer.measure.metrics import Judged
from gadfly.trainer.measure.validation import Validation, best, validation
from gadfly.verdict import Verdict


def at(step: int, right: int, wrong: int, *, of: int = 16) -> Validation:
    """A checkpoint that judges the first `right` of the right answers well, and the first `wrong` of the wrong ones."""
    return Validation(
        step=step,
        right=[float(number < right) for number in range(of)],
        wrong=[float(number < wrong) for number in range(of)],
    )


CASES = [  # validations, the step that is published, why
    ([at(0, 8, 8)], 0, "there is nothing else"),
    ([at(0, 8, 8), at(5, 10, 10), at(10, 13, 13)], 10, "it rises to the end"),
    ([at(0, 8, 8), at(5, 13, 13), at(10, 5, 5)], 5, "what came after is surely worse"),
    ([at(0, 8, 8), at(5, 13, 13), at(10, 12, 13)], 10, "one answer is no difference: the latest of equals"),
    ([at(0, 8, 8), at(5, 16, 6), at(10, 11, 11)], 10, "both classes count equally, and none may pay for the other"),
    ([at(0, 14, 14), at(5, 8, 8), at(10, 6, 6)], 0, "the evidence is against all that was learned"),
    ([at(0, 9, 9), at(5, 8, 9)], 5, "one answer is no evidence against it"),
    ([at(0, 0, 0, of=0), at(5, 0, 0, of=0), at(10, 0, 0, of=0)], 10, "without validation answers the last"),
]


@pytest.mark.parametrize(("validations", "step", "why"), CASES)
def test_the_checkpoint_that_is_published(validations: list[Validation], step: int, why: str) -> None:
    assert best(validations).step == step, why


def test_the_merit_of_an_answer_is_its_verdict_and_its_refinement() -> None:
    def judged(number: int, stated: Verdict, refined: Grade | None, *, was_right: bool) -> Judged:
        return Judged(
            answer_id=UUID(int=number), question_hash=b"", was_right=was_right, stated=stated, refined=refined
        )

    found = validation(
        5,
        [
            judged(1, Verdict.CORRECT, Grade.RIGHT, was_right=True),
            judged(2, Verdict.CORRECT, Grade.WRONG, was_right=True),
            judged(3, Verdict.UNPARSED, None, was_right=True),
            judged(4, Verdict.INCORRECT, None, was_right=False),
            judged(5, Verdict.CORRECT, Grade.NO_ANSWER, was_right=False),
        ],
    )
    assert (found.right, found.wrong) == ([1.0, 0.5, 0.0], [1.0, 0.0])
    assert found.merit == 0.5
