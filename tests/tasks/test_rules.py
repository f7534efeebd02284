"""Graders of the grading process: their grades, and the references that they refuse."""

import logging
import time
from pathlib import Path

import pytest

from gadfly.errors import BadSettings, UnreadableReference
from gadfly.grading import Grade, Submission, group_by_answer
from gadfly.settings import Settings
from gadfly.tasks import load_task, open_grader
from gadfly.tasks.task import load_rules
from tests.support.tasks import write_task

RIGHT, WRONG, NO_ANSWER = Grade.RIGHT, Grade.WRONG, Grade.NO_ANSWER
SETTINGS = Settings(grade_timeout_s=1.0)

SCHEMA = """{"type": "object", "required": ["total"], "properties": {"total": {"type": "number"}}}"""
FIELDS = """kind = "json"
threshold = 0.6
[grader.fields]
name = "text"
total = "number"
tags = "unordered"
"""
EXACT = 'kind = "exact"\nignore_punctuation = true\nseparator = "|"'
LABELS = 'kind = "exact"\nanswers = ["positive", "negative"]'
CASES = [  # grader, response, reference, grade, why this row exists
    ('kind = "exact"', "New  York", "new york", RIGHT, "case and space"),
    ('kind = "exact"\nignore_case = false', "rome", "Rome", WRONG, "case counts where it is told to"),
    ('kind = "exact"', "Rome.", "Rome", WRONG, "punctuation counts"),
    (EXACT, "“Rome”.", "Roma|Rome", RIGHT, "punctuation, quotation marks and the second of two right answers"),
    (EXACT, "Paris", "Roma|Rome", WRONG, "neither"),
    (EXACT, "...", "Rome", NO_ANSWER, "nothing but punctuation"),
    (LABELS, "Positive", "positive", RIGHT, "one of the answers"),
    (LABELS, "negative", "positive", WRONG, "the other"),
    (LABELS, "neutral", "positive", NO_ANSWER, "none of the answers that there are"),
    ('kind = "choice"', "b", "(B)", RIGHT, "a letter in another notation"),
    ('kind = "choice"', "C) Rome", "B", WRONG, "a letter with its text"),
    ('kind = "choice"', "E", "B", NO_ANSWER, "a letter that is no option"),
    ('kind = "choice"', "Because of B", "B", NO_ANSWER, "a sentence where a letter was expected"),
    ('kind = "regex"', "order-17", r"order-\d+", RIGHT, "the whole answer matches"),
    ('kind = "regex"', "my order-17", r"order-\d+", WRONG, "only a part does"),
    ('kind = "regex"\nmatch = "search"\nignore_case = true', "my ORDER-17", r"order-\d+", RIGHT, "a part is enough"),
    ('kind = "json"', '{"b": [1, 2], "a": 1.0}', '{"a": 1, "b": [1, 2]}', RIGHT, "order of names, and 1.0 is 1"),
    ('kind = "json"', '{"a": true}', '{"a": 1}', WRONG, "true is not 1"),
    ('kind = "json"', '{"a": 1, "b": null}', '{"a": 1}', WRONG, "one name more"),
    ('kind = "json"', '{"a": 1, "a": 2}', '{"a": 2}', NO_ANSWER, "a name twice is two answers"),
    ('kind = "json"', '{"a": NaN}', '{"a": 1}', NO_ANSWER, "no JSON"),
    ('kind = "json"', "{a: 1}", '{"a": 1}', NO_ANSWER, "no JSON"),
    ('kind = "json"\nschema = "s.json"', '{"total": "3"}', '{"total": 3}', WRONG, "violates the schema"),
    (FIELDS, '{"name": "ADA  B", "total": "1,200.0", "tags": [2, 1]}', '{"name": "Ada b", "total": 1200, "tags":[1,2]}',
        RIGHT, "each field by its own comparison"),
    (FIELDS, '{"name": "Ada", "total": 3, "x": 1}', '{"name": "Ada", "total": 3, "tags": [1]}', RIGHT, "two of three"),
    (FIELDS, '{"name": "Ada"}', '{"name": "Ada", "total": 3, "tags": [1]}', WRONG, "one of three"),
    (FIELDS, "[1]", '{"name": "Ada"}', WRONG, "a list where an object is expected"),
]  # fmt: skip
REFUSED = [  # grader, reference, words of the message
    ('kind = "exact"', "  ", "is empty"),
    ('kind = "exact"', "x" * 20_001, "more than 20,000 characters"),
    (EXACT, "Rome|", "states an empty answer"),
    (LABELS, "neutral", "is none of the answers of this task: positive, negative"),
    ('kind = "choice"', "E", "is not a letter from A to D"),
    ('kind = "choice"', "Because", "is not a letter from A to D"),
    ('kind = "regex"', "(", "is not a regular expression"),
    ('kind = "regex"', ".*", "every answer might be right"),
    ('kind = "json"', "{", "is not JSON"),
    ('kind = "json"\nschema = "s.json"', '{"total": "3"}', "violates the schema at $.total"),
    (FIELDS, "[1]", "must be a JSON object"),
]


