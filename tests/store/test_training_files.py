"""Preference pairs and rows for fine-tuning, and that TRL reads them as they are."""

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gadfly.grading import Grade
from gadfly.prompts import load
from gadfly.records import Contents, Kind, Split, Subject
from gadfly.store.critics import ensure_version_zero
from gadfly.store.database import Database
from gadfly.store.files import ExportFormat, export
from gadfly.store.interactions import Filters, insert_records
from gadfly.store.training_files import MOST_PAIRS
from gadfly.verdict import Verdict
from tests.support.records import make_critique, make_feedback, make_interaction, make_refinement

PROMPTS = load("stepwise@1")
ASKED = [{"role": "user", "content": "What is 2 + 2?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
async def logged(database: Database) -> Database:
    """One question with three right and two wrong answers, one with right ones alone, one of the held-out side."""
    critiques = (
        make_critique(text="That is wrong.", stated=Verdict.INCORRECT),
        make_critique(text="That is right.", stated=Verdict.CORRECT, sample=1),
        make_critique(text="Who knows?", stated=Verdict.UNPARSED, sample=2),
        make_critique(text="By a person.", stated=Verdict.INCORRECT, supplied=True),
    )
    refinements = (
        make_refinement(critiques[0].id, text="So it is 4", grade=Grade.RIGHT),
        make_refinement(critiques[1].id, text="It stays 5", grade=Grade.WRONG),
        make_refinement(critiques[2].id, text="Not graded", grade=None),
    )
    first = make_interaction(
        response="It is 5", grade=Grade.WRONG, reference="4", critiques=critiques, refinements=refinements
    )
    records = [
        first,
        make_feedback(first.id, edited_response="2 + 2 = 4"),
        make_interaction(question="what is 2 + 2 ?", response="4!", grade=Grade.RIGHT, reference="4"),
        make_interaction(question="What is 2 + 2?", response="unlabelled"),
        make_interaction(question="What is 1 + 1?", response="2", grade=Grade.RIGHT, reference="2", kind=Kind.IMPORT),
        make_interaction(question="And 3 + 3?", response=None, reference="6", kind=Kind.IMPORT, samples=0),
    ]
    async with database.session() as session:
        await ensure_version_zero(session, "tiny")
        await insert_records(session, records, heldout_share=1e-9)
        heldout = [
            make_interaction(question="Held out?", response=response, grade=grade, reference="1")
            for response, grade in (("1", Grade.RIGHT), ("2", Grade.WRONG))
        ]
        await insert_records(session, heldout, heldout_share=1 - 1e-9)
    return database


async def exported(database: Database, path: Path, contents: Contents, subject: Subject) -> list[dict[str, Any]]:
    rows = await export(
        database,
        path,
        format=ExportFormat(path.suffix[1:]),
        filters=Filters(split=Split.TRAIN),
        contents=contents,
        subject=subject,
        prompts=PROMPTS,
    )
    read = await asyncio.to_thread(read_back, path)
    assert len(read) == rows
    return read


def read_back(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("format", ExportFormat)
async def test_right_answers_are_preferred_to_wrong_ones(
    logged: Database, tmp_path: Path, format: ExportFormat
) -> None:
    rows = await exported(logged, tmp_path / f"pairs.{format}", Contents.PAIRS, Subject.ANSWERS)
    assert [row["prompt"] for row in rows] == [ASKED] * 3
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        (said("So it is 4"), said("It is 5")),
        (said("2 + 2 = 4"), said("It stays 5")),
        (said("4!"), said("It is 5")),
    ]


async def test_right_answers_are_rows_for_fine_tuning(logged: Database, tmp_path: Path) -> None:
    rows = await exported(logged, tmp_path / "sft.jsonl", Contents.SFT, Subject.ANSWERS)
    assert {(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows} == {
        ("What is 2 + 2?", "So it is 4"),
        ("What is 2 + 2?", "2 + 2 = 4"),
        ("What is 2 + 2?", "4!"),
        ("What is 1 + 1?", "2"),
    }


async def test_critiques_whose_verdict_fits_the_label_are_preferred(logged: Database, tmp_path: Path) -> None:
    rows = await exported(logged, tmp_path / "pairs.jsonl", Contents.PAIRS, Subject.CRITIQUES)
    about_5 = [row for row in rows if "It is 5" in row["prompt"][-1]["content"]]
    asked = PROMPTS.critique(question="What is 2 + 2?", response="It is 5").messages
    assert about_5[0]["prompt"] == [{"role": message.role, "content": message.content} for message in asked]
    assert [(row["chosen"], row["rejected"]) for row in about_5] == [
        (said("That is wrong."), said("That is right.")),
        (said("That is wrong."), said("Who knows?")),
    ]


async def test_a_popular_question_gives_only_a_few_pairs(database: Database, tmp_path: Path) -> None:
    rows = [
        make_interaction(response=f"It is {number}", grade=Grade.RIGHT if number % 2 else Grade.WRONG, samples=0)
        for number in range(40)
    ]
    async with database.session() as session:
        await ensure_version_zero(session, "tiny")
        await insert_records(session, rows, heldout_share=1e-9)
    assert len(await exported(database, tmp_path / "p.jsonl", Contents.PAIRS, Subject.ANSWERS)) == MOST_PAIRS


async def test_memory_does_not_grow_with_the_rows(database: Database, tmp_path: Path) -> None:
    peaks = []
    for count in (1500, 6000):
        async with database.session(limit_s=60) as session:
            await ensure_version_zero(session, "tiny")
            rows = [
                make_interaction(
                    question=f"{count} {number // 2}?",
                    response=f"{number}" + "x" * 2000,
                    grade=Grade.RIGHT if number % 2 else Grade.WRONG,
                    samples=0,
                )
                for number in range(count)
            ]
            await insert_records(session, rows, heldout_share=1e-9)
        del rows
        tracemalloc.start()
        await export(
            database,
            tmp_path / "pairs.jsonl",
            format=ExportFormat.JSONL,
            filters=Filters(),
            contents=Contents.PAIRS,
            prompts=PROMPTS,
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], peaks


async def test_trl_reads_them_as_they_are(logged: Database, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    for format in ExportFormat:
        pair_file, sft_file = tmp_path / f"pairs.{format}", tmp_path / f"sft.{format}"
        for subject in Subject:
            await exported(logged, pair_file, Contents.PAIRS, subject)
            await exported(logged, sft_file, Contents.SFT, subject)
            builder = "json" if format is ExportFormat.JSONL else "parquet"
            cache = str(tmp_path / "cache")
            pairs = datasets.load_dataset(builder, data_files=str(pair_file), split="train", cache_dir=cache)
            sft = datasets.load_dataset(builder, data_files=str(sft_file), split="train", cache_dir=cache)
            assert pairs.column_names == ["prompt", "chosen", "rejected"]
            assert sft.column_names == ["messages"]
            assert all(data_utils.is_conversational(row) for row in pairs)
            assert all(data_utils.is_conversational(row) for row in sft)
            assert all(data_utils.maybe_extract_prompt(row)["prompt"] == row["prompt"] for row in pairs)


async def test_edited_responses_are_pairs_under_the_prompt_of_the_rewrite(database: Database, tmp_path: Path) -> None:
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
        await insert_records(session, [refined, judged, imported, *edits], heldout_share=1e-9)
    pairs = await exported(database, tmp_path / "pairs.jsonl", Contents.PAIRS, Subject.REWRITES)
    by_edit = {row["chosen"][0]["content"]: row for row in pairs}
    assert len(pairs) == len(by_edit) == 3
    expected = [
        (
            "e1",
            "r2",
            PROMPTS.refine(question="q1", response="r1", critique="c2"),
        ),  # the critique judged the first rewrite
        ("e2", "a2", PROMPTS.refine(question="q2", response="a2", critique="c3")),
        ("e3", "a3", PROMPTS.solve(question="q3")),
    ]
    for edit, replaced, prompt in expected:
        assert by_edit[edit]["rejected"] == said(replaced)
        assert by_edit[edit]["prompt"] == [
            {"role": message.role, "content": message.content} for message in prompt.messages
        ]
    conversations = await exported(database, tmp_path / "sft.jsonl", Contents.SFT, Subject.REWRITES)
    assert {row["messages"][-1]["content"] for row in conversations} == {"e1", "e2", "e3"}
