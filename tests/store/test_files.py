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

from gadfly.errors import BadInput, StoreUnavailable
from gadfly.grading import GRADER_VERSION, Grade, Grader
from gadfly.records import FeedbackSource, Interaction, Kind, Split
from gadfly.rowfiles.rows import REPAIRED
from gadfly.rowfiles.shapes import ColumnMap
from gadfly.store.critics import ensure_version_zero
from gadfly.store.database import Database
from gadfly.store.files import SCHEMA, ExportFormat, ImportReport, Skipped, export, import_rows
from gadfly.store.interactions import (
    Filters,
    count_rows,
    feedback_of,
    insert_records,
    list_interactions,
    stored_sides,
)
from gadfly.store.split import question_hash
from gadfly.store.training_data import count_open_questions, labelled_answers, open_questions
from tests.support.postgres import PostgresServer
from tests.support.records import make_feedback, make_interaction

Row = dict[str, Any]


@pytest.fixture
async def grader() -> AsyncIterator[Grader]:
    async with Grader(timeout_s=5.0) as grader:
        yield grader


class Importer:
    """Imports lines and keeps labels given in between."""

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
    await importer(row(correct=True))  # equals the last import: a person's later word stands
    assert await labels() == [True, False, True, False]


BAD: list[tuple[str | bytes | Row, str]] = [
    ("{", "JSON"),
    ("[]", "object"),
    ("null", "object"),
    ('"text"', "object"),
    (b'{"question": "\xff"}', "the text is not UTF-8 (byte 0xff)"),
    ({"question": "q"}, "neither a response nor a reference. The columns are question:"),
    ({"answer": "5"}, "there is no question. The columns are answer: use --map COLUMN=question"),
    ({"question": "q", "correct": True, "reference": "4"}, "correct: there is no response"),
    (row(response=[5, 6]), "response: must be text or a number, not a list"),
    (row(question="  "), "question: must not be empty"),
    (row(correct="perhaps"), "correct: must be true or false: 'perhaps'"),
    (row(correct=0.5), "correct: must be true or false: 0.5"),
    (row(split="elsewhere"), "split: must be train or heldout: 'elsewhere'"),
    (row(response="red\x1b[0m"), "response: contains a control character: U+001B"),
    (row(metadata=[1]), "metadata: Input should be"),
    (row(metadata={"a": "x" * 20_000}), "metadata: must not be larger"),
    (row(metadata={"a": ["\x00"]}), "metadata: must not contain the NUL"),
    (row(response="a\x00b"), "response: must not contain the NUL"),
    ('{"question": "q", "response": "\\ud800"}', "response: must be valid Unicode"),
    (row(refrence="4"), "the column 'refrence' is not known: did you mean 'reference'?"),
    (row(level="x" * 20_000), "metadata: must not be larger"),
    ('{"question": "q", "response": "\\sqrt 2"}', "a backslash must be written twice"),
    (row(created_at="yesterday"), "created_at: Input should be a valid datetime"),
    (row(created_at="0001-01-01T00:00:00+14:00"), "created_at: must lie between"),
    (row(created_at="2999-01-01T00:00:00Z"), "created_at: must lie between"),
    (row(response="x" * 1001), "response: must be at most 1,000 characters"),
    (row(response="x" * 200_000), "too long"),
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


async def test_a_row_with_an_unreadable_reference_keeps_its_label(importer: Importer) -> None:
    report = await importer(row(1, reference="???", correct=True), row(2, reference="4"))
    assert report == ImportReport(added=2, ungraded=1)
    assert [(item.line, item.reason.startswith("reference: ")) for item in importer.skipped] == [(1, True)]
    first, second = sorted(await importer.stored(), key=lambda item: item.question)
    assert (first.grade, first.grader) == (None, GRADER_VERSION)
    assert first.grade_problem
    assert (second.grade, second.grader, second.grade_problem) == (Grade.RIGHT, GRADER_VERSION, None)
    async with importer.database.session() as session:
        assert [item.correct for item in await feedback_of(session, first.id)] == [True]


async def test_other_columns_are_kept_and_numbers_are_read(importer: Importer) -> None:
    lines = [row(1, level=3, subject=None, metadata={"by": "x"}), row(2, reference=4.0, correct="TRUE", model=7)]
    assert await importer(*lines) == ImportReport(added=2)
    first, second = sorted(await importer.stored(), key=lambda item: item.question)
    assert first.metadata == {"level": 3, "by": "x"}
    assert (second.reference, second.grade, second.model) == ("4", Grade.RIGHT, "7")
    async with importer.database.session() as session:
        (feedback,) = await feedback_of(session, second.id)
    assert feedback.correct is True


async def test_a_question_without_a_response_is_stored_for_the_actor(importer: Importer) -> None:
    open_question = {"question": "What is 9 + 9?", "reference": "18"}
    assert await importer(open_question, row(1)) == ImportReport(added=2, without_response=1)
    assert await importer(open_question) == ImportReport(known=1)
    stored = {item.question: item for item in await importer.stored()}
    assert (stored["What is 9 + 9?"].response, stored["What is 9 + 9?"].grade) == (None, None)
    async with importer.database.session() as session:
        found = [question for split in Split for question in await open_questions(session, split, limit=10)]
        counts = sum([await count_open_questions(session, split) for split in Split])
        labelled = [answer for split in Split for answer in await labelled_answers(session, split, limit=10)]
    assert [(item.question, item.reference) for item in found] == [("What is 9 + 9?", "18")]
    assert counts == 1
    assert labelled == []
    unreadable = await importer({"question": "And this?", "reference": "???"})
    assert (unreadable.added, unreadable.ungraded, unreadable.skipped) == (1, 1, 0)


async def test_a_new_question_may_be_held_out_and_a_known_one_keeps_its_side(importer: Importer) -> None:
    async def sides() -> dict[str, Split]:
        async with importer.database.session() as session:
            return {
                item.question: (await stored_sides(session, [question_hash(item.question)])).popitem()[1]
                for item in await importer.stored()
            }

    await importer(row(1), heldout_share=1e-9)
    test_set = [row(number, split="heldout") for number in range(1, 30)]
    report = await importer(*test_set, heldout_share=1e-9)
    assert (report.added, report.skipped) == (28, 1)
    assert importer.skipped[0].line == 1
    assert report.reasons == {"split: the question is in training already, and an import moves no question": 1}
    assert [side for question, side in (await sides()).items() if question != "What is 2 + 1?"] == [Split.HELDOUT] * 28
    assert (await sides())["What is 2 + 1?"] is Split.TRAIN
    # The same rows again are known, also without their side, and none may go back into training.
    assert await importer(*test_set[1:], split=None) == ImportReport(known=28)
    assert await importer(row(5), row(6)) == ImportReport(known=2)
    back = await importer(row(7, split="train"))
    assert back.reasons == {"split: the question is held out already, and an import moves no question": 1}
    # A side for the whole file is for the rows that name none.
    assert await importer(row(40), row(41, split="train"), split=Split.HELDOUT) == ImportReport(added=2)
    assert ((await sides())["What is 2 + 40?"], (await sides())["What is 2 + 41?"]) == (Split.HELDOUT, Split.TRAIN)


async def test_two_rows_that_disagree_about_a_side_follow_the_first(importer: Importer) -> None:
    report = await importer(row(1, split="heldout"), row(1, split="train", id="other"), row(1, id="third"))
    assert (report.added, report.skipped, importer.skipped[0].line) == (2, 1, 2)


async def test_damaged_latex_is_repaired_and_counted(importer: Importer) -> None:
    lines = ['{"question": "half of 9", "response": "\\boxed{4.5}", "reference": "4.5"}', row(1)]
    report = await importer(*lines)
    assert (report.added, report.notes) == (2, {REPAIRED: 1})
    assert [item.response for item in await importer.stored() if item.question == "half of 9"] == ["\\boxed{4.5}"]


async def test_mapped_columns_are_read_and_a_misnamed_one_is_an_error(importer: Importer) -> None:
    lines = [{"prompt": "1 + 1?", "out": {"text": "It is 2"}, "gold": 2, "noise": 1}]
    columns = ColumnMap.parse(["prompt=question", "out.text=response", "reference=gold", "noise="])
    assert await importer(*lines, columns=columns) == ImportReport(added=1)
    (stored,) = await importer.stored()
    assert (stored.question, stored.response, stored.reference) == ("1 + 1?", "It is 2", "2")
    assert (stored.grade, stored.metadata) == (Grade.RIGHT, {})
    misnamed = ColumnMap.parse(["promt=question"])
    with pytest.raises(BadInput, match=r"no column 'promt'; did you mean 'prompt'\? The columns are prompt, out, gold"):
        await importer(*lines, columns=misnamed)


async def test_a_byte_order_mark_and_a_missing_last_line_end_are_no_matter(importer: Importer) -> None:
    assert await importer("\ufeff" + json.dumps(row(1)), row(2)) == ImportReport(added=2)
    assert await importer(json.dumps(row(1)) + "\r", row(2)) == ImportReport(known=2)
    assert await importer() == ImportReport()


async def test_a_file_that_cannot_be_read(importer: Importer, tmp_path: Path) -> None:
    importer.path = tmp_path / "none.jsonl"
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
