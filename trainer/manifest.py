"""The manifest: a permanent record of the answers and everything else that a run depends on, and their selection."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.errors import BadInput, Conflict
from gadfly.planning import validation_split, within_key_share
from gadfly.records import CriticVersion, Split, TaskId
from gadfly.store.training_data import LabelledAnswer, OpenQuestion
from gadfly.training import Run, TrainConfig

_PACKAGES = ("gadfly", "torch", "transformers", "peft", "accelerate", "numpy")


async def select_answers(
    session: AsyncSession, run: Run, original: Run | None, *, max_key_share: float
) -> tuple[list[LabelledAnswer], list[OpenQuestion]]:
    """The labelled train-split answers of a run, and the questions that the actor answers.

    They are the newest ones, or exactly those of the run that it reproduces.

    Of the newest ones, no key has more than `max_key_share` of a class.

    Raises:
        BadInput: there is nothing to learn from.
        Conflict: an answer or a question of the original run is gone or changed.
    """
    limit = run.config.max_questions if original is None else 2**31 - 1
    answers = await store.training_data.answers_to_learn_from(session, limit=limit, task=run.task)
    questions = await store.training_data.open_questions(session, Split.TRAIN, limit=limit, task=run.task)
    if original is None:
        answers = within_key_share(answers, max_key_share)
    else:
        assert original.manifest is not None
        answers = same_answers(answers, original.manifest["answers"])
        questions = same_questions(questions, original.manifest.get("questions", []))  # absent in earlier releases
    if not answers and not questions:
        raise BadInput("there is no labelled answer to learn from on the training side: import some, or send feedback")
    return answers, questions


def same_answers(answers: Sequence[LabelledAnswer], recorded: Sequence[dict[str, Any]]) -> list[LabelledAnswer]:
    """The answers that a manifest names, in its order and with the certainty of their labels then.

    Raises:
        Conflict: some are gone or differ; the message counts them.
    """
    known = {answer.key: answer for answer in answers}
    gone = [entry["id"] for entry in recorded if entry["id"] not in known]
    changed = [entry["id"] for entry in recorded if entry["id"] in known and not _is_same(known[entry["id"]], entry)]
    if gone or changed:
        raise Conflict(
            f"the run cannot be reproduced: of {len(recorded)} answers {len(gone)} are gone and {len(changed)} changed"
        )
    return [replace(known[entry["id"]], certainty=entry.get("certainty", 1.0)) for entry in recorded]


def _is_same(answer: LabelledAnswer, entry: dict[str, Any]) -> bool:
    # Certainty changes with every vote, and manifests of release 0.1.0 have none.
    return describe(answer) | {"certainty": None} == entry | {"certainty": None}


def same_questions(questions: Sequence[OpenQuestion], recorded: Sequence[dict[str, Any]]) -> list[OpenQuestion]:
    """The questions that a manifest names, in its order.

    Raises:
        Conflict: some are gone or differ.
    """
    known = {str(question.interaction_id): question for question in questions}
    missing = [
        entry for entry in recorded if entry["id"] not in known or describe_question(known[entry["id"]]) != entry
    ]
    if missing:
        raise Conflict(
            f"the run cannot be reproduced: of {len(recorded)} questions without a response {len(missing)} are gone or "
            "changed"
        )
    return [known[entry["id"]] for entry in recorded]


def describe_question(question: OpenQuestion) -> dict[str, Any]:
    """A question's entry in a manifest: it identifies the question and holds no text."""
    text = f"{question.question}\0{question.reference}"
    return {
        "id": str(question.interaction_id),
        "sha256": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(),
    }


def describe(answer: LabelledAnswer) -> dict[str, Any]:
    """An answer's entry in a manifest: it identifies the answer and holds no text."""
    text = f"{answer.question}\0{answer.response}\0{answer.reference}"
    return {
        "id": answer.key,
        "is_right": answer.is_right,
        "source": answer.source.value,
        "certainty": answer.certainty,
        "sha256": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(),
    }


def with_new_label(
    answers: Sequence[LabelledAnswer], questions: Sequence[OpenQuestion], manifest: Mapping[str, Any]
) -> list[str]:
    """The keys of the answers and questions that are not in an earlier manifest with this text, reference and label."""

    def identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
        return entry["id"], entry.get("is_right"), entry["sha256"]

    known = {identity(entry) for entry in (*manifest["answers"], *manifest.get("questions", ()))}
    entries = [*map(describe, answers), *map(describe_question, questions)]
    return [entry["id"] for entry in entries if identity(entry) not in known]


def split_for_validation(
    answers: Sequence[LabelledAnswer], config: TrainConfig
) -> tuple[list[LabelledAnswer], list[LabelledAnswer]]:
    """Answers to learn from, and as many right as wrong ones for validation. No question has answers in both."""
    if not config.validates:
        return list(answers), []
    learn, validate = validation_split(answers, config.validation_share)
    half = config.validation_items // 2
    right = [answer for answer in validate if answer.is_right][:half]
    wrong = [answer for answer in validate if not answer.is_right][:half]
    return list(learn), [*right, *wrong]


def make_manifest(
    *,
    config: TrainConfig,
    answers: Sequence[LabelledAnswer],
    questions: Sequence[OpenQuestion],
    start: CriticVersion,
    base_model: str,
    base_sha256: str,
    base_revision: str | None,
    actor: str,
    task: TaskId,
    prompt_set: str,
    rank: int,
    engine_versions: dict[str, str],
    threads: int,
    reproduces: UUID | None,
) -> dict[str, Any]:
    """Everything that the outcome of a run depends on."""
    return {
        "config": config.model_dump(mode="json"),
        "answers": [describe(answer) for answer in answers],
        "questions": [describe_question(question) for question in questions],
        "label_sources": store.training_data.source_counts(answers),
        "start": {"version": start.version, "adapter_sha256": start.adapter_sha256},
        "base_model": base_model,
        "base_sha256": base_sha256,
        "base_revision": base_revision,  # the commit of a hub model
        "actor": actor,
        "task": task.name,
        "task_version": task.version,
        "prompt_set": prompt_set,
        "adapter_rank": rank,
        "engines": engine_versions,
        "threads": threads,
        "packages": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "reproduces": None if reproduces is None else str(reproduces),
    }
