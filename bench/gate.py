"""Error rate and power of the gate: `python -m bench.gate [--runs 400]`.

Simulates deployments with a run every night, decided by the gate's own rule (`gadfly.trainer.measure.gate`) on new
held-out answers. Each answer has its own success probability under either critic, so that samples of one answer are
correlated; a gain or a loss shifts all probabilities. Every number is a share of deployments, with its standard error
in parentheses. Prints Markdown tables.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gadfly.evidence import bets
from gadfly.planning import MARGIN_ERROR
from gadfly.trainer.measure.gate import LOSS_ERROR, wealth_needed
from gadfly.training import TrainConfig

Floats = NDArray[np.float64]

NIGHT = 50  # new held-out answers per night, half of them right
SPREAD, OWN = 2.0, 0.5  # standard deviation of the answers' logits, and of each critic's own part of them
CONFIG = TrainConfig()


class Wealth:
    """`gadfly.evidence.MeanTest`, vectorised over D deployments."""

    def __init__(self, deployments: int, null: float = 0.0) -> None:
        self._null = null
        self._bets = bets(null)
        self._logs = np.zeros((deployments, len(self._bets)))

    def add(self, observations_DU: Floats) -> None:
        for number, bet in enumerate(self._bets):
            self._logs[:, number] += np.log1p(bet * (observations_DU - self._null)).sum(axis=1)

    def restart(self, which_D: NDArray[np.bool_]) -> None:
        self._logs[which_D] = 0.0

    @property
    def value(self) -> Floats:
        top = self._logs.max(axis=1)
        wealth: Floats = np.exp(np.minimum(top + np.log(np.exp(self._logs - top[:, None]).mean(axis=1)), 700.0))
        return wealth


@cache
def shift_of(difference: float) -> float:
    """The shift of all logits that raises the mean probability by `difference`."""
    random = np.random.default_rng(1)
    logits = 1.0 + random.normal(0, math.hypot(SPREAD, OWN), 100_000)
    before = (1 / (1 + np.exp(-logits))).mean()
    low, high = -4.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-(logits + middle)))).mean() - before < difference:
            low = middle
        else:
            high = middle
    return low


def changes(random: np.random.Generator, deployments: int, answers: int, before: Floats, after: Floats) -> Floats:
    """Changes in each answer's share of right samples; `before` and `after` are differences from version 0."""
    logits = 1.0 + random.normal(0, SPREAD, (deployments, answers))
    shares: list[Floats] = []
    for differences_D in (before, after):
        moved = np.array([shift_of(round(float(each), 3)) for each in differences_D])
        own = random.normal(0, OWN, (deployments, answers))
        hits = random.binomial(CONFIG.gate_samples, 1 / (1 + np.exp(-(logits + moved[:, None] + own))))
        shares.append(hits / CONFIG.gate_samples)
    return shares[1] - shares[0]


