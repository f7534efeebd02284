"""The table of results: runs every row with every seed. Existing results are kept.

python -m gadfly.lab run FOLDER            # all rows, three seeds
python -m gadfly.lab run FOLDER --quick    # few rows, one seed, fewer steps; fails if a sign is wrong
python -m gadfly.lab run FOLDER --quick --rows critique-rl,alike --seeds 0,1,2    # these rows in the small size
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
_FULL = 0.97  # from this accuracy on, a class has no room for a gain and only must not lose
_SLACK = 0.03  # a loss that a quick test is too small to tell from chance
CURVES = ("critique-rl", "no-stage-1", "ctrl", "retroformer", "single-both")


def run(study: Study, names: list[str], seeds: list[int], workers: int, console: Console) -> list[dict[str, Any]]:
    """The results of these rows and seeds. Shows progress on the console."""
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
    """A row's rates on the in-domain test, at the last checkpoint, in percent."""
    metrics = result["last"][LabSplit.IN_DOMAIN.value]
    names = ("accuracy_refined", "discrimination", "discrimination_right", "discrimination_wrong", "coverage")
    titles = ("Acc@Refine", "Acc@Dis", "right", "wrong", "coverage")
    rates = ", ".join(
        f"{title} {100 * metrics[name]['value']:.1f}"
        for title, name in zip(titles, names, strict=True)
        if metrics[name] is not None
    )
    return f"{result['row']:13s} seed {result['seed']}: {rates}"


def wrong_signs(results: list[dict[str, Any]]) -> list[str]:
    """Gains that the method promises and a quick run does not show, a sentence each."""
    by_row = {result["row"]: result["last"][LabSplit.IN_DOMAIN.value] for result in results}

    def rate(row: str, name: str) -> float:
        return float(by_row[row][name]["value"])

    sentences = []
    for name in ("discrimination_right", "discrimination_wrong"):
        before, after = rate("sft", name), rate("no-stage-2", name)
        if after < before - _SLACK if before > _FULL else after <= before:
            sentences.append(f"stage I does not lift {name}: {before:.3f} -> {after:.3f}")
    before, after = rate("no-stage-2", "accuracy_refined"), rate("critique-rl", "accuracy_refined")
    if after <= before:
        sentences.append(f"stage II does not lift Acc@Refine: {before:.3f} -> {after:.3f}")
    before, after = rate("no-stage-2", "discrimination"), rate("critique-rl", "discrimination")
    if after < before - _SLACK:
        sentences.append(f"stage II loses Acc@Dis: {before:.3f} -> {after:.3f}")
    return sentences


def write_report(folder: Path, pictures: Path, *, page_folder: Path) -> str:
    """The results of a study in Markdown, with links from `page_folder` to the pictures that this writes."""
    results = read(folder)
    base = TrainConfig.model_validate(orjson.loads((folder / "study.json").read_bytes())["config"])
    report.draw_curves(results, pictures / "curves.png", names=CURVES, stage_1_steps=base.steps_stage_1)
    link = os.path.relpath(pictures, page_folder)
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
    run_parser = commands.add_parser("run", help="train and measure the rows")
    run_parser.add_argument("folder", type=Path, help="folder for the results")
    run_parser.add_argument("--model", type=Path, default=MODEL, help="model made by `python -m gadfly.lab.pretrain`")
    run_parser.add_argument("--rows", help="names of rows; default: all, or with --quick those that are checked")
    run_parser.add_argument("--seeds", help="default: 0,1,2, or with --quick 0")
    run_parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the training config, as JSON"
    )
    run_parser.add_argument("--quick", action="store_true", help="small size, and a check of its usual rows")
    run_parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="rows at a time; default: one per core"
    )
    write_parser = commands.add_parser("write", help="write tables and pictures into the page of results")
    write_parser.add_argument("folder", type=Path, help="folder with the results")
    write_parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    options = parser.parse_args()
    if options.command == "write":
        page: Path = options.page
        text = write_report(options.folder, page.with_suffix(""), page_folder=page.parent)
        page.write_text(report.put_into(page.read_text(encoding="utf-8"), text), encoding="utf-8")
        return 0
    changes = {name: orjson.loads(value) for name, _, value in (each.partition("=") for each in options.set)}
    usual_rows, usual_seeds, sizes = [each.name for each in ROWS], [0, 1, 2], Sizes()
    if options.quick:
        usual_rows, usual_seeds, sizes, changes = list(QUICK), [0], QUICK_SIZES, {**QUICK_CHANGES, **changes}
    names = options.rows.split(",") if options.rows else usual_rows
    seeds = [int(each) for each in options.seeds.split(",")] if options.seeds else usual_seeds
    base = TrainConfig.model_validate(BASE.model_dump() | changes)
    console = Console()
    try:
        results = run(Study(options.folder, options.model, base, sizes), names, seeds, options.workers, console)
    except AnotherStudy as error:
        console.print(f"[red]{error}[/red]", soft_wrap=True)
        return 2
    if not options.quick or (names, seeds) != (usual_rows, usual_seeds):
        return 0
    sentences = wrong_signs(results)
    for sentence in sentences:
        console.print(f"[red]{sentence}[/red]")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
