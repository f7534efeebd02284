"""Import of rows from files, and export of all rows to files.

Import stores what `gadfly.rowfiles` reads. Export writes one row per interaction, with lists of its critiques,
refinements and feedback, its side of the training wall (`split`) and its label (`label`: is `response` right?).
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import text

from gadfly.errors import BadInput, UnreadableReference
from gadfly.grading import Grade, TaskGrader
from gadfly.prompts import PromptSet
from gadfly.records import (
    Contents,
    Critique,
    Feedback,
    FeedbackSource,
    Interaction,
    Kind,
    Refinement,
    Split,
    Subject,
    TaskId,
    Usage,
    new_id,
    now,
)
from gadfly.rowfiles.rows import BadRow, ImportRow, row_of
from gadfly.rowfiles.shapes import NO_MAPPING, ColumnMap, fields_of
from gadfly.rowfiles.sources import AS_IT_IS, How, Raw, open_rows
from gadfly.settings import SplitBlocks
from gadfly.store.database import Database
from gadfly.store.interactions import (
    Filters,
    LoggedInteraction,
    find_imported,
    insert_interactions,
    stored_sides,
    stream_interactions,
)
from gadfly.store.split import question_hash
from gadfly.store.tasks import MATH
from gadfly.store.training_files import PAIRS_SCHEMA, SFT_SCHEMA, fine_tuning_rows, pairs

_BATCH_ROWS = 300
_BATCH_LIMIT_S = 120.0
_EXPORT_ROWS = 500
_EXPORT_LIMIT_S = 24 * 3600.0
_CHARS_PER_CHAR = 48  # of a row's JSON for each character of its longest text: four texts, characters as two escapes

# ------------------------------------------------------------------------------------------------------------- import


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was not imported, or was imported without a grade, and why."""

    line: int  # the line of a text file, the row of an array or a table; counts from 1
    reason: str
    kind: str  # rows of one kind are counted together


@dataclass(slots=True)
class ImportReport:
    """How many rows were added, were stored already, and were skipped. `ungraded` are among the added ones."""

    added: int = 0
    ungraded: int = 0  # their reference cannot be read
    known: int = 0
    skipped: int = 0
    without_response: int = 0  # of the added ones: questions for the actor's pool
    reasons: Counter[str] = field(default_factory=Counter, compare=False)  # of the skipped rows
    notes: Counter[str] = field(default_factory=Counter, compare=False)  # changes of rows, and parts left out
    unit: str = field(default="line", compare=False)  # what `Skipped.line` counts


async def import_rows(
    source: str | Path,
    database: Database,
    *,
    task: TaskId = MATH,
    grader: TaskGrader,
    heldout_share: float,
    split_blocks: SplitBlocks = SplitBlocks.NEAR,
    max_text_chars: int,
    on_skip: Callable[[Skipped], None],
    on_progress: Callable[[int], None] = lambda bytes_read: None,
    columns: ColumnMap = NO_MAPPING,
    how: How = AS_IT_IS,
    split: Split | None = None,
) -> ImportReport:
    """Import a file or a data set; importing it again adds only the missing rows.

    `on_skip` receives each bad row, in order, and `on_progress` the number of bytes read so far. A row's `correct`
    becomes feedback; its `reference` grades the response. A row whose reference cannot be read is imported without a
    grade, and is a bad row too. `split` is the side of rows that do not name one; None: a new question's hash decides.

    Raises:
        BadInput: the file cannot be read, or has not the columns that `columns` names.
        StoreUnavailable: Postgres became unavailable. Imported rows stay, and a repeated import continues after them.
    """
    report = ImportReport()
    with open_rows(str(source), how, max_row_chars=_CHARS_PER_CHAR * max_text_chars) as opened:
        report.unit = opened.unit
        is_first = True
        while raws := await asyncio.to_thread(lambda: list(islice(opened.rows, _BATCH_ROWS))):
            if is_first:
                columns.check([raw.value for raw in raws if not isinstance(raw.value, BadRow)])
                is_first = False
            rows: list[tuple[int, ImportRow]] = []
            skipped: list[Skipped] = []
            for raw in raws:
                try:
                    rows.append((raw.number, _read_row(raw, columns, split, max_text_chars, report.notes)))
                except BadRow as error:
                    skipped.append(Skipped(raw.number, str(error), error.reason))
            misplaced, ungraded = await _import_batch(rows, database, task, grader, heldout_share, split_blocks, report)
            skipped += misplaced
            report.skipped += len(skipped)
            for item in sorted(skipped + ungraded, key=lambda item: item.line):
                report.reasons[item.kind] += 1
                on_skip(item)
            on_progress(opened.position())
    return report


