"""A study: rows and seeds over one arena, one per worker at a time. Existing results are kept."""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import orjson
import structlog
import torch

from gadfly import prompts
from gadfly.adapters import write_durably
from gadfly.base_model import base_sha256
from gadfly.engine_pool import EnginePool
from gadfly.grading import Grader
from gadfly.lab.arena import Arena, Sizes
from gadfly.lab.engine import Generator, connect
from gadfly.lab.rows import row
from gadfly.lab.runs import Lab
from gadfly.tether import end_with_parent
from gadfly.trainer.engines import RunEngines
from gadfly.training import TrainConfig

Result = dict[str, Any]

PROMPTS = "bare@1"
GRADE_LIMIT_S = 10.0


class AnotherStudy(Exception):
    """The folder holds the results of another model, config or size."""


@dataclass(frozen=True, slots=True)
class Study:
    """The settings that all rows have in common, and the folder of their results."""

    folder: Path
    model: Path
    base: TrainConfig
    sizes: Sizes

    def open(self) -> None:
        """Make the folder, or check that it is this study's.

        Raises:
            AnotherStudy: it is not. The results of two studies must not be in one table.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "study.json"
        about = orjson.dumps(
            {
                "model_sha256": base_sha256(str(self.model)),
                "config": self.base.model_dump(mode="json"),
                "sizes": asdict(self.sizes),
            },
            option=orjson.OPT_INDENT_2,
        )
        if not path.exists():
            write_durably(path, about)
        elif path.read_bytes() != about:
            raise AnotherStudy(f"{self.folder} holds a study with another model, config or size; use another folder")

    def run(self, names: Sequence[str], seeds: Sequence[int], *, workers: int) -> Iterator[tuple[Result, float]]:
        """Yield each result when it is complete, and the seconds that it took."""
        self.open()
        with processes(workers) as pool:
            pool.submit(self.make_arena).result()
            futures = [pool.submit(_make_result, self, name, seed) for seed in seeds for name in names]
            for future in as_completed(futures):
                yield future.result()

    def make_arena(self) -> None:
        """Sample the answers that all rows share, unless the folder has them."""

        async def make() -> None:
            async with Grader(timeout_s=GRADE_LIMIT_S) as grader:
                await self.lab(Generator(str(self.model)), grader)

        asyncio.run(make())

    async def lab(self, generator: Generator, grader: Grader) -> Lab:
        engines = RunEngines(EnginePool([connect(generator)]), uuid5(NAMESPACE_URL, str(self.folder)), generator.rows)
        prompt_set = prompts.load(PROMPTS)
        arena = await Arena.open(self.folder, engines, prompt_set, grader, self.sizes, seed=0)
        return Lab(
            folder=self.folder,
            model=self.model,
            generator=generator,
            grader=grader,
            prompts=prompt_set,
            arena=arena,
            base=self.base,
            sampled=self.sizes.sampled,
        )


def read(folder: Path) -> list[Result]:
    """All results in a study's folder."""
    return [orjson.loads(path.read_bytes()) for path in sorted(folder.glob("*/*/result.json"))]


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with equal shares of the cores, since models this small gain little from threads.

    At the end, work that has not begun is dropped.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    with ProcessPoolExecutor(count, get_context("spawn"), _prepare, (threads,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare(threads: int) -> None:
    end_with_parent()  # a row resumes from its last checkpoint when the study is started again
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))  # errors only, beside the progress bar
    torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may say fewer


def _make_result(study: Study, name: str, seed: int) -> tuple[Result, float]:
    async def make() -> Result:
        async with Grader(timeout_s=GRADE_LIMIT_S) as grader:
            lab = await study.lab(Generator(str(study.model)), grader)
            return await lab.result(row(name), seed)

    began = time.monotonic()
    return asyncio.run(make()), time.monotonic() - began
