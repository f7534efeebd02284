"""Tables and pictures of the rows' results, with intervals of the mean over seeds (Student's t, 95 %)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from gadfly.lab.rows import ROWS, Row
from gadfly.lab.world import LabSplit

mpl.use("Agg")

Result = dict[str, Any]

# Two-sided 95 % quantiles of Student's t by degrees of freedom, from 1.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def quantile(seeds: int) -> float:
    """The two-sided 95 % quantile of Student's t for the mean of so many seeds, at least two."""
    return _T[seeds - 2] if seeds - 2 < len(_T) else 1.96


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds, with half the width of its interval; None for a single seed."""

    value: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        mean = sum(values) / len(values)
        if len(values) < 2:
            return cls(mean, None)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        return cls(mean, quantile(len(values)) * deviation / math.sqrt(len(values)))

    def percent(self) -> str:
        return f"{100 * self.value:.1f}" + ("" if self.half is None else f" ± {100 * self.half:.1f}")


def _rate(split: LabSplit, name: str, checkpoint: str = "last") -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        rate = result[checkpoint][split.value][name]
        return None if rate is None else float(rate["value"])

    return read


def under_attack(result: Result) -> float | None:
    """The share of wrong answers that are judged rightly with an attack around them."""
    attacks = result.get("attacks")  # results of earlier releases have none
    return None if attacks is None else float(attacks["attacked"]["value"])


_IN = LabSplit.IN_DOMAIN
_COLUMNS = (
    ("Acc@Refine", _rate(_IN, "accuracy_refined")),
    ("Δ", _rate(_IN, "delta")),
    ("Δ i→c", _rate(_IN, "fixed_joint")),
    ("Δ c→i", _rate(_IN, "broken_joint")),
    ("fixed of wrong", _rate(_IN, "fixed_conditional")),
    ("broken of right", _rate(_IN, "broken_conditional")),
    ("Acc@Dis", _rate(_IN, "discrimination")),
    ("of right", _rate(_IN, "discrimination_right")),
    ("of wrong", _rate(_IN, "discrimination_wrong")),
    ("of wrong, attacked", under_attack),
    ("coverage", _rate(_IN, "coverage")),
)
_OUT_OF_DOMAIN = tuple(
    (f"{split.value}: {title}", _rate(split, name))
    for split in (LabSplit.LONGER, LabSplit.LARGER)
    for title, name in (("Acc", "accuracy_before"), ("Acc@Refine", "accuracy_refined"), ("Acc@Dis", "discrimination"))
)
_BEST = tuple(
    (title, _rate(_IN, name, "best"))
    for title, name in (("Acc@Refine", "accuracy_refined"), ("Acc@Dis", "discrimination"))
)


def table(results: Sequence[Result], columns: Sequence[tuple[str, Callable[[Result], float | None]]]) -> str:
    """A Markdown table with one line per row: mean and interval over the existing seeds, in percent.

    A row without training gives the same result with every seed, so it has no interval.
    """
    lines = [
        "| row | seeds | " + " | ".join(title for title, _ in columns) + " | rollouts | seconds | code |",
        "| --- " * (len(columns) + 5) + "|",
    ]
    for row in ROWS:
        runs = of_row(results, row)
        if not runs:
            continue
        cells = []
        for _, read in columns:
            values = [value for value in map(read, runs if row.is_trained else runs[:1]) if value is not None]
            cells.append(Mean.of(values).percent() if values else "-")
        seconds = sum(each["seconds"] for each in runs) / len(runs)
        lines.append(
            f"| {row.title} | {len(runs) if row.is_trained else '-'} | "
            + " | ".join(cells)
            + f" | {runs[0]['rollouts']:,} | {seconds:.0f} | {_codes(runs)} |"
        )
    return "\n".join(lines)


def _codes(runs: Sequence[Result]) -> str:
    """The commits that a row's seeds were measured on: more than one is to be seen."""
    return ", ".join(sorted({each.get("code", "-") for each in runs}))  # earlier releases did not store it


def of_row(results: Sequence[Result], row: Row) -> list[Result]:
    """A row's results, in order of seed."""
    return sorted((each for each in results if each["row"] == row.name), key=lambda each: int(each["seed"]))


def tables(results: Sequence[Result]) -> str:
    """Tables of the last checkpoint in domain, the best one by validation, and the last one out of domain."""
    return "\n\n".join(
        (
            "### Last checkpoint, in domain",
            table(results, _COLUMNS),
            "### Best checkpoint by the validation split, in domain",
            table(results, _BEST),
            "### Last checkpoint, out of domain",
            table(results, _OUT_OF_DOMAIN),
        )
    )


_CURVES = (
    ("discrimination_right", "Acc@Dis, answers that are right"),
    ("discrimination_wrong", "Acc@Dis, answers that are wrong"),
    ("accuracy_refined", "Acc@Refine"),
    ("broken_conditional", "right answers broken"),
    ("fixed_conditional", "wrong answers fixed"),
)


def _samples_by_k(results: Sequence[Result], row: Row) -> dict[int, list[Result]]:
    by_k: dict[int, list[Result]] = {}
    for result in of_row(results, row):
        for each in result.get("samples", ()):
            by_k.setdefault(each["k"], []).append(each)
    return by_k


