"""What the choice of answers to label does to the gate and the watch: `python -m bench.label_queue [--runs 300]`.

Simulated deployments. A critic's margin on an answer is normal, with a part that all critics share; its verdict is
right where the margin is positive, and its confidence grows with the margin's size. People label a tenth of the answers
that wait: those of which the live critic is least sure (`unsure`), those on which another critic disagrees with it
(`disagreements`), a random tenth (`random`), or half and half, where only the random half measures, as the label queue
does it (`half`). Every rate is a share of deployments, with its standard error. Prints a Markdown table.
"""

import argparse
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bench.watch import rate
from gadfly.evidence import MeanTest
from gadfly.service.critics.watch import Decision, compare
from gadfly.store.watch import Outcome
from gadfly.trainer.measure.gate import wealth_needed
from gadfly.training import TrainConfig

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

WAITING = 4_000  # answers, half of them right
LABELS = WAITING // 10
SHARED = 0.6  # of the margins' variance
CHOICES = ("unsure", "disagreements", "random", "half")
CONFIG = TrainConfig()


def margins(random: np.random.Generator, *accuracies: float) -> Floats:
    """The margins of critics with these verdict accuracies on the waiting answers, (C critics, N answers)."""
    shared = random.normal(0, math.sqrt(SHARED), WAITING)
    own = random.normal(0, math.sqrt(1 - SHARED), (len(accuracies), WAITING))
    means = np.array([NormalDist().inv_cdf(accuracy) for accuracy in accuracies])
    margins_CN: Floats = means[:, None] + shared + own
    return margins_CN


def chosen(random: np.random.Generator, choice: str, live_N: Floats, other_N: Floats) -> Indices:
    """The answers whose labels measure, in the order in which they are labelled."""
    order = random.permutation(WAITING)
    if choice == "unsure":
        order = np.argsort(np.abs(live_N))
    elif choice == "disagreements":
        differs = ((live_N > 0) != (other_N > 0))[order]
        order = np.concatenate([order[differs], order[~differs]])
    return order[: LABELS // 2 if choice == "half" else LABELS]


def promotes(random: np.random.Generator, choice: str, *, live: float, candidate: float) -> bool:
    """Whether the gate's bet on the mean change shows a gain, on answers labelled before the candidate was measured."""
    was_right_N = np.arange(WAITING) % 2 == 0
    live_N, other_N, candidate_N = margins(random, live, live, candidate)
    labelled = chosen(random, choice, live_N, candidate_N if choice == "disagreements" else other_N)
    changes_N = (candidate_N > 0).astype(float) - (live_N > 0)
    right, wrong = (changes_N[labelled[was_right_N[labelled] == is_right]] for is_right in (True, False))
    pairs = [(r + w) / 2 for r, w in zip(right, wrong, strict=False)]
    return MeanTest.of(pairs).wealth >= wealth_needed(CONFIG, 1)


def rolls_back(random: np.random.Generator, choice: str, *, before: float, live: float) -> bool:
    """Whether the watch rolls back, with as many labels of the critic before from a random tenth of its answers."""
    was_right_N = np.arange(WAITING) % 2 == 0
    old_N, _ = margins(random, before, before)
    history = _outcomes(old_N, was_right_N, chosen(random, "random", old_N, old_N))
    before_N, live_N, candidate_N = margins(random, before, live, live)
    labelled = chosen(random, choice, live_N, candidate_N)
    after = _outcomes(live_N, was_right_N, labelled)
    pairs = list(zip(_outcomes(before_N, was_right_N, labelled), after, strict=True))[::2]
    return compare(history, after, callers=0, pairs=pairs).decision is Decision.ROLL_BACK


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="simulated deployments per cell")
    runs = parser.parse_args(arguments).runs
    print("| labels | promoted: as good | 5 points worse | rolled back: as good | 15 points worse |")
    print("|---|---|---|---|---|")
    for choice in CHOICES:
        random = np.random.default_rng(7)
        rates = [
            [promotes(random, choice, live=0.8, candidate=0.8) for _ in range(runs)],
            [promotes(random, choice, live=0.8, candidate=0.75) for _ in range(runs)],
            [rolls_back(random, choice, before=0.8, live=0.8) for _ in range(runs)],
            [rolls_back(random, choice, before=0.8, live=0.65) for _ in range(runs)],
        ]
        print(f"| {choice} | " + " | ".join(map(rate, rates)) + " |", flush=True)


def _outcomes(margins_N: Floats, was_right_N: NDArray[np.bool_], labelled: Indices) -> list[Outcome]:
    return [
        Outcome(was_right=bool(was_right_N[index]), is_verdict_right=bool(margins_N[index] > 0)) for index in labelled
    ]


if __name__ == "__main__":
    main()
