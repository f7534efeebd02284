"""How often the rollback watch is wrong about a canary: `python -m bench.canary [--runs 300]`.

While a canary runs, people label answers first on which its critic and the one before disagree, and both look worse on
those than either does on all traffic. Simulated deployments give every label, or every second one, to a disagreement.
The watch then takes as outcomes of the critic before those of its whole history, or only those of the canary's time,
which were chosen in the same way. Labelled answers are judged by both. Prints a Markdown table.
"""

import argparse
import random
from collections.abc import Sequence

from bench.watch import LABELS, LOOK, pairs_of, rate, traffic
from gadfly.service.critics.watch import Decision, Pair, compare
from gadfly.store.watch import Outcome

HISTORY = 1500
SHARE_RIGHT = 0.5

Case = tuple[str, tuple[float, float], tuple[float, float]]
CASES: list[Case] = [  # what is true, verdict accuracy on right and wrong answers before and after
    ("equal critics", (0.9, 0.7), (0.9, 0.7)),
    ("10 points worse on both classes", (0.9, 0.7), (0.8, 0.6)),
    ("30 points worse on both classes", (0.9, 0.7), (0.6, 0.4)),
]


def labelled(rng: random.Random, count: int, *, case: Case, chosen: float) -> list[Pair]:
    """Answers that people label; this share of them because the two critics disagree."""
    _, before, after = case
    found: list[Pair] = []
    while len(found) < count:
        [pair] = pairs_of(rng, 1, share=SHARE_RIGHT, before=before, after=after)
        differs = pair[0].is_verdict_right is not pair[1].is_verdict_right
        if differs or rng.random() >= chosen:
            found.append(pair)
    return found


def first_rollback(rng: random.Random, *, case: Case, canary: float, chosen: float, with_history: bool) -> int | None:
    """After how many labels the watch rolls back; None: never."""
    pairs = labelled(rng, LABELS[-1], case=case, chosen=chosen)
    by_canary = [rng.random() < canary for _ in pairs]  # which critic answered, and the other judged in the shadow
    old: list[Outcome] = traffic(rng, HISTORY, share=SHARE_RIGHT, accuracy=case[1]) if with_history else []
    for count in range(LOOK, len(pairs) + 1, LOOK):
        seen = list(zip(pairs[:count], by_canary[:count], strict=True))
        evidence = compare(
            [*old, *(before for (before, _), is_canary in seen if not is_canary)],
            [after for (_, after), is_canary in seen if is_canary],
            callers=0,
            pairs=pairs[:count],
        )
        if evidence.decision is Decision.ROLL_BACK:
            return count
    return None


def row(case: Case, *, canary: float, chosen: float, with_history: bool, runs: int) -> str:
    rng = random.Random(f"{case[0]} {canary} {chosen}")
    found = [
        first_rollback(rng, case=case, canary=canary, chosen=chosen, with_history=with_history) for _ in range(runs)
    ]
    cells = [rate([first is not None and first <= labels for first in found]) for labels in LABELS]
    which = "all" if with_history else "of the canary's time"
    return f"| {case[0]} | {canary:.0%} | {chosen:.0%} | {which} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="simulated deployments per row")
    options = parser.parse_args(arguments)
    labels = " | ".join(f"{count:,} labels" for count in LABELS)
    print(f"| truth | canary | labels of disagreements | outcomes before | rolled back within {labels} |")
    print("|---|---|---|---|" + "---|" * len(LABELS))
    for case in CASES:
        for canary in (0.1, 0.5):
            for chosen in (0.0, 0.5, 1.0):
                for with_history in (True, False):
                    print(
                        row(case, canary=canary, chosen=chosen, with_history=with_history, runs=options.runs),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
