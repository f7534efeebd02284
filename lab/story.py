"""The report of the demo, on a terminal and as an HTML page. Every number in it was measured in the demo's run."""

import base64
import html
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gadfly.calibration import bins_of, expected_error
from gadfly.lab import world
from gadfly.lab.world import WordProblem

mpl.use("Agg")


@dataclass(frozen=True, slots=True)
class Case:
    """A question, an answer to it, and whether the answer is right."""

    problem: WordProblem
    response: str
    is_right: bool

    @classmethod
    def make(cls, rng: random.Random, *, wrong: bool) -> "Case":
        while True:
            problem = world.problem(rng)
            answer = world.slip(rng, problem, share=0.4 if wrong else 0.0)
            if (answer[-1].result != problem.answer) is wrong:
                return cls(problem, world.solution(answer), not wrong)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One fresh answer, and by version the verdict, the critique, the refined answer and its grade."""

    case: Case
    results: dict[int, dict[str, Any]]

    def is_verdict_right(self, version: int) -> bool:
        return bool(self.results[version]["verdict"] == ("correct" if self.case.is_right else "incorrect"))

    def is_refined_right(self, version: int) -> bool:
        return bool(self.results[version]["grade"] == "right")


@dataclass(frozen=True, slots=True)
class Story:
    """The measurements of one run of the demo."""

    seconds: float
    callers: int
    requests: int  # of the callers
    failures: int
    run: dict[str, Any]
    events: list[dict[str, Any]]
    history: dict[str, Any] | None  # of the new critic, if it went live
    calibration: dict[str, Any] | None  # of the new critic, on held-out answers
    comparisons: list[Comparison]

    @property
    def version(self) -> int | None:
        return None if self.run["version"] is None else int(self.run["version"])

    def rates(self, version: int) -> list[tuple[str, float, int]]:
        """A version's rates on the fresh answers: name, share, number of answers."""
        right = [each for each in self.comparisons if each.case.is_right]
        wrong = [each for each in self.comparisons if not each.case.is_right]

        def share(comparisons: Sequence[Comparison], good: Callable[[Comparison], bool]) -> float:
            return sum(good(each) for each in comparisons) / len(comparisons)

        def verdict(each: Comparison) -> bool:
            return each.is_verdict_right(version)

        def refined(each: Comparison) -> bool:
            return each.is_refined_right(version)

        return [
            ("verdict right (Acc@Dis)", share(self.comparisons, verdict), len(self.comparisons)),
            ("... of right answers", share(right, verdict), len(right)),
            ("... of wrong answers", share(wrong, verdict), len(wrong)),
            ("right after refinement (Acc@Refine)", share(self.comparisons, refined), len(self.comparisons)),
            ("... right answers kept", share(right, refined), len(right)),
            ("... wrong answers fixed", share(wrong, refined), len(wrong)),
        ]

    def calibration_errors(self) -> list[tuple[str, str, str]]:
        """The ECE of the new critic: on which answers, of its own probabilities, of the calibrated ones."""
        rows = []
        if self.calibration is not None:
            shown = [
                f"{part['ece']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"
                for part in (self.calibration["before"], self.calibration["after"])
            ]
            rows.append((f"{self.calibration['items']} judgements of held-out answers", shown[0], shown[1]))
        told = [each for each in self.comparisons if self._result(each).get("calibrated_confidence") is not None]
        if told:
            errors = [
                expected_error(
                    bins_of(
                        [_p_right(self._result(each), name) for each in told],
                        [each.case.is_right for each in told],
                        [1.0] * len(told),
                    )
                )
                for name in ("confidence", "calibrated_confidence")
            ]
            rows.append((f"{len(told)} fresh answers, greedy", f"{errors[0]:.3f}", f"{errors[1]:.3f}"))
        return rows

    @property
    def _new(self) -> int:
        assert self.version is not None
        return self.version

    def _result(self, comparison: Comparison) -> dict[str, Any]:
        return comparison.results[self._new]

    @property
    def side_by_side(self) -> list[Comparison]:
        """Three wrong answers; those that only the new critic calls wrong come first."""
        new = self._new
        wrong = [each for each in self.comparisons if not each.case.is_right]
        return sorted(wrong, key=lambda each: (each.is_verdict_right(0), not each.is_verdict_right(new)))[:3]

    @property
    def receipt(self) -> dict[str, Any] | None:
        if self.history is None or not self.history["receipts"]:
            return None
        details: dict[str, Any] = self.history["receipts"][0]["details"]
        return details


