"""The second phase of a run: measure on held-out answers, decide, publish, and request the swap."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store, tracing
from gadfly.adapters import WEIGHTS, Marker, ProbeRecord, file_sha256
from gadfly.calibration import Calibration, CalibrationReport, ClassCounts
from gadfly.engine_client import ACTOR
from gadfly.errors import Conflict, StoreUnavailable
from gadfly.planning import by_hash, evaluation_items, within_key_share
from gadfly.prompts import PromptSet
from gadfly.records import CriticVersion, Split, SwapKind
from gadfly.store.critic_examples import PromptExamples
from gadfly.store.training_data import LabelledAnswer, OpenQuestion
from gadfly.trainer.context import RunContext
from gadfly.trainer.data import StoredAnswer
from gadfly.trainer.examples import ChosenExample, ChosenExamples
from gadfly.trainer.learn import load_adapter
from gadfly.trainer.measure.attacks import AttackReport, attacked
from gadfly.trainer.measure.calibrate import calibrate
from gadfly.trainer.measure.evaluate import evaluate
from gadfly.trainer.measure.examples_alone import ExamplesAlone
from gadfly.trainer.measure.gate import LEAST_TRAFFIC, Evidence, GateReport, Traffic, decide, question_key
from gadfly.trainer.measure.metrics import Judged
from gadfly.trainer.patience import in_session
from gadfly.trainer.pool import sample_pool
from gadfly.trainer.publish import NothingLearned, probe_record, probe_record_of_examples, publish
from gadfly.trainer.workspace import EXAMPLES, Lines
from gadfly.training import GateOutcome, Recipe, Stage

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
    assert run.manifest is not None
    by_examples = run.config.recipe is Recipe.EXAMPLES
    start_sha256 = run.manifest["start"]["adapter_sha256"]
    if not by_examples and file_sha256(context.workspace.final / WEIGHTS) == start_sha256:
        await context.report.note("not measured and not published: the weights are those of the critic at the start")
        return
    await context.engines.prove_sampling()
    try:
        record = await _probe_record(context)
    except NothingLearned as error:
        await context.report.note(f"not measured and not published: {error}")
        return
    await context.report.stage(Stage.EVALUATE, step=run.progress.step)
    live = await in_session(context.database, lambda session: store.critics.resolve_critic(session, "live", run.task))
    history = await _history(context, live)
    report, judged = await measure(context, history, await heldout_items(context, history.past))
    calibrated = calibrate(judged, history.labels, seed=run.config.fixed_seed)
    await context.report.gate(report.outcome, report.to_json() | {"live": live.version, "actor": await _about(context)})

    await context.report.stage(Stage.PUBLISH, step=run.progress.step)
    made: Marker | PromptExamples
    if by_examples:
        chosen = _examples(context)
        made = PromptExamples(
            items=tuple(each.example for each in chosen),
            interactions=tuple(each.interaction_id for each in chosen),
            probe=record,
        )
    else:
        made = publish(
            context.workspace.final,
            folder=context.settings.adapters_folder / str(run.id),
            record=record,
            run_id=run.id,
            base_model=context.settings.model,
            base_sha256=run.manifest["base_sha256"],
            task=context.task.name,
            rank=context.settings.adapter_rank,
        )
    looked_at = {
        item.question_hash for item in judged if question_key(item.question_hash) not in history.past.questions
    }
    version, note = await in_session(
        context.database, lambda session: _enter(session, context, made, report, live, calibrated, looked_at)
    )
    await _compare_with_original(context, version)
    await context.report.note(note, version=version.version)
    await _retire_worn(context)


async def _retire_worn(context: RunContext) -> None:
    """Move worn held-out questions to training, for the runs after this one."""
    settings = context.settings
    try:
        retired = await store.wear.retire_worn(
            context.database,
            after_looks=settings.retire_after_looks,
            share=settings.retire_share,
            keep=context.run.config.evaluation_items,
            blocks=settings.split_blocks,
            task=context.run.task,
        )
    except StoreUnavailable as error:
        await context.report.note(f"worn held-out questions wait for the next run: {error}")
        return
    if retired.due:
        await context.report.note(
            "worn held-out questions were retired into training", moved=retired.moved, due=retired.due
        )


async def _about(context: RunContext) -> dict[str, Any]:
    """The actor for the gate's report: its missing features, and the cost of this evaluation at its endpoint."""
    gaps = await context.engines.patiently(context.actor.gaps)
    return {"model": context.actor.name, "gaps": gaps, "spent": asdict(context.actor.spent)}


