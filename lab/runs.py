"""One row of the table with one seed, trained and evaluated by the trainer's own code.

Unlike a run of the service, a row has no queue, database, publication and swap. An interrupted row resumes.
"""

import math
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import orjson

from gadfly.actor import Actor, BaseActor
from gadfly.adapters import write_durably
from gadfly.engine_client import ACTOR
from gadfly.engine_pool import EnginePool
from gadfly.grading import Grade, Grader
from gadfly.lab import sampling
from gadfly.lab.arena import Arena
from gadfly.lab.engine import Generator, connect
from gadfly.lab.rewriting import SimulatedActor, WorldOptions
from gadfly.lab.rows import Method, Row, config, config_of_update
from gadfly.lab.world import LabSplit
from gadfly.prompts import PromptSet
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import Dealer
from gadfly.trainer.engines import RunEngines
from gadfly.trainer.learn import Learning, load_adapter
from gadfly.trainer.measure.attacks import AttackReport, attacked
from gadfly.trainer.measure.evaluate import Bench, evaluate, without_critic
from gadfly.trainer.measure.metrics import Judged, measure
from gadfly.trainer.report import Report
from gadfly.trainer.rl.policy import Policy
from gadfly.trainer.rl.processes import ProcessGroup, make_accelerator
from gadfly.trainer.rollouts import Collector
from gadfly.trainer.workspace import Lines, Workspace, new_folder
from gadfly.training import EventKind, Stage, TrainConfig

RANK = 16
_STAR_ROUNDS = 4
_ATTACKED = 128  # wrong answers of the test that are judged with an attack around them
_GLANCE = 16  # validation answers for the loop itself; the curve is measured on all of them, with the snapshots


def code() -> str:
    """The commit of this code, with a + if tracked files differ from it; "-" outside of a repository."""
    command = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "-"
    return found.stdout.strip() or "-"


@dataclass(kw_only=True)
class LabReport(Report):
    """Stores a run's events in its folder, and the adapter of every validation."""

    @property
    def events(self) -> Lines[dict[str, Any]]:
        return Lines(self.workspace.path / "events.jsonl", dict[str, Any])

    @property
    def snapshots(self) -> Path:
        return self.workspace.path / "snapshots"

    async def validation(self, step: int, metrics: dict[str, float]) -> None:
        await super().validation(step, metrics)
        folder = self.snapshots / f"{step:05}"
        if not folder.exists():
            with new_folder(folder) as unfinished:
                shutil.copytree(self.workspace.adapter(step), unfinished, dirs_exist_ok=True)

    async def _store(self, kind: EventKind, data: dict[str, Any], *, step: int | None = None) -> None:
        self.events.append({"kind": kind.value, "at": time.time(), "data": data})