def _read_row(raw: Raw, columns: ColumnMap, split: Split | None, max_text_chars: int, notes: Counter[str]) -> ImportRow:
    if isinstance(raw.value, BadRow):
        raise raw.value
    fields = fields_of(raw.value, columns, notes)
    if split is not None and fields.get("split") is None:
        fields["split"] = split
    return row_of(fields, max_text_chars=max_text_chars, notes=notes)


async def _import_batch(
    rows: list[tuple[int, ImportRow]],
    database: Database,
    task: TaskId,
    grader: TaskGrader,
    heldout_share: float,
    split_blocks: SplitBlocks,
    report: ImportReport,
) -> tuple[list[Skipped], list[Skipped]]:
    """Store the rows; return those that were skipped, and those that were stored without a grade."""
    rows, skipped = await _on_their_side(rows, database, task)
    firsts: dict[UUID, ImportRow] = {}
    numbers: dict[UUID, list[int]] = {}
    labels: dict[UUID, bool] = {}
    for number, row in rows:
        id = row.interaction_id_of(task.name)
        firsts.setdefault(id, row)
        numbers.setdefault(id, []).append(number)
        if row.correct is not None:
            labels[id] = row.correct
    async with database.session() as session:
        known = await find_imported(session, firsts)
    new = {id: row for id, row in firsts.items() if id not in known}
    grades = await _grade(new, grader)
    interactions = [
        _to_interaction(id, row, grades.get(id), task=task, grader=grader.version) for id, row in new.items()
    ]
    ungraded = [
        Skipped(number, f"reference: {grade} The row is imported without a grade.", "reference: it cannot be read")
        for id, grade in grades.items()
        if isinstance(grade, UnreadableReference)
        for number in numbers[id]
    ]
    feedback = [
        _to_feedback(id, correct)
        for id, correct in labels.items()
        if known.get(id) is not correct  # an import must not override later feedback
    ]
    async with database.session(limit_s=_BATCH_LIMIT_S) as session:
        added = await insert_interactions(
            session,
            interactions,
            feedback,
            heldout_share=heldout_share,
            split_blocks=split_blocks,
            sides=_sides(new.values(), task),
        )
    report.added += added
    report.known += len(rows) - added
    report.ungraded += len(ungraded)
    report.without_response += sum(row.response is None for row in new.values())
    return skipped, ungraded


async def _on_their_side(
    rows: list[tuple[int, ImportRow]], database: Database, task: TaskId
) -> tuple[list[tuple[int, ImportRow]], list[Skipped]]:
    """The rows whose question can be on the side that they name, and the others: a stored question keeps its side."""
    named = {question_hash(row.question, task.name) for _, row in rows if row.split is not None}
    if not named:
        return rows, []
    async with database.session() as session:
        stored = await stored_sides(session, named)
    sides = _sides((row for _, row in rows), task) | stored
    kept: list[tuple[int, ImportRow]] = []
    skipped: list[Skipped] = []
    for number, row in rows:
        side = sides.get(question_hash(row.question, task.name))
        if row.split in (None, side):
            kept.append((number, row))
        else:
            reason = f"split: the question is {_IS_ON[side]} already, and an import moves no question"
            skipped.append(Skipped(number, reason, reason))
    return kept, skipped


_IS_ON = {Split.TRAIN: "in training", Split.HELDOUT: "held out", None: "on no side"}


def _sides(rows: Iterable[ImportRow], task: TaskId) -> dict[bytes, Split]:
    """The side of each question of which a row names one; of two rows that disagree the first decides."""
    sides: dict[bytes, Split] = {}
    for row in rows:
        if row.split is not None:
            sides.setdefault(question_hash(row.question, task.name), row.split)
    return sides


async def _grade(rows: Mapping[UUID, ImportRow], grader: TaskGrader) -> dict[UUID, Grade | UnreadableReference]:
    # A reference without a response is compared with itself, so that one that cannot be read is found here as well.
    referenced = [
        (id, row.response or row.reference, row.reference) for id, row in rows.items() if row.reference is not None
    ]
    grades = await grader.grade_all([(response, reference) for _, response, reference in referenced])
    return {id: grade for (id, _, _), grade in zip(referenced, grades, strict=True)}


