"""Types of external input, shared by HTTP requests, imported rows and the files of tasks."""

import math
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, PlainSerializer, ValidationError

MAX_METADATA_BYTES = 16_384
MAX_METADATA_DEPTH = 100


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode: it contains a lone surrogate") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _storable_metadata(value: dict[str, Any]) -> dict[str, Any]:
    check_storable(value)
    try:
        size = len(orjson.dumps(value))
    except TypeError as error:  # an integer of more than 64 bits, which the API could not return
        raise ValueError(f"must be plain JSON: {error}") from None
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"must not be larger than {MAX_METADATA_BYTES:,} bytes as UTF-8")
    return value


def check_storable(item: Any, *, depth: int = 0) -> None:
    """Check that JSON can be stored: texts without NUL and lone surrogates, finite numbers, at most 100 levels.

    Raises:
        ValueError: it cannot.
    """
    if depth > MAX_METADATA_DEPTH:
        raise ValueError(f"must not be nested more than {MAX_METADATA_DEPTH} deep")
    match item:
        case str():
            _storable(item)
        case float() if not math.isfinite(item):
            raise ValueError("must not contain NaN or infinity")
        case dict():
            for key, inner in item.items():
                _storable(key)
                check_storable(inner, depth=depth + 1)
        case list():
            for inner in item:
                check_storable(inner, depth=depth + 1)


Text = Annotated[str, AfterValidator(_storable)]
"""A text that Postgres can store: valid Unicode without NUL."""

FilledText = Annotated[str, Field(min_length=1), AfterValidator(_not_blank), AfterValidator(_storable)]
"""A `Text` that is not only white space."""

Metadata = Annotated[dict[str, JsonValue], AfterValidator(_storable_metadata)]
"""A JSON object of at most 16 KiB as UTF-8 and 100 levels, with texts that Postgres can store and finite numbers."""

HexBytes = Annotated[
    bytes,
    BeforeValidator(lambda value: bytes.fromhex(value) if isinstance(value, str) else value),
    PlainSerializer(bytes.hex, when_used="json"),
]
"""Bytes, in JSON as hexadecimal digits."""


def problems_of(error: ValidationError, *, union: str = "") -> str:
    """What is wrong in a file that a user wrote, field by field, with what to do.

    `union` names a field whose types differ in their field `kind`.
    """
    found = []
    for item in error.errors(include_url=False, include_input=False):
        where = [str(part) for part in item["loc"]]
        if where[:1] == [union]:
            del where[1:2]  # the kind, which is no field
        message = item["msg"].removeprefix("Value error, ")
        match item["type"]:
            case "extra_forbidden":
                message = "there is no such field: remove it, or correct its name"
            case "missing":
                message = "is missing: add it"
            case "union_tag_not_found":
                where, message = [*where, "kind"], "is missing: add it"
            case "union_tag_invalid":
                message = f"kind must be one of {item['ctx']['expected_tags']}"
        found.append(f"{'.'.join(where)}: {message}" if where else message)
    return "; ".join(found)
