"""A critic whose traffic shifts: what 50 labels from a new world teach among thousands from the old one.

python -m bench.shift FOLDER [--seeds 0,1,2]

In the lab's world. A first critic learns from answers to the usual problems. Then callers label 50 answers to problems
of another split (`--to`), half of them right, and a second run continues from the first critic with all answers. The
table shows the second critic's balanced verdict accuracy and Acc@Refine on other problems of that split and on usual
ones, by the share of its draws that comes from the new labels.
"""

import argparse
import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import orjson
import structlog
import torch

from gadfly.actor import BaseActor
from gadfly.adapters import write_durably
from gadfly.grading import Grader
from gadfly.lab import world
from gadfly.lab.__main__ import MODEL
from gadfly.lab.arena import Sizes, sampled_answers
from gadfly.lab.engine import Generator
from gadfly.lab.rows import BASE
from gadfly.lab.runs import RANK, Lab, LabReport
from gadfly.lab.study import Study
from gadfly.lab.world import LabSplit
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import Known
from gadfly.trainer.learn import Learning, load_adapter
from gadfly.trainer.measure.evaluate import Bench, evaluate
from gadfly.trainer.measure.metrics import measure
from gadfly.trainer.rl.policy import Policy
from gadfly.trainer.rl.processes import ProcessGroup, make_accelerator
from gadfly.trainer.rollouts import Collector
from gadfly.trainer.workspace import Workspace
from gadfly.training import TrainConfig

SIZES = Sizes(learn=512, validate=32, test=256, out_of_domain=256, samples=8)
NEW = 50
STEPS = {"steps_stage_1": 12, "steps_stage_2": 12, "validate_every": 0}
SHARES = (0.0, 0.5)
THREADS = 1
_GRADE_LIMIT_S = 10.0


async def new_answers(lab: Lab, to: LabSplit) -> list[LabelledAnswer]:
    """Labelled answers to longer problems that no test holds, as many right as wrong ones."""
    engines = lab.engines("new")
    tested = [item.question for item in lab.arena.tests[to]]
    problems = world.problems(to, 12 * NEW, seed=1, without=tested)
    answers = await sampled_answers(engines, lab.prompts, lab.grader, problems)
    halves = ([item for item in answers if item.is_right is kind][: NEW // 2] for kind in (True, False))
    return [item for half in halves for item in half]


async def run(
    lab: Lab, name: str, learn: Sequence[LabelledAnswer], config: TrainConfig, *, start: Path | None, known: Known
) -> Path:
    """The adapter of a run that begins with the adapter `start`, or with the base model."""
    folder = lab.folder / name
    engines = lab.engines(str(folder))
    workspace = Workspace.of(folder, uuid5(NAMESPACE_URL, name))
    if not workspace.final.exists():
        policy = Policy(lab.model, rank=RANK, alpha=config.lora_alpha, seed=config.fixed_seed)
        processes = ProcessGroup(policy, config, make_accelerator(cpu=True))
        if start is not None:
            processes.load_adapter(start)
        report = LabReport(workspace=workspace, steps=config.steps)
        await Learning(
            config=config,
            processes=processes,
            engines=engines,
            collector=Collector(
                engines=engines,
                actor=BaseActor(engines.pool),
                prompts=lab.prompts,
                grader=lab.grader,
                config=config,
            ),
            workspace=workspace,
            report=report,
            learn=learn,
            validate=[],
            known=known,
        ).run()
        report.close()
    return workspace.final


async def rates(lab: Lab, adapter: Path, to: LabSplit) -> dict[str, float]:
    engines = lab.engines(str(adapter))
    name, _ = await load_adapter(engines, adapter, label="test")
    bench = Bench(
        engines=engines.pool,
        actor=BaseActor(engines.pool),
        prompts=lab.prompts,
        grader=lab.grader,
        max_critique_tokens=lab.base.max_critique_tokens,
        max_answer_tokens=lab.base.max_answer_tokens,
        concurrency=engines.at_once(1),
    )
    found: dict[str, float] = {}
    for split in (to, LabSplit.IN_DOMAIN):
        judged = await evaluate(bench, lab.arena.tests[split], model=name, with_refinement=True)
        measured = measure(judged)
        assert measured.discrimination_balanced is not None
        assert measured.accuracy_refined is not None
        found |= {
            f"{split.value} verdict": measured.discrimination_balanced.value,
            f"{split.value} refined": measured.accuracy_refined.value,
        }
    await engines.unload(name)
    return found


async def results(folder: Path, seeds: Sequence[int], to: LabSplit) -> None:
    base = TrainConfig.model_validate(BASE.model_dump() | STEPS)
    study = Study(folder, MODEL, base, SIZES)
    study.open()
    names: list[str] = []
    async with Grader(timeout_s=_GRADE_LIMIT_S) as grader:
        lab = await study.lab(Generator(str(MODEL)), grader)
        new = await new_answers(lab, to)
        known = Known(fresh=frozenset(item.key for item in new))
        for seed in seeds:
            config = base.model_copy(update={"seed": seed})
            first = await run(lab, f"first-{seed}", lab.arena.learn, config, start=None, known=Known())
            lines = {"the first critic": await _kept(lab, first, folder / f"first-{to.value}-{seed}.json", to)}
            for share in SHARES:
                learn = [*lab.arena.learn, *new]
                random.Random(seed).shuffle(learn)  # not a secret
                second = await run(
                    lab,
                    f"{to.value}-{share}-{seed}",
                    learn,
                    config.model_copy(update={"fresh_share": share, "seed": 100 + seed}),
                    start=first,
                    known=known,
                )
                lines[f"share {share}"] = await _kept(lab, second, folder / f"{to.value}-{share}-{seed}.json", to)
            if not names:
                names = list(lines["the first critic"])
                print(f"{len(lab.arena.learn)} old answers, {len(new)} new ones")
                print("| seed | critic |", " | ".join(names), "|\n| ---: | --- |" + " ---: |" * len(names))
            for title, line in lines.items():
                print(f"| {seed} | {title} |", " | ".join(f"{100 * line[name]:.1f}" for name in names), "|", flush=True)


async def _kept(lab: Lab, adapter: Path, file: Path, to: LabSplit) -> dict[str, float]:
    kept = _read(file)
    if kept is None:
        kept = await rates(lab, adapter, to)
        write_durably(file, orjson.dumps(kept))
    return kept


def _read(file: Path) -> dict[str, float] | None:
    return orjson.loads(file.read_bytes()) if file.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.shift", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--to", type=LabSplit, choices=list(LabSplit), default=LabSplit.LARGER, help="the new world")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(THREADS)
    asyncio.run(results(options.folder, [int(each) for each in options.seeds.split(",")], options.to))


if __name__ == "__main__":
    main()
