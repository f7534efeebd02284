"""Keys, settings and the task's grader over HTTP."""

from pydantic import SecretStr

from gadfly.api_keys import issue_key
from gadfly.records import Tier
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.service.conftest import serving_without_engine


async def test_keys_are_made_used_distrusted_and_revoked(engineless: Settings, database: Database) -> None:
    async with database.session() as session:
        own, secret = await issue_key(session, name="root", tier=Tier.ADMIN)
    async with serving_without_engine(engineless) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        made = await client.post("/admin/keys", json={"name": "ann", "expires_in_days": 7})
        assert made.status_code == 201
        new = made.json()
        ann = {"authorization": f"Bearer {new['secret']}"}
        assert (await client.get("/interactions", headers=ann)).status_code == 200
        assert (await client.get("/admin/keys", headers=ann)).status_code == 403
        listed = (await client.get("/admin/keys")).json()
        assert [key["name"] for key in listed] == ["root", "ann"]
        assert all("secret" not in key for key in listed)
        path = f"/admin/keys/{new['id']}"
        distrusted = (await client.post(f"{path}/distrust", json={"reason": "typos"})).json()
        assert (distrusted["key"]["distrusted_at"] is None, distrusted["critics"]) == (False, [])
        assert (await client.post(f"{path}/trust", json={})).json()["key"]["distrusted_at"] is None
        assert (await client.post(f"{path}/revoke", json={})).json()["revoked_at"] is not None
        assert (await client.post(f"/admin/keys/{own.id}/revoke", json={})).status_code == 409
        acts = (await client.get("/admin/acts")).json()["items"]
        assert [act["action"] for act in acts] == ["revoke_key", "trust_key", "distrust_key", "create_key"]
        assert {act["key_id"] for act in acts} == {str(own.id)}


async def test_the_first_key_is_an_admins(engineless: Settings) -> None:
    async with serving_without_engine(engineless) as client:
        assert (await client.post("/admin/keys", json={"name": "ann"})).status_code == 409
        made = (await client.post("/admin/keys", json={"name": "root", "tier": "admin"})).json()
        headers = {"authorization": f"Bearer {made['secret']}"}
        assert (await client.get("/admin/keys", headers=headers)).status_code == 200


async def test_settings_show_no_secret(engineless: Settings) -> None:
    secrets = {
        "engine_key": SecretStr("hidden-1"),
        "actor_key": SecretStr("hidden-2"),
        "grader_url": "http://user:hidden-3@grader.example",
    }
    async with serving_without_engine(engineless.model_copy(update=secrets)) as client:
        answer = await client.get("/admin/settings")
        assert "hidden" not in answer.text
        by_name = {item["name"]: item for item in answer.json()}
        assert by_name["engine_key"]["value"] == "********"
        assert (by_name["max_tokens"]["value"], by_name["max_tokens"]["is_default"]) == (120, False)
        assert by_name["max_rounds"]["is_default"]
        assert by_name["max_rounds"]["description"]


async def test_the_grader_can_be_tried(engineless: Settings) -> None:
    async with serving_without_engine(engineless) as client:
        assert [task["name"] for task in (await client.get("/tasks")).json()] == ["math"]
        for response, reference, grade in [
            ("It is 7.", "7", "right"),
            ("It is 8.", "7", "wrong"),
            ("?", "7", "no_answer"),
        ]:
            tried = await client.post("/admin/tasks/math/grade", json={"response": response, "reference": reference})
            assert (tried.json()["grade"], tried.json()["problem"]) == (grade, None)
