"""The API's edges: what refusals say, HEAD, other origins, and the description that clients are generated from."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gadfly.errors import BadSettings
from gadfly.service.app import create_app
from gadfly.service.wire.answers import CritiqueResult, RefineResult, result_of
from gadfly.settings import Settings
from tests.service.conftest import RIGHT, make_settings
from tests.support.records import make_interaction
from tests.support.services import serving


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """A service whose engine is not there: nothing here needs one."""
    return make_settings(tmp_path, database_url, "http://127.0.0.1:1")


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings, ready=False) as client:
        yield client


@pytest.mark.parametrize("choice", ["latest", "3", True, 1.5, None])
async def test_an_unknown_critic_is_one_sentence(client: httpx.AsyncClient, choice: object) -> None:
    answer = await client.post("/critique", json={**RIGHT, "critic": choice})
    assert answer.status_code == 422
    sentence = f"must be live, candidate, or the number of a version, not {str(choice)!r}"
    assert answer.json()["errors"] == [{"field": "critic", "message": sentence}]


def test_a_brief_answer_holds_each_text_once() -> None:
    single, several = make_interaction(), make_interaction(samples=2)
    refined = make_interaction(refined=True, parameters={"votes": 1})
    text = single.critiques[0].text
    assert len(result_of(single, brief=True).model_dump_json()) < 0.7 * len(result_of(single).model_dump_json())
    brief = result_of(single, brief=True)
    assert isinstance(brief, CritiqueResult)
    assert (brief.critiques, brief.critique) == ([], text)
    assert result_of(several, brief=True) == result_of(several), "two critiques are not one"
    whole, short = result_of(refined), result_of(refined, brief=True)
    assert isinstance(whole, RefineResult)
    assert isinstance(short, RefineResult)
    assert (len(whole.samples), short.samples) == (1, [])
    assert short.rounds == whole.rounds


async def test_monitors_may_ask_with_head(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz", "/state", "/metrics"):
        answer = await client.head(path)
        assert (answer.status_code, answer.content) == ((await client.get(path)).status_code, b"")


async def test_named_origins_may_call_from_a_web_page(settings: Settings) -> None:
    page = "https://app.example.org"
    async with serving(settings.model_copy(update={"cors_origins": (page,)}), ready=False) as client:
        asked = {
            "origin": page,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,idempotency-key,x-stainless-os",
        }
        assert (await client.options("/critique", headers=asked)).headers["access-control-allow-origin"] == page
        refused = await client.options("/critique", headers={**asked, "origin": "https://other.example.org"})
        assert "access-control-allow-origin" not in refused.headers
        answer = await client.get("/critics", headers={"origin": page})
        for header in ("X-Gadfly-Critic", "X-Gadfly-Interaction-Id"):
            assert header in answer.headers["access-control-expose-headers"]
    async with serving(settings, ready=False) as client:
        assert "access-control-allow-origin" not in (await client.get("/critics", headers={"origin": page})).headers


@pytest.mark.parametrize("origin", ["*", "app.example.org", "https://app.example.org/path", "https://*.example.org"])
def test_an_origin_is_scheme_and_host(origin: str) -> None:
    with pytest.raises(BadSettings, match="is not an origin"):
        Settings.load({"cors_origins": origin})


def test_the_description_names_operations_errors_and_examples() -> None:
    document = create_app(Settings()).openapi()
    operations = {
        operation["operationId"]: operation for path in document["paths"].values() for operation in path.values()
    }
    assert {"critique", "refine", "feedback", "list_interactions", "retrain", "promote", "healthz"} <= set(operations)
    assert all("_" not in name or name.count("_") == 1 for name in operations), "no name is made of a path"
    for operation in operations.values():
        for status, response in operation["responses"].items():
            if status[0] in "45" and "application/problem+json" in response.get("content", {}):
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
    schemas = document["components"]["schemas"]
    assert (
        schemas["Problem"]["properties"]["errors"]["anyOf"][0]["items"]["$ref"] == "#/components/schemas/FieldProblem"
    )
    assert "FieldProblem" in schemas
    for name in ("CritiqueRequest", "RefineRequest", "FeedbackRequest", "RetrainRequest", "PromoteRequest"):
        assert schemas[name]["examples"], name
