"""The rubric of a judge: the prompt by which a model grades, and how its reply is read."""

import re
from collections.abc import Mapping
from pathlib import Path

from gadfly.errors import BadSettings
from gadfly.grading import Grade
from gadfly.prompts import Message, Prompt
from gadfly.tasks.manifest import JudgeGrader

_SLOT = re.compile(r"\{(question|response|answer|reference)\}")
_NEEDED = ("answer", "response")  # one of them
_GRADES = {
    "right": Grade.RIGHT,
    "correct": Grade.RIGHT,
    "wrong": Grade.WRONG,
    "incorrect": Grade.WRONG,
    "no answer": Grade.NO_ANSWER,
}
_MARKS = r"[ \t*_#>-]{0,12}"


def read_rubric(spec: JudgeGrader, folder: Path) -> str:
    """The text of a rubric.

    Raises:
        BadSettings: it cannot be read, or does not ask for the line that is read from the reply.
    """
    path = folder / spec.rubric
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadSettings(f"{path} is not UTF-8 text: save it as UTF-8") from None
    slots = set(_SLOT.findall(text))
    if not slots.intersection(_NEEDED):
        raise BadSettings(f"{path}: the rubric shows no answer: write {{answer}} or {{response}} where it belongs")
    if "reference" not in slots:
        raise BadSettings(f"{path}: the rubric shows no reference: write {{reference}} where it belongs")
    if f"{field_of(spec)}:" not in text:
        expected = "a number" if spec.threshold is not None else "right, wrong or no answer"
        raise BadSettings(
            f"{path}: the rubric does not ask for the line that is read: have the judge end with "
            f'"{field_of(spec)}: ..." and {expected}'
        )
    return text


def field_of(spec: JudgeGrader) -> str:
    """The field of a judge's reply that states the grade."""
    return "Grade" if spec.threshold is None else "Score"


def fill(rubric: str, values: Mapping[str, str]) -> Prompt:
    """The prompt for one answer. The name of a slot inside a value is not replaced."""
    return Prompt((Message("user", _SLOT.sub(lambda slot: values[slot[1]], rubric)),))


def read_grade(spec: JudgeGrader, reply: str) -> Grade:
    """The grade that a judge's reply states; NO_ANSWER where it states none, or more than one."""
    lines = re.findall(rf"^{_MARKS}{field_of(spec)}{_MARKS}:([^\n]*)$", reply, re.IGNORECASE | re.MULTILINE)
    if len(lines) != 1:
        return Grade.NO_ANSWER
    value = lines[0].strip(" \t*_.`").casefold()
    if spec.threshold is None:
        return _GRADES.get(value, Grade.NO_ANSWER)
    number = re.fullmatch(r"(-?\d{1,9}(?:\.\d{1,9})?)(?:\s*(?:/|out of)\s*\d{1,9})?", value)
    return Grade.NO_ANSWER if number is None else spec.grade_of(float(number[1]))
