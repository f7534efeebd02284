"""One row to import: its fields, their conversion from what files hold, and its checks."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID, uuid5

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gadfly.fields import FilledText, Metadata
from gadfly.records import Split, now
from gadfly.rowfiles.latex import control_character, is_suspect, repaired
from gadfly.task_names import DEFAULT_TASK

TEXTS = ("question", "response", "reference")

_NAMESPACE = UUID("1f6d9c0e-5d0b-5c3e-9a52-6b7c1f0a2d11")  # of ids derived from an imported row's content
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_RIGHT = {"true", "1", "1.0", "yes", "right", "correct"}
_WRONG = {"false", "0", "0.0", "no", "wrong", "incorrect"}
_SPLITS = {"train": Split.TRAIN, "heldout": Split.HELDOUT, "held-out": Split.HELDOUT, "test": Split.HELDOUT}
REPAIRED = "rows with LaTeX commands that JSON had read as control characters: repaired"
SUSPECT = "rows where a line begins like the rest of a LaTeX command (\\nu, \\tau): stored as they are, have a look"


class BadRow(Exception):
    """A row that cannot be imported. Rows with the same `reason` are counted together; `detail` is the row's own."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def _past(value: datetime) -> datetime:
    moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    if not _EARLIEST <= moment <= now():
        raise ValueError("must lie between 1970 and now")
    return moment.astimezone(UTC)  # the same moment in any notation is the same value


class ImportRow(BaseModel):
    """A row of a file to import. Without `response` it is a question for the actor's pool, and needs a reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: FilledText
    response: FilledText | None = None
    reference: FilledText | None = None
    correct: bool | None = None
    model: FilledText | None = None
    metadata: Metadata = Field(default_factory=dict)
    created_at: Annotated[datetime, AfterValidator(_past)] | None = None
    id: FilledText | None = None
    split: Split | None = None

    def interaction_id_of(self, task: str) -> UUID:
        """Derived from all given fields but label and side: the same row is the same interaction, with any of them.

        Under another task it is another interaction.
        """
        given = self.model_dump(mode="json", exclude={"correct", "split"}, exclude_defaults=True)
        namespace = _NAMESPACE if task == DEFAULT_TASK else uuid5(_NAMESPACE, task)
        return uuid5(namespace, json.dumps(given, sort_keys=True))


FIELDS = tuple(ImportRow.model_fields)


def row_of(fields: Mapping[str, Any], *, max_text_chars: int, notes: Counter[str]) -> ImportRow:
    """The row with these fields; what had to be changed in it is counted in `notes`.

    Raises:
        BadRow: a value is missing, of the wrong kind or too long.
    """
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if not is_missing(value):
            values[name] = _CONVERSIONS.get(name, lambda _, value: value)(name, value)
    if "response" not in values and "reference" not in values:
        raise BadRow("the row has neither a response nor a reference")
    if "response" not in values and "correct" in values:
        raise BadRow("correct: there is no response that it could be about")
    was_repaired = suspect = False
    for name in TEXTS:
        if name in values:
            was_repaired |= (text := repaired(values[name])) != values[name]
            values[name] = text
            suspect |= is_suspect(text)
            if len(text) > max_text_chars:
                raise BadRow(f"{name}: must be at most {max_text_chars:,} characters")
            if (control := control_character(text)) is not None:
                raise BadRow(f"{name}: contains a control character", control)
    try:
        row = ImportRow.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise BadRow(f"{where}: {message}" if where else message) from None
    if was_repaired:
        notes[REPAIRED] += 1
    if suspect:
        notes[SUSPECT] += 1
    return row


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null, or the NaN that data frames have in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(name: str, value: Any) -> str:
    match value:
        case str() if value.isascii() or not re.search("[\ud800-\udfff]", value):
            return value
        case str():
            raise BadRow(f"{name}: must be valid Unicode: it contains a lone surrogate")
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer() and abs(value) < 2**53:
            return str(int(value))
        case int() | float() | Decimal():
            return str(value)
        case [only]:
            return _text(name, only)
    kind = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__
    raise BadRow(f"{name}: must be text or a number, not {kind}")


def _label(name: str, value: Any) -> bool:
    word = str(value).strip().casefold()
    if word in _RIGHT:
        return True
    if word in _WRONG:
        return False
    raise BadRow(f"{name}: must be true or false", repr(value)[:80])


def _object(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(f"{name}: must be a JSON object") from None


def _side(name: str, value: Any) -> Split:
    side = _SPLITS.get(str(value).strip().casefold())
    if side is None:
        raise BadRow(f"{name}: must be train or heldout", repr(value)[:80])
    return side


_CONVERSIONS = {
    "question": _text,
    "response": _text,
    "reference": _text,
    "model": _text,
    "id": _text,
    "correct": _label,
    "metadata": _object,
    "split": _side,
}
