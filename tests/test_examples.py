"""The examples run as they are, with the results that their texts state."""

import asyncio
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from gadfly.records import Split
from gadfly.store.database import Database
from gadfly.store.interactions import count_rows
from gadfly.store.training_data import open_questions
from tests.cli.test_exchange import publish
from tests.service.conftest import make_settings
from tests.support.services import serving

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(*arguments: str | Path, url: str | None = None, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")} | variables
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(EXAMPLES.parent)
    if url is not None:
        environment["GADFLY_DATABASE_URL"] = url
    done = subprocess.run(
        [str(argument) for argument in arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rows_come_in_and_training_data_goes_out(database_url: str, tmp_path: Path) -> None:
    imported = run(EXAMPLES / "import_a_csv.sh", url=database_url)
    assert imported.splitlines() == [
        "12 rows added, 0 already stored, 0 skipped",
        "5 rows added, 0 already stored, 0 skipped",
        "0 rows added, 5 already stored, 0 skipped",
    ]
    held_out = run(EXAMPLES / "hold_out_a_test_set.sh", url=database_url)
    assert held_out.startswith("3 rows added (3 of them questions without a response)")

    async def stored() -> None:
        async with Database(database_url) as database, database.session() as session:
            counts = await count_rows(session)
            assert sum(counts.labelled.values()) == 17
            assert len(await open_questions(session, Split.HELDOUT, limit=10)) == 3

    asyncio.run(stored())
    run(EXAMPLES / "export_pairs.sh", tmp_path, url=database_url)
    pairs = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    train = [json.loads(line) for line in (tmp_path / "interactions.jsonl").read_text().splitlines()]
    questions = {row["question"] for row in train if row["split"] == "train" and row["label"] is False}
    asked = {row["prompt"][0]["content"] for row in pairs}
    assert asked == {question for question in questions if sum(row["question"] == question for row in train) == 2}
    assert all(row["chosen"] != row["rejected"] for row in pairs)
    assert (tmp_path / "conversations.jsonl").read_text().count("\n") == sum(
        row["split"] == "train" and bool(row["label"]) for row in train
    )


def test_a_critic_is_pushed_and_pulled(database_url: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    first, second = tmp_path / "first", tmp_path / "second"
    asyncio.run(publish(database_url, first, model))
    pulled = run(
        EXAMPLES / "push_and_pull.sh",
        "1",
        tmp_path / "pushed",
        second,
        url=database_url,
        GADFLY_HOME=str(first),
        GADFLY_MODEL=str(model),
    )
    assert "version 1 is the candidate" in pulled
    [folder] = (second / "adapters").iterdir()
    assert (folder / "probe.json").is_file()


def test_a_task_of_ones_own_is_tried() -> None:
    said = run(EXAMPLES / "task_of_your_own.sh").splitlines()
    assert said[0].startswith("invoices ")
    assert "is a task: json grader" in said[0]
    assert "100.0% agreement with the labels of people (kappa 1.00):" in said
    assert [line.strip() for line in said[-3:]] == ["3  right", "3  wrong", "1  no answer"]


def test_the_labels_of_the_first_hour_are_what_the_grader_says(tmp_path: Path) -> None:
    script = importlib.util.spec_from_file_location("first_hour", EXAMPLES / "first_hour.py")
    assert script is not None
    assert script.loader is not None
    first_hour = importlib.util.module_from_spec(script)
    script.loader.exec_module(first_hour)
    rows = tmp_path / "rows.jsonl"
    labelled = list(first_hour.receipts(random.Random("test"), 18))
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in labelled))
    for file, count in ((EXAMPLES / "data" / "receipts.jsonl", 3), (rows, 18)):
        said = run(Path(sys.executable).with_name("gadfly"), "tasks", "try", EXAMPLES / "receipts", file)
        assert "100.0% agreement with the labels of people (kappa 1.00):" in said
        assert f"labelled wrong: graded 0 right, {count} wrong, 0 no answer" in said


async def test_python_asks(tmp_path: Path, database_url: str, engine_url: str) -> None:
    async with serving(make_settings(tmp_path, database_url, engine_url)) as client:
        said = await asyncio.to_thread(run, sys.executable, EXAMPLES / "ask_from_python.py", str(client.base_url))
    assert "critic 0 says: " in said
    assert "rewritten: " in said
    assert said.rstrip().endswith("by the reference the answer is wrong")
