"""The work of the two phases of a training run.

The first phase learns, under a database role that cannot read held-out rows. The second phase changes no weights: it
measures the result on held-out rows, decides, publishes and requests the swap. Either can be killed at any moment and
restarted; finished work is in the run's folder.
"""

import asyncio
import os
from uuid import UUID

import torch

from gadfly import store
from gadfly.settings import Settings
from gadfly.trainer.context import RunContext, open_context
from gadfly.trainer.evaluate_and_publish import evaluate_and_publish
from gadfly.trainer.examples import choose_examples
from gadfly.trainer.learn import Learning, load_adapter
from gadfly.trainer.phases import Phase
from gadfly.trainer.rl.processes import ProcessGroup, make_accelerator
from gadfly.trainer.selection import select
from gadfly.trainer.warm_start import WarmStarter
from gadfly.training import Recipe


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


def execute(phase: Phase, settings: Settings, run_id: UUID) -> None:
    """Execute one phase of a run in this process, whose torch it makes deterministic.

    Raises:
        GadflyError: why it ended early.
    """
    torch.set_num_threads(settings.train_threads or max(1, (os.cpu_count() or 2) - 1))
    torch.use_deterministic_algorithms(True, warn_only=True)
    asyncio.run((_learn if phase is Phase.LEARN else _evaluate)(settings, run_id))