@pytest.mark.parametrize(
    ("grader", "response", "reference", "expected", "reason"), CASES, ids=[row[4] for row in CASES]
)
def test_case(grader: str, response: str, reference: str, expected: Grade, reason: str, tmp_path: Path) -> None:
    task = load_task(str(write_task(tmp_path, grader, files={"s.json": SCHEMA})))
    rules = load_rules(task.manifest, task.folder, limit_s=1.0)
    assert rules.problem(reference) == "", reason
    assert rules.grade(Submission(response, reference)) is expected, reason


@pytest.mark.parametrize(("grader", "reference", "message"), REFUSED)
def test_a_reference_that_cannot_be_used_is_its_senders_error(
    grader: str, reference: str, message: str, tmp_path: Path
) -> None:
    task = load_task(str(write_task(tmp_path, grader, files={"s.json": SCHEMA})))
    assert message in load_rules(task.manifest, task.folder, limit_s=1.0).problem(reference)


def test_a_letter_is_found_as_mathematics_finds_it(tmp_path: Path) -> None:
    task = load_task(str(write_task(tmp_path, 'kind = "choice"', answer=None)))
    rules = load_rules(task.manifest, task.folder, limit_s=1.0)
    said = ["A is too small, so the answer is B.", "The answer is C.", "The answer is B, but C could also be right"]
    assert [rules.grade(Submission(text, "B")) for text in said] == [RIGHT, WRONG, NO_ANSWER]


async def test_the_grading_process_grades_and_counts_votes(tmp_path: Path) -> None:
    task = load_task(str(write_task(tmp_path, EXACT, answer='form = "last_line"')))
    async with open_grader(task, SETTINGS) as grader:
        await grader.start()
        rows = [("Well.\nRome", "Rome"), ("Paris", "Rome"), ("", "Rome"), ("Rome", "Rome|")]
        right, wrong, nothing, refused = await grader.grade_all(rows)
        assert (right, wrong, nothing) == (RIGHT, WRONG, NO_ANSWER)
        assert isinstance(refused, UnreadableReference)
        assert grader.version == task.grader_version
        texts = ["Rome", "I say\nrome.", "Paris", "", ""]
        assert await group_by_answer(grader, texts) == [[0, 1], [2], [3, 4]]
        assert await group_by_answer(grader, texts, cut={1}) == [[0], [1], [2], [3, 4]]


async def test_a_pattern_that_runs_away_is_ended_and_the_next_answer_graded(tmp_path: Path) -> None:
    task = load_task(str(write_task(tmp_path, 'kind = "regex"')))
    started = time.monotonic()
    async with open_grader(task, SETTINGS) as grader:
        runaway = "(a+)+b"
        assert await grader.grade_all([("a" * 40, runaway), ("ab", runaway)]) == [NO_ANSWER, RIGHT]
    assert time.monotonic() - started < 120


