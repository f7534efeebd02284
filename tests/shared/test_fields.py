"""What a request and an imported row may carry as metadata: one rule for both."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gadfly.fields import MAX_METADATA_DEPTH
from gadfly.service.wire.answers import CritiqueRequest
from gadfly.service.wire.feedback import FeedbackRequest
from gadfly.store.files import ImportRow


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


TAKEN: list[tuple[dict[str, Any], str]] = [
    ({}, "none"),
    ({"Käse": ["🙂", None, 1.5, True]}, "any JSON"),
    ({"a": "字" * 5_400}, "16,208 bytes as UTF-8, twice as many written as escapes"),
    ({"a": 2**63 - 1}, "a large integer"),
    (nested(MAX_METADATA_DEPTH), "as deep as allowed"),
]
REFUSED: list[tuple[Any, str, str]] = [
    ({"a": "字" * 5_500}, "16,384 bytes", "16,508 bytes"),
    ({"a": "x" * 20_000}, "16,384 bytes", "too large in any encoding"),
    (nested(MAX_METADATA_DEPTH + 1), "100 deep", "one level too many"),
    ({"a": {"b": ["\x00"]}}, "NUL", "inside a list"),
    ({"\x00": 1}, "NUL", "as a key"),
    ({"a": "\ud800"}, "surrogate", "half a character"),
    ({"a": float("inf")}, "infinity", "not JSON"),
    ({"a": [float("nan")]}, "NaN", "not JSON"),
    ({"a": 2**64}, "plain JSON", "the API could not give it back"),
    ([1], "dictionary", "not an object"),
]

ANSWER = {"question": "q", "response": "r"}
SHAPES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ImportRow, ANSWER),
    (CritiqueRequest, ANSWER),
    (FeedbackRequest, {"request_id": "x", "correct": True}),
]


@pytest.mark.parametrize(("shape", "fields"), SHAPES)
@pytest.mark.parametrize(("metadata", "why"), TAKEN, ids=[why for _, why in TAKEN])
def test_taken(shape: type[BaseModel], fields: dict[str, Any], metadata: dict[str, Any], why: str) -> None:
    assert shape.model_validate({**fields, "metadata": metadata}).model_dump()["metadata"] == metadata, why


@pytest.mark.parametrize(("shape", "fields"), SHAPES)
@pytest.mark.parametrize(("metadata", "reason", "why"), REFUSED, ids=[why for _, _, why in REFUSED])
def test_refused(shape: type[BaseModel], fields: dict[str, Any], metadata: Any, reason: str, why: str) -> None:
    with pytest.raises(ValidationError, match=reason) as refusal:
        shape.model_validate({**fields, "metadata": metadata})
    assert {error["loc"][0] for error in refusal.value.errors()} == {"metadata"}, why
