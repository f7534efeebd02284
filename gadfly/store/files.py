"""Import of rows from files, and export of all rows to files.

Import reads JSON Lines: `question` and `response`, and optionally `reference`, `correct`, `model`, `metadata`,
`created_at` and `id`. Export writes one row per interaction, with lists of its critiques, refinements and feedback, its
side of the training wall (`split`) and its label (`label`: is `response` right?).
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any
from uuid import UUID, uuid5

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError
from sqlalchemy import text

from gadfly.errors import BadInput, UnreadableReference
from gadfly.fields import FilledText, Metadata
from gadfly.grading import Grade, Grader
from gadfly.records import Critique, Feedback, FeedbackSource, Interaction, Kind, Refinement, Usage, new_id, now
from gadfly.store.database import Database
from gadfly.store.interactions import (
    Filters,
    LoggedInteraction,
    find_imported,
    insert_interactions,
    insert_records,
    stream_interactions,
)

_BATCH_ROWS = 300
_BATCH_LIMIT_S = 120.0
_EXPORT_ROWS = 500
_EXPORT_LIMIT_S = 24 * 3600.0
_NAMESPACE = UUID("1f6d9c0e-5d0b-5c3e-9a52-6b7c1f0a2d11")  # of ids derived from an imported row's content
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_BYTES_PER_CHAR = 12  # of a character beyond the first 65,536, written as two escapes
_TOO_LONG = b"\n\n"  # in place of a line that is too long to keep; no real line has two line ends

# ------------------------------------------------------------------------------------------------------------- import


def _past(value: datetime) -> datetime:
    moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    if not _EARLIEST <= moment <= now():
        raise ValueError("must lie between 1970 and now")
    return moment.astimezone(UTC)  # the same moment in any notation is the same value


class ImportRow(BaseModel):
    """One line of a file to import. Other data of a row belongs in `metadata`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: FilledText
    response: FilledText
    reference: FilledText | None = None
    correct: StrictBool | None = None
    model: FilledText | None = None
    metadata: Metadata = Field(default_factory=dict)
    created_at: Annotated[datetime, AfterValidator(_past)] | None = None
    id: FilledText | None = None

    @property
    def interaction_id(self) -> UUID:
        """Derived from all given fields but the label: the same row is the same interaction, with any label."""
        given = self.model_dump(mode="json", exclude={"correct"}, exclude_defaults=True)
        return uuid5(_NAMESPACE, json.dumps(given, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that was not imported, and why."""

    line: int  # counts from 1
    reason: str


@dataclass(slots=True)
class ImportReport:
    """How many rows were added, were stored already, and were skipped."""

    added: int = 0
    known: int = 0
    skipped: int = 0


async def import_rows(
    path: Path,
    database: Database,
    *,
    grader: Grader,
    heldout_share: float,
    max_text_chars: int,
    on_skip: Callable[[Skipped], None],
    on_progress: Callable[[int], None] = lambda bytes_read: None,
) -> ImportReport:
    """Import a file of JSON lines; importing it again adds only the missing rows.

    `on_skip` receives each bad line, in order, and `on_progress` the number of bytes read so far. A row's `correct`
    becomes feedback; its `reference` grades the response.

    Raises:
        BadInput: the file cannot be read.
        StoreUnavailable: Postgres became unavailable. Imported rows stay, and a repeated import continues after them.
    """
    report = ImportReport()
    with _readable(path) as file:
        number = 0
        while lines := await asyncio.to_thread(_read_lines, file, 4 * _BYTES_PER_CHAR * max_text_chars):
            rows: list[tuple[int, ImportRow]] = []
            skipped: list[Skipped] = []
            for line in lines:
                number += 1
                try:
                    if (row := _read_row(line, max_text_chars)) is not None:
                        rows.append((number, row))
                except BadInput as error:
                    skipped.append(Skipped(number, str(error)))
            skipped += await _import_batch(rows, database, grader, heldout_share, report)
            report.skipped += len(skipped)
            for item in sorted(skipped, key=lambda item: item.line):
                on_skip(item)
            on_progress(file.tell())
    return report


async def _import_batch(
    rows: list[tuple[int, ImportRow]],
    database: Database,
    grader: Grader,
    heldout_share: float,
    report: ImportReport,
) -> list[Skipped]:
    firsts: dict[UUID, ImportRow] = {}
    numbers: dict[UUID, list[int]] = {}
    labels: dict[UUID, bool] = {}
    for number, row in rows:
        id = row.interaction_id
        firsts.setdefault(id, row)
        numbers.setdefault(id, []).append(number)
        if row.correct is not None:
            labels[id] = row.correct
    async with database.session() as session:
        known = await find_imported(session, firsts)
    new = {id: row for id, row in firsts.items() if id not in known}
    grades = await _grade(new, grader)
    unreadable = {id: grade for id, grade in grades.items() if isinstance(grade, UnreadableReference)}
    skipped = [Skipped(number, f"reference: {grade}") for id, grade in unreadable.items() for number in numbers[id]]
    interactions = [_to_interaction(id, row, grades.get(id)) for id, row in new.items() if id not in unreadable]
    feedback = [
        _to_feedback(id, correct)
        for id, correct in labels.items()
        if id not in unreadable and known.get(id) is not correct  # an import must not override later feedback
    ]
    async with database.session(limit_s=_BATCH_LIMIT_S) as session:
        added = await insert_interactions(session, interactions, heldout_share=heldout_share)
        await insert_records(session, feedback, heldout_share=heldout_share)
    report.added += added
    report.known += len(rows) - len(skipped) - added
    return skipped


async def _grade(rows: Mapping[UUID, ImportRow], grader: Grader) -> dict[UUID, Grade | UnreadableReference]:
    referenced = [(id, row.response, row.reference) for id, row in rows.items() if row.reference is not None]
    grades = await grader.grade_all([(response, reference) for _, response, reference in referenced])
    return {id: grade for (id, _, _), grade in zip(referenced, grades, strict=True)}


@contextmanager
def _readable(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":  # some editors put a byte order mark first
                file.seek(0)
            yield file
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error


def _read_lines(file: IO[bytes], limit: int) -> list[bytes]:
    lines: list[bytes] = []
    while len(lines) < _BATCH_ROWS and (line := file.readline(limit)):
        lines.append(line)
        while not line.endswith(b"\n") and (line := file.readline(limit)):
            lines[-1] = _TOO_LONG
    return lines


def _read_row(line: bytes, max_text_chars: int) -> ImportRow | None:
    if line == _TOO_LONG:
        raise BadInput("the line is too long")
    if not line.strip():
        return None
    try:
        row = ImportRow.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise BadInput(f"{where}: {message}" if where else message) from None
    for name in ("question", "response", "reference"):
        if len(getattr(row, name) or "") > max_text_chars:
            raise BadInput(f"{name}: must be at most {max_text_chars:,} characters")
    return row


def _to_interaction(id: UUID, row: ImportRow, grade: Grade | UnreadableReference | None) -> Interaction:
    assert not isinstance(grade, UnreadableReference)
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
        grade=grade,
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
        "metadata": pa.string(),
        "parameters": pa.string(),
        "model": pa.string(),
        "prompt_set": pa.string(),
        "critic_version": pa.int32(),
        "adapter_sha256": pa.string(),
        "verdict": pa.string(),
        "refined_response": pa.string(),
        "stop_reason": pa.string(),
        "prompt_tokens": pa.int64(),
        "completion_tokens": pa.int64(),
        "latency_ms": pa.float64(),
        "critiques": pa.list_(_CRITIQUE),
        "refinements": pa.list_(_REFINEMENT),
        "feedback": pa.list_(_FEEDBACK),
    }
)
"""Columns of a Parquet export; JSON lines have the same names, with `metadata` and `parameters` as objects."""


async def export(
    database: Database,
    out: Path,
    *,
    format: ExportFormat,
    filters: Filters,
    on_progress: Callable[[int], None] = lambda rows: None,
    to_rows: Callable[[LoggedInteraction], list[dict[str, Any]]] | None = None,
) -> int:
    """Write the interactions that match `filters` to `out`, oldest first; return the number of rows.

    `to_rows` makes the rows of an interaction, for JSON lines; without it, an interaction is one row of `SCHEMA`. The
    file appears complete or not at all, and shows one snapshot of the database. `on_progress` receives the number of
    rows written so far.

    Raises:
        BadInput: the file cannot be written.
        StoreUnavailable: Postgres is unavailable.
    """
    rows = 0
    unfinished = out.with_name(f".{out.name}.{new_id().hex}")
    try:
        with (_jsonl_writer if format is ExportFormat.JSONL else _parquet_writer)(unfinished) as write:
            async with database.session(limit_s=_EXPORT_LIMIT_S) as session:
                await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
                await session.execute(text("SET LOCAL statement_timeout = 0"))
                async with aclosing(stream_interactions(session, filters, batch=_EXPORT_ROWS)) as batches:
                    async for batch in batches:
                        made = [row for logged in batch for row in (to_rows or _as_row)(logged)]
                        await asyncio.to_thread(write, made)
                        rows += len(made)
                        on_progress(rows)
        unfinished.replace(out)
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


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
def _parquet_writer(path: Path) -> Iterator[Write]:
    with path.open("wb") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as parquet:

            def write(rows: list[dict[str, Any]]) -> None:
                for row in rows:
                    for holder in (row, *row["feedback"]):
                        holder["metadata"] = json.dumps(holder["metadata"], ensure_ascii=False)
                    row["parameters"] = json.dumps(row["parameters"], ensure_ascii=False)
                parquet.write_table(pa.Table.from_pylist(rows, SCHEMA))

            yield write
        file.flush()
        os.fsync(file.fileno())


def _moment(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).isoformat()


def _as_row(logged: LoggedInteraction) -> list[dict[str, Any]]:
    interaction = logged.interaction
    row = _flat(SCHEMA.names, interaction) | {
        "split": logged.split.value,
        "label": logged.label,
        "critiques": [_flat(_CRITIQUE.names, critique) for critique in interaction.critiques],
        "refinements": [_flat(_REFINEMENT.names, refinement) for refinement in interaction.refinements],
        "feedback": [_flat(_FEEDBACK.names, feedback) for feedback in logged.feedback],
    }
    return [row]


def _flat(names: list[str], record: Interaction | Critique | Refinement | Feedback) -> dict[str, Any]:
    """The record's fields of these names, token counts included, as plain values in this order."""
    row: dict[str, Any] = {}
    for name in names:
        holder = record.usage if name.endswith("_tokens") and not isinstance(record, Feedback) else record
        value = getattr(holder, name, None)
        row[name] = str(value) if isinstance(value, UUID) else value.value if isinstance(value, StrEnum) else value
    return row