MINE = """
import helper

def grade(answer, reference, question):
    print("this must not disturb the protocol")
    if answer == "crash":
        raise KeyError(answer)
    if answer == "loop":
        while True:
            pass
    if answer == "score":
        return 0.7
    return None if answer == "unsure" else helper.same(answer, reference + question)

def check(reference):
    if reference.isdigit():
        raise ValueError("Send a word, not a number.")
"""
HELPER = "def same(one, other):\n    return one == other\n"


async def test_a_tasks_own_function_grades(tmp_path: Path) -> None:
    spec = 'kind = "python"\nentry = "mine:grade"\ncheck = "mine:check"'
    task = load_task(str(write_task(tmp_path, spec, files={"mine.py": MINE, "helper.py": HELPER})))
    failures: list[str] = []
    async with open_grader(task, SETTINGS, on_failure=failures.append) as grader:
        texts = ["ab", "a", "unsure", "crash", "score", "loop", "ab"]
        graded = await grader.grade_all([Submission(text, "a", question="b") for text in texts])
        assert graded == [RIGHT, WRONG, NO_ANSWER, NO_ANSWER, NO_ANSWER, NO_ANSWER, RIGHT]
        [refused] = await grader.grade_all([("a", "17")])
    assert str(refused) == "Send a word, not a number."
    assert [failure.strip().splitlines()[-1] for failure in failures] == [
        "KeyError: 'crash'",
        "TypeError: the grader returned 0.7; it must return true, false or null",
    ]


@pytest.mark.parametrize(
    ("scale", "score", "grade"),
    [
        ("threshold = 0.7", "0.7", RIGHT),
        ("threshold = 0.7", "0.69", WRONG),
        ("threshold = 0.7\nwrong_below = 0.3", "0.3", NO_ANSWER),
        ("threshold = 0.7\nwrong_below = 0.3", "0.29", WRONG),
        ("threshold = 0.7", "None", NO_ANSWER),
    ],
)
def test_a_score_has_a_threshold(scale: str, score: str, grade: Grade, tmp_path: Path) -> None:
    # A module of its own each time: Python would keep the first one.
    name = f"score_{abs(hash((scale, score)))}"
    code = f"def grade(answer, reference, question):\n    return {score}\n"
    spec = f'kind = "python"\nentry = "{name}:grade"\n{scale}'
    task = load_task(str(write_task(tmp_path, spec, files={f"{name}.py": code})))
    assert load_rules(task.manifest, task.folder, limit_s=1.0).grade(Submission("x", "y")) is grade


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ("absent_module:grade", "", "there is no module absent_module, in"),
        ("mine_a:missing", "", "the module mine_a has no function missing"),
        ("mine_b:grade", "def grade(answer): ...", "is called with (answer, reference, question)"),
        ("mine_c:grade", "1 / 0", "mine_c cannot be imported: ZeroDivisionError"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_said(entry: str, code: str, message: str, tmp_path: Path) -> None:
    files = {f"{entry.partition(':')[0]}.py": code} if code or "missing" in entry else {}
    task = load_task(str(write_task(tmp_path, f'kind = "python"\nentry = "{entry}"', files=files)))
    with pytest.raises(BadSettings) as raised:
        load_rules(task.manifest, task.folder, limit_s=1.0)
    assert message in str(raised.value)


async def test_a_grader_that_cannot_start_is_our_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.CRITICAL)
    task = load_task(str(write_task(tmp_path, 'kind = "python"\nentry = "gone:grade"')))
    async with open_grader(task, SETTINGS) as grader:
        with pytest.raises(RuntimeError, match="does not start"):
            await grader.start()
    assert "there is no module gone" in capfd.readouterr().err
