"""The grid of worlds that docs/experiments.md plans: nine cells, and in each the rows with the same rollouts.

    python -m gadfly.lab.grid run FOLDER --cells 1,5 --seeds 0    # results as lines in FOLDER/results.jsonl
    python -m gadfly.lab.grid table FOLDER

A grid that was interrupted goes on when it is started again. A critic is trained once for all cells in which its
training is the same: one that is rewarded for its verdicts alone depends on the share of right answers and on no
rewrite. It is asked once for its critiques of a test; the rewrites of every cell are simulated from them.
"""

import argparse
import asyncio
import hashlib
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from gadfly.actor import BaseActor
from gadfly.base_model import base_sha256
from gadfly.engine_client import ACTOR, OnText, Reply, Sampling
from gadfly.grading import Grade, Grader
from gadfly.lab.__main__ import MODEL
from gadfly.lab.arena import Sizes
from gadfly.lab.engine import Generator
from gadfly.lab.report import quantile
from gadfly.lab.rewriting import SimulatedActor, WorldOptions, with_share
from gadfly.lab.rows import BASE, QUICK_SIZES, Method, Row, config, row
from gadfly.lab.runs import code
from gadfly.lab.study import GRADE_LIMIT_S, Study, processes
from gadfly.lab.world import LabSplit
from gadfly.prompts import Prompt
from gadfly.records import Usage
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.learn import load_adapter
from gadfly.trainer.measure.evaluate import evaluate
from gadfly.trainer.workspace import Lines
from gadfly.training import TrainConfig

