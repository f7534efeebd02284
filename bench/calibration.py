"""How well a calibration does with few held-out questions: `python -m bench.calibration [--runs 100]`.

Simulates critics whose verdict words are wrong in known ways, calibrates each on a few held-out questions (half of
their answers right, four judgements each) and measures the error on many others, at the class share of the traffic.
Compares the fit that is used (Platt's, `gadfly.trainer.measure.calibrate`) with isotonic regression and with the words
as they are, the cross-fitted error with that of the judgements that the fit saw, and the interval with the truth.
Prints Markdown tables.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gadfly.calibration import BINS, Calibration, ClassCounts
from gadfly.trainer.measure.calibrate import Judgements, calibrate, fit
from gadfly.trainer.measure.metrics import Judged

Floats = NDArray[np.float64]

SAMPLES = 4
POPULATION = 4_000  # questions that represent all traffic
_LIMIT = 10.0


def _logistic(x: Floats) -> Floats:
    values: Floats = 1 / (1 + np.exp(-x))
    return values


def _critic(name: str, is_right: NDArray[np.bool_], random: np.random.Generator) -> Floats:
    """The log-odds of the verdict words, questions x samples."""
    size, sign = len(is_right), np.where(is_right, 1.0, -1.0)
    noise = random.normal(0, 1, (size, SAMPLES))
    match name:
        case "well calibrated":
            odds = (2 * sign + random.normal(0, 1.8, size))[:, None] + 0.87 * noise
        case "too sure of itself":
            odds = 4 * ((sign + random.normal(0, 1.2, size))[:, None] + 0.4 * noise)
        case "calls too much correct":
            odds = (2 * sign + random.normal(0, 1.8, size))[:, None] + 0.8 * noise + 3
        case "sure, and wrong in 10 to 20 %":
            hits = random.random(size) < np.where(is_right, 0.9, 0.8)
            odds = (np.where(hits, 9.0, -9.0) * sign)[:, None] + 1.5 * noise
        case "nearly without errors":
            odds = 1.5 * ((4 * sign + random.normal(0, 1.3, size))[:, None] + 0.5 * noise)
        case "knows nothing":
            odds = random.normal(0, 2, size)[:, None] + noise
        case _:
            raise ValueError(name)
    return np.clip(odds, -_LIMIT, _LIMIT)


CRITICS = (
    "well calibrated",
    "too sure of itself",
    "calls too much correct",
    "sure, and wrong in 10 to 20 %",
    "nearly without errors",
    "knows nothing",
)


@dataclass(frozen=True, slots=True)
class World:
    """Held-out judgements of a critic, and many others at the class share of the traffic."""

    items: list[Judged]
    traffic: ClassCounts
    fresh_odds: Floats
    fresh_right: NDArray[np.bool_]

    @classmethod
    def make(cls, name: str, questions: int, share: float, random: np.random.Generator, *, labels: int) -> "World":
        is_right = np.arange(questions) % 2 == 0
        items = [
            Judged(
                answer_id=UUID(int=number),
                question_hash=number.to_bytes(4, "big"),
                was_right=bool(is_right[number]),
                p_correct=float(_logistic(np.array(odds))),
                p_incorrect=float(_logistic(np.array(-odds))),
                sample=sample,
            )
            for number, row in enumerate(_critic(name, is_right, random))
            for sample, odds in enumerate(row)
        ]
        right = int(random.binomial(labels, share))
        fresh = random.random(POPULATION) < share
        odds = _critic(name, fresh, random)
        return cls(items, ClassCounts(right=right, wrong=labels - right), odds.ravel(), np.repeat(fresh, SAMPLES))

    def error(self, p_N: Floats) -> float:
        bin_N = np.minimum((p_N * BINS).astype(int), BINS - 1)
        return float(np.abs(np.bincount(bin_N, p_N - self.fresh_right, BINS)).sum() / len(p_N))

    def words(self) -> float:
        return self.error(_logistic(self.fresh_odds))

    def platt(self) -> float:
        return self.error(self._calibrated(fit(Judgements.of(self.items), self.traffic)))

    def isotonic(self) -> float:
        data = Judgements.of(self.items)
        return self.error(_isotonic(data, self.fresh_odds, self.traffic))

    def _calibrated(self, calibration: Calibration) -> Floats:
        return np.array([calibration.p_right_at(odds) for odds in self.fresh_odds.tolist()])

    def report(self) -> tuple[float, float, float, float, bool, bool]:
        """Error on fresh judgements, as reported, on those that the fit saw; of the words; do both intervals hold?"""
        found = calibrate(self.items, self.traffic, seed=0)
        assert found is not None
        calibration, report = found
        true, true_words = self.error(self._calibrated(calibration)), self.words()
        data = Judgements.of(self.items)
        p_N = data.calibrated(calibration)
        bin_N = np.minimum((p_N * BINS).astype(int), BINS - 1)
        weights_N = data.weights(self.traffic.share)
        seen = float(np.abs(np.bincount(bin_N, weights_N * (p_N - data.was_right_N), BINS)).sum())
        holds = [part.low <= value <= part.high for part, value in ((report.after, true), (report.before, true_words))]
        return true, report.after.ece, seen, true_words, holds[0], holds[1]


def _isotonic(data: Judgements, at: Floats, traffic: ClassCounts) -> Floats:
    """Isotonic regression (pool adjacent violators) with both classes weighted equally, at the traffic's share."""
    order = np.argsort(data.odds_N, kind="stable")
    weights, labels, odds = data.weights(0.5)[order], data.was_right_N[order].astype(float), data.odds_N[order]
    blocks: list[tuple[float, float, int]] = []  # mean, weight, judgements
    for label, weight in zip(labels.tolist(), weights.tolist(), strict=True):
        mean, total, count = label, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, weight_before, count_before = blocks.pop()
            mean = (before * weight_before + mean * total) / (weight_before + total)
            total, count = total + weight_before, count + count_before
        blocks.append((mean, total, count))
    steps = np.concatenate([np.full(count, mean) for mean, _, count in blocks])
    p_N = np.clip(np.interp(at, odds, steps), 1e-3, 1 - 1e-3)
    return _logistic(np.log(p_N / (1 - p_N)) + traffic.log_odds)