def _to_interaction(
    id: UUID, row: ImportRow, grade: Grade | UnreadableReference | None, *, task: TaskId, grader: int
) -> Interaction:
    problem = str(grade) if isinstance(grade, UnreadableReference) else None
    return Interaction(
        id=id,
        kind=Kind.IMPORT,
        created_at=row.created_at or now(),
        episode_id=uuid5(id, "episode"),
        key_id=None,
        request_id=None,
        fingerprint=None,
        question=row.question,
        response=row.response,
        reference=row.reference,
        grade=None if isinstance(grade, UnreadableReference) or row.response is None else grade,
        grader=None if grade is None or row.response is None else grader,
        grade_problem=problem,
        task=task.name,
        task_version=task.version,
        metadata=row.metadata,
        parameters={} if row.id is None else {"id": row.id},
        model=row.model,
        prompt_set=None,
        critic_version=None,
        adapter_sha256=None,
        verdict=None,
        refined_response=None,
        stop_reason=None,
        usage=Usage(),
        latency_ms=None,
    )


def _to_feedback(interaction_id: UUID, correct: bool) -> Feedback:
    return Feedback(
        id=new_id(),
        interaction_id=interaction_id,
        key_id=None,
        created_at=now(),
        source=FeedbackSource.IMPORT,
        correct=correct,
    )


# ------------------------------------------------------------------------------------------------------------- export


class ExportFormat(StrEnum):
    JSONL = "jsonl"
    PARQUET = "parquet"


_MOMENT = pa.timestamp("us", tz="UTC")
_CRITIQUE = pa.struct(
    {
        "id": pa.string(),
        "round": pa.int32(),
        "sample": pa.int32(),
        "text": pa.string(),
        "stated": pa.string(),
        "verdict": pa.string(),
        "verdict_source": pa.string(),
        "p_correct": pa.float64(),
        "p_incorrect": pa.float64(),
        "calibrated_p_right": pa.float64(),
        "finish_reason": pa.string(),
        "prompt_tokens": pa.int32(),
        "completion_tokens": pa.int32(),
        "supplied": pa.bool_(),
    }
)
_REFINEMENT = pa.struct(
    {
        "id": pa.string(),
        "round": pa.int32(),
        "sample": pa.int32(),
        "critique_id": pa.string(),
        "text": pa.string(),
        "finish_reason": pa.string(),
        "grade": pa.string(),
        "prompt_tokens": pa.int32(),
        "completion_tokens": pa.int32(),
    }
)
_FEEDBACK = pa.struct(
    {
        "id": pa.string(),
        "key_id": pa.string(),
        "created_at": _MOMENT,
        "source": pa.string(),
        "critique_id": pa.string(),
        "refinement_id": pa.string(),
        "correct": pa.bool_(),
        "helpful": pa.bool_(),
        "reference": pa.string(),
        "edited_response": pa.string(),
        "edited_reference": pa.string(),
        "rating": pa.int32(),
        "comment": pa.string(),
        "metadata": pa.string(),
        "grade": pa.string(),
    }
)
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "kind": pa.string(),
        "created_at": _MOMENT,
        "split": pa.string(),
        "label": pa.bool_(),
        "episode_id": pa.string(),
        "key_id": pa.string(),
        "request_id": pa.string(),
        "question": pa.string(),
        "response": pa.string(),
        "reference": pa.string(),
        "grade": pa.string(),
        "grade_problem": pa.string(),
        "metadata": pa.string(),
        "parameters": pa.string(),
        "model": pa.string(),
        "prompt_set": pa.string(),
        "task": pa.string(),
        "task_version": pa.string(),
        "critic_version": pa.int32(),
        "adapter_sha256": pa.string(),
        "verdict": pa.string(),
        "refined_response": pa.string(),
        "stop_reason": pa.string(),
        "prompt_tokens": pa.int64(),
        "completion_tokens": pa.int64(),
        "latency_ms": pa.float64(),
        "conversation": pa.string(),
        "critiques": pa.list_(_CRITIQUE),
        "refinements": pa.list_(_REFINEMENT),
        "feedback": pa.list_(_FEEDBACK),
    }
)
"""Columns of a Parquet export. JSON lines have the same, and `metadata`, `parameters`, `conversation` as objects."""


