"""False alarms and power of the proof of sampling: `python -m bench.sampling_proof [--runs 5000]`.

Draws from the ladder of `gadfly.sampling_proof` as a correct engine and as bent ones would, and applies the proof's own
test. A proof fails when both of its tests fail. Prints Markdown tables.
"""

import argparse
import math
import random
from collections.abc import Callable, Sequence

from gadfly.sampling_proof import DRAWS, LEVEL, Ladder, p_value_of

TOKENS = 100
LOGIT = 35.0  # of a likely token with the bias; a repetition penalty divides it


def correct(p: list[float]) -> list[float]:
    return p


def top_k(k: int) -> Callable[[list[float]], list[float]]:
    return lambda p: [*p[:k], *[0.0] * (len(p) - k)]


def top_p(share: float) -> Callable[[list[float]], list[float]]:
    def cut(p: list[float]) -> list[float]:
        kept = next(rank for rank in range(len(p)) if math.fsum(p[: rank + 1]) >= share) + 1
        return [*p[:kept], *[0.0] * (len(p) - kept)]

    return cut


def min_p(share: float) -> Callable[[list[float]], list[float]]:
    return lambda p: [each if each >= share * p[0] else 0.0 for each in p]


def penalty(factor: float) -> Callable[[list[float]], list[float]]:
    def divide(p: list[float]) -> list[float]:
        logits = [math.log(each) + LOGIT for each in p]
        return [math.exp((z / factor if rank % 2 == 0 else z) - LOGIT) for rank, z in enumerate(logits)]

    return divide


def temperature(factor: float) -> Callable[[list[float]], list[float]]:
    return lambda p: [each ** (1 / factor) for each in p]


FAULTS: dict[str, Callable[[list[float]], list[float]]] = {
    "none": correct,
    "top_k 20": top_k(20),
    "top_k 50": top_k(50),
    "top_p 0.8": top_p(0.8),
    "top_p 0.95": top_p(0.95),
    "top_p 0.98": top_p(0.98),
    "min_p 0.05": min_p(0.05),
    "repetition_penalty 1.02": penalty(1.02),
    "repetition_penalty 1.05": penalty(1.05),
    "temperature lower by 30 %": temperature(0.7),
    "temperature lower by 20 %": temperature(0.8),
}


def fails(ladder: Ladder, p: Sequence[float], draw: random.Random) -> bool:
    """Whether one test fails on draws with these probabilities, at both temperatures."""
    samples = [list(draw.choices(range(len(p)), p, k=DRAWS)) for _ in range(2)]
    return p_value_of(ladder, samples) < LEVEL


def table(runs: int) -> list[str]:
    ladder = Ladder(tuple(range(TOKENS)))
    p = [math.exp(logprob) for logprob in ladder.logprobs]
    rows = []
    for name, bend in FAULTS.items():
        draw, bent = random.Random(name), bend(p)
        size = runs if name == "none" else max(runs // 20, 1)
        first = sum(fails(ladder, bent, draw) for _ in range(size)) / size
        rows.append(f"| {name} | {100 * first:.2f} % | {100 * first**2:.3f} % | {size} |")
    return ["| what bends sampling | one test fails | the proof fails (both) | runs |", "|---|---|---|---|", *rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000, help="simulated tests of a correct engine")
    print("\n".join(table(parser.parse_args(arguments).runs)))


if __name__ == "__main__":
    main()
