"""Ours and math-verify alone on tables of answers, side by side.

    python -m bench.grading PATH ... [--show N]

PATH is a JSON Lines file, or a folder of them. A row has `response`, `reference`, and either `correct` (a boolean) or
`expect` (`right`, or anything else such as `not_right`); other rows are left out. A false right is a wrong answer that
is graded right, a miss a right answer that is not, and a false label a right answer that is graded wrong.
math-verify alone is the usual way to call it: parse both texts, then verify.
"""

import argparse
import contextlib
import json
import logging
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import math_verify

from gadfly.errors import UnreadableReference
from gadfly.grading import Grade, grade_many

TIMEOUT_S = 2.0
TAIL_CHARS = 90


@dataclass(slots=True)
class Tally:
    """Outcomes of one grader."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def add(self, row: dict[str, Any], grade: Grade | None) -> None:
        """Count one row; a grade of None is an unreadable reference."""
        is_right = bool(_is_right(row))
        self.counts["right" if is_right else "wrong"] += 1
        self.counts["unreadable"] += grade is None
        self.counts["no answer"] += grade is Grade.NO_ANSWER
        kind = "miss" if is_right and grade is not Grade.RIGHT else "false right"
        if is_right is (grade is Grade.RIGHT):
            return
        self.counts[kind] += 1
        self.counts["false label"] += is_right and grade is Grade.WRONG
        self.failed.append(f"{kind}: reference {row['reference']!r}, {grade}, ends {row['response'][-TAIL_CHARS:]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--show", type=int, default=0, help="how many failures of ours to print for each table")
    options = parser.parse_args()
    for path in tables(options.paths):
        rows = [row for row in map(json.loads, path.read_text().splitlines()) if _is_right(row) is not None]
        if not rows:
            continue
        ours, alone = grade_ours(rows), grade_alone(rows)
        print(f"\n{path.name}: {ours.counts['right']} right and {ours.counts['wrong']} wrong answers")
        print(f"{'':<14}{'ours':>8}{'math-verify':>14}")
        for name in ("false right", "miss", "false label", "no answer", "unreadable"):
            print(f"{name:<14}{ours.counts[name]:>8}{alone.counts[name]:>14}")
        print(f"{'ms a pair':<14}{1000 * ours.seconds / len(rows):>8.2f}{1000 * alone.seconds / len(rows):>14.2f}")
        for line in ours.failed[: options.show]:
            print(f"  {line}")


def tables(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]


def _is_right(row: dict[str, Any]) -> bool | None:
    if not isinstance(row.get("response"), str) or not isinstance(row.get("reference"), str):
        return None
    label = row.get("correct", row.get("expect"))
    return label if isinstance(label, bool) else None if label is None else label == "right"


def grade_ours(rows: Sequence[dict[str, Any]]) -> Tally:
    tally, started = Tally(), time.perf_counter()
    grades = grade_many([(row["response"], row["reference"]) for row in rows], timeout_s=TIMEOUT_S)
    tally.seconds = time.perf_counter() - started
    for row, grade in zip(rows, grades, strict=True):
        tally.add(row, None if isinstance(grade, UnreadableReference) else grade)
    return tally


def grade_alone(rows: Sequence[dict[str, Any]]) -> Tally:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    tally, started = Tally(), time.perf_counter()
    for row in rows:
        grade: Grade | None = Grade.NO_ANSWER
        with contextlib.suppress(TimeoutError), _limit(TIMEOUT_S):
            gold = math_verify.parse(row["reference"], parsing_timeout=None) or math_verify.parse(
                f"${row['reference']}$", parsing_timeout=None
            )
            answer = math_verify.parse(row["response"], parsing_timeout=None)
            if not gold:
                grade = None
            elif answer:
                same = math_verify.verify(gold, answer, timeout_seconds=None)
                grade = Grade.RIGHT if same else Grade.WRONG
        tally.add(row, grade)
    tally.seconds = time.perf_counter() - started
    return tally


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def expired(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
