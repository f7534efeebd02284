"""The rules of graders that compare an answer with its reference in the grading process.

`gadfly.tasks.child` runs them there, under limits of time and memory.
"""

import json
import math
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gadfly.errors import BadSettings
from gadfly.grading import Grade, Submission
from gadfly.grading.answers import find_answer
from gadfly.grading.kinds import MAX_REFERENCE_CHARS, Choice, Reference
from gadfly.grading.numbers import Unread
from gadfly.tasks.answers import stated_answer
from gadfly.tasks.manifest import (
    AnswerForm,
    ChoiceGrader,
    ExactGrader,
    FieldComparison,
    JsonGrader,
    RegexGrader,
)

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
_PUNCTUATION = ".,;:!?"
_LETTER = re.compile(r"[(\[*\s]*([A-Ja-j])[)\]*]{0,3}\s*(?:[.):,\n](?s:.*))?")


class AnswerRules(ABC):
    """What the rules of all kinds share: the form of an answer, and a reference's limits. As `gadfly.grading.Rules`."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form

    def problem(self, reference: str) -> str:
        if not reference.strip():
            return "The reference is empty: send the right answer."
        if len(reference) > MAX_REFERENCE_CHARS:
            return f"The reference has more than {MAX_REFERENCE_CHARS:,} characters: send a shorter one."
        return self.fault(reference)

    def grade(self, submission: Submission) -> Grade:
        answer = stated_answer(self._form, submission.response, is_cut=submission.is_cut)
        return Grade.NO_ANSWER if answer is None else self.compare(answer, submission)

    def preparation(self, reference: str) -> Callable[[], object] | None:
        return None

    @abstractmethod
    def fault(self, reference: str) -> str:
        """Why `reference`, which is neither empty nor too long, cannot be used; empty if it can."""

    @abstractmethod
    def compare(self, answer: str, submission: Submission) -> Grade:
        """The grade of an answer, whose reference has no fault."""

    def key(self, answer: str) -> str:
        """The answer in a form in which equal answers are equal."""
        return " ".join(answer.split())


class ExactRules(AnswerRules):
    """Equality after normalisation."""

    def __init__(self, spec: ExactGrader, form: AnswerForm) -> None:
        super().__init__(form)
        self._spec = spec
        self._answers = {self.key(answer) for answer in spec.answers}

    def fault(self, reference: str) -> str:
        right = self._right(reference)
        if not all(right):
            return f"The reference {reference[:60]!r} states an empty answer: leave it out."
        if self._answers and (unknown := sorted(right - self._answers)):
            return f"The reference {unknown[0][:60]!r} is none of the answers of this task: {self._listed()}."
        return ""

    def compare(self, answer: str, submission: Submission) -> Grade:
        given = self.key(answer)
        if not given or (self._answers and given not in self._answers):
            return Grade.NO_ANSWER
        return Grade.RIGHT if given in self._right(submission.reference) else Grade.WRONG

    def key(self, answer: str) -> str:
        text = unicodedata.normalize("NFC", answer)
        if self._spec.ignore_space:
            text = " ".join(text.split())
        if self._spec.ignore_punctuation:
            text = text.strip(_PUNCTUATION + " ")
            while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
                text = text[1:-1].strip(_PUNCTUATION + " ")
        return text.casefold() if self._spec.ignore_case else text

    def _right(self, reference: str) -> set[str]:
        parts = reference.split(self._spec.separator) if self._spec.separator else [reference]
        return {self.key(part) for part in parts}

    def _listed(self) -> str:
        return ", ".join(self._spec.answers)


class ChoiceRules(AnswerRules):
    """One letter of a few. Without a form, `gadfly.grading` finds it, with its rules against hedging."""

    def __init__(self, spec: ChoiceGrader, form: AnswerForm | None) -> None:
        super().__init__(form or AnswerForm())
        self._reads_whole = form is None
        self._letters = "ABCDEFGHIJ"[: spec.choices]

    def fault(self, reference: str) -> str:
        if self._letter(reference) is None:
            return f"The reference {reference[:60]!r} is not a letter from A to {self._letters[-1]}: send the letter."
        return ""

    def grade(self, submission: Submission) -> Grade:
        if not self._reads_whole:
            return super().grade(submission)
        letter = read_choice(submission.response, is_cut=submission.is_cut)
        if letter is None:
            return Grade.NO_ANSWER
        return Grade.RIGHT if letter == self._letter(submission.reference) else Grade.WRONG

    def compare(self, answer: str, submission: Submission) -> Grade:
        letter = self._letter(answer)
        if letter is None:
            return Grade.NO_ANSWER
        return Grade.RIGHT if letter == self._letter(submission.reference) else Grade.WRONG

    def key(self, answer: str) -> str:
        return self._letter(answer) or super().key(answer)

    def _letter(self, text: str) -> str | None:
        found = _LETTER.fullmatch(text.strip())
        letter = found[1].upper() if found else ""
        return letter if letter and letter in self._letters else None


def read_choice(response: str, *, is_cut: bool = False) -> str | None:
    """The letter that a response chooses, by the rules of `gadfly.grading.answers`."""
    answer, _ = find_answer(response, Reference("A", Choice("A")), is_cut=is_cut)
    return None if isinstance(answer, Unread) or not isinstance(answer, Choice) else answer.letter


class RegexRules(AnswerRules):
    """A match of the reference, a regular expression of Python. One that takes too long ends the grading process."""

    def __init__(self, spec: RegexGrader, form: AnswerForm) -> None:
        super().__init__(form)
        self._is_full = spec.match == "full"
        self._flags = re.IGNORECASE if spec.ignore_case else 0

    def fault(self, reference: str) -> str:
        try:
            pattern = re.compile(reference, self._flags)
        except (re.error, RecursionError, OverflowError) as error:
            return f"The reference {reference[:60]!r} is not a regular expression: {error}."
        if pattern.fullmatch("") if self._is_full else pattern.search(""):
            return f"The reference {reference[:60]!r} matches no text at all, so every answer might be right."
        return ""

    def compare(self, answer: str, submission: Submission) -> Grade:
        pattern = re.compile(submission.reference, self._flags)
        is_match = pattern.fullmatch(answer) if self._is_full else pattern.search(answer)
        return Grade.RIGHT if is_match else Grade.WRONG


class JsonRules(AnswerRules):
    """JSON values, compared as a whole or field by field.

    Raises:
        BadSettings: the schema cannot be read.
    """

    def __init__(self, spec: JsonGrader, form: AnswerForm, folder: Path) -> None:
        super().__init__(form)
        self._spec = spec
        self._schema = read_schema(folder / spec.schema_file) if spec.schema_file else None

    def fault(self, reference: str) -> str:
        try:
            value = _parsed(reference)
        except ValueError as error:
            return f"The reference {reference[:60]!r} is not JSON: {error}."
        if self._schema is not None and (violation := next(self._schema.iter_errors(value), None)) is not None:
            return f"The reference violates the schema at {violation.json_path}: {violation.message[:200]}."
        if self._spec.fields and not isinstance(value, dict):
            return "The reference must be a JSON object: the task compares its fields."
        return ""

    def compare(self, answer: str, submission: Submission) -> Grade:
        try:
            given = _parsed(answer)
        except ValueError:
            return Grade.NO_ANSWER
        expected = _parsed(submission.reference)
        if self._schema is not None and not self._schema.is_valid(given):
            return Grade.WRONG
        if not self._spec.fields:
            return Grade.RIGHT if self._is_equal(FieldComparison.EXACT, expected, given) else Grade.WRONG
        if not isinstance(given, dict):
            return Grade.WRONG
        equal = sum(self._is_equal(how, expected.get(name), given.get(name)) for name, how in self._spec.fields.items())
        return Grade.RIGHT if equal / len(self._spec.fields) >= self._spec.threshold else Grade.WRONG

    def key(self, answer: str) -> str:
        try:
            value = _parsed(answer)
        except ValueError:
            return super().key(answer)
        if self._spec.fields and isinstance(value, dict):
            value = {name: value.get(name) for name in self._spec.fields}
        return json.dumps(value, sort_keys=True)

    def _is_equal(self, how: FieldComparison, expected: Any, given: Any) -> bool:
        match how:
            case FieldComparison.TEXT if isinstance(expected, str) and isinstance(given, str):
                return " ".join(expected.split()).casefold() == " ".join(given.split()).casefold()
            case FieldComparison.NUMBER:
                one, other = _number(expected), _number(given)
                if one is not None and other is not None:
                    return math.isclose(one, other, rel_tol=self._spec.tolerance, abs_tol=self._spec.tolerance)
            case FieldComparison.UNORDERED if isinstance(expected, list) and isinstance(given, list):
                return Counter(map(_canonical, expected)) == Counter(map(_canonical, given))
        return _canonical(expected) == _canonical(given)


def read_schema(path: Path) -> "Validator":
    """The schema in a file, ready to validate.

    Raises:
        BadSettings: the file cannot be read, or is no JSON Schema.
    """
    # With some of its extras, jsonschema takes two seconds to import, and few tasks have a schema.
    from jsonschema import Draft202012Validator  # noqa: PLC0415
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415
    from jsonschema.validators import validator_for  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadSettings(f"{path} is not JSON: {error}") from None
    except SchemaError as error:
        raise BadSettings(f"{path} is not a JSON Schema: {error.json_path}: {error.message}") from None
    return kind(schema, registry=Registry())  # its own registry, so that no schema is fetched


def _parsed(text: str) -> Any:
    """Raises ValueError: not JSON, nested too deeply, or a name stands twice in one object."""

    def once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands twice in one object")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, strict=False, object_pairs_hook=once, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _canonical(value: Any) -> str:
    """The value as text: objects without regard to order, 1 and 1.0 the same number, true and 1 different."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {name: _plain(item) for name, item in value.items()}
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d[\d,]{0,40}(?:\.\d{0,40})?\s*", value):
        value = float(value.replace(",", ""))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
