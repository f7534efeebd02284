"""The table: every row with every seed, one after another; what is done already is not done again.

python -m lab run FOLDER --model MODEL            # all rows, three seeds
python -m lab run FOLDER --model MODEL --quick    # few rows, one seed, fewer steps; fails if a sign is wrong
python -m lab show FOLDER --curves FILE.png       # the tables, and the learning curves by class
"""

import argparse
import asyncio
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import orjson
import structlog
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from core import prompts
from core.engine import EnginePool
from core.grading import Grader
from core.training import TrainConfig
from lab import report
from lab.arena import Arena, Sizes
from lab.engine import Generator, connect
from lab.rows import BASE, QUICK, QUICK_CHANGES, QUICK_SIZES, ROWS, row
from lab.runs import Lab
from lab.world import Split
from trainer.engines import Engines

PROMPTS = "bare@1"
_GRADE_LIMIT_S = 10.0


async def run(
    folder: Path, model: Path, names: list[str], seeds: list[int], base: TrainConfig, sizes: Sizes, console: Console
) -> list[dict[str, Any]]:
    """The results of these rows and seeds: found, or made now."""
    generator = Generator(str(model))
    engines = Engines(EnginePool([connect(generator)]), uuid5(NAMESPACE_URL, str(folder)), generator.rows)
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[dict[str, Any]] = []
    async with Grader(timeout_s=_GRADE_LIMIT_S) as grader:
        arena = await Arena.open(folder, engines, prompts.load(PROMPTS), grader, sizes, seed=0)
        lab = Lab(
            folder=folder,
            model=model,
            generator=generator,
            grader=grader,
            prompts=prompts.load(PROMPTS),
            arena=arena,
            base=base,
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(names) * len(seeds))
            for seed in seeds:
                for name in names:
                    progress.update(task, description=f"{name}, seed {seed}")
                    began = time.monotonic()
                    results.append(await lab.result(row(name), seed))
                    progress.advance(task)
                    progress.console.print(line(results[-1]), f"  {time.monotonic() - began:5.0f} s")
    return results


def line(result: dict[str, Any]) -> str:
    """A row's numbers on the in-domain test, at its last checkpoint, in percent."""
    found = result["last"][Split.IN_DOMAIN.value]
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
    by_row = {result["row"]: result["last"][Split.IN_DOMAIN.value] for result in results}

    def rate(name: str, of: str) -> float:
        return float(by_row[name][of]["value"])

    found = [
        f"stage I does not lift {of}: {rate('sft', of):.3f} -> {rate('no-stage-2', of):.3f}"
        for of in ("discrimination_right", "discrimination_wrong")
        if rate("no-stage-2", of) <= rate("sft", of)
    ]
    before, after = rate("no-stage-2", "accuracy_refined"), rate("critique-rl", "accuracy_refined")
    if after <= before:
        found.append(f"stage II does not lift Acc@Refine: {before:.3f} -> {after:.3f}")
    before, after = rate("no-stage-2", "discrimination"), rate("critique-rl", "discrimination")
    if after < before - 0.02:
        found.append(f"stage II loses Acc@Dis: {before:.3f} -> {after:.3f}")
    return found


def read(folder: Path) -> list[dict[str, Any]]:
    """All results that lie in a folder."""
    return [orjson.loads(path.read_bytes()) for path in sorted(folder.glob("*/*/result.json"))]


def show(folder: Path, curves: Path | None) -> str:
    """The tables of what is done; the learning curves go to a file."""
    results = read(folder)
    if curves is not None:
        names = ("critique-rl", "no-stage-1", "ctrl", "retroformer", "single-both")
        report.draw_curves(results, curves, names=names, stage_1_steps=BASE.steps_stage_1)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__.partition('+')[0]}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {machine}\n\n{report.tables(results)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--model", type=Path, required=True, help="what `python -m lab.pretrain` made")
    running.add_argument("--rows", default=",".join(each.name for each in ROWS))
    running.add_argument("--seeds", default="0,1,2")
    running.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the training config")
    running.add_argument("--quick", action="store_true")
    showing = commands.add_parser("show")
    showing.add_argument("folder", type=Path)
    showing.add_argument("--curves", type=Path)
    asked = parser.parse_args()
    if asked.command == "show":
        print(show(asked.folder, asked.curves))
        return 0
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))  # the table says what matters
    torch.set_num_threads(os.cpu_count() or 1)
    console = Console()
    asked.folder.mkdir(parents=True, exist_ok=True)
    changes = {name: orjson.loads(value) for name, _, value in (each.partition("=") for each in asked.set)}
    names, seeds, sizes = asked.rows.split(","), [int(each) for each in asked.seeds.split(",")], Sizes()
    if asked.quick:
        names, seeds, sizes, changes = list(QUICK), [0], QUICK_SIZES, {**QUICK_CHANGES, **changes}
    base = TrainConfig.model_validate(BASE.model_dump() | changes)
    results = asyncio.run(run(asked.folder, asked.model, names, seeds, base, sizes, console))
    if not asked.quick:
        return 0
    wrong = wrong_signs(results)
    for sentence in wrong:
        console.print(f"[red]{sentence}[/red]")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