CELLS = {
    1: WorldOptions(q=0.2, right=0.2, compliance=0.6),
    2: WorldOptions(q=0.2, right=0.5, harm=0.5),
    3: WorldOptions(q=0.2, right=0.8, harm=0.5),
    4: WorldOptions(q=0.5, right=0.2, harm=0.5),
    5: WorldOptions(q=0.5, right=0.5, harm=0.5, compliance=0.6),
    6: WorldOptions(q=0.5, right=0.8),
    7: WorldOptions(q=0.8, right=0.2, harm=0.5),
    8: WorldOptions(q=0.8, right=0.5),
    9: WorldOptions(q=0.8, right=0.8, harm=0.5, compliance=0.6),
}
REFERENCE = "single-both"
GRID_ROWS = (
    row("sft"),
    Row("dis-only", "r_dis alone", Method.LEARN, only_verdicts=True),
    row("single-refine"),
    row(REFERENCE),
    row("critique-rl"),
    row("ctrl"),
)
GRID_BASE = TrainConfig.model_validate(
    BASE.model_dump() | {"steps_stage_1": 12, "steps_stage_2": 12, "validate_every": 0}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GridResult:
    """One row with one seed in one cell. Lists have an entry for each question of the test, in its order."""

    identity: str  # a hash of everything that the result depends on, except the code
    model: str  # name of its folder
    cell: int
    options: dict[str, float]
    row: str
    seed: int
    rollouts: int
    code: str
    was_right: list[bool]
    verdict_right: list[bool]
    refined_right: list[bool]
    masked_right: list[bool]  # with the numbers of all critiques masked
    leaks: list[bool]  # the critique gives the reference away


@dataclass(frozen=True, kw_only=True, slots=True)
class GridUnit:
    """A critic to train, and the cells in which it is measured."""

    study: Study
    model: str
    row: str
    seed: int
    cells: tuple[int, ...]
    training: str  # the identity of the critic
    identities: tuple[str, ...]  # of the results, by cell


def grid_row(name: str) -> Row:
    return next(each for each in GRID_ROWS if each.name == name)


def training_identity(study: Study, of: Row, seed: int, options: WorldOptions) -> str:
    """A hash of what a trained critic depends on; rewrites count only where the row learns from them."""
    of_row = config(of, study.base, seed=seed)
    rewrites = asdict(options) if of_row.steps_stage_2 else {"right": options.right}
    parts = {
        "model": base_sha256(str(study.model)),
        "sizes": asdict(study.sizes),
        "method": of.method,
        "config": of_row.model_dump(mode="json") if of.is_trained else {},
        "world": rewrites if of.is_trained else {"right": options.right},
    }
    return _digest(parts)


def units(study: Study, cells: Sequence[int], names: Sequence[str], seeds: Sequence[int]) -> list[GridUnit]:
    """The critics to train for these cells, rows and seeds. A row without training has one seed."""
    found: list[GridUnit] = []
    for seed in seeds:
        for name in names:
            of = grid_row(name)
            if not of.is_trained and seed != seeds[0]:
                continue
            by_training: dict[str, list[int]] = {}
            for cell in cells:
                by_training.setdefault(training_identity(study, of, seed, CELLS[cell]), []).append(cell)
            found += [
                GridUnit(
                    study=study,
                    model=study.model.name,
                    row=name,
                    seed=seed,
                    cells=tuple(same),
                    training=training,
                    identities=tuple(_digest([training, asdict(CELLS[cell])]) for cell in same),
                )
                for training, same in by_training.items()
            ]
    return found


def run_grid(folder: Path, wanted: Sequence[GridUnit], *, workers: int) -> Iterator[GridResult]:
    """Yield each result when it is stored; those that the folder holds are not made again."""
    lines = results_of(folder)
    known = {each.identity for each in lines.read()}
    missing = [each for each in wanted if not set(each.identities) <= known]
    if not missing:
        return
    studies = {unit.study.folder: unit.study for unit in missing}.values()
    for study in studies:
        study.open()
    with processes(workers) as pool:
        for study in studies:
            pool.submit(study.make_arena).result()
        for future in as_completed([pool.submit(_make, unit) for unit in missing]):
            for result in future.result():
                if result.identity not in known:
                    known.add(result.identity)
                    lines.append(result)
                    yield result


def results_of(folder: Path) -> Lines[GridResult]:
    return Lines(folder / "results.jsonl", GridResult)


def _digest(parts: Any) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Listener(BaseActor):
    """Keeps the critique of every question, and leaves the answers as they are."""

    heard: dict[str, str] = field(default_factory=dict)

    async def chat(self, prompt: Prompt, *, sampling: Sampling, on_text: OnText | None = None) -> tuple[Reply, ...]:
        question, response, critique = (message.content for message in prompt.messages)
        self.heard[question] = critique
        return (Reply(text=response, finish_reason="stop", usage=Usage()),)


def _make(unit: GridUnit) -> list[GridResult]:
    return asyncio.run(_made(unit))


async def _made(unit: GridUnit) -> list[GridResult]:
    of, options = grid_row(unit.row), CELLS[unit.cells[0]]
    folder = unit.study.folder / "critics" / unit.training
    async with Grader(timeout_s=GRADE_LIMIT_S) as grader:
        lab = await unit.study.lab(Generator(str(unit.study.model)), grader)
        arena = replace(
            lab.arena,
            learn=with_share(lab.arena.learn, options.right, seed="learn"),
            tests={LabSplit.IN_DOMAIN: with_share(lab.arena.tests[LabSplit.IN_DOMAIN], options.right, seed="test")},
        )
        lab = replace(lab, arena=arena, world=options)
        engines, name = lab.engines(str(folder)), ACTOR
        if of.is_trained:
            folder.mkdir(parents=True, exist_ok=True)
            report = await lab.train(of, unit.seed, folder, engines)
            for part in ("rollouts", "checkpoints"):
                shutil.rmtree(report.workspace.path / part, ignore_errors=True)
            name, _ = await load_adapter(engines, report.workspace.final, label="final")
        answers, listener = arena.tests[LabSplit.IN_DOMAIN], _Listener(engines.pool)
        judged = await evaluate(replace(lab.bench(engines), actor=listener), answers, model=name, with_refinement=True)
        critiques = [listener.heard[answer.question] for answer in answers]
        trained = config(of, unit.study.base, seed=unit.seed)
        rollouts = trained.steps * trained.prompts_per_step * trained.samples_per_prompt if of.is_trained else 0
        return [
            GridResult(
                identity=identity,
                model=unit.model,
                cell=cell,
                options=asdict(CELLS[cell]),
                row=unit.row,
                seed=unit.seed,
                rollouts=rollouts,
                code=code(),
                was_right=[item.was_right for item in judged],
                verdict_right=[item.is_verdict_right for item in judged],
                refined_right=await _rewritten(grader, answers, critiques, _tester(engines.pool, cell)),
                masked_right=await _rewritten(
                    grader, answers, critiques, replace(_tester(engines.pool, cell), is_masked=True)
                ),
                leaks=[bool(item.leaks_gold) for item in judged],
            )
            for cell, identity in zip(unit.cells, unit.identities, strict=True)
        ]


def _tester(pool: Any, cell: int) -> SimulatedActor:
    return SimulatedActor(pool, options=CELLS[cell], seed="test")


async def _rewritten(
    grader: Grader, answers: Sequence[LabelledAnswer], critiques: Sequence[str], actor: SimulatedActor
) -> list[bool]:
    """Whether the rewrite of each answer is right."""
    pairs = [
        (actor.rewritten(answer.question, answer.response, critique), str(answer.reference))
        for answer, critique in zip(answers, critiques, strict=True)
    ]
    return [grade is Grade.RIGHT for grade in await grader.grade_all(pairs)]


# ----------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class MeanWithError:
    """A mean over seeds and questions in [-1, 1], and half the width of its 95 % interval."""

    value: float
    half: float

    def percent(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.half:.1f}"


def interval(by_seed: Sequence[Sequence[float]], strata: Sequence[bool] | None = None) -> MeanWithError:
    """The mean of values by seed and question, with the sampling of both.

    The variance over seeds (Student's t) and that over questions (normal) are added; the noise of a single value counts
    in both, so the interval is rather too wide. A single seed has no variance: the interval then covers the questions
    alone. A class in which all values are equal has no variance either. With `strata`, the mean is that of both
    classes' means.
    """
    classes = [True, False] if strata is not None else [None]
    value, of_questions, seeds = 0.0, 0.0, [0.0] * len(by_seed)
    for each in classes:
        places = [place for place in range(len(by_seed[0])) if strata is None or strata[place] is each]
        means = [statistics.fmean(values[place] for values in by_seed) for place in places]
        share = 1 / len(classes)
        value += share * statistics.fmean(means)
        of_questions += share**2 * (statistics.variance(means) / len(means) if len(means) > 1 else 0.0)
        for seed, values in enumerate(by_seed):
            seeds[seed] += share * statistics.fmean(values[place] for place in places)
    of_seeds = 0.0
    if len(seeds) > 1:
        of_seeds = quantile(len(seeds)) ** 2 * statistics.variance(seeds) / len(seeds)
    return MeanWithError(value, math.sqrt(of_seeds + 1.96**2 * of_questions))


Values = tuple[list[list[float]], list[bool] | None]


def _balanced(results: Sequence[GridResult]) -> Values:
    return [list(map(float, each.verdict_right)) for each in results], results[0].was_right


def _of_all(results: Sequence[GridResult], name: str) -> Values:
    return [list(map(float, getattr(each, name))) for each in results], None


def _of_class(results: Sequence[GridResult], name: str, is_right: bool) -> Values:
    return [
        [
            float(hit)
            for hit, was_right in zip(getattr(each, name), each.was_right, strict=True)
            if was_right is is_right
        ]
        for each in results
    ], None


COLUMNS: dict[str, Callable[[Sequence[GridResult]], Values]] = {
    "balanced Acc@Dis": _balanced,
    "of right": partial(_of_class, name="verdict_right", is_right=True),
    "of wrong": partial(_of_class, name="verdict_right", is_right=False),
    "Acc@Refine": partial(_of_all, name="refined_right"),
    "Acc@Refine, masked": partial(_of_all, name="masked_right"),
    "leaks": partial(_of_class, name="leaks", is_right=False),
}


def grid_table(results: Sequence[GridResult], *, differences: bool = False) -> str:
    """One line for each model, cell and row, in percent; with `differences`, less the row `REFERENCE` of that cell.

    A difference compares the same seeds on the same questions.
    """
    lines = [f"| model | cell | row | seeds | {' | '.join(COLUMNS)} |", "| --- | ---: | --- " + "| ---: " * 7 + "|"]
    for model, cell in sorted({(each.model, each.cell) for each in results}):
        of_cell = [each for each in results if (each.model, each.cell) == (model, cell)]
        for of in GRID_ROWS:
            runs = sorted((each for each in of_cell if each.row == of.name), key=lambda each: each.seed)
            others = {each.seed: each for each in of_cell if each.row == REFERENCE}
            if differences:
                runs = [each for each in runs if each.seed in others and of.name != REFERENCE and of.is_trained]
            if not runs:
                continue
            cells = []
            for column in COLUMNS.values():
                values, strata = column(runs)
                if differences:
                    base, _ = column([others[each.seed] for each in runs])
                    values = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(values, base, strict=True)]
                cells.append(interval(values, strata).percent())
            lines.append(f"| {model} | {cell} | {of.title} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gadfly.lab.grid", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="train and measure; goes on where it was interrupted")
    run_parser.add_argument("folder", type=Path)
    run_parser.add_argument("--cells", default=",".join(map(str, CELLS)))
    run_parser.add_argument("--rows", default=",".join(each.name for each in GRID_ROWS))
    run_parser.add_argument("--seeds", default="0,1,2,3,4")
    run_parser.add_argument("--model", type=Path, action="append", help="a folder; may be given more than once")
    run_parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    table_parser = commands.add_parser("table", help="the tables of a folder's results, in Markdown")
    table_parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    if options.command == "run":
        folder.mkdir(parents=True, exist_ok=True)
        cells, seeds = ([int(each) for each in text.split(",")] for text in (options.cells, options.seeds))
        sizes = replace(QUICK_SIZES, test=Sizes().test)
        for model in options.model or [MODEL]:
            study = Study(folder / base_sha256(str(model))[:12], model, GRID_BASE, sizes)
            for each in run_grid(folder, units(study, cells, options.rows.split(","), seeds), workers=options.workers):
                print(each.model, "cell", each.cell, each.row, "seed", each.seed, flush=True)
        return 0
    results = list(results_of(folder).read())
    print(grid_table(results), grid_table(results, differences=True), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