def methods(runs: int) -> list[str]:
    rows = []
    for share in (0.5, 0.95):
        for name in CRITICS:
            cells: list[str] = []
            for questions in (40, 100, 200, 400):
                random = np.random.default_rng(questions)
                worlds = [World.make(name, questions, share, random, labels=1000) for _ in range(runs)]
                if not cells:
                    cells.append(f"{np.mean([world.words() for world in worlds]):.3f}")
                platt, isotonic = ([getattr(world, way)() for world in worlds] for way in ("platt", "isotonic"))
                cells.append(f"{np.mean(platt):.3f} / {np.mean(isotonic):.3f}")
            rows.append(f"| {100 * share:.0f} % | {name} | {' | '.join(cells)} |")
    head = "| right | the critic's words | as they are | 40 questions | 100 | 200 | 400 |"
    return ["ECE on fresh traffic, Platt / isotonic:", "", head, "|---|---|---|---|---|---|---|", *rows]


def honesty(runs: int) -> list[str]:
    rows = []
    for share in (0.5, 0.9):
        for name in CRITICS:
            random = np.random.default_rng(7)
            found = [World.make(name, 160, share, random, labels=320).report() for _ in range(runs)]
            true, after, seen, words, holds, holds_words = np.mean(np.array(found, dtype=float), axis=0)
            rows.append(
                f"| {100 * share:.0f} % | {name} | {true:.3f} | {after:.3f} | {seen:.3f} | {100 * holds:.0f} % "
                f"| {words:.3f} | {100 * holds_words:.0f} % |"
            )
    return [
        "160 held-out questions, 320 labels; ECE, and how often the 95 % interval holds the true one:",
        "",
        "| right | the critic's words | calibrated: true | reported | if the fit had seen them | interval | words "
        "| interval |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def shares(runs: int) -> list[str]:
    rows = []
    for labels in (0, 10, 30, 100, 1000):
        cells = []
        for share in (0.5, 0.8, 0.95):
            random = np.random.default_rng(labels)
            worlds = [World.make("too sure of itself", 200, share, random, labels=labels) for _ in range(runs)]
            cells.append(f"{np.mean([world.platt() for world in worlds]):.3f}")
        rows.append(f"| {labels} | {' | '.join(cells)} |")
    head = "| labels of the traffic | 50 % right | 80 % | 95 % |"
    return ['ECE of "too sure of itself", 200 held-out questions:', "", head, "|---|---|---|---|", *rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="simulated deployments per cell")
    options = parser.parse_args(arguments)
    tables: list[Callable[[int], list[str]]] = [methods, honesty, shares]
    for table in tables:
        print("\n".join(table(options.runs)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
