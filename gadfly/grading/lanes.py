"""Grading in several processes, so that an answer that takes seconds to compare delays no quick one.

References are sorted before they are compared: numbers, words, dates and choices go to the quick process, which never
loads sympy for them, and expressions to one of the other processes. There every call gets its turn after each row, so
one with many expensive rows does not make the others wait for all of them. The turns go round between the callers of a
service, so many calls of one do not make another's wait for all of them.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from gadfly.errors import UnreadableReference
from gadfly.grading.kinds import MAX_REFERENCE_CHARS, needs_sympy
from gadfly.grading.process import GRADER_VERSION, Grade, Grader, Submission

__all__ = ["GradingLanes"]


class GradingLanes:
    """A `TaskGrader` of mathematics: one quick process, and `hard` others.

    Args:
        timeout_s, patience_s, on_failure: as for `Grader`.
        hard: processes that compare expressions.
    """

    version = GRADER_VERSION
    key: Callable[[str, bool], str | None] | None = None

    def __init__(
        self,
        *,
        timeout_s: float,
        hard: int,
        patience_s: float | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self._quick = Grader(timeout_s=timeout_s, patience_s=patience_s, on_failure=on_failure)
        self._hard = [
            Grader(timeout_s=timeout_s, patience_s=patience_s, on_failure=on_failure, batch_rows=1) for _ in range(hard)
        ]
        self._calls: Counter[Grader] = Counter()  # in progress or waiting

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(grader.close() for grader in (self._quick, *self._hard)))

    async def start(self) -> None:
        """Start the quick process. The others start when they are needed. Raises as `Grader.start`."""
        await self._quick.start()

    async def grade_all(self, rows: Sequence[tuple[str, str] | Submission]) -> list[Grade | UnreadableReference]:
        """As `Grader.grade_all`; quick rows do not wait for the others."""
        submissions = [Submission(*row) for row in rows]
        is_hard = {text: _is_hard(text) for text in {row.reference for row in submissions}}
        quick, hard = (
            [number for number, row in enumerate(submissions) if is_hard[row.reference] is wanted]
            for wanted in (False, True)
        )
        least_busy = min(self._hard, key=lambda grader: self._calls[grader])
        parts = [(grader, part) for grader, part in ((self._quick, quick), (least_busy, hard)) if part]
        outcomes: dict[int, Grade | UnreadableReference] = {}
        self._calls.update(grader for grader, _ in parts)  # before the calls begin to wait, so that a burst is spread
        try:
            found = await asyncio.gather(*(grader.grade_all([submissions[n] for n in part]) for grader, part in parts))
        finally:
            self._calls.subtract(grader for grader, _ in parts)
        for (_, part), grades in zip(parts, found, strict=True):
            outcomes.update(zip(part, grades, strict=True))
        return [outcomes[number] for number in range(len(submissions))]


def _is_hard(reference: str) -> bool:
    return len(reference) <= MAX_REFERENCE_CHARS and needs_sympy(reference)
