"""Agreement of the grades with known labels.

    python -m bench.grading PATH_TO_model_solutions.jsonl

Each row of the file has `response`, `reference` and `correct`. Prints the counts, the speed, and every row where grade
and label differ or no answer was extracted, for a manual check.
"""

import json
import sys
import time
from pathlib import Path

from gadfly.errors import UnreadableReference
from gadfly.grading import Grade, extract_answer, grade_many, read_reference

TIMEOUT_S = 2.0
TAIL_CHARS = 90


def main(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    started = time.perf_counter()
    grades = grade_many([(row["response"], row["reference"]) for row in rows], timeout_s=TIMEOUT_S)
    elapsed_s = time.perf_counter() - started

    counts = {(grade, label): 0 for grade in Grade for label in (True, False)}
    for number, (row, grade) in enumerate(zip(rows, grades, strict=True), start=1):
        if isinstance(grade, UnreadableReference):
            raise grade
        counts[grade, row["correct"]] += 1
        if (grade is Grade.RIGHT) != row["correct"] or grade is Grade.NO_ANSWER:
            answer = extract_answer(row["response"], read_reference(row["reference"]))
            print(
                f"row {number}: {grade}, label {'right' if row['correct'] else 'wrong'}, "
                f"reference {row['reference']!r}, extracted {answer}, ends {row['response'][-TAIL_CHARS:]!r}"
            )

    agreed = counts[Grade.RIGHT, True] + counts[Grade.WRONG, False] + counts[Grade.NO_ANSWER, False]
    print(f"rows          {len(rows)}")
    print(f"agreement     {agreed} ({agreed / len(rows):.2%})")
    print(f"false rights  {counts[Grade.RIGHT, False]}")
    print(f"false wrongs  {counts[Grade.WRONG, True] + counts[Grade.NO_ANSWER, True]}")
    print(f"no answer     {counts[Grade.NO_ANSWER, False] + counts[Grade.NO_ANSWER, True]}")
    print(f"speed         {len(rows) / elapsed_s:,.0f} rows/s, including the start of the child process")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
