"""The answers that a run learns from: selected once and stored in its folder, so later traffic does not change them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import torch
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.base_model import base_sha256, check_pin, hub_commit
from gadfly.concurrency import gather
from gadfly.errors import BadInput, Conflict
from gadfly.planning import is_for_validation
from gadfly.records import CriticVersion
from gadfly.settings import without_password
from gadfly.store.training_data import LabelledAnswer, OpenQuestion
from gadfly.trainer.context import RunContext
from gadfly.trainer.data import Known, StoredAnswer
from gadfly.trainer.manifest import make_manifest, select_answers, split_for_validation, with_new_label
from gadfly.trainer.patience import in_session
from gadfly.trainer.pool import sample_pool
from gadfly.training import GateOutcome, Recipe, Run, Stage, TrainConfig

_FILE = "selection.json"
_QUERY_LIMIT_S = 300.0  # for reading all labelled answers of a large deployment


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The answers of a run, as its folder stores them."""

    manifest: dict[str, Any]
    learn: list[StoredAnswer]
    validate: list[StoredAnswer]  # they measure progress and are never learned from
    counts: dict[str, int]
    fresh: list[str] = field(default_factory=list)  # keys of the answers whose label is new since the start's run
    confidences: dict[UUID, float] = field(default_factory=dict)  # P(right), by the critic that served the answer

    @property
    def known(self) -> Known:
        return Known(fresh=frozenset(self.fresh), confidences=self.confidences)


async def select(context: RunContext) -> tuple[Selection, CriticVersion]:
    """The run's answers, decided at the first call, and the critic that it starts from.

    Raises:
        BadInput: there is nothing to learn from.
        Conflict: the run reproduces another one whose answers are gone or changed.
    """
    await context.report.stage(Stage.SELECT, step=0)
    selection = context.workspace.read(_FILE, Selection)
    if selection is None:
        selection = await _decide(context)
        context.workspace.write(_FILE, selection)
        await context.report.note("answers to learn from", **selection.counts)
    manifest = selection.manifest
    if context.run.manifest is None:
        await in_session(context.database, lambda session: store.runs.save_manifest(session, context.run.id, manifest))
    start = await in_session(
        context.database, lambda session: store.critics.resolve_critic(session, manifest["start"]["version"])
    )
    return selection, start


