"""A run on traffic that is mostly right: what the critic learns, and what each axis of the gate says.

python -m bench.mostly_right FOLDER [--right 0.95] [--seeds 0] [--quick]

In the lab's world. Callers send 1,000 questions with one answer each, of which 95 % are right, and the references. A
fifth of the questions is held out. A run learns from the others, and from the actor's own answers to some of them,
with the default options of a run (validation, best checkpoint, balanced draws); only steps, lengths, learning rate and
the pool's temperature are the lab's. The gate measures the critic and the base model on held-out answers as it does in
a deployment, and then both judge fresh answers of both classes. Finished seeds are kept. Prints Markdown.
"""

import argparse
import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import orjson
import structlog
import torch

from gadfly import prompts
from gadfly.actor import BaseActor
from gadfly.adapters import write_durably
from gadfly.engine_client import ACTOR
from gadfly.engine_pool import EnginePool
from gadfly.grading import Grader
from gadfly.lab.__main__ import MODEL
from gadfly.lab.arena import asked
from gadfly.lab.engine import Generator, connect
from gadfly.lab.rows import BASE
from gadfly.lab.runs import RANK, LabReport
from gadfly.lab.story import Case
from gadfly.lab.study import PROMPTS
from gadfly.planning import evaluation_items
from gadfly.rates import proportion
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.engines import RunEngines
from gadfly.trainer.learn import Learning, load_adapter
from gadfly.trainer.manifest import split_for_validation
from gadfly.trainer.measure.evaluate import evaluate
from gadfly.trainer.measure.gate import Traffic, decide
from gadfly.trainer.measure.metrics import Judged
from gadfly.trainer.pool import sample_pool
from gadfly.trainer.rl.policy import Policy
from gadfly.trainer.rl.processes import ProcessGroup, make_accelerator
from gadfly.trainer.rollouts import Collector
from gadfly.trainer.workspace import Workspace
from gadfly.training import TrainConfig

HELDOUT = 0.2
CONFIG = {
    "steps_stage_1": BASE.steps_stage_1,
    "steps_stage_2": BASE.steps_stage_2,
    "learning_rate": BASE.learning_rate,
    "max_critique_tokens": BASE.max_critique_tokens,
    "max_answer_tokens": BASE.max_answer_tokens,
    "micro_batch_tokens": BASE.micro_batch_tokens,
    "pool_questions": 128,
    "pool_temperature": 1.0,  # the actor makes errors at this temperature
    "warm_start": "never",
    "checkpoint_every": 10,
}


@dataclass(frozen=True, slots=True)
class Sizes:
    questions: int = 1000
    fresh: int = 400  # answers of each class that both critics judge at the end


QUICK = Sizes(questions=120, fresh=8)
QUICK_CONFIG = {"steps_stage_1": 1, "steps_stage_2": 1, "prompts_per_step": 4, "minibatches": 1, "pool_questions": 24}


def answers(count: int, *, right: float, seed: str) -> list[LabelledAnswer]:
    """One answer to each of so many questions, a share `right` of them right, with the references."""
    rng = random.Random(seed)
    found: dict[bytes, LabelledAnswer] = {}
    while len(found) < count:
        case = Case.make(rng, wrong=rng.random() >= right)
        answer = replace(asked(case.problem), response=case.response, is_right=case.is_right)
        found.setdefault(answer.question_hash, answer)
    return list(found.values())


async def cell(
    folder: Path, generator: Generator, grader: Grader, seed: int, *, right: float, sizes: Sizes, config: TrainConfig
) -> dict[str, Any]:
    """One run with this seed, unless its result is in the folder."""
    home = folder / f"right-{right:g}" / str(seed)
    path = home / "result.json"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        write_durably(path, orjson.dumps(await _run(home, generator, grader, right, sizes, config)))
    result: dict[str, Any] = orjson.loads(path.read_bytes())
    return result


