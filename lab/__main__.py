"""The table: every row with every seed, one after another; what is done already is not done again.

python -m gadfly.lab run FOLDER            # all rows, three seeds
python -m gadfly.lab run FOLDER --quick    # few rows, one seed, fewer steps; fails if a sign is wrong
python -m gadfly.lab write FOLDER          # tables and pictures into docs/results.md
"""

import argparse
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gadfly.lab import report
from gadfly.lab.arena import Sizes
from gadfly.lab.rows import BASE, QUICK, QUICK_CHANGES, QUICK_SIZES, ROWS
from gadfly.lab.study import AnotherStudy, Study, read
from gadfly.lab.world import LabSplit
from gadfly.training import TrainConfig

MODEL = Path(__file__).with_name("model")
_FULL = 0.97  # a class that the critic judges right this often has no room to be lifted, and must be kept
_SLACK = 0.03  # what a quick test's size lets pass as kept
CURVES = ("critique-rl", "no-stage-1", "ctrl", "retroformer", "single-both")


def run(study: Study, names: list[str], seeds: list[int], workers: int, console: Console) -> list[dict[str, Any]]:
    """The results of these rows and seeds, with progress on the console."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[dict[str, Any]] = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("rows", total=len(names) * len(seeds))
        for result, seconds in study.run(names, seeds, workers=workers):
            results.append(result)
            progress.advance(task)
            progress.console.print(line(result), f"  {seconds:5.0f} s", soft_wrap=True)
    return results


def line(result: dict[str, Any]) -> str:
    """A row's numbers on the in-domain test, at its last checkpoint, in percent."""
    found = result["last"][LabSplit.IN_DOMAIN.value]
    names = ("accuracy_refined", "discrimination", "discrimination_right", "discrimination_wrong", "coverage")
    titles = ("Acc@Refine", "Acc@Dis", "right", "wrong", "coverage")
    rates = ", ".join(
        f"{title} {100 * found[name]['value']:.1f}"
        for title, name in zip(titles, names, strict=True)
        if found[name] is not None
    )
    return f"{result['row']:13s} seed {result['seed']}: {rates}"


def wrong_signs(results: list[dict[str, Any]]) -> list[str]:
    """What the method promises and a quick run does not show, a sentence each."""
    by_row = {result["row"]: result["last"][LabSplit.IN_DOMAIN.value] for result in results}

    def rate(name: str, of: str) -> float:
        return float(by_row[name][of]["value"])

    found = []
    for of in ("discrimination_right", "discrimination_wrong"):
        before, after = rate("sft", of), rate("no-stage-2", of)
        if after < before - _SLACK if before > _FULL else after <= before:
            found.append(f"stage I does not lift {of}: {before:.3f} -> {after:.3f}")
    before, after = rate("no-stage-2", "accuracy_refined"), rate("critique-rl", "accuracy_refined")
    if after <= before:
        found.append(f"stage II does not lift Acc@Refine: {before:.3f} -> {after:.3f}")
    before, after = rate("no-stage-2", "discrimination"), rate("critique-rl", "discrimination")
    if after < before - _SLACK:
        found.append(f"stage II loses Acc@Dis: {before:.3f} -> {after:.3f}")
    return found


def made(folder: Path, pictures: Path, *, seen_from: Path) -> str:
    """Everything that a study's results say, in Markdown; the pictures go to a folder."""
    results = read(folder)
    base = TrainConfig.model_validate(orjson.loads((folder / "study.json").read_bytes())["config"])
    report.draw_curves(results, pictures / "curves.png", names=CURVES, stage_1_steps=base.steps_stage_1)
    link = os.path.relpath(pictures, seen_from)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__.partition('+')[0]}"
    parts = [
        f"{datetime.now(UTC):%Y-%m-%d}, {machine}.",
        report.tables(results),
        "### Learning curves by class, validation split",
        f"![learning curves]({link}/curves.png)",
    ]
    if any(each["row"] == "released" for each in results):
        parts += [
            "### Rollouts to the released recipe's Acc@Dis",
            report.efficiency_table(results, critiques_per_step=base.prompts_per_step * base.samples_per_prompt),
        ]
    if any(each.get("samples") for each in results):
        report.draw_samples(results, pictures / "samples.png")
        parts += [
            "### More samples: majority vote and Pass@K against tokens",
            report.samples_table(results),
            f"![samples]({link}/samples.png)",
        ]
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gadfly.lab", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--model", type=Path, default=MODEL, help="what `python -m gadfly.lab.pretrain` made")
    running.add_argument("--rows", default=",".join(each.name for each in ROWS))
    running.add_argument("--seeds", default="0,1,2")
    running.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the training config")
    running.add_argument("--quick", action="store_true")
    running.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="rows at a time; one a core")
    writing = commands.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--page", type=Path, default=Path("docs/results.md"))
    asked = parser.parse_args()
    if asked.command == "write":
        page: Path = asked.page
        found = made(asked.folder, page.with_suffix(""), seen_from=page.parent)
        page.write_text(report.put_into(page.read_text(encoding="utf-8"), found), encoding="utf-8")
        return 0
    changes = {name: orjson.loads(value) for name, _, value in (each.partition("=") for each in asked.set)}
    names, seeds, sizes = asked.rows.split(","), [int(each) for each in asked.seeds.split(",")], Sizes()
    if asked.quick:
        names, seeds, sizes, changes = list(QUICK), [0], QUICK_SIZES, {**QUICK_CHANGES, **changes}
    base = TrainConfig.model_validate(BASE.model_dump() | changes)
    console = Console()
    try:
        results = run(Study(asked.folder, asked.model, base, sizes), names, seeds, asked.workers, console)
    except AnotherStudy as error:
        console.print(f"[red]{error}[/red]", soft_wrap=True)
        return 2
    if not asked.quick:
        return 0
    wrong = wrong_signs(results)
    for sentence in wrong:
        console.print(f"[red]{sentence}[/red]")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