async def export(
    database: Database,
    out: Path,
    *,
    format: ExportFormat,
    filters: Filters,
    contents: Contents = Contents.INTERACTIONS,
    subject: Subject = Subject.ANSWERS,
    prompts: PromptSet | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write what `contents` names of the interactions that match `filters` to `out`; return the number of rows.

    Interactions are written oldest first. Pairs and rows for fine-tuning need `prompts`.

    The file appears complete or not at all, and shows one snapshot of the database. `on_progress` receives the number
    of rows written so far.

    Raises:
        BadInput: the file cannot be written.
        StoreUnavailable: Postgres is unavailable.
    """
    rows = 0
    unfinished = out.with_name(f".{out.name}.{new_id().hex}")
    try:
        writer = _jsonl_writer(unfinished) if format is ExportFormat.JSONL else _parquet_writer(unfinished, contents)
        with writer as write:
            async with database.session(limit_s=_EXPORT_LIMIT_S, snapshot=True) as session:
                await session.execute(text("SET LOCAL statement_timeout = 0"))
                stream = stream_interactions(
                    session, filters, batch=_EXPORT_ROWS, by_question=contents is not Contents.INTERACTIONS
                )
                async with aclosing(stream) as logged:
                    async for batch in _batched(_rows(logged, contents, subject, prompts)):
                        await asyncio.to_thread(write, batch)
                        rows += len(batch)
                        on_progress(rows)
        unfinished.replace(out)
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


async def _rows(
    logged: AsyncIterator[list[LoggedInteraction]], contents: Contents, subject: Subject, prompts: PromptSet | None
) -> AsyncIterator[list[dict[str, Any]]]:
    if contents is Contents.INTERACTIONS:
        async for batch in logged:
            yield [_to_row(each) for each in batch]
        return
    assert prompts is not None
    async for rows in (pairs if contents is Contents.PAIRS else fine_tuning_rows)(logged, subject, prompts):
        yield rows


async def _batched(groups: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[list[dict[str, Any]]]:
    """The same rows, at least as many at a time as a file is written well with."""
    batch: list[dict[str, Any]] = []
    async for rows in groups:
        batch += rows
        if len(batch) >= _EXPORT_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


Write = Callable[[list[dict[str, Any]]], None]


@contextmanager
def _jsonl_writer(path: Path) -> Iterator[Write]:
    with path.open("wb") as file:

        def write(rows: list[dict[str, Any]]) -> None:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=_moment).encode() + b"\n")

        yield write
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _parquet_writer(path: Path, contents: Contents) -> Iterator[Write]:
    schema = {Contents.INTERACTIONS: SCHEMA, Contents.PAIRS: PAIRS_SCHEMA, Contents.SFT: SFT_SCHEMA}[contents]
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as parquet:

            def write(rows: list[dict[str, Any]]) -> None:
                for row in rows if contents is Contents.INTERACTIONS else ():
                    for holder in (row, *row["feedback"]):
                        holder["metadata"] = json.dumps(holder["metadata"], ensure_ascii=False)
                    row["parameters"] = json.dumps(row["parameters"], ensure_ascii=False)
                    if row["conversation"] is not None:
                        row["conversation"] = json.dumps(row["conversation"], ensure_ascii=False)
                parquet.write_table(pa.Table.from_pylist(rows, schema))

            yield write
        file.flush()
        os.fsync(file.fileno())


def _moment(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).isoformat()


def _to_row(logged: LoggedInteraction) -> dict[str, Any]:
    interaction = logged.interaction
    return _flat(SCHEMA.names, interaction) | {
        "split": logged.split.value,
        "label": logged.label,
        "critiques": [_flat(_CRITIQUE.names, critique) for critique in interaction.critiques],
        "refinements": [_flat(_REFINEMENT.names, refinement) for refinement in interaction.refinements],
        "feedback": [_flat(_FEEDBACK.names, feedback) for feedback in logged.feedback],
    }


def _flat(names: list[str], record: Interaction | Critique | Refinement | Feedback) -> dict[str, Any]:
    """The record's fields of these names, token counts included, as plain values in this order."""
    row: dict[str, Any] = {}
    for name in names:
        holder = record.usage if name.endswith("_tokens") and not isinstance(record, Feedback) else record
        value = getattr(holder, name, None)
        row[name] = str(value) if isinstance(value, UUID) else value.value if isinstance(value, StrEnum) else value
    return row