@dataclass(frozen=True, kw_only=True, slots=True)
class Lab:
    """The model, answers and folder that all rows share."""

    folder: Path
    model: Path
    generator: Generator
    grader: Grader
    prompts: PromptSet
    arena: Arena
    base: TrainConfig
    sampled: int  # answers of the test for which many samples are drawn
    verdicts_only: bool = False  # nothing is rewritten and no attack judged when a critic is measured
    world: WorldOptions | None = None  # the options of a simulated actor; None: the lab's model rewrites

    def actor(self, engines: RunEngines, *, seed: str) -> Actor:
        """The actor that rewrites. `seed` only concerns a simulated one."""
        return (
            BaseActor(engines.pool)
            if self.world is None
            else SimulatedActor(engines.pool, options=self.world, seed=seed)
        )

    def engines(self, name: str) -> RunEngines:
        return RunEngines(EnginePool([connect(self.generator)]), uuid5(NAMESPACE_URL, name), self.generator.rows)

    async def result(self, row: Row, seed: int) -> dict[str, Any]:
        """The row's result with this seed, read from its folder or computed now."""
        folder = self.folder / row.name / str(seed)
        path = folder / "result.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            computed = await self._compute(row, seed, folder)
            write_durably(path, orjson.dumps(computed, option=orjson.OPT_INDENT_2))
        result: dict[str, Any] = orjson.loads(path.read_bytes())
        return result

    async def _compute(self, row: Row, seed: int, folder: Path) -> dict[str, Any]:
        head = {"row": row.name, "seed": seed, "rollouts": 0, "seconds": 0.0, "curve": [], "code": code()}
        engines = self.engines(str(folder))
        if row.method is Method.NONE:
            numbers = {
                split.value: measure(without_critic(answers)).to_json() for split, answers in self.arena.tests.items()
            }
            bench = self.bench(engines, samples=sampling.SAMPLES)
            answers = await sampling.actor_alone(bench, self._sampled, seed=seed)
            return head | {"last": numbers, "best": numbers, "samples": sampling.measure(answers)}
        if row.method is Method.START:
            numbers = await self._test(engines, ACTOR)
            attacks, samples = await self._attacks(engines, ACTOR), await self._samples(engines, ACTOR, seed)
            return head | {"last": numbers, "best": numbers, "attacks": attacks, "samples": samples}
        train_config = config(row, self.base, seed=seed)
        report = await self.train(row, seed, folder, engines)
        workspace = report.workspace
        curve = [await self._point(engines, folder) for folder in sorted(report.snapshots.glob("*[0-9]"))]
        name, _ = await load_adapter(engines, workspace.final, label="final")
        last_point = await self._validated(engines, name) | {"step": train_config.steps}
        last = await self._test(engines, name)
        attacks = await self._attacks(engines, name)
        samples = await self._samples(engines, name, seed) if row.is_sampled else []
        await engines.unload(name)
        best_point = max([*curve, last_point], key=_merit)
        best = last
        if best_point is not last_point:
            name, _ = await load_adapter(engines, report.snapshots / f"{best_point['step']:05}", label="best")
            best = await self._test(engines, name, (LabSplit.IN_DOMAIN,))
            await engines.unload(name)
        events = list(report.events.read())
        shutil.rmtree(workspace.path / "rollouts")
        shutil.rmtree(workspace.path / "checkpoints")
        return head | {
            "rollouts": train_config.steps * train_config.prompts_per_step * train_config.samples_per_prompt,
            "seconds": sum(event["data"].get("seconds", 0.0) for event in events if event["kind"] == "step"),
            "curve": [*curve, last_point],
            "best_step": best_point["step"],
            "last": last,
            "best": best,
            "attacks": attacks,
            "samples": samples,
        }

    async def train(self, row: Row, seed: int, folder: Path, engines: RunEngines) -> LabReport:
        """Train a row's critic, or finish training it, in its folder. The adapter is in the workspace's `final`."""
        train_config = config(row, self.base, seed=seed)
        workspace = Workspace.of(folder, engines.run_id)
        report = LabReport(workspace=workspace, steps=train_config.steps)
        policy = Policy(self.model, rank=RANK, alpha=train_config.lora_alpha, seed=seed)
        processes = ProcessGroup(policy, config_of_update(row, train_config), make_accelerator(cpu=True))
        collector = Collector(
            engines=engines,
            actor=self.actor(engines, seed=str(seed)),
            prompts=self.prompts,
            grader=self.grader,
            config=train_config,
        )
        if not workspace.final.exists():
            if row.method is Method.STAR:
                await self._star(processes, engines, collector, report, train_config)
            else:
                await Learning(
                    config=train_config,
                    processes=processes,
                    engines=engines,
                    collector=collector,
                    workspace=workspace,
                    report=report,
                    learn=self.arena.learn,
                    validate=self.arena.validate[:_GLANCE],
                ).run()
        report.close()
        return report

    async def _star(
        self, processes: ProcessGroup, engines: RunEngines, collector: Collector, report: LabReport, config: TrainConfig
    ) -> None:
        """STaR: rounds of fine-tuning on the critic's own critiques that led to a right refinement.

        Each round continues with the critic of the last one. Together the rounds sample as many critiques as the steps
        of the other rows.
        """
        workspace = report.workspace
        steps = config.steps // _STAR_ROUNDS
        dealer = Dealer(self.arena.learn, seed=f"{config.fixed_seed} star", balance=config.balance)
        for number in range(_STAR_ROUNDS):
            dealt = [dealer.deal(config.prompts_per_step) for _ in range(steps)]
            done = workspace.path / f"round-{number}"
            if done.exists():
                processes.load_adapter(done)
                continue
            began = time.perf_counter()
            with new_folder(workspace.adapter(number * steps)) as unfinished:
                processes.save_adapter(unfinished)
            name, sha256 = await load_adapter(engines, workspace.adapter(number * steps), label=f"{number}")
            pairs = []
            for step, items in enumerate(dealt, start=number * steps):
                groups = await collector.collect(
                    items,
                    stage=Stage.STAGE_2,
                    model=name,
                    adapter_sha256=sha256,
                    seed=f"{config.fixed_seed} star {step}",
                    file=workspace.rollouts(step),
                )
                pairs += [
                    (group.prompt, rollout.tokens)
                    for group in groups
                    for rollout in group.rollouts
                    if rollout.refined is Grade.RIGHT and rollout.finish_reason == "stop"
                ]
            await engines.unload(name)
            learned = processes.warm_start(list(dict.fromkeys(pairs)))
            numbers = {"kept": float(len(pairs)), "loss": learned[-1]["loss"]}
            await report.step((number + 1) * steps - 1, numbers, seconds=time.perf_counter() - began)
            with new_folder(done) as unfinished:
                processes.save_adapter(unfinished)
        with new_folder(workspace.final) as unfinished:
            processes.save_adapter(unfinished)

    async def _point(self, engines: RunEngines, folder: Path) -> dict[str, Any]:
        name, _ = await load_adapter(engines, folder, label=f"snapshot-{folder.name}")
        validated = await self._validated(engines, name)
        await engines.unload(name)
        return validated | {"step": int(folder.name)}

    async def _validated(self, engines: RunEngines, name: str) -> dict[str, Any]:
        return {"metrics": measure(await self._judge(engines, name, self.arena.validate)).to_json()}

    async def _test(self, engines: RunEngines, name: str, splits: Iterable[LabSplit] = LabSplit) -> dict[str, Any]:
        return {
            split.value: measure(await self._judge(engines, name, self.arena.tests[split])).to_json()
            for split in splits
        }

    async def _attacks(self, engines: RunEngines, name: str) -> dict[str, Any] | None:
        """Wrong answers of the in-domain test with and without an attack, judged greedily; None without any."""
        if self.verdicts_only:
            return None
        answers = self.arena.tests[LabSplit.IN_DOMAIN]
        wrong = [answer for answer in answers if not answer.is_right][:_ATTACKED]
        plain, under_attack = [
            await evaluate(self.bench(engines), each, model=name, with_refinement=False)
            for each in (wrong, attacked(wrong, len(wrong)))
        ]
        found = AttackReport.of(plain, under_attack)
        return None if found is None else found.to_json()

    async def _samples(self, engines: RunEngines, name: str, seed: int) -> list[dict[str, Any]]:
        tokenizer = self.generator.tokenizer
        samples = await sampling.with_critic(
            self.bench(engines, samples=sampling.SAMPLES),
            self._sampled,
            model=name,
            seed=seed,
            count=lambda text: len(tokenizer.encode(text)) + 1,
        )
        return sampling.measure(samples)

    @property
    def _sampled(self) -> Sequence[LabelledAnswer]:
        return self.arena.tests[LabSplit.IN_DOMAIN][: self.sampled]

    def bench(self, engines: RunEngines, *, samples: int = 1) -> Bench:
        return Bench(
            engines=engines.pool,
            actor=self.actor(engines, seed="test"),
            prompts=self.prompts,
            grader=self.grader,
            max_critique_tokens=self.base.max_critique_tokens,
            max_answer_tokens=self.base.max_answer_tokens,
            concurrency=engines.at_once(samples),
        )

    async def _judge(self, engines: RunEngines, name: str, answers: Sequence[LabelledAnswer]) -> list[Judged]:
        return await evaluate(self.bench(engines), answers, model=name, with_refinement=not self.verdicts_only)


def _merit(point: dict[str, Any]) -> float:
    """The criterion of the best checkpoint: accuracy after refinement plus balanced accuracy of the verdict."""
    rates = (point["metrics"][name] for name in ("accuracy_refined", "discrimination_balanced"))
    return math.fsum(rate["value"] for rate in rates if rate is not None)
