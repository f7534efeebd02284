"""How often the rollback watch is wrong, and how fast it sees a loss: `python -m bench.watch [--runs 300]`.

Simulated deployments: labelled answers arrive one after another, and the watch looks after every 25 of them. The critic
before judges none of them or half of them too; a third of the answers is as hard for one critic as for the other. Every
rate is a share of deployments that rolled back, with its standard error. Prints a Markdown table.
"""

import argparse
import math
import random
from collections.abc import Sequence

from gadfly.service.critics.watch import Decision, Pair, compare
from gadfly.store.watch import Outcome

LOOK = 25
LABELS = (100, 400, 1500)

SAME = 1 / 3  # of the answers are as hard for one critic as for the other

Case = tuple[str, tuple[float, float], tuple[float, float], float]
CASES: list[
    Case
] = [  # what is true, verdict accuracy on right and wrong answers before and after, share of right answers
    ("equal critics, half of the answers right", (0.9, 0.7), (0.9, 0.7), 0.5),
    ("equal critics, 95 % right", (0.9, 0.7), (0.9, 0.7), 0.95),
    ("10 points worse on both classes", (0.9, 0.7), (0.8, 0.6), 0.5),
    ("30 points worse on both classes", (0.9, 0.7), (0.6, 0.4), 0.5),
    ("calls everything correct, 95 % right", (0.9, 0.7), (1.0, 0.0), 0.95),
    ("12 points worse on right, 35 better on wrong ones, 95 % right", (0.97, 0.45), (0.85, 0.8), 0.95),
]


def traffic(rng: random.Random, count: int, *, share: float, accuracy: tuple[float, float]) -> list[Outcome]:
    """Labelled answers that one critic judges."""
    return [after for _, after in pairs_of(rng, count, share=share, before=accuracy, after=accuracy)]


def pairs_of(
    rng: random.Random, count: int, *, share: float, before: tuple[float, float], after: tuple[float, float]
) -> list[Pair]:
    """Labelled answers that both critics judge."""
    found = []
    for _ in range(count):
        was_right = rng.random() < share
        own, other = rng.random(), rng.random()
        if rng.random() < SAME:
            other = own  # an answer that is hard for one critic is hard for the other
        index = 0 if was_right else 1
        found.append(
            (
                Outcome(was_right=was_right, is_verdict_right=other < before[index]),
                Outcome(was_right=was_right, is_verdict_right=own < after[index]),
            )
        )
    return found


def first_rollback(before: Sequence[Outcome], judged: Sequence[Pair], *, is_paired: bool) -> int | None:
    """After how many labels the watch rolls back; None: never. With `is_paired`, every second answer is a pair."""
    for labels in range(LOOK, len(judged) + 1, LOOK):
        seen = judged[:labels]
        if is_paired:
            evidence = compare(before, [after for _, after in seen], callers=0, pairs=seen[::2])
        else:
            evidence = compare(before, [after for _, after in seen], callers=0)
        if evidence.decision is Decision.ROLL_BACK:
            return labels
    return None


def rate(found: Sequence[bool]) -> str:
    """The share of true ones, with its standard error."""
    share = sum(found) / len(found)
    error = math.sqrt(max(share * (1 - share), 1 / len(found)) / len(found))
    return f"{100 * share:.1f} % ({100 * error:.1f})"


def row(case: Case, own: int, runs: int, *, is_paired: bool) -> str:
    name, before, after, share = case
    rng = random.Random(f"{name} {own}")
    found = [
        first_rollback(
            traffic(rng, own, share=share, accuracy=before),
            pairs_of(rng, LABELS[-1], share=share, before=before, after=after),
            is_paired=is_paired,
        )
        for _ in range(runs)
    ]
    cells = [rate([first is not None and first <= labels for first in found]) for labels in LABELS]
    return f"| {name} | {own} | {'half' if is_paired else 'none'} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="simulated deployments per row")
    options = parser.parse_args(arguments)
    labels = " | ".join(f"{count:,} labels" for count in LABELS)
    print(f"| truth | labels of the critic before | judged by both | rolled back within {labels} |")
    print("|---|---|---|" + "---|" * len(LABELS))
    for case in CASES:
        for own in (50, 1500):
            for is_paired in (False, True):
                print(row(case, own, options.runs, is_paired=is_paired), flush=True)


if __name__ == "__main__":
    main()