async def _enter(
    session: AsyncSession,
    context: RunContext,
    made: Marker | PromptExamples,
    report: GateReport,
    live: CriticVersion,
    calibrated: tuple[Calibration, CalibrationReport] | None,
    looked_at: Collection[bytes],
) -> tuple[CriticVersion, str]:
    """Insert the version with its calibration, make it the candidate and request the swap, in one transaction.

    The same transaction counts the look at the questions that were new evidence, so that a restart counts none twice.

    Returns the version and a note.

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
        task=context.task.id,
        adapter_path=str(run.id) if isinstance(made, Marker) else None,
        adapter_sha256=made.sha256 if isinstance(made, Marker) else None,
        examples=made if isinstance(made, PromptExamples) else None,
        verdict_only=run.manifest.get("verdict_only", False),
    )
    if calibrated is not None:
        await store.calibrations.insert_calibration(session, version.version, *calibrated)
    await store.wear.count_looks(session, looked_at)
    if report.outcome is GateOutcome.REJECT:
        return version, "published; the gate rejects it, so it is not the candidate"
    await store.critics.set_candidate(session, version.version)
    if report.outcome is not GateOutcome.PROMOTE:
        return version, "published as the candidate; there is not enough evidence for a swap"
    if not context.settings.auto_promote:
        return version, "published as the candidate; automatic promotion is off"
    now_live = await store.critics.resolve_critic(session, "live", run.task)
    if now_live.version != live.version:
        return version, f"no swap: the comparison was with version {live.version}, and {now_live.version} is live now"
    try:
        await store.swaps.request_swap(
            session,
            version=version.version,
            kind=SwapKind.GATE,
            reason="; ".join(report.reasons),
            canary=context.settings.canary_terms(),
        )
    except Conflict as error:
        return version, f"no swap: {error}"
    return version, "the swap is requested"


@dataclass(frozen=True, kw_only=True, slots=True)
class _History:
    """The gate's input besides the judgements of this run."""

    live: CriticVersion
    anchor: CriticVersion | None  # a fixed critic, which shows small losses that add up; None: the live critic
    past: Evidence
    labels: ClassCounts  # of the deployment's own traffic
    traffic: Traffic | None  # the same, where they are enough for the gate


async def _history(context: RunContext, live: CriticVersion) -> _History:
    assert context.run.manifest is not None
    start = context.run.manifest["start"]["version"]

    async def read(session: AsyncSession) -> _History:
        reports = await store.runs.gate_reports(session, live.version)
        past = _past(dict(reports), start=start, live=live.version)
        base = await store.critics.base_version(session, live.base_model, live.task)
        promoted = await store.runs.promoted_reports(session, live.base_model, live.task)
        lost = await store.critic_examples.incomplete_versions(session)  # cannot be compared with any more
        whole = {version: gate for version, gate in dict(promoted).items() if version not in lost}
        best = _best(whole, otherwise=base.version)
        anchor = None if best == live.version else await store.critics.resolve_critic(session, best)
        right, wrong = await store.training_data.traffic_counts(session, live.task)
        traffic = Traffic(right, wrong) if right + wrong >= LEAST_TRAFFIC else None
        labels = ClassCounts(right=right, wrong=wrong)
        return _History(live=live, anchor=anchor, past=past, labels=labels, traffic=traffic)

    return await in_session(context.database, read, limit_s=_QUERY_LIMIT_S)


def _past(reports: Mapping[int, dict[str, Any]], *, start: int, live: int) -> Evidence:
    """The evidence of the lineage that starts with version `start`; `reports` are those against the live critic."""
    known = {version: gate["numbers"].get("evidence") for version, gate in reports.items()}
    if start != live and known.get(start) is not None:
        return Evidence.from_json(known[start])
    # Reports of earlier releases hold no evidence. Each counts as a lineage of its own.
    begun = sum(evidence is None or evidence["nights"] <= 1 for evidence in known.values())
    return Evidence(lineage=begun + 1)


def _best(promoted: Mapping[int, dict[str, Any]], *, otherwise: int) -> int:
    """The version with the best measured rates among those that have been live; `otherwise` if none was measured."""

    def merit(gate: Mapping[str, Any]) -> float:
        measured = gate["numbers"]["candidate"]
        rates = (measured["discrimination_balanced"], measured["accuracy_refined"])
        return math.fsum(rate["value"] for rate in rates if rate is not None)

    return max(promoted, key=lambda version: (merit(promoted[version]), -version), default=otherwise)