async def _decide(context: RunContext) -> Selection:
    run, config = context.run, context.run.config
    base = base_sha256(context.location)
    commit = hub_commit(context.settings, context.location)
    if commit is None and context.settings.model_revision:
        check_pin(context.location, base, context.settings.model_revision)

    async def read(session: AsyncSession) -> _Read:
        _check_base(context.settings.model, base, await store.runs.published_base(session, context.settings.model))
        original = None if run.reproduces is None else await store.runs.read_run(session, run.reproduces)
        recorded = original.manifest if original is not None else None
        start = (
            await store.critics.resolve_critic(session, recorded["start"]["version"])
            if recorded
            else await _start(
                session,
                context.settings.model,
                run.task,
                continue_candidate=config.continue_candidate,
                trains=config.recipe is not Recipe.EXAMPLES,
            )
        )
        answers, questions = await select_answers(session, run, original, max_key_share=context.settings.max_key_share)
        parent = None if start.run_id is None else await store.runs.read_run(session, start.run_id)
        learned = parent.manifest if parent is not None else None
        return _Read(
            original=original,
            start=start,
            answers=answers,
            questions=questions,
            # The first critic has learned from nothing: then no answer is newer than another.
            fresh=[] if learned is None else with_new_label(answers, questions, learned),
            confidences=await store.training_data.served_confidences(session, [item.id for item in answers]),
        )

    found = await in_session(context.database, read, limit_s=_QUERY_LIMIT_S)
    original, start, answers, questions = found.original, found.start, found.answers, found.questions
    manifest = make_manifest(
        config=config,
        answers=answers,
        questions=questions,
        start=start,
        base_model=context.settings.model,
        base_sha256=base,
        base_revision=commit,
        actor=context.actor.name,
        task=context.task.id,
        prompt_set=context.prompts.name,
        rank=context.settings.adapter_rank,
        engine_versions=await _engine_versions(context),
        threads=torch.get_num_threads(),
        reproduces=run.reproduces,
    )
    if original is not None and original.manifest is not None:
        _check_same(original.manifest, manifest)
    for gap in await context.engines.patiently(context.actor.gaps):
        await context.report.note(gap)
    learn_from, validate = split_for_validation(answers, config)
    logged = await fitting(context, learn_from)
    validated = await fitting(context, validate)
    await context.report.stage(Stage.POOL, step=0)
    # Only the pool answers these questions, so they come first. None of them is a validation question.
    open_questions = [each for each in questions if not is_for_validation(each.question_hash, config)]
    asked: list[LabelledAnswer | OpenQuestion] = [*open_questions, *logged]
    pool = await sample_pool(
        context.engines,
        context.actor,
        context.prompts,
        context.grader,
        asked,
        config.model_copy(update={"pool_questions": config.pool_questions_to_learn_from}),
        seed=config.fixed_seed,
    )
    pooled = await fitting(context, pool.items)
    learn = [*logged, *pooled]
    with_reference = sum(item.reference is not None for item in learn)
    needs_reference = config.recipe is not Recipe.EXAMPLES and not config.steps_stage_1
    if not learn or (not with_reference and needs_reference):
        missing = "answers with a reference" if learn else "labelled answers"
        raise BadInput(
            f"there are no {missing} to learn from besides the validation answers: log more, or lower validation_share"
        )
    return Selection(
        manifest=manifest | {"verdict_only": with_reference == 0},
        learn=learn,
        validate=validated,
        counts={
            "logged": len(logged),
            "pool": len(pooled),
            "questions_without_response": len(open_questions),
            "right": sum(item.is_right for item in learn),
            "wrong": sum(not item.is_right for item in learn),
            "with_reference": with_reference,
            "new": len(found.fresh),
            "validation": len(validated),
            "too_long": len(learn_from) + len(validate) + len(pool.items) - len(learn) - len(validated),
            "pool_without_answer": pool.without_answer,
            "unreadable_references": pool.unreadable,
        },
        fresh=found.fresh,
        confidences=found.confidences,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """What the database says about a run."""

    original: Run | None  # the run that it reproduces
    start: CriticVersion
    answers: list[LabelledAnswer]
    questions: list[OpenQuestion]
    fresh: list[str]
    confidences: dict[UUID, float]


async def _start(
    session: AsyncSession, base_model: str, task: str, *, continue_candidate: bool, trains: bool = True
) -> CriticVersion:
    """The critic that a run of a task begins with: the live one, or the candidate that the gate has not decided about.

    A candidate that was measured against another live critic is not continued: its evidence does not count any more. A
    critic by examples has the base model's weights, so a run that would begin with one, or that trains nothing, begins
    with the base model.

    Raises:
        Conflict: the live critic is not based on the model `base_model`.
    """
    live = await store.critics.resolve_critic(session, "live", task)
    if live.base_model != base_model:
        raise Conflict(f"the trainer is set to the model {base_model}, and the service serves {live.base_model}")
    if not trains:
        return await store.critics.base_version(session, base_model, task)
    start = await store.critics.base_version(session, base_model, task) if live.examples else live
    pointers = await store.critics.read_pointers(session, task)
    if not continue_candidate or "candidate" not in pointers:
        return start
    candidate = await store.critics.resolve_critic(session, "candidate", task)
    if candidate.run_id is None or candidate.examples or live.prompt_set not in (None, candidate.prompt_set):
        return start
    run = await store.runs.read_run(session, candidate.run_id)
    is_open = run.outcome is GateOutcome.NOT_ENOUGH_EVIDENCE and (run.gate or {}).get("live") == live.version
    return candidate if is_open else start


async def fitting(context: RunContext, items: Sequence[LabelledAnswer]) -> list[LabelledAnswer]:
    """The items whose prompt and longest critique fit the model's context."""
    room = context.settings.engine_max_model_len - context.run.config.max_critique_tokens
    slots = asyncio.Semaphore(context.engines.at_once(1))

    async def length(item: LabelledAnswer) -> int:
        prompt = context.prompts.critique(question=item.question, response=item.response)
        async with slots:
            return len(await context.engines.patiently(lambda: context.engines.pool.tokenize(prompt)))

    lengths = await gather(*map(length, items))
    return [item for item, tokens in zip(items, lengths, strict=True) if tokens <= room]


async def _engine_versions(context: RunContext) -> dict[str, str]:
    async def versions() -> dict[str, str]:
        engines = context.engines.pool.members
        found = await gather(*(engine.version() for engine in engines))
        return {without_password(engine.url): version for engine, version in zip(engines, found, strict=True)}

    return await context.engines.patiently(versions)


def _check_base(name: str, sha256: str, published: tuple[int, str] | None) -> None:
    """Raises:
    Conflict: an earlier critic was trained on a model of the same name with other weights.
    """
    if published is not None and published[1] != sha256:
        raise Conflict(
            f"the model {name} has other weights now (sha256 {sha256[:12]}) than when version {published[0]} was "
            f"trained on it ({published[1][:12]}): restore its files (GADFLY_MODEL_REVISION pins a hub model to the "
            "base_revision in the manifest of that version's run), or serve the new ones under another name, which "
            "begins a lineage of critics of its own"
        )


def _check_same(original: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Raises:
    Conflict: names the value that differs.
    """
    # Earlier releases had no other actor and no other task.
    original = {"actor": original["base_model"], "task": "math", **original}
    # With the options that came since, at their defaults.
    original["config"] = TrainConfig.model_validate(original["config"]).model_dump(mode="json")
    for name in ("base_sha256", "actor", "task", "prompt_set", "adapter_rank", "config"):
        if original[name] != manifest[name]:
            raise Conflict(f"the run cannot be reproduced here: its {name} was {original[name]}, not {manifest[name]}")
