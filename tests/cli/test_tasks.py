"""`gadfly tasks`: the list, the faults of a folder, and the grades of a file's rows."""

import asyncio
import json
from collections import Counter
from pathlib import Path

from sqlalchemy import text
from typer.testing import CliRunner, Result

from gadfly.cli.main import app
from gadfly.errors import BadSettings
from gadfly.store.database import Database
from tests.support.tasks import write_task

QUERY = "SELECT name FROM products"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["tasks", *map(str, arguments)])


def done(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_built_in_tasks_are_listed_shown_and_in_order(tmp_path: Path) -> None:
    listed = json.loads(done("list", "--json"))
    assert [task["name"] for task in listed] == ["math", "sql"]
    assert all(task["version"] in done("list") for task in listed)
    shown = done("show", "sql")
    assert "databases ['shop.sql', 'shop-2.sql']" in shown
    assert "[critique: system]" in shown
    assert json.loads(done("show", "math", "--json"))["prompt_set"] == "stepwise@1"
    assert "choice grader" in done("check", write_task(tmp_path, 'kind = "choice"'))
    assert "25% of the answers are right by guessing" in done("show", tmp_path)


def test_what_a_task_sets_itself_about_training_is_shown(tmp_path: Path) -> None:
    own = '[training]\nsteps_stage_1 = 3\n[schedule]\ncron = "0 * * * *"'
    folder = write_task(
        tmp_path / "towns", f'kind = "choice"\n{own}', head='name = "towns"\ndescription = "d"', prompts=None
    )
    flags = ("--tasks", folder, "--train-after-labels", "9", "--home", tmp_path)
    listed = {task["name"]: task for task in json.loads(done("list", "--json", *flags))}
    assert listed["towns"]["training"] == {"steps_stage_1": 3}
    assert listed["towns"]["schedule"] == {"cron": "0 * * * *", "after_labels": 9, "own": ["cron"]}
    assert (listed["math"]["training"], listed["math"]["schedule"]["own"]) == ({}, [])
    shown = done("show", folder, *flags[2:])
    assert "trained   0 * * * * and after 9 labels" in shown
    assert 'training  {"steps_stage_1": 3}' in shown
    assert "trained   on request" in done("show", "math", "--home", tmp_path)


def test_a_folder_with_a_fault_is_refused(tmp_path: Path) -> None:
    result = run("check", write_task(tmp_path, 'kind = "python"\nentry = "gone:grade"'))
    assert isinstance(result.exception, BadSettings)
    result = run("show", write_task(tmp_path, 'kind = "magic"'))
    assert "kind must be one of" in str(result.exception)


def test_rows_are_tried_before_they_are_imported(tmp_path: Path) -> None:
    rows = [
        {"question": "Names?", "response": f"```sql\n{QUERY}\n```", "reference": QUERY, "correct": True},
        {"question": "Ids?", "response": "```sql\nSELECT id FROM products\n```", "reference": QUERY, "correct": False},
        {"question": "Faulty?", "response": "```sql\nSELECT 1\n```", "reference": "SELECT nme FROM products"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    said = done("try", "sql", file)
    assert "1  right" in said
    assert "1  with a reference that the grader cannot use" in said
    assert "line 3: The reference does not run on shop.sql: no such column: nme." in said
    assert "100.0% agreement with the labels of people (kappa 1.00)" in said
    counts = json.loads(done("try", "sql", file, "--json"))
    assert counts["grades"] == {"right": 1, "wrong": 1}
    file.write_text(json.dumps(rows[2]))
    refused = run("try", "sql", file)
    assert refused.exit_code == 1


def test_rows_are_imported_under_their_task_and_no_other(database_url: str) -> None:
    examples = Path(__file__).parents[2] / "examples"

    def imported(*flags: str) -> Result:
        file = str(examples / "data" / "invoices.jsonl")
        return CliRunner().invoke(app, ["import", file, "--database-url", database_url, *flags])

    first = imported("--task", str(examples / "invoices"))
    assert first.stdout.strip() == "9 rows added, 0 already stored, 0 skipped", first.output
    again = imported("--task", str(examples / "invoices"))
    assert again.stdout.strip() == "0 rows added, 9 already stored, 0 skipped", again.output
    assert imported().stdout.startswith("9 rows added, 0 already stored"), "under another task they are other rows"

    async def stored() -> list[tuple[str, str | None]]:
        async with Database(database_url) as database, database.session() as session:
            rows = await session.execute(text("SELECT task, grade FROM interactions ORDER BY grade"))
            return [(row.task, row.grade) for row in rows]

    assert Counter(asyncio.run(stored())) == {
        ("invoices", "right"): 4,
        ("invoices", "wrong"): 4,
        ("invoices", "no_answer"): 1,
        ("math", "no_answer"): 9,
    }


def test_an_added_task_is_listed_and_named_from_then_on(tmp_path: Path, database_url: str) -> None:
    examples = Path(__file__).parents[2] / "examples"
    home = ("--home", str(tmp_path / "home"))
    assert "is in" in done("add", examples / "invoices", *home)
    listed = {task["name"]: task["use"] for task in json.loads(done("list", "--json", *home))}
    assert listed == {"math": "default", "invoices": "served", "sql": None}
    file = str(examples / "data" / "invoices.jsonl")
    flags = ["--task", "invoices", "--database-url", database_url, *home]
    assert CliRunner().invoke(app, ["import", file, *flags]).stdout.startswith("9 rows added")
    made = CliRunner().invoke(app, ["keys", "create", "--task", "invoices", "--json", *flags[2:]])
    assert json.loads(made.stdout)["tasks"] == ["invoices"]
    refused = CliRunner().invoke(app, ["keys", "create", "--tier", "admin", "--task", "invoices", *flags[2:]])
    assert "only a key of the tier caller has tasks or scopes" in str(refused.exception)
    refused = CliRunner().invoke(app, ["keys", "create", "--task", "birds", *flags[2:]])
    assert "the task 'birds' is not served here" in str(refused.exception)
    out = tmp_path / "rows.jsonl"
    assert CliRunner().invoke(app, ["export", str(out), "--task", "math", *flags[2:]]).stdout.startswith("0 inter")
    assert CliRunner().invoke(app, ["export", str(out), *flags[2:]]).stdout.startswith("9 interactions")


def test_what_a_function_of_the_task_raises_is_shown(tmp_path: Path) -> None:
    code = "def grade(answer, reference, question):\n    raise LookupError('no such table')\n"
    task = write_task(tmp_path / "task", 'kind = "python"\nentry = "mine:grade"', files={"mine.py": code})
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "Q", "response": "R", "reference": "S"}))
    said = done("try", task, file)
    assert "1  that the grader itself failed on" in said
    assert "failed: LookupError: no such table" in said