async def _run(
    home: Path, generator: Generator, grader: Grader, right: float, sizes: Sizes, config: TrainConfig
) -> dict[str, Any]:
    engines = RunEngines(EnginePool([connect(generator)]), uuid5(NAMESPACE_URL, str(home)), generator.rows)
    actor, prompt_set = BaseActor(engines.pool), prompts.load(PROMPTS)
    logged = answers(sizes.questions, right=right, seed=f"traffic {config.fixed_seed}")
    first = round(len(logged) * HELDOUT)
    heldout, train = logged[:first], logged[first:]

    async def pool(items: Sequence[LabelledAnswer]) -> list[LabelledAnswer]:
        found = await sample_pool(engines, actor, prompt_set, grader, items, config, seed=config.fixed_seed)
        return found.items

    learn, validate = split_for_validation([*train, *await pool(train)], config)
    collector = Collector(engines=engines, actor=actor, prompts=prompt_set, grader=grader, config=config)
    workspace = Workspace.of(home, engines.run_id)
    if not workspace.final.exists():
        report = LabReport(workspace=workspace, steps=config.steps)
        policy = Policy(MODEL, rank=RANK, alpha=config.lora_alpha, seed=config.fixed_seed)
        await Learning(
            config=config,
            processes=ProcessGroup(policy, config, make_accelerator(cpu=True)),
            engines=engines,
            collector=collector,
            workspace=workspace,
            report=report,
            learn=learn,
            validate=validate,
        ).run()
        report.close()
    items = evaluation_items([*heldout, *await pool(heldout)], config.evaluation_items)
    fresh = [
        answer
        for kind in (1.0, 0.0)
        for answer in answers(sizes.fresh, right=kind, seed=f"fresh {kind}")  # the same ones for all seeds
    ]
    candidate, _ = await load_adapter(engines, workspace.final, label="final")

    async def judged(model: str, of: Sequence[LabelledAnswer], *, samples: int, refines: bool) -> list[Judged]:
        return await evaluate(
            collector.bench(),
            of,
            model=model,
            with_refinement=refines,
            samples=samples,
            temperature=config.temperature,  # as it is served
            seed=config.fixed_seed,
        )

    pair = [await judged(model, items, samples=config.gate_samples, refines=True) for model in (ACTOR, candidate)]
    rights = sum(answer.is_right for answer in logged)
    gate = decide(pair[0], pair[1], config, traffic=Traffic(rights, len(logged) - rights))
    by_class = {
        title: _rates(await judged(model, fresh, samples=1, refines=False))
        for title, model in (("live", ACTOR), ("candidate", candidate))
    }
    await engines.unload(candidate)
    return {
        "learn": {"right": sum(each.is_right for each in learn), "wrong": sum(not each.is_right for each in learn)},
        "logged": {"right": rights, "wrong": len(logged) - rights},
        "gate": gate.to_json(),
        "fresh": by_class,
    }


def _rates(judged: Sequence[Judged]) -> dict[str, int]:
    """Right verdicts, and answers, of each class."""
    found: dict[str, int] = {}
    for name, kind in (("right", True), ("wrong", False)):
        of = [item for item in judged if item.was_right is kind]
        found |= {name: sum(item.is_verdict_right for item in of), f"all_{name}": len(of)}
    return found


def lines(result: dict[str, Any], *, seed: int, right: float) -> list[str]:
    """A seed's result as Markdown."""
    logged, learn, gate = result["logged"], result["learn"], result["gate"]
    found = [
        f"Seed {seed}: callers' answers {logged['right']} right and {logged['wrong']} wrong; to learn from, with the "
        f"actor's own, {learn['right']} right and {learn['wrong']} wrong.",
        "",
        f"| critic, on fresh answers | of right | of wrong | balanced | at {100 * right:g} % right |",
        "|---|---|---|---|---|",
    ]
    for title, rates in result["fresh"].items():
        shares = [proportion(rates[name], rates[f"all_{name}"], confidence=0.95) for name in ("right", "wrong")]
        assert shares[0] is not None
        assert shares[1] is not None
        values = [f"{100 * each.value:.1f} % [{100 * each.low:.1f}, {100 * each.high:.1f}]" for each in shares if each]
        values += [f"{100 * (at * shares[0].value + (1 - at) * shares[1].value):.1f} %" for at in (0.5, right)]
        found.append(f"| {title} | {' | '.join(values)} |")
    return [*found, "", f"The gate: **{gate['outcome']}**.", *(f"- {reason}" for reason in gate["reasons"]), ""]


async def run(
    folder: Path, seeds: Sequence[int], *, right: float, sizes: Sizes, changes: dict[str, Any]
) -> list[list[str]]:
    generator = Generator(str(MODEL))
    found = []
    async with Grader(timeout_s=10.0) as grader:
        for seed in seeds:
            config = TrainConfig.model_validate(CONFIG | changes | {"seed": seed})
            result = await cell(folder, generator, grader, seed, right=right, sizes=sizes, config=config)
            found.append(lines(result, seed=seed, right=right))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("--right", type=float, default=0.95, help="share of right answers in the traffic")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--quick", action="store_true", help="few answers and steps, to see that it works")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(options.threads)
    seeds = [int(each) for each in options.seeds.split(",")]
    sizes, changes = (QUICK, QUICK_CONFIG) if options.quick else (Sizes(), {})
    for found in asyncio.run(run(options.folder, seeds, right=options.right, sizes=sizes, changes=dict(changes))):
        print("\n".join(found))


if __name__ == "__main__":
    main()
