"""How honest a scoreboard is with few labels: `python -m bench.scoreboard [--runs 300]`.

Simulates critics whose verdict words separate right from wrong answers more or less well, draws the labelled answers
of one deployment, and compares `gadfly.scoreboard` with the truth in a large population: how often each 95 % interval
holds it, and how much too good the accuracy of a fitted threshold looks, cross-fitted and on the answers it was fitted
to.
Prints a Markdown table.
"""

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from gadfly.calibration import bin_of
from gadfly.rates import auroc
from gadfly.scoreboard import ScoredAnswer, best_cut, scoreboard
from gadfly.verdict import Verdict

POPULATION = 4_000  # answers of each class that represent all traffic
SIZES = [(20, 20), (20, 60), (60, 20), (100, 100)]
CRITICS = [("knows nothing", 0.0), ("weak", 0.7), ("good", 2.0), ("nearly without errors", 4.0)]  # standard deviations
BIAS = 2.0  # log-odds that every critic is too inclined to "correct"


@dataclass(frozen=True, slots=True)
class Truth:
    """The population: log-odds of right and of wrong answers."""

    right: list[float]
    wrong: list[float]

    def balanced(self, cut: float) -> float:
        called = sum(odds >= cut for odds in self.right) / len(self.right)
        refused = sum(odds < cut for odds in self.wrong) / len(self.wrong)
        return (called + refused) / 2

    def ece(self, share: float) -> float:
        """At this share of right answers."""
        gaps = [0.0] * 10
        for odds, was_right in [*((o, True) for o in self.right), *((o, False) for o in self.wrong)]:
            p = _p(odds)
            weight = share / len(self.right) if was_right else (1 - share) / len(self.wrong)
            gaps[bin_of(p)] += weight * (p - was_right)
        return sum(map(abs, gaps))


def _p(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def _drawn(separation: float, was_right: bool, count: int, draw: random.Random) -> list[float]:
    middle = BIAS + (1 if was_right else -1) * separation
    return [max(-10.0, min(10.0, 2 * draw.gauss(middle / 2, 1))) for _ in range(count)]


def _answers(right: Sequence[float], wrong: Sequence[float]) -> list[ScoredAnswer]:
    labelled = [*((odds, True) for odds in right), *((odds, False) for odds in wrong)]
    return [
        ScoredAnswer(
            question_hash=number.to_bytes(4, "big"),
            was_right=was_right,
            verdict=Verdict.CORRECT if odds >= 0 else Verdict.INCORRECT,
            p_correct=_p(odds),
            p_incorrect=1 - _p(odds),
            calibrated_p_right=None,
        )
        for number, (odds, was_right) in enumerate(labelled)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    print("| critic | right + wrong | AUROC holds | ECE holds | threshold holds | bias, cross-fitted | same answers |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    draw = random.Random(1)
    for name, separation in CRITICS:
        truth = Truth(*(_drawn(separation, kind, POPULATION, draw) for kind in (True, False)))
        labels = [True] * POPULATION + [False] * POPULATION
        area = auroc(truth.right + truth.wrong, labels)
        assert area is not None
        for m, n in SIZES:
            held = {"auroc": 0, "ece": 0, "threshold": 0}
            cross, same = 0.0, 0.0
            for number in range(runs):
                right, wrong = draw.choices(truth.right, k=m), draw.choices(truth.wrong, k=n)
                found = scoreboard(_answers(right, wrong), seed=number)
                assert found.auroc is not None
                assert found.ece is not None
                assert found.threshold is not None
                cut = best_cut([*((odds, True) for odds in right), *((odds, False) for odds in wrong)])
                honest = truth.balanced(cut)
                estimate = found.threshold.balanced
                held["auroc"] += found.auroc.low <= area.value <= found.auroc.high
                held["ece"] += found.ece.low <= truth.ece(m / (m + n)) <= found.ece.high
                held["threshold"] += estimate.low <= honest <= estimate.high
                cross += (estimate.value - honest) / runs
                same += (Truth(right, wrong).balanced(cut) - honest) / runs
            rates = " | ".join(f"{100 * held[each] / runs:.0f} %" for each in held)
            print(f"| {name} (AUROC {area.value:.2f}) | {m} + {n} | {rates} | {100 * cross:+.1f} | {100 * same:+.1f} |")


if __name__ == "__main__":
    main()
