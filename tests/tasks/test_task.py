"""Tasks are loaded from folders, and a message names a fault's file and field."""

import json
import re
from pathlib import Path

import pytest

from gadfly import prompts
from gadfly.errors import BadSettings
from gadfly.grading import GRADER_VERSION
from gadfly.tasks import DEFAULT_TASK, available, load_task
from gadfly.tasks.check import notes_about
from tests.support.tasks import PROMPTS, write_task

HEAD = 'name = "t"\ndescription = "d"\n'
JUDGE = 'kind = "judge"\nmodel = "m"\nrubric = "rubric.txt"'
WRONG = [  # the difference from a correct task, words of the message, why this row exists
    ({"head": 'name = "My Task"\ndescription = "d"'}, "task.toml: name: ", "no identifier"),
    ({"head": 'name = "sql"\ndescription = "d"'}, "name: 'sql' is the name of a built-in task", "a name that is taken"),
    ({"head": 'name = "t"'}, "task.toml: description: is missing: add it", "a missing field"),
    ({"head": 'name = "t"\ndescription = "d"\nprompt = "p"'}, "prompt: there is no such field", "a misspelt field"),
    ({"grader": 'kind = "exactly"'}, "grader: kind must be one of 'math', 'exact'", "an unknown kind"),
    ({"grader": 'tolerance = 1'}, "grader.kind: is missing: add it", "no kind"),
    ({"grader": 'kind = "exact"\nignorecase = true'}, "grader.ignorecase: there is no such field", "a misspelt option"),
    ({"answer": None}, "[answer] is missing", "a grader that needs the form of an answer"),
    ({"grader": 'kind = "math"'}, '[answer] is not for a grader of kind "math"', "a form where none is used"),
    ({"answer": 'form = "after"'}, "answer: marker is for the forms", "a form without its marker"),
    ({"answer": 'form = "whole"\nlanguage = "sql"'}, "language is for the form", "an option of another form"),
    ({"answer": 'form = "boxed"'}, "answer.form: ", "an unknown form"),
    ({"head": HEAD + 'prompts = "p.toml"'}, "prompts = 'p.toml': there is no such file", "file"),
    ({"head": HEAD + 'prompts = "no@1"'}, "prompts: there is no prompt set 'no@1'", "a set"),
    ({"head": HEAD + 'prompts = "../p.toml"'}, "inside the task's folder", "a file outside"),
    ({"prompts": PROMPTS.replace("{response} to", "it to")}, "critique: no message contains {response}", "a slot"),
    ({"prompts": PROMPTS.replace('role = "assistant"', 'role = "user"')}, "messages need an assistant turn", "-"),
    ({"prompts": PROMPTS.replace('"Right"', '"Wrong"')}, "both verdicts have the word 'Wrong'", "a word"),
    ({"prompts": PROMPTS.replace("[refine]", "[rewrite]")}, "rewrite: there is no such field", "a misspelt section"),
    ({"prompts": "x ="}, "prompts.toml is not TOML", "no TOML"),
    ({"grader": 'kind = "json"\nschema = "s.json"'}, "grader.schema = 's.json': there is no such file", "a schema"),
    ({"grader": 'kind = "json"\nthreshold = 2'}, "grader.threshold: ", "a share above 1"),
    ({"grader": 'kind = "exact"\nanswers = ["only"]'}, "grader.answers: list at least two answers", "one answer"),
    ({"grader": 'kind = "python"\nentry = "grade"'}, "grader.entry: ", "an entry point without a function"),
    ({"grader": 'kind = "python"\nentry = "a:b"\nwrong_below = 1.0'}, "wrong_below needs a threshold", "half a scale"),
    ({"grader": 'kind = "sql"\ndatabases = ["d.sql"]', "files": {"d.sql": "CREATE TBL"}}, "not run in SQLite", "-"),
    ({"grader": 'kind = "exact"\n[training]\nsteps = 3'}, "training.steps: there is no such field", "misspelt"),
    ({"grader": 'kind = "exact"\n[training]\nlearning_rate = 0'}, "training.learning_rate: ", "out of bounds"),
    ({"grader": 'kind = "exact"\n[training.alarms]\nkl = -1'}, "training.alarms.kl: ", "an option of a group"),
    ({"grader": 'kind = "exact"\n[training]\nminibatches = 99'}, "training: minibatches cannot be", "not by itself"),
    ({"grader": 'kind = "exact"\n[training]\nseed = "none"\nclip = "none"'}, "training.clip: ", "is never null"),
    ({"grader": 'kind = "exact"\n[schedule]\ncron = "daily at 3"'}, "schedule.cron: 'daily at 3' is not in", "cron"),
    ({"grader": 'kind = "exact"\n[schedule]\nafter_labels = -1'}, "schedule.after_labels: ", "a negative count"),
    ({"grader": 'kind = "exact"\n[schedule]\nlabels = 5'}, "schedule.labels: there is no such field", "misspelt"),
    ({"grader": JUDGE, "files": {"rubric.txt": "{answer}?"}}, "the rubric shows no reference", "a rubric's slot"),
    ({"grader": JUDGE, "files": {"rubric.txt": "{answer} {reference}"}}, 'end with "Grade: ..."', "a rubric's line"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message", "reason"), WRONG, ids=[f"{row[1][:40]}, {row[2]}" for row in WRONG])
def test_what_is_wrong_is_said_by_file_and_field(
    changes: dict[str, object], message: str, reason: str, tmp_path: Path
) -> None:
    write_task(tmp_path / "task", **changes)  # type: ignore[arg-type]
    with pytest.raises(BadSettings, match=re.escape(message)) as raised:
        load_task(str(tmp_path / "task"))
    assert str(tmp_path / "task") in str(raised.value), reason


def test_an_unknown_task_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"there is no task 'sudoku': the built-in tasks are math, sql"):
        load_task("sudoku")
    with pytest.raises(BadSettings, match=r"is not a task: it has no file task\.toml"):
        load_task(str(tmp_path))


@pytest.mark.parametrize("name", available())
def test_every_built_in_task_loads_and_shows_what_is_parsed(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert notes_about(task.prompt_set("stepwise@1")) == []


def test_mathematics_keeps_its_prompts_and_the_version_of_its_grader() -> None:
    math = load_task(DEFAULT_TASK)
    assert math.prompt_set("critique-rl@1") is prompts.load("critique-rl@1")
    assert math.grader_version == GRADER_VERSION


def test_the_version_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = load_task(str(write_task(tmp_path / "one")))
    assert load_task(str(write_task(tmp_path / "two"))).sha256 == first.sha256
    edited = load_task(str(write_task(tmp_path / "two", prompts=PROMPTS.replace("Judge", "Check"))))
    assert edited.sha256 != first.sha256
    assert edited.prompt_set("").name != first.prompt_set("").name
    assert edited.grader_version == first.grader_version  # stored grades are those that it would give
    (tmp_path / "two" / "rows.jsonl").write_text("{}")
    assert load_task(str(tmp_path / "two")).sha256 == edited.sha256  # not a part of the task


@pytest.mark.parametrize(
    ("grader", "changed", "changes_grades"),
    [
        ('kind = "exact"', 'kind = "exact"\nignore_case = false', True),
        ('kind = "http"', 'kind = "http"\ntimeout_s = 5', False),
        ('kind = "http"', 'kind = "http"\nthreshold = 0.5', True),
    ],
)
def test_grades_get_another_version_when_their_rules_change(
    grader: str, changed: str, changes_grades: bool, tmp_path: Path
) -> None:
    before = load_task(str(write_task(tmp_path, grader))).grader_version
    after = load_task(str(write_task(tmp_path, changed))).grader_version
    assert (before != after) is changes_grades
    assert GRADER_VERSION < after < 2**31


def test_the_modules_of_a_task_are_a_part_of_its_version(tmp_path: Path) -> None:
    spec = 'kind = "python"\nentry = "mine:grade"'
    before = load_task(str(write_task(tmp_path, spec, files={"mine.py": "", "helper.py": "LIMIT = 1"})))
    after = load_task(str(write_task(tmp_path, spec, files={"helper.py": "LIMIT = 2"})))
    assert before.grader_version != after.grader_version


def test_guessing_is_known_where_the_answers_are(tmp_path: Path) -> None:
    assert load_task(str(write_task(tmp_path, 'kind = "choice"\nchoices = 5'))).guess_rate == 0.2
    assert load_task(str(write_task(tmp_path, 'kind = "exact"\nanswers = ["yes", "no"]'))).guess_rate == 0.5
    assert load_task(str(write_task(tmp_path))).guess_rate is None


def test_equal_answers_have_one_key(tmp_path: Path) -> None:
    exact = load_task(str(write_task(tmp_path, answer='form = "after"\nmarker = "Answer:"')))
    assert exact.key("Well.\nAnswer:  Rome ", False) == exact.key("answer: rome", False) == "rome"
    assert exact.key("Rome", False) is None
    schema = json.dumps({"type": "object"})
    fields = load_task(
        str(
            write_task(
                tmp_path,
                'kind = "json"\nschema = "s.json"\n[grader.fields]\na = "exact"',
                answer='form = "json"',
                files={"s.json": schema},
            )
        )
    )
    assert fields.key('{"b": 1, "a": 2}', False) == fields.key('So {"a": 2, "b": 5}', False)
    letters = load_task(str(write_task(tmp_path, 'kind = "choice"', answer=None)))
    assert letters.key("The answer is (C).", False) == "C"


def test_prompts_that_show_no_format_get_a_note(tmp_path: Path) -> None:
    [format_note] = notes_about(load_task(str(write_task(tmp_path))).prompt_set(""))[:1]
    assert "'Correctness of the final answer:'" in format_note