def _p_right(result: dict[str, Any], confidence: str) -> float:
    """The probability that the answer is right, from the confidence in the verdict on it."""
    return float(result[confidence] if result["verdict"] == "correct" else 1 - result[confidence])


def receipt_lines(story: Story) -> list[tuple[str, str]]:
    """The receipt of the swap, as names and values."""
    receipt = story.receipt
    if receipt is None:
        return [("swap", "none")]
    times = {name: datetime.fromisoformat(at) for name, at in receipt["times"].items() if at is not None}
    requested = times["requested_at"]
    mixed = receipt["mixed"]
    lines = [
        ("from, to", f"critic@{receipt['from_version']} to critic@{story.version}"),
        ("adapter", f"sha256 {receipt['adapter_sha256']}"),
        ("requested", f"{requested:%Y-%m-%d %H:%M:%S}"),
        ("verified, moved", " and ".join(_after(times.get(name), requested) for name in ("proved_at", "moved_at"))),
        ("in flight at the move", str(receipt["in_flight"])),
        ("lost", "not counted yet" if receipt["lost"] is None else str(receipt["lost"])),
        ("mixed", "not counted yet" if mixed is None else f"{mixed['mixed']} of {mixed['probes']} probes"),
    ]
    return lines + [("engine", _verification(each)) for each in receipt["engines"]]


def _after(moment: datetime | None, requested: datetime) -> str:
    return "not yet" if moment is None else f"{(moment - requested).total_seconds():.2f} s later"


def _verification(engine: dict[str, Any]) -> str:
    """How an engine was verified to answer with the new weights; differences in nats."""
    deltas = engine["deltas"]
    return (
        f"vLLM {engine['vllm']}: loaded in {engine['load_s']:.2f} s, {engine['probes']} probes in "
        f"{engine['probe_s']:.1f} s; of {deltas['tokens']} tokens' log-probabilities the largest difference is "
        f"{deltas['from_trainer']:.1g} to the trainer's and {deltas['from_base']:.2g} to the base's"
    )


def show(story: Story, console: Console) -> None:
    """Print the report on a terminal."""
    version = story.version
    gate = story.run["gate"] or {}
    console.print(f"\n[bold]gate: {story.run['outcome'] or 'no decision'}[/bold]", *gate.get("reasons", []), sep="\n  ")
    if version is None:
        console.print("nothing was published: " + str(story.events[-1]["data"].get("message", "")))
        return
    table = Table(title=f"{len(story.comparisons)} fresh answers, the same for both", title_justify="left")
    for column in ("", "critic@0", f"critic@{version}", "of"):
        table.add_column(column, justify="left" if not column else "right")
    for (name, before, of), (_, after, _) in zip(story.rates(0), story.rates(version), strict=True):
        table.add_row(name, f"{before:.1%}", f"{after:.1%}", str(of))
    console.print(table)
    if errors := story.calibration_errors():
        calibration = Table(title=f"calibration error (ECE) of critic@{version}", title_justify="left")
        for column in ("", "its own", "calibrated"):
            calibration.add_column(column, justify="left" if not column else "right")
        for row in errors:
            calibration.add_row(*row)
        console.print(calibration)
    receipt = Table(title="receipt of the swap", title_justify="left", show_header=False)
    receipt.add_column(style="dim", no_wrap=True)
    receipt.add_column(overflow="fold")
    for name, value in receipt_lines(story):
        receipt.add_row(name, value)
    console.print(receipt)
    for each in story.side_by_side:
        pair = Table(
            title=f"{each.case.problem.text}\n{each.case.response}  [dim](right: {each.case.problem.answer})[/dim]",
            title_justify="left",
        )
        for number in (0, version):
            pair.add_column(f"critic@{number}: {each.results[number]['verdict']}", overflow="fold")
        pair.add_row(
            *(
                f"{escape(each.results[number]['critique'])}\n\n[dim]-> {escape(each.results[number]['refined'])}[/dim]"
                for number in (0, version)
            )
        )
        console.print(pair)
    failures = f"{story.failures} of {story.requests} requests of the callers failed"
    console.print(f"{failures}; {story.seconds:.0f} s in total")


