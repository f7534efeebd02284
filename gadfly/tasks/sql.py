"""Rules for SQL: a query is right when it selects the same rows as the reference, on every database of the task.

Several databases of one schema with different rows tell queries apart that agree on one of them by chance (Zhong et
al., arXiv 2010.02840). The databases are in memory, read-only, and made again for each grading process.
"""

import math
import re
import sqlite3
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from gadfly.errors import BadSettings
from gadfly.grading import Grade, Submission
from gadfly.tasks.manifest import AnswerForm, SqlGrader
from gadfly.tasks.rules import AnswerRules

MAX_ROWS = 10_000

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_REFUSED_FUNCTIONS = {"load_extension", "random", "randomblob"}  # the latter two: a query must select the same twice
_MAX_VALUE_BYTES = 2**20
_STEPS_PER_LOOK = 10_000  # of SQLite's machine between two looks at the clock
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)


class Selected(NamedTuple):
    """The rows that a query selects, or why there are none."""

    rows: tuple[tuple[Any, ...], ...] = ()
    error: str = ""
    is_late: bool = False


class SqlRules(AnswerRules):
    """A query of the answer against a query of the reference.

    Args:
        limit_s: for one query on one database.

    Raises:
        BadSettings: a database's script cannot be run.
    """

    def __init__(self, spec: SqlGrader, form: AnswerForm, folder: Path, *, limit_s: float) -> None:
        super().__init__(form)
        self._databases = {name: open_database(folder / name) for name in spec.databases}
        self._limit_s = limit_s
        self._expected = lru_cache(maxsize=1024)(self._select_on_all)

    def fault(self, reference: str) -> str:
        selected = self._expected(reference)
        for name, found in zip(self._databases, selected, strict=True):
            if found.is_late:
                return f"The reference takes longer than {self._limit_s:.2g} s on {name}: send a simpler query."
            if found.error:
                return f"The reference does not run on {name}: {found.error}."
            if len(found.rows) > MAX_ROWS:
                return f"The reference selects more than {MAX_ROWS:,} rows on {name}: send a query for fewer."
        if not any(found.rows for found in selected):
            return "The reference selects nothing, so that any query without rows would be right: send another one."
        return ""

    def compare(self, answer: str, submission: Submission) -> Grade:
        is_ordered = _is_ordered(submission.reference)
        is_sure = True
        for database, expected in zip(self._databases.values(), self._expected(submission.reference), strict=True):
            given = _select(database, answer, limit_s=self._limit_s, most=len(expected.rows) + 1)
            if given.is_late:
                return Grade.NO_ANSWER
            if given.error:
                return Grade.WRONG
            match _agree(expected.rows, given.rows, is_ordered=is_ordered):
                case Grade.WRONG:
                    return Grade.WRONG
                case Grade.NO_ANSWER:
                    is_sure = False
        return Grade.RIGHT if is_sure else Grade.NO_ANSWER

    def _select_on_all(self, query: str) -> tuple[Selected, ...]:
        return tuple(
            _select(database, query, limit_s=self._limit_s, most=MAX_ROWS + 1) for database in self._databases.values()
        )


def open_database(script: Path) -> sqlite3.Connection:
    """A database in memory, filled by a script, from which nothing but rows can be selected.

    Raises:
        BadSettings: the script cannot be read or run.
    """
    database = sqlite3.connect(":memory:", isolation_level=None)
    try:
        database.executescript(script.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSettings(f"{script} cannot be read: {error.strerror}") from None
    except sqlite3.Error as error:
        raise BadSettings(f"{script} does not run in SQLite: {error}") from None
    database.execute("PRAGMA query_only = ON")
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    database.set_authorizer(_authorise)
    return database


def _authorise(action: int, _: str | None, name: str | None, *__: str | None) -> int:
    if action in _ALLOWED:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (name or "").casefold() not in _REFUSED_FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _select(database: sqlite3.Connection, query: str, *, limit_s: float, most: int) -> Selected:
    """Up to `most` rows of a query."""
    ends = time.process_time() + limit_s
    database.set_progress_handler(lambda: time.process_time() > ends, _STEPS_PER_LOOK)
    try:
        cursor = database.execute(query)
        if cursor.description is None:
            return Selected(error="it is not a query")
        return Selected(rows=tuple(map(tuple, cursor.fetchmany(most))))
    except sqlite3.OperationalError as error:
        return Selected(error=str(error), is_late=str(error) == "interrupted")
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return Selected(error=str(error))
    finally:
        database.set_progress_handler(None, 0)


def _agree(expected: Sequence[Sequence[Any]], given: Sequence[Sequence[Any]], *, is_ordered: bool) -> Grade:
    """Whether two selections are equal. NO_ANSWER: only the order of rows or columns differs, which may not matter.

    The order of rows that the reference's ORDER BY holds equal is not defined, and a question rarely says which column
    comes first.
    """
    if len(expected) != len(given):
        return Grade.WRONG
    if _is_equal(expected, given):
        return Grade.RIGHT
    if _is_equal(_sorted(expected), _sorted(given)):
        return Grade.NO_ANSWER if is_ordered else Grade.RIGHT
    as_sets = [_sorted([sorted(row, key=_place) for row in rows]) for rows in (expected, given)]
    return Grade.NO_ANSWER if _is_equal(*as_sets) else Grade.WRONG


def _sorted(rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    return sorted(rows, key=lambda row: [_place(value) for value in row])


def _place(value: Any) -> tuple[int, Any]:
    """The place of a value among values of any type; numbers that are nearly equal are neighbours."""
    match value:
        case None:
            return 0, 0
        case int() | float():
            return 1, round(float(value), 6) if math.isfinite(value) else value
        case str():
            return 2, value
    return 3, value


def _is_equal(one: Sequence[Sequence[Any]], other: Sequence[Sequence[Any]]) -> bool:
    return all(
        len(left) == len(right) and all(map(_is_same, left, right)) for left, right in zip(one, other, strict=True)
    )


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        if not (isinstance(one, int | float) and isinstance(other, int | float)):
            return False
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return type(one) is type(other) and bool(one == other)


def _is_ordered(query: str) -> bool:
    """Whether the query itself, and not only one inside it, has ORDER BY."""
    text = _QUOTED.sub(" ", query)
    while (inner := re.sub(r"\([^()]*\)", " ", text)) != text:
        text = inner
    return bool(_ORDERED.search(text))
