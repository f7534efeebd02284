"""How often the rollback watch is wrong, and how fast it sees a loss: `python -m bench.watch [--runs 300]`.

Simulated deployments: labelled answers arrive one after another, and the watch looks after every 25 of them. Every rate
is a share of deployments that rolled back, with its standard error. Prints a Markdown table.
"""

import argparse
import math
import random
from collections.abc import Sequence

from gadfly.service.critics.watch import Decision, compare
from gadfly.store.watch import Outcome

LOOK = 25
LABELS = (100, 400, 1500)

CASES = [  # what is true, verdict accuracy on right and wrong answers before and after, share of right answers
    ("equal critics, half of the answers right", (0.9, 0.7), (0.9, 0.7), 0.5),
    ("equal critics, 95 % right", (0.9, 0.7), (0.9, 0.7), 0.95),
    ("10 points worse on both classes", (0.9, 0.7), (0.8, 0.6), 0.5),
    ("30 points worse on both classes", (0.9, 0.7), (0.6, 0.4), 0.5),
    ("calls everything correct, 95 % right", (0.9, 0.7), (1.0, 0.0), 0.95),
    ("12 points worse on right, 35 better on wrong ones, 95 % right", (0.97, 0.45), (0.85, 0.8), 0.95),
]


def traffic(rng: random.Random, count: int, *, share: float, accuracy: tuple[float, float]) -> list[Outcome]:
    found = []
    for _ in range(count):
        was_right = rng.random() < share
        found.append(Outcome(was_right=was_right, is_verdict_right=rng.random() < accuracy[0 if was_right else 1]))
    return found


def first_rollback(rng: random.Random, before: Sequence[Outcome], after: Sequence[Outcome]) -> int | None:
    """After how many labels the watch rolls back; None: never."""
    for labels in range(LOOK, len(after) + 1, LOOK):
        if compare(before, after[:labels], callers=0).decision is Decision.ROLL_BACK:
            return labels
    return None


def row(name: str, before: tuple[float, float], after: tuple[float, float], share: float, own: int, runs: int) -> str:
    rng = random.Random(f"{name} {own}")
    found = [
        first_rollback(
            rng,
            traffic(rng, own, share=share, accuracy=before),
            traffic(rng, LABELS[-1], share=share, accuracy=after),
        )
        for _ in range(runs)
    ]
    cells = []
    for labels in LABELS:
        rate = sum(first is not None and first <= labels for first in found) / runs
        error = math.sqrt(max(rate * (1 - rate), 1 / runs) / runs)
        cells.append(f"{100 * rate:.1f} % ({100 * error:.1f})")
    return f"| {name} | {own} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="simulated deployments per row")
    options = parser.parse_args(arguments)
    labels = " | ".join(f"{count:,} labels" for count in LABELS)
    print(f"| truth | labels of the critic before | rolled back within {labels} |")
    print("|---|---|" + "---|" * len(LABELS))
    for name, before, after, share in CASES:
        for own in (50, 1500):
            print(row(name, before, after, share, own, options.runs), flush=True)


if __name__ == "__main__":
    main()
