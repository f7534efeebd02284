"""`gadfly interactions`, `gadfly retrain --options` and `gadfly --version`."""

import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gadfly.cli.main import app
from gadfly.client import Client, ServiceError
from gadfly.training import TrainConfig
from tests.cli.conftest import FakeServer

ID = "019ad3a1-7c40-7000-8000-000000000000"
ITEM: dict[str, Any] = {
    "id": ID,
    "kind": "critique",
    "created_at": "2026-01-02T03:04:05Z",
    "question": "What is\n 2 + 2? " + "long " * 30,
    "response": "5\x1b[2J",
    "verdict": "incorrect",
    "grade": "no_answer",
    "critic": {"version": 3, "adapter_sha256": "ab"},
}
WHOLE = ITEM | {
    "reference": "4",
    "result": {"critique": "It is 4."},
    "feedback": [{"created_at": "2026-01-02T03:05:00Z", "correct": False, "comment": "no", "rating": None}],
}


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_interactions_are_listed_and_shown() -> None:
    page = {"items": [ITEM], "next_cursor": "more=="}
    with FakeServer(
        {
            "/interactions?limit=20": (200, page),
            "/interactions?limit=5&verdict=correct": (200, {"items": [], "next_cursor": None}),
            f"/interactions/{ID}": (200, WHOLE),
        }
    ) as server:
        code, listed, _ = run("interactions", "list", "--url", server.url)
        assert code == 0
        assert listed.splitlines()[1].split()[:8] == [
            ID,
            "2026-01-02",
            "03:04",
            "critique",
            "incorrect",
            "no",
            "answer",
            "What",
        ]
        assert "more: --cursor more==" in listed
        assert (
            "no interactions"
            in run("interactions", "list", "--limit", "5", "--verdict", "correct", "--url", server.url)[1]
        )
        code, shown, _ = run("interactions", "show", ID, "--url", server.url)
        assert code == 0
        assert "critic@3" in shown
        assert "It is 4." in shown
        assert "correct False, comment no" in shown
        assert "\x1b" not in shown
        assert json.loads(run("interactions", "show", ID, "--json", "--url", server.url)[1]) == WHOLE


def test_deleting_asks_first() -> None:
    refused = CliRunner().invoke(app, ["interactions", "delete", ID], input="n\n")
    assert refused.exit_code == 1
    assert f"Delete the interaction {ID} permanently?" in refused.stderr


def test_the_client_deletes() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.path))
        if request.url.path.endswith("gone"):
            return httpx.Response(404, json={"title": "Not found", "detail": "there is no such interaction"})
        return httpx.Response(204)

    with Client("http://127.0.0.1:1", transport=httpx.MockTransport(answer)) as client:
        client.delete_interaction(ID)
        with pytest.raises(ServiceError, match="there is no such interaction"):
            client.delete_interaction("gone")
    assert seen == [("DELETE", f"/interactions/{ID}"), ("DELETE", "/interactions/gone")]


def test_training_options_are_listed_with_their_defaults() -> None:
    code, listed, _ = run("retrain", "--options")
    assert code == 0
    lines = {line.split()[0]: line for line in listed.splitlines()[1:] if line.strip()}
    assert {*TrainConfig.model_fields} - {"alarms"} <= set(lines)
    assert "alarms.kl" in lines
    assert f" {TrainConfig().learning_rate} " in lines["learning_rate"]
    options = json.loads(run("retrain", "--options", "--json")[1])
    assert {option["name"] for option in options} == {
        name for name in lines if "." in name or name in TrainConfig.model_fields
    }


def test_the_version_is_printed() -> None:
    code, said, _ = run("--version")
    assert code == 0
    assert said.startswith("gadfly 0.")
