"""The OpenAPI document: what generated clients and /docs need of it."""

import json
from typing import Any

import jsonschema
import pytest

from gadfly.service.app import create_app
from gadfly.settings import Settings


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings.load({"home": str(tmp_path_factory.mktemp("home"))}))
    described: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return described


def test_no_two_shapes_have_one_name(document: dict[str, Any]) -> None:
    """FastAPI tells them apart by their modules, and client generators refuse or rename them."""
    schemas = document["components"]["schemas"]
    assert [name for name in schemas if "__" in name] == []
    titles = [schema["title"] for schema in schemas.values() if "title" in schema]
    assert len(titles) == len(set(titles))


def test_every_body_has_an_example_that_it_accepts(document: dict[str, Any]) -> None:
    bodies = {
        f"{method.upper()} {path}": operation["requestBody"]["content"]["application/json"]["schema"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "requestBody" in operation
    }
    assert "POST /critique" in bodies
    for route, schema in bodies.items():
        name = schema["$ref"].rpartition("/")[2]
        examples = document["components"]["schemas"][name].get("examples", [])
        assert examples, f"{route} has no example: /docs would show placeholders"
        for example in examples:
            jsonschema.validate(example, {**schema, "components": document["components"]})


def test_operations_have_short_names(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for each in document["paths"].values() for operation in each.values()]
    assert len(names) == len(set(names))
    assert {"critique", "refine", "feedback", "retrain", "promote", "rollback"} <= set(names)
    assert all(name.isidentifier() and "post" not in name for name in names)
