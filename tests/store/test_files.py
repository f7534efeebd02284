import asyncio
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from gadfly import prompts
from gadfly.errors import BadInput, StoreUnavailable
from gadfly.grading import Grade, Grader
from gadfly.records import FeedbackSource, Interaction, Kind, Split
from gadfly.store.critics import ensure_version_zero
from gadfly.store.database import Database
from gadfly.store.files import SCHEMA, ExportFormat, ImportReport, Skipped, export, import_rows
from gadfly.store.interactions import Filters, count_rows, feedback_of, insert_records, list_interactions
from gadfly.store.rewrites import rewrite_rows
from tests.support.postgres import PostgresServer
from tests.support.records import make_critique, make_feedback, make_interaction, make_refinement

Row = dict[str, Any]


@pytest.fixture
async def grader() -> AsyncIterator[Grader]:
    async with Grader(timeout_s=5.0) as grader:
        yield grader


class Importer:
    """Imports lines and keeps what was said meanwhile."""

    def __init__(self, database: Database, grader: Grader, path: Path) -> None:
        self.database, self.grader, self.path = database, grader, path
        self.skipped: list[Skipped] = []
        self.progress: list[int] = []

    async def __call__(self, *lines: Row | str | bytes, **options: Any) -> ImportReport:
        encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
        content = b"\n".join(line.encode() if isinstance(line, str) else line for line in encoded)
        self.path.write_bytes(content)
        self.skipped, self.progress = [], []
        defaults: dict[str, Any] = {
            "heldout_share": 0.2,
            "max_text_chars": 1000,
            "on_skip": self.skipped.append,
            "on_progress": self.progress.append,
        }
        return await import_rows(self.path, self.database, grader=self.grader, **defaults | options)

    async def stored(self) -> list[Interaction]:
        async with self.database.session() as session:
            page = await list_interactions(session, scope=None, filters=Filters(), limit=1000)
        return page.interactions[::-1]


@pytest.fixture
def importer(database: Database, grader: Grader, tmp_path: Path) -> Importer:
    return Importer(database, grader, tmp_path / "rows.jsonl")


def row(number: int = 2, **fields: Any) -> Row:
    return {"question": f"What is 2 + {number}?", "response": f"The answer is {2 + number}", **fields}


async def test_a_whole_row(importer: Importer) -> None:
    moment = datetime(2025, 3, 1, 12, tzinfo=UTC)
    full = row(reference="4", correct=False, model="m", metadata={"a": [1]}, created_at=moment.isoformat(), id="x1")
    assert await importer(full) == ImportReport(added=1)
    (stored,) = await importer.stored()
    assert (stored.kind, stored.created_at, stored.model) == (Kind.IMPORT, moment, "m")
    assert (stored.reference, stored.grade, stored.metadata) == ("4", Grade.RIGHT, {"a": [1]})
    assert stored.parameters == {"id": "x1"}
    async with importer.database.session() as session:
        (feedback,) = await feedback_of(session, stored.id)
    assert (feedback.correct, feedback.source, feedback.reference) == (False, FeedbackSource.IMPORT, None)


async def test_importing_again_adds_only_what_is_new(importer: Importer) -> None:
    rows = [row(number, correct=True, reference=str(2 + number)) for number in range(700)]
    assert await importer(*rows[:400]) == ImportReport(added=400)
    assert await importer(*rows) == ImportReport(added=300, known=400)
    assert importer.progress == sorted(importer.progress)
    assert importer.progress[-1] == importer.path.stat().st_size
    assert await importer(*rows, *rows) == ImportReport(known=1400)
    async with importer.database.session() as session:
        counts = await count_rows(session)
    assert counts.interactions[Kind.IMPORT] == counts.feedback == 700
    assert sum(counts.questions.values()) == 700


async def test_a_changed_label_is_appended_and_outvotes_nobody(importer: Importer) -> None:
    async def labels() -> list[bool | None]:
        (stored,) = await importer.stored()
        async with importer.database.session() as session:
            return [item.correct for item in await feedback_of(session, stored.id)]

    await importer(row(correct=True))
    await importer(row(correct=False))
    await importer(row(correct=True))
    assert await labels() == [True, False, True]
    (stored,) = await importer.stored()
    async with importer.database.session() as session:
        await insert_records(session, [make_feedback(stored.id, correct=False)], heldout_share=0.2)
    await importer(row(correct=True))  # says what the last import said: a person's later word stands
    assert await labels() == [True, False, True, False]


