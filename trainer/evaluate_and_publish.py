"""The second half of a run: measure on held-out answers, decide, publish, and ask for the swap."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.adapters import Marker
from gadfly.engine_client import ACTOR
from gadfly.errors import Conflict
from gadfly.planning import evaluation_items
from gadfly.records import CriticVersion, Split, SwapKind
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.context import Tools
from gadfly.trainer.data import Item
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


async def prove(tools: Tools) -> None:
    """From the adapter in the run's folder to a published version, and to the swap if the gate says promote."""
    run = tools.run
    if run.version is not None:  # an earlier attempt came to its end: version, candidate and swap are one transaction
        return
    policy = tools.load_policy()
    policy.load_adapter(tools.workspace.final)
    try:
        record = await tools.engines.patiently(lambda: probe_record(policy, tools.engines.pool, tools.prompts))
    except NothingLearned as error:
        await tools.report.note(f"nothing is measured or published: {error}")
        return
    await tools.report.stage(Stage.EVALUATE, step=run.progress.step)
    live = await in_session(tools.database, lambda session: store.critics.resolve_critic(session, "live"))
    report = await measure(tools, live, await heldout_items(tools))
    await tools.report.gate(report.outcome, report.to_json() | {"live": live.version})

    await tools.report.stage(Stage.PUBLISH, step=run.progress.step)
    assert run.manifest is not None
    marker = publish(
        tools.workspace.final,
        folder=tools.settings.adapters_folder / str(run.id),
        record=record,
        run_id=run.id,
        base_model=tools.settings.model,
        base_sha256=run.manifest["base_sha256"],
        rank=tools.settings.adapter_rank,
    )
    version, note = await in_session(tools.database, lambda session: _enter(session, tools, marker, report, live))
    await _compare_with_original(tools, version)
    await tools.report.note(note, version=version.version)


async def _enter(
    session: AsyncSession, tools: Tools, marker: Marker, report: GateReport, live: CriticVersion
) -> tuple[CriticVersion, str]:
    """Make the folder a version, the candidate, and ask for the swap, in one transaction: all of it or nothing.

    Raises:
        Conflict: the run was cancelled meanwhile.
    """
    run = tools.run
    assert run.manifest is not None
    await store.runs.refuse_cancelled(session, run.id)
    version = await store.critics.insert_critic(
        session,
        run_id=run.id,
        parent=run.manifest["start"]["version"],
        base_model=tools.settings.model,
        prompt_set=tools.prompts.name,
        adapter_path=str(run.id),
        adapter_sha256=marker.sha256,
    )
    if report.outcome is GateOutcome.REJECT:
        return version, "published; the gate rejects it, so it is no candidate"
    await store.critics.set_candidate(session, version.version)
    if report.outcome is not GateOutcome.PROMOTE:
        return version, "published as the candidate, for want of evidence"
    if not tools.settings.auto_promote:
        return version, "published as the candidate; automatic promotion is off"
    now_live = await store.critics.resolve_critic(session, "live")
    if now_live.version != live.version:
        return version, f"no swap: version {now_live.version} went live while {live.version} was measured against"
    try:
        await store.swaps.request_swap(
            session, version=version.version, kind=SwapKind.GATE, reason="; ".join(report.reasons)
        )
    except Conflict as error:
        return version, f"no swap: {error}"
    return version, "the swap was asked for"


async def heldout_items(tools: Tools) -> list[LabelledAnswer]:
    """Held-out answers that both critics judge: the logged ones and the actor's own, both classes alike."""
    config = tools.run.config
    logged = await in_session(
        tools.database,
        lambda session: store.training_data.labelled_answers(session, Split.HELDOUT, limit=config.max_questions),
        limit_s=_QUERY_LIMIT_S,
    )
    kept = tools.workspace.read("evaluation/pool.json")
    if kept is None:
        pool = await sample_pool(
            tools.engines,
            tools.prompts,
            tools.grader,
            [Item.logged(answer) for answer in logged],
            config,
            seed=config.seed,
        )
        kept = {"pool": [item.to_json() for item in pool.items]}
        tools.workspace.write("evaluation/pool.json", kept)
    pooled = [Item.from_json(values).to_answer() for values in kept["pool"]]
    return evaluation_items([*logged, *pooled], config.evaluation_items)


async def measure(tools: Tools, live: CriticVersion, items: Sequence[LabelledAnswer]) -> GateReport:
    """Both critics on the same items, through the engine; what was judged before an interruption stays judged."""
    final, _ = await load_adapter(tools.engines, tools.workspace.final, label="final")
    live_name = ACTOR
    if live.adapter_path is not None:
        live_name, _ = await load_adapter(tools.engines, tools.published(live), label="live")
    judged = {
        name: await _judge(tools, model, items, tools.workspace.evaluation(name))
        for name, model in ((f"live-{live.version}", live_name), ("candidate", final))
    }
    await tools.engines.unload_all()
    before, after = judged.values()
    return decide(before, after, tools.run.config)


async def _judge(tools: Tools, model: str, items: Sequence[LabelledAnswer], kept: Lines) -> list[Judged]:
    done = {judged.key: judged for judged in map(Judged.from_json, kept.read())}

    async def on_item(judged: Judged) -> None:
        kept.append(judged.to_json())
        done[judged.key] = judged

    return await tools.engines.patiently(
        lambda: evaluate(
            tools.engines.pool,
            tools.prompts,
            tools.grader,
            items,
            model=model,
            max_critique_tokens=tools.run.config.max_critique_tokens,
            max_answer_tokens=tools.run.config.max_answer_tokens,
            concurrency=tools.engines.at_once(1),
            with_refinement=True,
            done=done,
            on_item=on_item,
        )
    )


async def _compare_with_original(tools: Tools, version: CriticVersion) -> None:
    original_id = tools.run.reproduces
    if original_id is None:
        return
    original = await in_session(tools.database, lambda session: store.runs.read_run(session, original_id))
    number = original.version
    if number is None:
        return
    first = await in_session(tools.database, lambda session: store.critics.resolve_critic(session, number))
    same = first.adapter_sha256 == version.adapter_sha256
    await tools.report.note(
        "the same weights again" if same else "other weights than the original run",
        original=first.adapter_sha256,
        reproduced=version.adapter_sha256,
    )
