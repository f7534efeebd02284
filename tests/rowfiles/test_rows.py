from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from gadfly.records import Split
from gadfly.rowfiles.rows import BadRow, row_of

PLAIN = {"question": "What is 2 + 2?", "response": "4"}
WHOLE = PLAIN | {
    "reference": "4",
    "correct": True,
    "model": "m",
    "metadata": {"b": [1], "a": "ü"},
    "created_at": "2025-03-01T12:00:00+02:00",
    "id": "x1",
}


@pytest.mark.parametrize(
    ("fields", "id"),
    [(PLAIN, "59161aa3-5298-5d96-a2b6-a42d1f7d7735"), (WHOLE, "f6e0a222-36cd-5d42-b4a7-88a81e4911ab")],
)
def test_rows_that_release_0_1_0_imported_are_known(fields: dict[str, Any], id: str) -> None:
    for label in (True, False, None):
        for split in (*Split, None):
            row = row_of({**fields, "correct": label, "split": split}, max_text_chars=1000, notes=Counter())
            assert row.interaction_id_of("math") == UUID(id), "neither label nor side makes another row"


READ: list[tuple[str, Any, Any]] = [
    ("reference", 42, "42"),
    ("reference", 42.0, "42"),
    ("reference", -0.5, "-0.5"),
    ("reference", True, "true"),
    ("reference", ["42"], "42"),
    ("reference", 1e300, "1e+300"),
    ("response", 7, "7"),
    ("correct", "False", False),
    ("correct", 1.0, True),
    ("correct", "incorrect", False),
    ("correct", float("nan"), None),
    ("split", "Test", Split.HELDOUT),
    ("split", "held-out", Split.HELDOUT),
    ("metadata", '{"a": 1}', {"a": 1}),
]


@pytest.mark.parametrize(("name", "value", "expected"), READ)
def test_values_as_files_hold_them(name: str, value: Any, expected: Any) -> None:
    assert getattr(row_of({**PLAIN, name: value}, max_text_chars=1000, notes=Counter()), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("reference", ["4", "5"]), ("reference", {"a": 1}), ("correct", 2), ("correct", "0.5"), ("metadata", "text")],
)
def test_values_that_are_in_doubt_are_refused(name: str, value: Any) -> None:
    with pytest.raises(BadRow, match=f"^{name}: "):
        row_of({**PLAIN, name: value}, max_text_chars=1000, notes=Counter())