async def heldout_items(context: RunContext, past: Evidence) -> list[LabelledAnswer]:
    """The held-out answers for the critics to judge, logged ones and the actor's own, balanced by class.

    Only answers to questions that are new to the lineage are evidence. Where there are none, the known questions are
    judged again, for the critics' rates alone.
    """
    config = context.run.config

    async def read(session: AsyncSession) -> tuple[list[LabelledAnswer], list[OpenQuestion]]:
        return (
            await store.training_data.labelled_answers(
                session, Split.HELDOUT, limit=config.max_questions, task=context.run.task
            ),
            await store.training_data.open_questions(
                session, Split.HELDOUT, limit=config.max_questions, task=context.run.task
            ),
        )

    logged, questions = await in_session(context.database, read, limit_s=_QUERY_LIMIT_S)
    logged = within_key_share(by_hash(logged), context.settings.max_key_share)
    new_answers = [answer for answer in logged if question_key(answer.question_hash) not in past.questions]
    new_questions = [each for each in questions if question_key(each.question_hash) not in past.questions]
    answers, asked = (new_answers, new_questions) if new_answers or new_questions else (logged, questions)
    kept = context.workspace.read(_POOL, HeldoutPool)
    if kept is None:
        pool = await sample_pool(
            context.engines,
            context.actor,
            context.prompts,
            context.grader,
            [*asked, *answers],
            config,
            seed=config.fixed_seed,
        )
        kept = HeldoutPool(pool=pool.items)
        context.workspace.write(_POOL, kept)
    return evaluation_items([*answers, *kept.pool], config.evaluation_items)


async def measure(
    context: RunContext, history: _History, items: Sequence[LabelledAnswer]
) -> tuple[GateReport, list[Judged]]:
    """Have all critics judge the same items at the served temperature, and decide. Finished judgements are kept.

    A candidate that was trained is compared with a critic by examples too, which judges each item once.

    Returns the gate's report and the candidate's judgements.
    """
    critics = {
        "candidate": await _candidate(context),
        f"live-{history.live.version}": await _served(context, history.live, label="live"),
    }
    if history.anchor is not None:
        critics[f"anchor-{history.anchor.version}"] = await _served(context, history.anchor, label="anchor")
    judged = {
        name: await _judge(context, critic, items, context.workspace.evaluation(name))
        for name, critic in critics.items()
    }
    attacks = await _under_attack(context, critics, judged, items)
    by_examples = await _judge_by_examples(context, items)
    await context.engines.unload_all()
    candidate, live, *anchor = judged.values()
    questions = {item.question_hash: item.question for item in items}
    apart = await in_session(
        context.database, lambda session: store.wall.apart_from_training(session, questions, context.run.task)
    )
    wear = await in_session(context.database, lambda session: store.wear.read_wear(session, questions.keys()))
    with tracing.span("gate") as span:
        report = decide(
            live,
            candidate,
            context.run.config,
            anchor=anchor[0] if anchor else None,
            past=history.past,
            traffic=history.traffic,
            apart=apart,
        )
        span.set({"gadfly.gate": report.outcome})
    alone = None if by_examples is None else ExamplesAlone.of(live, candidate, by_examples, context.run.config)
    numbers = {name: each.to_json() for name, each in attacks.items()}
    sentences = [each.sentence(f"the {name} critic") for name, each in attacks.items()]
    if alone is not None:
        sentences.append(alone.sentence(len(_examples(context))))
    if wear is not None:
        sentences.append(wear.sentence())
    beside = {
        "attacks": numbers or None,
        "wear": None if wear is None else asdict(wear),
        "examples": len(_examples(context)) if context.run.config.recipe is Recipe.EXAMPLES else None,
        "examples_alone": None if alone is None else alone.to_json() | {"examples": len(_examples(context))},
    }
    return report.beside(beside, sentences), candidate


@dataclass(frozen=True, slots=True)
class _Critic:
    """A critic for the engines: a model's name and the prompts for it."""

    model: str
    prompts: PromptSet


def _examples(context: RunContext) -> list[ChosenExample]:
    """The run's examples; empty for a run that has none."""
    chosen = context.workspace.read(EXAMPLES, ChosenExamples)
    return [] if chosen is None else chosen.items


def _by_examples(context: RunContext) -> _Critic:
    return _Critic(ACTOR, context.prompts.with_examples([each.example for each in _examples(context)]))