def curve(story: Story) -> str:
    """The learning curves of the run as a PNG in base64: validation by class, and the reward of each step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for name, title in (("discrimination_right", "right answers"), ("discrimination_wrong", "wrong answers")):
        points = [
            (each["data"]["step"], 100 * each["data"]["metrics"][name])
            for each in story.events
            if each["kind"] == "validation" and name in each["data"]["metrics"]
        ]
        left.plot([x for x, _ in points], [y for _, y in points], marker="o", label=title)
    left.set(title="verdicts right on validation answers, %", xlabel="rollout step", ylim=(0, 103))
    left.legend()
    steps = [each["data"] for each in story.events if each["kind"] == "step"]
    right.plot([each["step"] for each in steps], [each["metrics"]["reward_mean"] for each in steps], marker=".")
    right.set(title="mean reward of a step's critiques", xlabel="rollout step")
    for panel in (left, right):
        panel.axvline(story.run["config"]["steps_stage_1"], color="grey", linewidth=0.8, linestyle=":")
        panel.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(picture.getvalue()).decode()


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } tr { border-bottom: 1px solid #e4e4ea }
pre { white-space: pre-wrap; background: #f5f5f8; padding: .7rem; margin: 0; font-size: 13px } img { max-width: 100% }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem } .good { color: #0a7a3d } .bad { color: #b3261e }
td.fold { overflow-wrap: anywhere }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr } }
"""


def page(story: Story) -> str:
    """The report as a self-contained HTML page."""
    version = story.version
    gate = story.run["gate"] or {}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Gadfly: a critic that learned</title><style>{_STYLE}</style>",
        "<h1>A critic that learned from its traffic</h1>",
        f"<p>{story.requests} requests of {story.callers} simulated callers, {story.failures} of them failed; "
        f"one training run; {story.seconds:.0f} seconds in total.</p>",
        f"<h2>The gate: {html.escape(str(story.run['outcome'] or 'no decision'))}</h2><ul>",
        *(f"<li>{html.escape(reason)}</li>" for reason in gate.get("reasons", [])),
        "</ul><h2>How it learned</h2>",
        f"<img alt='learning curve' src='data:image/png;base64,{curve(story)}'>",
        "<p>Left of the dotted line, stage I rewards the right verdict; right of it, stage II rewards a right "
        "refinement and the right verdict.</p>",
    ]
    if version is not None:
        rows = zip(story.rates(0), story.rates(version), strict=True)
        parts += [
            f"<h2>Before and after, on {len(story.comparisons)} fresh answers</h2><table>",
            f"<tr><th><th class=n>critic@0<th class=n>critic@{version}<th class=n>of",
            *(
                f"<tr><td>{name}<td class=n>{a:.1%}<td class=n>{b:.1%}<td class=n>{of}"
                for (name, a, of), (_, b, _) in rows
            ),
            "</table><h2>Calibration error (ECE) of the new critic</h2><table>",
            "<tr><th><th class=n>its own<th class=n>calibrated",
            *(f"<tr><td>{name}<td class=n>{a}<td class=n>{b}" for name, a, b in story.calibration_errors()),
            "</table><h2>The swap's receipt</h2><table>",
            *(
                f"<tr><td>{html.escape(name)}<td class=fold>{html.escape(value)}"
                for name, value in receipt_lines(story)
            ),
            "</table><h2>Three wrong answers, two critics</h2>",
        ]
        for each in story.side_by_side:
            parts.append(
                f"<p><b>{html.escape(each.case.problem.text)}</b><br>{html.escape(each.case.response)} "
                f"(right: {each.case.problem.answer})</p><div class=pair>"
            )
            for number in (0, version):
                result = each.results[number]
                kind = "good" if each.is_verdict_right(number) else "bad"
                parts.append(
                    f"<div><p class={kind}>critic@{number}: {html.escape(result['verdict'])}</p>"
                    f"<pre>{html.escape(result['critique'])}\n\n&rarr; {html.escape(result['refined'])}</pre></div>"
                )
            parts.append("</div>")
    return "\n".join(parts)
