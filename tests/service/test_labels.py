"""Labels over HTTP and on the command line: conflicts, decisions, their audit, and the keys that a dry run names."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from typer.testing import CliRunner

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.cli.main import app
from gadfly.grading import Grade
from gadfly.records import Tier, new_id
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.service.conftest import make_settings
from tests.support.records import make_feedback, make_interaction
from tests.support.services import serving

ALL_TRAIN = 1e-9


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Of a service whose engine does not answer: labels need none."""
    return make_settings(tmp_path, database_url, "http://127.0.0.1:9")


async def keep(database: Database, *records: Any) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        await store.interactions.insert_records(session, records, heldout_share=ALL_TRAIN)


async def make_key(database: Database, name: str, tier: Tier = Tier.CALLER) -> tuple[UUID, dict[str, str]]:
    async with database.session() as session:
        key, secret = await issue_key(session, name=name, tier=tier)
    return key.id, {"authorization": f"Bearer {secret}"}


async def test_a_conflict_is_listed_decided_and_recorded(settings: Settings, database: Database) -> None:
    async with serving(settings, ready=False) as api:
        ann, as_ann = await make_key(database, "ann")
        bob, _ = await make_key(database, "bob")
        root, as_root = await make_key(database, "root", Tier.ADMIN)
        api.headers.update(as_root)
        one = make_interaction(key_id=ann, reference="4", grade=Grade.RIGHT)
        other = make_interaction(key_id=bob, reference="5", grade=Grade.WRONG)
        await keep(database, one, other)

        [conflict] = (await api.get("/admin/labels/conflicts")).json()["items"]
        assert (conflict["correct"], conflict["standing"], conflict["split"]) == (None, "conflict", "train")
        assert {(vote["key_name"], vote["source"], vote["correct"]) for vote in conflict["votes"]} == {
            ("ann", "reference", True),
            ("bob", "reference", False),
        }
        path = f"/admin/labels/{one.id}"
        assert (await api.get(path)).json() == conflict, "whichever interaction with the text is named"
        for method in ("GET", "POST"):
            refused = await api.request(method, path, json={"label": "right"}, headers=as_ann)
            assert refused.status_code == 403
        assert (await api.post(path, json={"label": "maybe"})).status_code == 422
        assert (await api.post(f"/admin/labels/{new_id()}", json={"label": "right"})).status_code == 404

        decided = (await api.post(path, json={"label": "right", "reason": "4 is right"})).json()
        assert (decided["correct"], decided["source"], decided["decided"]) == (True, "admin", "right")
        assert (await api.get("/admin/labels/conflicts", params={"disputed": True})).json()["items"] == []
        [act] = (await api.get("/admin/acts")).json()["items"]
        assert (act["key_id"], act["action"], act["subject"], act["reason"]) == (
            str(root),
            "set_label",
            str(one.id),
            "4 is right",
        )
        assert act["details"] == {"label": "right", "was_right": None, "is_right": True}


async def test_disputes_are_paged(settings: Settings, database: Database) -> None:
    async with serving(settings, ready=False) as api:
        ann, _ = await make_key(database, "ann")
        bob, _ = await make_key(database, "bob")
        _, as_root = await make_key(database, "root", Tier.ADMIN)
        asked = [make_interaction(key_id=ann, question=f"{number}?") for number in range(5)]
        await keep(database, *asked)
        for item in asked:
            feedback = [make_feedback(item.id, key_id=key, correct=key == ann) for key in (ann, bob)]
            await keep(database, *feedback)
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = (await api.get("/admin/labels/conflicts", params=params, headers=as_root)).json()
            seen += [item["interaction_id"] for item in page["items"]]
            cursor = page["next_cursor"]
        assert sorted(seen) == sorted(str(item.id) for item in asked)
        assert (await api.get("/admin/labels/conflicts", params={"cursor": "zz"}, headers=as_root)).status_code == 422


async def test_a_dry_run_names_the_key_that_contradicts_the_others(settings: Settings, database: Database) -> None:
    async with serving(settings, ready=False) as api:
        keys = [(await make_key(database, name))[0] for name in ("ann", "bob", "cem", "dee", "eve")]
        _, as_root = await make_key(database, "root", Tier.ADMIN)
        records = []
        for number in range(150):
            first, second = keys[number % 5], keys[(number + 1 + number // 5 % 4) % 5]
            asked = make_interaction(key_id=first, question=f"{number}?")
            is_right = number % 2 == 0
            records.append(asked)
            records += [
                make_feedback(asked.id, key_id=key, correct=is_right is not (key == keys[4])) for key in (first, second)
            ]
        await keep(database, *records)
        plan = (await api.post("/admin/retrain", json={"dry_run": True}, headers=as_root)).json()
        assert plan["contradicting_keys"] == [str(keys[4])]
        assert any("the key eve" in warning and "gadfly keys distrust" in warning for warning in plan["warnings"])


async def test_the_command_line_shows_and_decides_conflicts(settings: Settings, database: Database) -> None:
    one = make_interaction(reference="4", grade=Grade.RIGHT)
    async with serving(settings, ready=False) as api:
        await keep(database, one, make_feedback(one.id, correct=False))
        shown = await gadfly(api, "labels", "show", str(one.id))
        assert "wrong, votes agreed, train" in shown
        assert "wrong by person of operator" in shown
        assert "no conflicts" in await gadfly(api, "labels", "conflicts")
        decided = await gadfly(api, "labels", "set", str(one.id), "right", "--reason", "looked at it")
        assert "right, votes agreed, train, decided by an admin: right" in decided
        assert "looked at it" in await gadfly(api, "acts")
        assert f'"subject": "{one.id}"' in await gadfly(api, "acts", "--json")


async def gadfly(api: httpx.AsyncClient, *arguments: str) -> str:
    """The output of a command on this service."""
    command = [*arguments, "--url", str(api.base_url)]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert result.exit_code == 0, result.output
    return result.stdout