BAD: list[tuple[str | bytes | Row, str]] = [
    ("{", "JSON"),
    ("[]", "object"),
    ("null", "object"),
    ('"text"', "object"),
    (b'{"question": "\xff"}', "JSON"),
    ({"question": "q"}, "response: Field required"),
    (row(response=5), "response: Input should be a valid string"),
    (row(question="  "), "question: must not be empty"),
    (row(correct="yes"), "correct: Input should be a valid boolean"),
    (row(correct=1), "correct: Input should be a valid boolean"),
    (row(metadata=[1]), "metadata: Input should be"),
    (row(metadata={"a": "x" * 20_000}), "metadata: must not be larger"),
    (row(metadata={"a": ["\x00"]}), "metadata: must not contain the NUL"),
    (row(response="a\x00b"), "response: must not contain the NUL"),
    ('{"question": "q", "response": "\\ud800"}', ""),
    (row(refrence="4"), "refrence: Extra inputs"),
    (row(created_at="yesterday"), "created_at: Input should be a valid datetime"),
    (row(created_at="0001-01-01T00:00:00+14:00"), "created_at: must lie between"),
    (row(created_at="2999-01-01T00:00:00Z"), "created_at: must lie between"),
    (row(response="x" * 1001), "response: must be at most 1,000 characters"),
    (row(response="x" * 200_000), "too long"),
    (row(reference="???"), "reference: "),
]


async def test_bad_lines_are_named_and_the_rest_is_imported(importer: Importer) -> None:
    lines: list[Row | str | bytes] = []
    for number, (line, _) in enumerate(BAD):
        lines += [row(number, reference=str(number + 2)), "", line]
    report = await importer(*lines)
    assert report == ImportReport(added=len(BAD), skipped=len(BAD))
    found = {item.line: item.reason for item in importer.skipped}
    for index, (line, reason) in enumerate(BAD):
        number = 3 * index + 3
        assert reason in found.get(number, "not skipped"), (line, found.get(number))


async def test_a_byte_order_mark_and_a_missing_last_line_end_are_no_matter(importer: Importer) -> None:
    assert await importer("\ufeff" + json.dumps(row(1)), row(2)) == ImportReport(added=2)
    assert await importer(json.dumps(row(1)) + "\r", row(2)) == ImportReport(known=2)
    assert await importer() == ImportReport()


async def test_a_file_that_cannot_be_read(importer: Importer, tmp_path: Path) -> None:
    importer.path.mkdir()
    with pytest.raises(BadInput, match="cannot read"):
        await import_rows(
            importer.path,
            importer.database,
            grader=importer.grader,
            heldout_share=0.2,
            max_text_chars=10,
            on_skip=importer.skipped.append,
        )


async def test_an_import_goes_on_where_postgres_went_away(
    own_postgres: PostgresServer, grader: Grader, tmp_path: Path
) -> None:
    rows = [row(number) for number in range(1000)]
    async with Database(own_postgres.url, timeout_s=1.0) as database:
        importer = Importer(database, grader, tmp_path / "rows.jsonl")

        def stop_after_a_batch(_: int) -> None:
            if own_postgres.is_running:
                own_postgres.stop()

        with pytest.raises(StoreUnavailable):
            await importer(*rows, on_progress=stop_after_a_batch)
        own_postgres.start()
        report = await importer(*rows)
        assert report.known > 0
        assert report.added + report.known == 1000
        assert len(await importer.stored()) == 1000


# ------------------------------------------------------------------------------------------------------------- export


@pytest.fixture
async def filled(database: Database) -> list[Interaction]:
    records = [make_interaction(question=f"q{number}", samples=2, refined=True) for number in range(1200)]
    labels = [make_feedback(records[0].id, correct=True, comment="ü", metadata={"by": "x"})]
    labels.append(make_feedback(records[1].id, reference="5", grade=Grade.WRONG))
    labels.append(make_feedback(records[2].id, correct=True))
    labels.append(make_feedback(records[2].id, correct=False))
    labels.append(make_feedback(records[2].id, rating=2))
    async with database.session(limit_s=60) as session:
        await ensure_version_zero(session, "tiny")
        await insert_records(session, records, heldout_share=0.2)
        await insert_records(session, labels, heldout_share=0.2)
    return records


@pytest.mark.parametrize("format", ExportFormat)
async def test_every_interaction_is_one_row_with_all_that_belongs_to_it(
    database: Database, filled: list[Interaction], tmp_path: Path, format: ExportFormat
) -> None:
    out = tmp_path / f"out.{format}"
    progress: list[int] = []
    assert await export(database, out, format=format, filters=Filters(), on_progress=progress.append) == 1200
    assert progress == [500, 1000, 1200]
    if format is ExportFormat.PARQUET:
        table = pq.read_table(out)
        assert table.schema.equals(SCHEMA)
        rows = table.to_pylist()
        for item in rows:
            item["metadata"] = json.loads(item["metadata"])
            item["created_at"] = item["created_at"].isoformat()
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert list(rows[0]) == SCHEMA.names
    assert [item["id"] for item in rows] == [str(record.id) for record in filled]
    first, record = rows[0], filled[0]
    assert first["created_at"] == record.created_at.isoformat()
    assert first["metadata"] == record.metadata
    assert first["completion_tokens"] == record.usage.completion_tokens
    assert [item["text"] for item in first["critiques"]] == [item.text for item in record.critiques]
    assert [item["critique_id"] for item in first["refinements"]] == [str(item.id) for item in record.critiques]
    assert [item["comment"] for item in first["feedback"]] == ["ü"]
    assert [item["label"] for item in rows[:4]] == [True, False, False, None]
    assert {item["split"] for item in rows} == {"train", "heldout"}


