"""The second phase of a run: measure on held-out answers, decide, publish, and request the swap."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.adapters import Marker
from gadfly.engine_client import ACTOR
from gadfly.errors import Conflict
from gadfly.planning import evaluation_items
from gadfly.records import CriticVersion, Split, SwapKind
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.context import RunContext
from gadfly.trainer.data import StoredAnswer
from gadfly.trainer.learn import load_adapter
from gadfly.trainer.measure.evaluate import evaluate
from gadfly.trainer.measure.gate import GateReport, decide
from gadfly.trainer.measure.metrics import Judged
from gadfly.trainer.patience import in_session
from gadfly.trainer.pool import sample_pool
from gadfly.trainer.publish import NothingLearned, probe_record, publish
from gadfly.trainer.workspace import Lines
from gadfly.training import GateOutcome, Stage

_QUERY_LIMIT_S = 300.0  # for reading all labelled answers of a large deployment
_POOL = "evaluation/pool.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldoutPool:
    """The actor's own answers to held-out questions, as the run's folder stores them."""

    pool: list[StoredAnswer]


async def evaluate_and_publish(context: RunContext) -> None:
    """Measure the adapter in the run's folder, publish it, and request its swap if the gate promotes it."""
    run = context.run
    if run.version is not None:  # an earlier attempt finished: version, candidate and swap are one transaction
        return
    policy = context.load_policy()
    policy.load_adapter(context.workspace.final)
    try:
        record = await context.engines.patiently(lambda: probe_record(policy, context.engines.pool, context.prompts))
    except NothingLearned as error:
        await context.report.note(f"not measured and not published: {error}")
        return
    await context.report.stage(Stage.EVALUATE, step=run.progress.step)
    live = await in_session(context.database, lambda session: store.critics.resolve_critic(session, "live"))
    report = await measure(context, live, await heldout_items(context))
    await context.report.gate(report.outcome, report.to_json() | {"live": live.version})

    await context.report.stage(Stage.PUBLISH, step=run.progress.step)
    assert run.manifest is not None
    marker = publish(
        context.workspace.final,
        folder=context.settings.adapters_folder / str(run.id),
        record=record,
        run_id=run.id,
        base_model=context.settings.model,
        base_sha256=run.manifest["base_sha256"],
        rank=context.settings.adapter_rank,
    )
    version, note = await in_session(context.database, lambda session: _enter(session, context, marker, report, live))
    await _compare_with_original(context, version)
    await context.report.note(note, version=version.version)


async def _enter(
    session: AsyncSession, context: RunContext, marker: Marker, report: GateReport, live: CriticVersion
) -> tuple[CriticVersion, str]:
    """Insert the version, make it the candidate and request the swap, in one transaction; the version and a note.

    Raises:
        Conflict: the run has been cancelled.
    """
    run = context.run
    assert run.manifest is not None
    await store.runs.refuse_cancelled(session, run.id)
    version = await store.critics.insert_critic(
        session,
        run_id=run.id,
        parent=run.manifest["start"]["version"],
        base_model=context.settings.model,
        prompt_set=context.prompts.name,
        adapter_path=str(run.id),
        adapter_sha256=marker.sha256,
    )
    if report.outcome is GateOutcome.REJECT:
        return version, "published; the gate rejects it, so it is not the candidate"
    await store.critics.set_candidate(session, version.version)
    if report.outcome is not GateOutcome.PROMOTE:
        return version, "published as the candidate; there is not enough evidence for a swap"
    if not context.settings.auto_promote:
        return version, "published as the candidate; automatic promotion is off"
    now_live = await store.critics.resolve_critic(session, "live")
    if now_live.version != live.version:
        return version, f"no swap: the comparison was with version {live.version}, and {now_live.version} is live now"
    try:
        await store.swaps.request_swap(
            session, version=version.version, kind=SwapKind.GATE, reason="; ".join(report.reasons)
        )
    except Conflict as error:
        return version, f"no swap: {error}"
    return version, "the swap is requested"


async def heldout_items(context: RunContext) -> list[LabelledAnswer]:
    """The held-out answers for both critics to judge, logged ones and the actor's own, balanced by class."""
    config = context.run.config
    logged = await in_session(
        context.database,
        lambda session: store.training_data.labelled_answers(session, Split.HELDOUT, limit=config.max_questions),
        limit_s=_QUERY_LIMIT_S,
    )
    kept = context.workspace.read(_POOL, HeldoutPool)
    if kept is None:
        pool = await sample_pool(context.engines, context.prompts, context.grader, logged, config, seed=config.seed)
        kept = HeldoutPool(pool=pool.items)
        context.workspace.write(_POOL, kept)
    return evaluation_items([*logged, *kept.pool], config.evaluation_items)


async def measure(context: RunContext, live: CriticVersion, items: Sequence[LabelledAnswer]) -> GateReport:
    """Have both critics judge the same items and compare them. Judgements from before an interruption are kept."""
    final, _ = await load_adapter(context.engines, context.workspace.final, label="final")
    live_name = ACTOR
    if live.adapter_path is not None:
        live_name, _ = await load_adapter(context.engines, context.published(live), label="live")
    judged = {
        name: await _judge(context, model, items, context.workspace.evaluation(name))
        for name, model in ((f"live-{live.version}", live_name), ("candidate", final))
    }
    await context.engines.unload_all()
    before, after = judged.values()
    return decide(before, after, context.run.config)


async def _judge(context: RunContext, model: str, items: Sequence[LabelledAnswer], file: Path) -> list[Judged]:
    kept = Lines(file, Judged)
    done = {judged.key: judged for judged in kept.read()}

    async def on_item(judged: Judged) -> None:
        kept.append(judged)
        done[judged.key] = judged

    return await context.engines.patiently(
        lambda: evaluate(
            context.engines.pool,
            context.prompts,
            context.grader,
            items,
            model=model,
            max_critique_tokens=context.run.config.max_critique_tokens,
            max_answer_tokens=context.run.config.max_answer_tokens,
            concurrency=context.engines.at_once(1),
            with_refinement=True,
            done=done,
            on_item=on_item,
        )
    )


async def _compare_with_original(context: RunContext, version: CriticVersion) -> None:
    original_id = context.run.reproduces
    if original_id is None:
        return
    original = await in_session(context.database, lambda session: store.runs.read_run(session, original_id))
    number = original.version
    if number is None:
        return
    first = await in_session(context.database, lambda session: store.critics.resolve_critic(session, number))
    same = first.adapter_sha256 == version.adapter_sha256
    await context.report.note(
        "the weights equal those of the original run" if same else "the weights differ from the original run",
        original=first.adapter_sha256,
        reproduced=version.adapter_sha256,
    )
