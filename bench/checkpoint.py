"""Which checkpoint of a run is published: the last, the best by validation, or the one by the trainer's rule.

python -m bench.checkpoint

A run has nine validations, the first before the first step. A checkpoint's verdicts on the validation answers and on
the gate's are right by chance, and the same answers are hard for every checkpoint: their difficulty has a standard
deviation of 2 on the logistic scale, as in `bench/gate.py`. The table shows the mean true merit of the published
checkpoint, in points above the start, for runs of different shapes.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gadfly.trainer.measure.validation import Validation, best

Floats = NDArray[np.float64]

RUNS = 1000
ITEMS = (16, 32, 64, 128)
SPREAD = 2.0
EVERY = 5
SHAPES: dict[str, Sequence[float]] = {  # the logit of the mean answer at each validation
    "rises": (0.0, 0.3, 0.6, 0.9, 1.1, 1.3, 1.4, 1.5, 1.6),
    "learns nothing": (0.0,) * 9,
    "rises, then stays": (0.0, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "rises, then falls": (0.0, 0.5, 1.0, 1.4, 1.4, 1.0, 0.5, 0.0, -0.5),
    "collapses at the end": (0.0, 0.3, 0.6, 0.9, 1.1, 1.3, 1.4, 1.5, -3.0),
    "only falls": (0.0, -0.3, -0.6, -0.9, -1.2, -1.5, -1.8, -2.1, -2.4),
}
RULES: dict[str, Callable[[Sequence[Validation]], Validation]] = {
    "last": lambda validations: validations[-1],
    "highest": lambda validations: max(validations, key=lambda each: each.merit),
    "the rule": best,
}


def merits(shape: Sequence[float], items: int, rng: np.random.Generator) -> list[Validation]:
    """The validations of one run on `items` answers, half of them right."""
    difficulty = rng.normal(0.0, SPREAD, items)
    found = []
    for place, level in enumerate(shape):
        hits = rng.random(items) < _logistic(level + difficulty)
        half = items // 2
        found.append(
            Validation(step=place * EVERY, right=list(map(float, hits[:half])), wrong=list(map(float, hits[half:])))
        )
    return found


def _logistic(value: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-value)))


def true_merit(level: float) -> float:
    grid = np.random.default_rng(1).normal(0.0, SPREAD, 200_000)
    return float(_logistic(level + grid).mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    runs: int = parser.parse_args().runs
    print("| run | validation answers |", " | ".join(RULES), "| best possible |")
    print("| --- | ---: |" + " ---: |" * (len(RULES) + 1))
    for name, shape in SHAPES.items():
        levels = [100 * (true_merit(level) - true_merit(shape[0])) for level in shape]
        for items in ITEMS:
            rng = np.random.default_rng(0)
            gains: dict[str, list[float]] = {rule: [] for rule in RULES}
            for _ in range(runs):
                validations = merits(shape, items, rng)
                for rule, choose in RULES.items():
                    gains[rule].append(levels[choose(validations).step // EVERY])
            means = " | ".join(f"{np.mean(gains[rule]):+.1f}" for rule in RULES)
            print(f"| {name} | {items} | {means} | {max(levels):+.1f} |")


if __name__ == "__main__":
    main()