async def test_an_export_can_be_narrowed_and_empty(
    database: Database, filled: list[Interaction], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    for split in Split:
        count = await export(database, out, format=ExportFormat.JSONL, filters=Filters(split=split))
        assert {json.loads(line)["split"] for line in out.read_text().splitlines()} == {split}
        assert 0 < count < 1200
    empty = Filters(kind=Kind.IMPORT)
    assert await export(database, tmp_path / "empty.parquet", format=ExportFormat.PARQUET, filters=empty) == 0
    assert pq.read_table(tmp_path / "empty.parquet").schema.equals(SCHEMA)


async def test_edited_responses_are_exported_as_preferences(database: Database, tmp_path: Path) -> None:
    first, second, third = make_critique(text="c1"), make_critique(text="c2", round=1), make_critique(text="c3")
    rewritten = make_refinement(first.id, text="r1"), make_refinement(second.id, text="r2", round=1)
    refined = make_interaction(question="q1", response="a1", critiques=(first, second), refinements=rewritten)
    judged = make_interaction(question="q2", response="a2", critiques=(third,))
    imported = make_interaction(question="q3", response="a3", critiques=(), kind=Kind.IMPORT)
    edits = [
        make_feedback(judged.id, correct=True),
        make_feedback(refined.id, edited_response="outdated"),
        make_feedback(refined.id, edited_response="e1", refinement_id=rewritten[1].id),
        make_feedback(judged.id, edited_response="e2"),
        make_feedback(imported.id, edited_response="e3"),
    ]
    async with database.session() as session:
        await ensure_version_zero(session, "tiny")
        await insert_records(session, [refined, judged, imported, *edits], heldout_share=0.5)
    out = tmp_path / "rewrites.jsonl"
    to_rows = rewrite_rows(prompts.load("stepwise@1"))
    assert await export(database, out, format=ExportFormat.JSONL, filters=Filters(), to_rows=to_rows) == 3
    rows = {row["chosen"][0]["content"]: row for row in map(json.loads, out.read_text().splitlines())}
    expected = [  # the edit, the text it replaced, the critique in the prompt, the answer that the critique judged
        ("e1", "r2", "c2", "r1"),
        ("e2", "a2", "c3", "a2"),
        ("e3", "a3", None, None),
    ]
    for edit, replaced, critique, answer in expected:
        row = rows[edit]
        assert row["rejected"] == [{"role": "assistant", "content": replaced}]
        contents = [message["content"] for message in row["prompt"]]
        assert [any(text in content for content in contents) for text in ("c1", "c2", "c3")] == [
            text == critique for text in ("c1", "c2", "c3")
        ]
        assert (answer in contents) == (answer is not None)
        assert row["prompt"][-1]["role"] == "user"


async def test_a_failed_export_leaves_the_old_file(own_postgres: PostgresServer, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    async with Database(own_postgres.url, timeout_s=1.0) as database:
        async with database.session(limit_s=60) as session:
            await ensure_version_zero(session, "tiny")
            await insert_records(session, [make_interaction(critiques=()) for _ in range(1200)], heldout_share=0.2)
        with pytest.raises(StoreUnavailable):
            await export(
                database, out, format=ExportFormat.JSONL, filters=Filters(), on_progress=lambda _: own_postgres.kill()
            )
    assert out.read_text() == "old"
    assert await asyncio.to_thread(os.listdir, tmp_path) == [out.name]


async def test_an_export_needs_a_place_to_write(database: Database, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write"):
        await export(database, tmp_path / "none" / "out", format=ExportFormat.JSONL, filters=Filters())


async def test_an_export_shows_one_moment(database: Database, filled: list[Interaction], tmp_path: Path) -> None:
    async def forget_all() -> None:
        async with database.session() as session:
            await session.execute(text("DELETE FROM interactions"))

    loop = asyncio.get_running_loop()
    started: list[asyncio.Task[None]] = []
    out = tmp_path / "out.jsonl"
    await export(
        database,
        out,
        format=ExportFormat.JSONL,
        filters=Filters(),
        on_progress=lambda _: started.append(loop.create_task(forget_all())),
    )
    await asyncio.gather(*started)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 1200
    assert all(len(item["critiques"]) == 2 for item in rows)
