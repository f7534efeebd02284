"""One phase of a training run: `python -m gadfly.trainer.run learn RUN`, then `... evaluate RUN`.

The first phase learns, under a database role that cannot read held-out rows. The second phase changes no weights: it
measures the result on held-out rows, decides, publishes and requests the swap. Either can be killed at any moment and
restarted; finished work is in the run's folder.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from uuid import UUID

import structlog
import torch

from gadfly import logs, store, tracing
from gadfly.errors import EngineTimeout, EngineUnavailable, GadflyError, StoreUnavailable
from gadfly.settings import Settings
from gadfly.trainer.context import RunContext, open_context
from gadfly.trainer.evaluate_and_publish import evaluate_and_publish
from gadfly.trainer.examples import choose_examples
from gadfly.trainer.learn import Learning, load_adapter
from gadfly.trainer.phases import Phase, leave_reason
from gadfly.trainer.rl.processes import ProcessGroup, make_accelerator
from gadfly.trainer.selection import select
from gadfly.trainer.warm_start import WarmStarter
from gadfly.trainer.workspace import Workspace
from gadfly.training import Recipe

log = structlog.get_logger(__name__)

_NICENESS = 19  # processes that answer requests go first


async def learn(context: RunContext, processes: ProcessGroup) -> None:
    """Select answers, warm the critic up, and run both stages."""
    run, workspace = context.run, context.workspace
    if workspace.final.exists():
        return
    await context.engines.prove_sampling()
    selection, start = await select(context)
    if run.config.examples >= 2:
        await choose_examples(context, selection)
    start_name = start.engine_name
    if start.adapter_path is not None:
        folder = context.published(start)
        processes.load_adapter(folder)
        start_name, _ = await load_adapter(context.engines, folder, label="start")
    collector = context.collector()
    await WarmStarter(
        config=run.config,
        processes=processes,
        engines=context.engines,
        collector=collector,
        workspace=workspace,
        report=context.report,
        items=selection.learn,
    ).run(start_name)
    if start_name != start.engine_name:
        await context.engines.unload(start_name)
    await Learning(
        config=run.config,
        processes=processes,
        engines=context.engines,
        collector=collector,
        workspace=workspace,
        report=context.report,
        learn=selection.learn,
        validate=selection.validate,
        known=selection.known,
    ).run()


async def _learn(settings: Settings, run_id: UUID) -> None:
    accelerator = make_accelerator(cpu=not torch.cuda.is_available())
    if not accelerator.is_main_process:
        # To follow the first process, only the model's location and the run's config are needed.
        async with open_context(settings, run_id, role=store.runs.TRAINING_ROLE) as context:
            if context.run.config.recipe is Recipe.EXAMPLES:
                return
            processes = ProcessGroup(context.load_policy(), context.run.config, accelerator)
        processes.follow()
        return
    async with open_context(settings, run_id, role=store.runs.TRAINING_ROLE) as context:
        if context.run.config.recipe is Recipe.EXAMPLES:
            await context.engines.prove_sampling()
            selection, _ = await select(context)
            await choose_examples(context, selection)
            return
        processes = ProcessGroup(context.load_policy(), context.run.config, accelerator)
        try:
            await learn(context, processes)
        finally:
            processes.stop()


async def _evaluate(settings: Settings, run_id: UUID) -> None:
    async with open_context(settings, run_id, role=None) as context:
        await evaluate_and_publish(context)


def set_up_process(settings: Settings) -> None:
    """Leave processor time to the processes that answer requests, and make torch deterministic."""
    os.nice(_NICENESS)
    torch.set_num_threads(settings.train_threads or max(1, (os.cpu_count() or 2) - 1))
    torch.use_deterministic_algorithms(True, warn_only=True)


def leads() -> bool:
    """Whether this is the only process of the phase, or the first that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gadfly.trainer.run", description=__doc__)
    parser.add_argument("phase", type=Phase, choices=list(Phase))
    parser.add_argument("run", type=UUID)
    options = parser.parse_args(arguments)
    settings = Settings.load()
    logs.configure(settings)
    structlog.contextvars.bind_contextvars(run=str(options.run))
    set_up_process(settings)
    phase = _learn if options.phase is Phase.LEARN else _evaluate
    workspace = Workspace.of(settings.home, options.run)
    if leads():
        tracing.start("trainer", os.environ)
    try:
        with workspace.exclusive() if leads() else nullcontext(), _span(options.phase, options.run):
            asyncio.run(phase(settings, options.run))
    except (StoreUnavailable, EngineUnavailable, EngineTimeout) as error:
        log.error("run_interrupted", reason=str(error))  # the worker restarts the phase
        return 1
    except GadflyError as error:
        log.error("run_failed", reason=str(error))
        leave_reason(workspace, str(error))
        return 1
    finally:
        tracing.stop()
    return 0


def _span(phase: Phase, run_id: UUID) -> AbstractContextManager[tracing.OpenSpan]:
    """The span of a phase, below the one of the worker that started this process."""
    carrier = {name.lower(): value for name, value in os.environ.items() if name in ("TRACEPARENT", "TRACESTATE")}
    return tracing.root(phase.value, {"gadfly.run_id": run_id}, carrier=carrier, trace_id=run_id)


if __name__ == "__main__":
    sys.exit(main())
