"""A task tried on a file: outcomes are counted, errors shown, and the grader compared with labels."""

import json
from pathlib import Path

import pytest

from gadfly.errors import BadInput
from gadfly.grading import Grade
from gadfly.guessing import corrected_for_guessing
from gadfly.rowfiles.shapes import NO_MAPPING, ColumnMap
from gadfly.settings import Settings
from gadfly.tasks import load_task, open_grader
from gadfly.tasks.trial import Trial, try_task
from tests.support.tasks import write_task


async def tried(folder: Path, file: Path, columns: ColumnMap = NO_MAPPING, most: int | None = None) -> Trial:
    task = load_task(str(folder))
    async with open_grader(task, Settings()) as grader:
        return await try_task(task, str(file), grader=grader, max_text_chars=1000, columns=columns, most=most)


async def test_outcomes_and_faults_are_counted(tmp_path: Path) -> None:
    write_task(tmp_path / "task", 'kind = "choice"')
    rows = [
        {"question": "Q1", "response": "B", "reference": "B", "correct": True},
        {"question": "Q2", "response": "A", "reference": "B", "correct": True},
        {"question": "Q3", "response": "well", "reference": "B", "correct": False},
        {"question": "Q4", "response": "B", "reference": "Z"},
        {"question": "Q5", "reference": "B"},
        {"question": "Q6", "response": "A", "correct": False},
        {"response": "A"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "not JSON\n")
    trial = await tried(tmp_path / "task", file)
    assert trial.rows == 8
    assert trial.grades == {Grade.RIGHT: 1, Grade.WRONG: 1, Grade.NO_ANSWER: 1}
    assert (trial.bad_references, trial.bad_rows, trial.without) == (1, 2, 2)
    assert [(fault.number, fault.reason.partition(":")[0]) for fault in trial.faults] == [
        (4, "The reference 'Z' is not a letter from A to D"),
        (7, "there is no question. The columns are response"),
        (8, "not JSON"),
    ]
    assert trial.accuracy == 0.5
    assert trial.agreement == 0.5  # of two labels that the grader could tell


async def test_columns_of_other_names_are_mapped_and_a_part_is_enough(tmp_path: Path) -> None:
    write_task(tmp_path / "task")
    file = tmp_path / "rows.csv"
    file.write_text("ask;said;gold\nQ1;Rome;rome\nQ2;Paris;rome\n")
    columns = ColumnMap.parse(["ask=question", "said=response", "gold=reference"])
    assert (await tried(tmp_path / "task", file, columns)).grades == {Grade.RIGHT: 1, Grade.WRONG: 1}
    assert (await tried(tmp_path / "task", file, columns, most=1)).grades == {Grade.RIGHT: 1}
    with pytest.raises(BadInput, match="there is no column 'answer'"):
        await tried(tmp_path / "task", file, ColumnMap.parse(["answer=response"]))


async def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    write_task(tmp_path / "task")
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(BadInput, match="has no rows"):
        await tried(tmp_path / "task", tmp_path / "rows.jsonl")


def test_agreement_and_kappa_by_hand() -> None:
    trial = Trial()
    trial.labelled.update(
        {
            (True, Grade.RIGHT): 20,
            (True, Grade.WRONG): 5,
            (False, Grade.RIGHT): 10,
            (False, Grade.WRONG): 15,
            (False, Grade.NO_ANSWER): 7,
        }
    )
    assert trial.agreement == 35 / 50
    assert trial.kappa == pytest.approx(0.4)  # (0.7 - 0.5) / (1 - 0.5), the textbook's table
    assert Trial().agreement is None
    alike = Trial()
    alike.labelled[True, Grade.RIGHT] = 3
    assert alike.kappa is None  # both say right every time: no chance to agree by more than chance


@pytest.mark.parametrize(("share", "corrected"), [(0.25, 0.0), (1.0, 1.0), (0.625, 0.5), (0.0, -1 / 3)])
def test_guessing_alone_knows_nothing(share: float, corrected: float) -> None:
    assert corrected_for_guessing(share, 0.25) == pytest.approx(corrected)