async def _probe_record(context: RunContext) -> ProbeRecord:
    """The candidate's answers to the probe set, by the trainer's own weights.

    Raises:
        NothingLearned: they cannot be told from the base model's, or not compared.
    """
    policy, pool, prompts = context.load_policy(), context.engines.pool, context.prompts
    if context.run.config.recipe is Recipe.EXAMPLES:
        with_examples = _by_examples(context).prompts
        return await context.engines.patiently(lambda: probe_record_of_examples(policy, pool, with_examples))
    policy.load_adapter(context.workspace.final)
    return await context.engines.patiently(lambda: probe_record(policy, pool, prompts))


async def _candidate(context: RunContext) -> _Critic:
    if context.run.config.recipe is Recipe.EXAMPLES:
        return _by_examples(context)
    final, _ = await load_adapter(context.engines, context.workspace.final, label="final")
    return _Critic(final, context.prompts)


async def _judge_by_examples(context: RunContext, items: Sequence[LabelledAnswer]) -> list[Judged] | None:
    """The judgements of a critic by examples, one critique an answer; None for a run that has none to compare with."""
    if context.run.config.recipe is Recipe.EXAMPLES or not _examples(context):
        return None
    return await _judge(context, _by_examples(context), items, context.workspace.evaluation("examples"), samples=1)


async def _served(context: RunContext, critic: CriticVersion, *, label: str) -> _Critic:
    """A published critic, loaded for this run.

    Raises:
        Conflict: it lost an example of its prompt.
    """
    if critic.examples:
        examples, _ = await in_session(
            context.database, lambda session: store.critic_examples.read_examples(session, critic.version)
        )
        if store.critic_examples.sha256_of(examples) != critic.examples_sha256:
            raise Conflict(
                f"an example in the prompt of version {critic.version} was deleted, so nothing can be compared with "
                "it: roll back, and run again"
            )
        return _Critic(ACTOR, context.prompts.with_examples(examples))
    if critic.adapter_path is None:
        return _Critic(ACTOR, context.prompts)
    name, _ = await load_adapter(context.engines, context.published(critic), label=label)
    return _Critic(name, context.prompts)


async def _under_attack(
    context: RunContext,
    critics: Mapping[str, _Critic],
    judged: Mapping[str, Sequence[Judged]],
    items: Sequence[LabelledAnswer],
) -> dict[str, AttackReport]:
    """How candidate and live critic judge wrong answers with an attack around them.

    `judged` has their judgements without one, by the name of the file, as `critics`. Each answer gets one critique,
    with the seed of the first one without the attack, and no refinement.
    """
    texts = attacked(items, context.run.config.gate_attacks)
    reports = {}
    for name, critic in critics.items():
        role = name.partition("-")[0]
        if role == "anchor":
            continue
        file = context.workspace.evaluation(f"{name}-attacked")
        under_attack = await _judge(context, critic, texts, file, samples=1, with_refinement=False)
        report = AttackReport.of(judged[name], under_attack)
        if report is not None:
            reports[role] = report
    return reports


async def _judge(
    context: RunContext,
    critic: _Critic,
    items: Sequence[LabelledAnswer],
    file: Path,
    *,
    samples: int | None = None,
    with_refinement: bool = True,
) -> list[Judged]:
    """The judgements of one critic; `samples` critiques an answer, by default as many as the config says."""
    kept = Lines(file, Judged)
    done = {judged.key: judged for judged in kept.read()}
    config, temperature = context.run.config, context.settings.temperature
    if samples is None:
        samples = config.gate_samples if temperature > 0 else 1  # greedy samples would all be equal

    async def on_item(judged: Judged) -> None:
        kept.append(judged)
        done[judged.key] = judged

    with tracing.span("judge", {"gadfly.judged_by": file.stem, "gadfly.answers": len(items)}):
        return await context.engines.patiently(
            lambda: evaluate(
                replace(context.collector().bench(), prompts=critic.prompts),
                items,
                model=critic.model,
                with_refinement=with_refinement,
                samples=samples,
                temperature=temperature,
                seed=config.fixed_seed,
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
    original_sha256, reproduced = (each.adapter_sha256 or each.examples_sha256 for each in (first, version))
    what = "examples" if version.examples else "weights"
    await context.report.note(
        f"the {what} equal those of the original run"
        if original_sha256 == reproduced
        else f"the {what} differ from the original run",
        original=original_sha256,
        reproduced=reproduced,
    )
