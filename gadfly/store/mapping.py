"""Rows from records and records from rows, by field name.

A field of a record and the column of its table have the same name. Token counts are the exception: `usage` is one field
and two columns. Fields without a column of their own, and columns without a field, are passed by name.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from gadfly.records import Usage
from gadfly.store.tables import Table

T = TypeVar("T")


def values_of(table: type[Table], record: Any, **given: Any) -> dict[str, Any]:
    """The columns of a record's row by name, for an INSERT; `given` adds columns or replaces their values."""
    values = {column: getattr(record, column) for column in _columns(table, record.__class__)}
    if _has_usage(record.__class__):
        values |= {"prompt_tokens": record.usage.prompt_tokens, "completion_tokens": record.usage.completion_tokens}
    return values | given


def columns_of(table: type[Table], kind: Any, *given: str) -> tuple[str, ...]:
    """The names of the columns that `values_of` gives for a record of this kind."""
    usage = ("prompt_tokens", "completion_tokens") if _has_usage(kind) else ()
    return (*_columns(table, kind), *usage, *given)


def record_of(kind: Callable[..., T], row: Any, **given: Any) -> T:
    """The record that a row holds; `given` adds fields or replaces their values."""
    values = {
        column: getattr(row, attribute)
        for column, attribute in _columns(row.__class__, kind).items()
        if column not in given
    }
    if _has_usage(kind):
        values["usage"] = Usage(prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens)
    return kind(**values | given)


@cache
def _columns(table: type[Table], kind: Any) -> dict[str, str]:
    """The columns that are fields too, each with the name of its attribute on a row."""
    attributes = {
        column.name: table.__mapper__.get_property_by_column(column).key for column in table.__table__.columns
    }
    return {field.name: attributes[field.name] for field in fields(kind) if field.name in attributes}


@cache
def _has_usage(kind: Any) -> bool:
    return any(field.name == "usage" for field in fields(kind))
