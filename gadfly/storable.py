"""Text and JSON in the form that Postgres can store.

The service refuses other input; a model's text cannot be refused, so it is replaced here.
"""

import math
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable_text(text: str) -> str:
    """The text with NUL and lone surrogates, which Postgres cannot store, replaced by U+FFFD."""
    if "\x00" in text:
        text = text.replace("\x00", REPLACEMENT)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(REPLACEMENT if "\ud800" <= char <= "\udfff" else char for char in text)
    return text


def storable_json(value: Any) -> Any:
    """The JSON value with every string and key made storable, and NaN and infinity, which JSON lacks, as null."""
    match value:
        case str():
            return storable_text(value)
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {storable_text(str(key)): storable_json(item) for key, item in value.items()}
        case list() | tuple():
            return [storable_json(item) for item in value]
    return value
