"""The manifest: a permanent record of the answers and everything else that a run depends on, and their selection."""

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.errors import BadInput, Conflict
from gadfly.planning import validation_split
from gadfly.records import CriticVersion
from gadfly.store.training_data import LabelledAnswer
from gadfly.training import Run, TrainConfig

_PACKAGES = ("gadfly", "torch", "transformers", "peft", "accelerate", "numpy")


async def select_answers(session: AsyncSession, run: Run, original: Run | None) -> list[LabelledAnswer]:
    """The labelled train-split answers of a run: the newest ones, or exactly those of the run that it reproduces.

    Raises:
        BadInput: there is nothing to learn from.
        Conflict: an answer of the original run is gone or has another label.
    """
    limit = run.config.max_questions if original is None else 2**31 - 1
    answers = await store.training_data.answers_to_learn_from(session, limit=limit)
    if original is not None:
        assert original.manifest is not None
        answers = same_answers(answers, original.manifest["answers"])
    if not answers:
        raise BadInput("there is no labelled answer to learn from on the training side: import some, or send feedback")
    return answers


def same_answers(answers: Sequence[LabelledAnswer], recorded: Sequence[dict[str, Any]]) -> list[LabelledAnswer]:
    """The answers that a manifest names, in its order.

    Raises:
        Conflict: some are gone or differ; the message counts them.
    """
    known = {answer.key: answer for answer in answers}
    gone = [entry["id"] for entry in recorded if entry["id"] not in known]
    changed = [entry["id"] for entry in recorded if entry["id"] in known and describe(known[entry["id"]]) != entry]
    if gone or changed:
        raise Conflict(
            f"the run cannot be reproduced: of {len(recorded)} answers {len(gone)} are gone and {len(changed)} changed"
        )
    return [known[entry["id"]] for entry in recorded]


def describe(answer: LabelledAnswer) -> dict[str, Any]:
    """An answer's entry in a manifest: it identifies the answer and holds no text."""
    text = f"{answer.question}\0{answer.response}\0{answer.reference}"
    return {
        "id": answer.key,
        "is_right": answer.is_right,
        "source": answer.source.value,
        "sha256": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(),
    }


def with_new_label(answers: Sequence[LabelledAnswer], recorded: Sequence[dict[str, Any]]) -> list[str]:
    """The keys of the answers whose text, reference or label is not the one in the entries of an earlier manifest."""
    known = {(entry["id"], entry["is_right"], entry["sha256"]) for entry in recorded}
    entries = [(answer, describe(answer)) for answer in answers]
    return [answer.key for answer, entry in entries if (entry["id"], entry["is_right"], entry["sha256"]) not in known]


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
    start: CriticVersion,
    base_model: str,
    base_sha256: str,
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
        "label_sources": store.training_data.source_counts(answers),
        "start": {"version": start.version, "adapter_sha256": start.adapter_sha256},
        "base_model": base_model,
        "base_sha256": base_sha256,
        "prompt_set": prompt_set,
        "adapter_rank": rank,
        "engines": engine_versions,
        "threads": threads,
        "packages": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "reproduces": None if reproduces is None else str(reproduces),
    }
