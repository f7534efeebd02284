"""Data, configs and processes for tests of whole runs, in a world that the tiny critic misjudges at first.

The tiny model calls an answer wrong if it contains WRONGMARK. Here those answers are the right ones, so nearly all
verdicts are wrong at first. One sample in ten has the other verdict, which is enough to learn from.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from gadfly import store
from gadfly.grading import Grade
from gadfly.records import Kind, TaskId
from gadfly.settings import Settings, SplitBlocks
from gadfly.store.database import Database
from gadfly.training import Run, TrainConfig, Trigger
from tests.support.records import make_interaction

HELDOUT_SHARE = 0.35
SPLIT_BLOCKS = SplitBlocks.EXACT  # all questions of this world follow one template
REFERENCE = "7"  # the tiny actor's answer to everything

RIGHT = "WRONGMARK The answer is 7"
WRONG = "The answer is 8"

# Large steps, since the model is tiny. `GLANCE` goes through all stages quickly and learns little.
QUICK: dict[str, Any] = {
    "seed": 0,
    "steps_stage_1": 14,
    "steps_stage_2": 2,
    "prompts_per_step": 16,
    "samples_per_prompt": 8,
    "inner_epochs": 1,
    "temperature": 1.0,
    "max_critique_tokens": 48,
    "max_answer_tokens": 16,
    "examples": 0,
    "pool_questions": 4,
    "pool_samples": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "checkpoint_every": 2,
    "validate_every": 3,
    "validation_items": 8,
    "gate_min_items": 8,
    "gate_margin": 0.25,  # what two dozen answers can rule out on an axis where nothing changes
    "warm_start": "never",
    "alarms": {"kl": None, "logprob_gap": 0.01},
}
GLANCE = QUICK | {
    "steps_stage_1": 6, "prompts_per_step": 4, "samples_per_prompt": 4, "minibatches": 2, "inner_epochs": 2,
}  # fmt: skip


def trainer_settings(
    *, home: Path, database_url: str, engine_urls: tuple[str, ...], model: Path, **more: Any
) -> Settings:
    return Settings.load(
        {
            "home": str(home),
            "database_url": database_url,
            "engine_urls": engine_urls,
            "model": str(model),
            "engine_max_model_len": 4096,
            "max_tokens": 48,
            "temperature": 0.0,
            "heldout_share": HELDOUT_SHARE,
            "split_blocks": SPLIT_BLOCKS,
            "adapter_rank": 8,
            "train_threads": 1,
            **more,
        }
    )


async def fill(
    database: Database, *, base_model: str, questions: int = 40, start: int = 0, task: TaskId = store.tasks.MATH
) -> None:
    """Store a right and a wrong answer to each question of a task, as an import does."""
    interactions = [
        make_interaction(
            task=task.name,
            task_version=task.version,
            kind=Kind.IMPORT,
            question=f"Question {number}: how many days has a week?",
            response=response,
            reference=REFERENCE,
            grade=Grade.RIGHT if response == RIGHT else Grade.WRONG,
            critic_version=None,
            critiques=(),
        )
        for number in range(start, start + questions)
        for response in (RIGHT, WRONG)
    ]
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, base_model, task=task)
        await store.interactions.insert_interactions(
            session, interactions, heldout_share=HELDOUT_SHARE, split_blocks=SPLIT_BLOCKS
        )


async def ask_for_run(database: Database, *, reproduces: UUID | None = None, **config: Any) -> Run:
    async with database.session() as session:
        requested = await store.runs.request_run(
            session,
            config=TrainConfig.read({**GLANCE, **config}),
            trigger=Trigger.ADMIN if reproduces is None else Trigger.REPRODUCE,
            reproduces=reproduces,
        )
    return requested.run


async def read(database: Database, run_id: UUID) -> Run:
    async with database.session() as session:
        return await store.runs.read_run(session, run_id)


def start_phase(settings: Settings, phase: str, run_id: UUID, *, log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m gadfly.trainer.run`, as the trainer does."""
    return _start(settings, ["gadfly.trainer.run", phase, str(run_id)], log)


def start_trainer(settings: Settings, *, log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m gadfly.trainer`."""
    return _start(settings, ["gadfly.trainer"], log)


def _start(settings: Settings, module: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            env=environment | settings.to_environment() | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
