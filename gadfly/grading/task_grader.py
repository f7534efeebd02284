"""The graders of tasks, one interface for all kinds."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from gadfly.errors import UnreadableReference
from gadfly.grading.process import Grade, Submission


async def grade_one(grader: "TaskGrader", submission: Submission) -> Grade:
    """The grade of one text. Raises as `TaskGrader.grade_all`, and UnreadableReference for its reference."""
    [outcome] = await grader.grade_all([submission])
    if isinstance(outcome, UnreadableReference):
        raise outcome
    return outcome


class TaskGrader(Protocol):
    """Grades answers against references. Used from one event loop, and closed at the end of `async with`."""

    version: int
    """The version of its rules, which is stored with a grade; grades of another version are given again."""

    key: Callable[[str, bool], str | None] | None
    """The answer that a text states, cut or not, in a form in which equal answers are equal; None where it states none.
    Without such a function, two texts are compared by grading one against the other."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def start(self) -> None:
        """Start its process, so that the first caller does not wait. Raises as `grade_all`."""

    async def grade_all(self, rows: Sequence[tuple[str, str] | Submission]) -> list[Grade | UnreadableReference]:
        """The outcome of each row, in order. A reference that cannot be graded against is an error for its sender.

        Raises:
            TooBusy: too many rows are waiting.
            EngineError: the endpoint that grades does not answer, or not as it should, which says nothing about an
                answer. (EngineUnavailable, EngineTimeout and EngineRefused are kinds of it.)
            RuntimeError: the grader's own process does not start.
        """
