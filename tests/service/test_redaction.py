"""Redaction: texts change before anything is stored, and a redactor that fails stores nothing."""

import re
from pathlib import Path
from typing import Any

import pytest

from gadfly.errors import BadSettings, StoreUnavailable
from gadfly.records import Interaction
from gadfly.redaction import open_redactor, redacted
from gadfly.settings import Settings
from tests.service.conftest import make_settings
from tests.support.instant import instant_engine
from tests.support.records import make_feedback, make_interaction
from tests.support.services import serving

HERE = __name__


def hide_names(texts: list[str]) -> list[str]:
    return [re.sub(r"\bAnn\b", "<PERSON>", text) for text in texts]


async def hide_names_later(texts: list[str]) -> list[str]:
    return hide_names(texts)


def fail(texts: list[str]) -> list[str]:
    raise ValueError(texts[0])


def lose_one(texts: list[str]) -> list[str]:
    return texts[1:]


@pytest.mark.parametrize("name", ["hide_names", "hide_names_later"])
async def test_every_text_of_a_record_is_redacted(name: str) -> None:
    redactor = open_redactor(f"{HERE}:{name}")
    assert redactor is not None
    interaction = make_interaction(
        refined=True,
        question="Ann has 2 pens",
        refined_response="Ann has 4",
        reference="Ann",
        metadata={"user": {"name": "Ann", "names": ["Ann", 7, None]}},
        conversation={
            "messages": [
                {"role": "Ann", "content": "I am Ann"},
                {"role": "user", "content": [{"type": "text", "text": "Ann"}]},
            ]
        },
    )
    stored = await redacted(interaction, redactor)
    assert isinstance(stored, Interaction)
    assert stored.question == "<PERSON> has 2 pens"
    assert (stored.refined_response, stored.reference) == ("<PERSON> has 4", "<PERSON>")
    assert stored.metadata == {"user": {"name": "<PERSON>", "names": ["<PERSON>", 7, None]}}
    first, second = stored.conversation["messages"]  # type: ignore[index]
    assert first == {"role": "Ann", "content": "I am <PERSON>"}, "a role is no text"
    assert second["content"] == [{"type": "text", "text": "<PERSON>"}]
    assert (stored.id, stored.critiques[0].p_correct) == (interaction.id, interaction.critiques[0].p_correct)
    said = await redacted(make_feedback(interaction.id, comment="Ann says no", edited_response="Ann: 5"), redactor)
    assert (said.comment, said.edited_response) == ("<PERSON> says no", "<PERSON>: 5")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["fail", "lose_one"])
async def test_a_redactor_that_fails_is_an_error_without_the_text(name: str) -> None:
    redactor = open_redactor(f"{HERE}:{name}")
    assert redactor is not None
    with pytest.raises(StoreUnavailable) as refusal:
        await redacted(make_interaction(question="Ann"), redactor)
    assert "Ann" not in str(refusal.value)


def test_a_redactor_that_does_not_exist_is_named() -> None:
    for setting in ("no_such_module:f", f"{HERE}:nothing", f"{HERE}:HERE"):
        with pytest.raises(BadSettings, match="the redactor"):
            open_redactor(setting)
    with pytest.raises(BadSettings, match="neither module:function nor"):
        Settings.load({"redactor": "presidio"})
    assert open_redactor("") is None


async def test_callers_get_their_answer_and_the_store_gets_the_redacted_one(tmp_path: Path, database_url: str) -> None:
    with instant_engine(tmp_path) as engine:
        settings = make_settings(tmp_path, database_url, engine, redactor=f"{HERE}:hide_names")
        async with serving(settings) as client:
            body: dict[str, Any] = {"question": "Ann has 2 pens. How many?", "response": "Ann: 2"}
            answer = (await client.post("/critique", json=body)).json()
            stored = (await client.get(f"/interactions/{answer['id']}")).json()
            assert (stored["question"], stored["response"]) == ("<PERSON> has 2 pens. How many?", "<PERSON>: 2")
            # The episode and the critique are found by the question as it is stored.
            more = {**body, "episode_id": answer["episode_id"], "critique_id": answer["critiques"][0]["id"]}
            refined = await client.post("/refine", json=more)
            assert refined.status_code == 200, refined.text


async def test_without_its_service_nothing_is_stored(tmp_path: Path, database_url: str) -> None:
    with instant_engine(tmp_path) as engine:
        settings = make_settings(tmp_path, database_url, engine, redactor="http://127.0.0.1:9/redact")
        async with serving(settings) as client:
            refused = await client.post("/critique", json={"question": "Ann?", "response": "Ann"})
            assert (refused.status_code, refused.json()["detail"]) == (
                503,
                "the redactor did not answer: ConnectError",
            )
            assert (await client.get("/interactions")).json()["items"] == []