def samples_table(results: Sequence[Result]) -> str:
    """A table of majority vote and Pass@K against the tokens written per answer, as means over seeds."""
    lines = ["| row | K | tokens per answer | MV@K | Pass@K |", "| --- " * 5 + "|"]
    for row in ROWS:
        by_k = _samples_by_k(results, row)
        for k, measured in sorted(by_k.items()):
            tokens = sum(each["mean_tokens"] for each in measured) / len(measured)
            rates = (
                Mean.of([each[name]["value"] for each in measured]).percent() for name in ("majority", "pass_unbiased")
            )
            lines.append(f"| {row.title} | {k} | {tokens:.0f} | " + " | ".join(rates) + " |")
    return "\n".join(lines)


def draw_samples(results: Sequence[Result], path: Path) -> None:
    """Plot MV@K and Pass@K against their cost in tokens, one line per row."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, (name, title) in zip(panels, (("majority", "MV@K"), ("pass_unbiased", "Pass@K")), strict=True):
        for row in ROWS:
            by_k = _samples_by_k(results, row)
            if by_k:
                points = [by_k[k] for k in sorted(by_k)]
                panel.plot(
                    [sum(each["mean_tokens"] for each in measured) / len(measured) for measured in points],
                    [100 * sum(each[name]["value"] for each in measured) / len(measured) for measured in points],
                    marker="o",
                    label=row.title,
                )
        panel.set(title=title, xlabel="tokens written per answer", xscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("%")
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def rollouts_to(result: Result, target: float, *, critiques_per_step: int) -> int | None:
    """The number of critiques until Acc@Dis on the validation split reached `target` at two points in a row.

    A single point may be chance; the last point needs no successor. None if the target was never reached.
    """
    points = [(each["step"], each["metrics"]["discrimination_balanced"]["value"]) for each in result["curve"]]
    for (step, value), (_, following) in zip(points, [*points[1:], points[-1]], strict=True):
        if value >= target and following >= target:
            return int(step) * critiques_per_step
    return None


_NEARLY = 0.03  # about the resolution of a validation split of a hundred answers


def efficiency_table(results: Sequence[Result], *, critiques_per_step: int) -> str:
    """A table of the rollouts that each row needs to reach the final Acc@Dis of the released recipe, or nearly that.

    Measured on the validation split. The row `released` must be among the results.
    """
    released = [each for each in results if each["row"] == "released"]
    end = Mean.of([each["curve"][-1]["metrics"]["discrimination_balanced"]["value"] for each in released])
    nearly = 100 * _NEARLY
    lines = [
        f"The released recipe ends at {end.percent()} (mean of both classes, validation split). The table shows the "
        f"rollouts until that, or {nearly:.0f} points less, is reached: the mean over the seeds that reach it, and its "
        "share of all rollouts of the released recipe.",
        "",
        f"| row | seeds | rollouts | share | seeds, {nearly:.0f} points less | rollouts | share |",
        "| --- " * 7 + "|",
    ]
    for row in ROWS:
        runs = [each for each in of_row(results, row) if each["curve"]]
        cells = []
        for target in (end.value, end.value - _NEARLY) if runs else ():
            needed = [rollouts_to(each, target, critiques_per_step=critiques_per_step) for each in runs]
            reached = [each for each in needed if each is not None]
            cells.append(f"{len(reached)} of {len(runs)}")
            mean = sum(reached) / len(reached) if reached else None
            cells += ["-", "-"] if mean is None else [f"{mean:,.0f}", f"{mean / released[0]['rollouts']:.2f}"]
        if cells:
            lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


BEGIN, END = "<!-- made: begin -->", "<!-- made: end -->"


def put_into(page: str, made: str) -> str:
    """The page with everything between the two markers replaced.

    Raises:
        ValueError: the page lacks the markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no markers for the results: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{made.strip()}\n\n{END}{after}"


def draw_curves(results: Sequence[Result], path: Path, *, names: Sequence[str], stage_1_steps: int) -> None:
    """Plot the paper's figure 3 on the validation split: one panel per rate, one line per row, bands over seeds."""
    figure, panels = plt.subplots(1, len(_CURVES), figsize=(4.2 * len(_CURVES), 4), sharex=True, layout="constrained")
    for panel, (rate, title) in zip(panels, _CURVES, strict=True):
        for row in (each for each in ROWS if each.name in names):
            by_step: dict[int, list[float]] = {}
            for result in of_row(results, row):
                for point in result["curve"]:
                    value = point["metrics"][rate]
                    if value is not None:
                        by_step.setdefault(point["step"], []).append(100 * value["value"])
            if not by_step:
                continue
            steps = sorted(by_step)
            means = [Mean.of(by_step[step]) for step in steps]
            [drawn] = panel.plot(steps, [mean.value for mean in means], marker=".", label=row.title)
            panel.fill_between(
                steps,
                [mean.value - (mean.half or 0) for mean in means],
                [mean.value + (mean.half or 0) for mean in means],
                alpha=0.15,
                color=drawn.get_color(),
            )
        panel.axvline(stage_1_steps, color="grey", linewidth=0.8, linestyle=":")
        panel.set(title=title, xlabel="rollout step", ylim=(0, 100))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("%")
    panels[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