class Deployments:
    """D deployments, each with a live critic, a lineage of candidates and its evidence.

    Accuracies are differences from version 0, the anchor.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.count = count
        self.live = np.zeros((2, count))  # discriminability, helpfulness
        self.promotions = np.zeros(count, dtype=int)
        self.rejections = np.zeros(count, dtype=int)
        self._lineage = np.ones(count, dtype=int)
        self._gains = [Wealth(count) for _ in range(3)]
        self._margins = [Wealth(count, -CONFIG.gate_margin) for _ in range(2)]
        self._losses = [Wealth(count) for _ in range(2)]
        self._anchored = [Wealth(count, -CONFIG.gate_margin) for _ in range(2)]
        self._anchored_losses = [Wealth(count) for _ in range(2)]

    def night(self, gains: tuple[float, float], answers: int) -> None:
        """One run, whose candidate differs from the live critic by `gains`."""
        units = answers // 2
        candidate = self.live + np.array(gains)[:, None]
        observed: list[Floats] = []
        anchored: list[Floats] = []
        for axis in range(2):
            before, after = self.live[axis], candidate[axis]
            observed.append(self._changes(units, before, after))
            anchored.append(self._changes(units, np.zeros(self.count), after))
        for wealth, values in zip(self._gains, (*observed, (observed[0] + observed[1]) / 2), strict=True):
            wealth.add(values)
        for tests, sign, axes in (
            (self._margins, 1, observed),
            (self._losses, -1, observed),
            (self._anchored, 1, anchored),
            (self._anchored_losses, -1, anchored),
        ):
            for test, each in zip(tests, axes, strict=True):
                test.add(sign * each)
        self._decide(candidate)

    def _changes(self, units: int, before: Floats, after: Floats) -> Floats:
        """The mean over both classes of answers."""
        first = changes(self.random, self.count, units, before, after)
        return (first + changes(self.random, self.count, units, before, after)) / 2

    def _decide(self, candidate: Floats) -> None:
        # The gate's shares of the bets, without the one on labelled traffic, which is not simulated.
        gain = (0.15 * self._gains[0].value + 0.15 * self._gains[1].value + 0.5 * self._gains[2].value) / 0.8
        needed = np.array([wealth_needed(CONFIG, int(lineage)) for lineage in self._lineage])
        moved = np.abs(self.live).sum(axis=0) > 0  # otherwise the anchor is the live critic
        within = np.all([test.value >= 1 / MARGIN_ERROR for test in self._margins], axis=0)
        within &= ~moved | np.all([test.value >= 1 / MARGIN_ERROR for test in self._anchored], axis=0)
        worse = np.any([test.value >= 1 / LOSS_ERROR for test in self._losses], axis=0)
        worse |= moved & np.any([test.value >= 1 / LOSS_ERROR for test in self._anchored_losses], axis=0)
        promoted = (gain >= needed) & within & ~worse
        self.rejections += worse
        self.promotions += promoted
        self.live[:, promoted] = candidate[:, promoted]
        self._lineage = np.where(promoted, 1, self._lineage + worse)
        for test in (*self._gains, *self._margins, *self._losses, *self._anchored, *self._anchored_losses):
            test.restart(promoted | worse)


class Worn:
    """D deployments that begin a new lineage every night, all judged on one held-out set of `answers` answers.

    A critic's own part of an answer's logit is its luck on that answer. A promoted candidate keeps its luck, so the
    live critic is one that was lucky on the held-out set. After `most_looks` nights an answer is replaced by a new one;
    None: never. `spread` is the standard deviation of the candidates' true differences, in logits; each candidate
    shares half of its luck's variance with the live critic, from which it was made.
    """

    def __init__(self, count: int, answers: int, seed: int, *, most_looks: int | None, spread: float) -> None:
        self._random = np.random.default_rng(seed)
        self._most_looks, self._spread = most_looks, spread
        # Discriminability and helpfulness, deployments, classes of answers, units.
        self._logits = 1.0 + self._random.normal(0, SPREAD, (2, count, 2, answers // 2))
        self._luck = self._random.normal(0, OWN, self._logits.shape)  # the live critic's
        self._looks = self._random.integers(0, most_looks or 1, answers // 2)
        self.merit = np.zeros((2, count))  # of the live critic: its true difference from version 0, in logits
        self._lineage = np.ones(count, dtype=int)
        self.promotions, self.rejections = np.zeros((2, count), dtype=int)
        self.harmful = np.zeros(count, dtype=int)  # promotions of a candidate that is worse on both axes
        self.nights = 0

    def night(self) -> None:
        """One run, whose candidate begins a lineage."""
        if self._most_looks is not None:
            self._replace(self._looks >= self._most_looks)
        difference = self._random.normal(0, self._spread, self.merit.shape) if self._spread else 0 * self.merit
        luck = (self._luck + self._random.normal(0, OWN, self._luck.shape)) / math.sqrt(2)
        before = self._shares(self.merit, self._luck)
        after = self._shares(self.merit + difference, luck)
        self._decide((after - before).mean(axis=2), difference, luck)
        self._looks += 1
        self.nights += 1

    def optimism(self) -> float:
        """How much better the live critics look on the held-out set than they are: a share, over both axes."""
        held_out = 1 / (1 + np.exp(-(self._logits + self.merit[:, :, None, None] + self._luck)))
        new = 1.0 + self._random.normal(0, math.hypot(SPREAD, OWN), (2, self.merit.shape[1], 2, 2000))
        return float(held_out.mean() - (1 / (1 + np.exp(-(new + self.merit[:, :, None, None])))).mean())

    def _shares(self, merit: Floats, luck: Floats) -> Floats:
        chances = 1 / (1 + np.exp(-(self._logits + merit[:, :, None, None] + luck)))
        return self._random.binomial(CONFIG.gate_samples, chances) / CONFIG.gate_samples

    def _replace(self, which_U: NDArray[np.bool_]) -> None:
        shape = self._logits[..., which_U].shape
        self._logits[..., which_U] = 1.0 + self._random.normal(0, SPREAD, shape)
        self._luck[..., which_U] = self._random.normal(0, OWN, shape)
        self._looks[which_U] = 0

    def _decide(self, observed: Floats, difference: Floats, luck: Floats) -> None:
        def wealth(observations_DU: Floats, null: float = 0.0) -> Floats:
            test = Wealth(len(observations_DU), null)
            test.add(observations_DU)
            return test.value

        one, other = observed
        gain = (0.15 * wealth(one) + 0.15 * wealth(other) + 0.5 * wealth((one + other) / 2)) / 0.8
        needed = np.array([wealth_needed(CONFIG, int(lineage)) for lineage in self._lineage])
        within = np.all([wealth(each, -CONFIG.gate_margin) >= 1 / MARGIN_ERROR for each in observed], axis=0)
        worse = np.any([wealth(-each) >= 1 / LOSS_ERROR for each in observed], axis=0)
        promoted = (gain >= needed) & within & ~worse
        self.rejections += worse
        self.promotions += promoted
        self.harmful += promoted & (difference < 0).all(axis=0)
        self.merit[:, promoted] += difference[:, promoted]
        self._luck[:, promoted] = luck[:, promoted]
        self._lineage = np.where(promoted, 1, self._lineage + 1)


def share(flags: NDArray[np.bool_]) -> str:
    value = float(flags.mean())
    error = math.sqrt(max(value * (1 - value), 1 / len(flags)) / len(flags))
    return f"{100 * value:.1f} % ({100 * error:.1f})"


def false_promotions(runs: int) -> list[str]:
    rows = []
    for nights in (50, 365):
        for answers in (10, NIGHT):
            deployments = Deployments(runs, seed=nights + answers)
            for _ in range(nights):
                deployments.night((0.0, 0.0), answers)
            rows.append(f"| {nights} | {answers} | {share(deployments.promotions > 0)} |")
    return ["| nights | new answers per night | promoted at least once, no true difference |", "|---|---|---|", *rows]


def power(runs: int) -> list[str]:
    rows = []
    for name, gains in (
        ("+2 on both axes", (0.02, 0.02)),
        ("+5 on both axes", (0.05, 0.05)),
        ("+10 on both axes", (0.1, 0.1)),
        ("+5 on one, 0 on the other", (0.05, 0.0)),
        ("-3 on both axes", (-0.03, -0.03)),
        ("+5 on one, -3 on the other", (0.05, -0.03)),
    ):
        cells = []
        for total in (100, 400, 1000):
            promoted = np.zeros(runs, dtype=bool)
            deployments = Deployments(runs, seed=total)
            for _ in range(total // NIGHT):
                deployments.night(gains, NIGHT)
                promoted |= deployments.promotions > 0
            cells.append(share(promoted))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return ["| true difference | 100 answers | 400 answers | 1,000 answers |", "|---|---|---|---|", *rows]


def drift(runs: int) -> list[str]:
    deployments = Deployments(runs, seed=9)
    for _ in range(50):
        deployments.night((0.04, -0.02), 400)
    gained, lost = deployments.live.mean(axis=1)
    return [
        "| after 50 nights of +4 discriminability and -2 helpfulness, 400 answers per night | mean |",
        "|---|---|",
        f"| discriminability compared with version 0 | {100 * gained:+.1f} points |",
        f"| helpfulness compared with version 0 | {100 * lost:+.1f} points |",
        f"| promotions | {deployments.promotions.mean():.2f} |",
    ]


def wear(runs: int) -> list[str]:
    rows = []
    for name, spread in (("no difference", 0.0), ("better and worse ones", 0.4)):
        for answers in (100, 400):
            for looks in (None, 5):
                worn = Worn(runs // 4, answers, seed=3, most_looks=looks, spread=spread)
                for _ in range(100):
                    worn.night()
                rejected = worn.rejections.mean() / worn.nights
                rows.append(
                    f"| {name} | {answers} | {looks or 'never'} | {share(worn.promotions > 0)} | "
                    f"{worn.promotions.mean():.2f} | {worn.harmful.mean():.2f} | {100 * rejected:.1f} % | "
                    f"{100 * worn.optimism():+.1f} |"
                )
    return [
        "| candidates of 100 nights | answers | looks until one is replaced | promoted at least once | promotions | "
        "of worse ones | rejected per night | live critic looks better than it is, points |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="simulated deployments per row")
    options = parser.parse_args(arguments)
    tables: list[Callable[[int], list[str]]] = [false_promotions, power, drift, wear]
    for table in tables:
        print("\n".join(table(options.runs)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
