"""A deployment of another task: its prompts, answer form and grader are used, and stored rows name it."""

from pathlib import Path
from uuid import UUID

import pytest

from gadfly import store
from gadfly.errors import Conflict
from gadfly.grading import Grade
from gadfly.store.database import Database
from gadfly.store.regrading import regrade
from gadfly.tasks import load_task, open_grader
from tests.service.conftest import make_settings
from tests.support.services import serving
from tests.support.tasks import write_task

HEAD = 'name = "capitals"\ndescription = "Names of towns."\nprompts = "stepwise@1"'
ASKED = {"question": "What is the capital of Italy?", "response": "It is old.\nTown: Rome."}


def write_capitals(folder: Path, kind: str) -> Path:
    return write_task(folder, kind, head=HEAD, answer='form = "after"\nmarker = "Town:"', prompts=None)


async def test_another_task_grades_and_is_stored(tmp_path: Path, database_url: str, engine_url: str) -> None:
    folder = write_capitals(tmp_path / "task", 'kind = "exact"\nignore_punctuation = true\nseparator = "|"')
    settings = make_settings(tmp_path, database_url, engine_url, task=str(folder))
    task = load_task(str(folder))
    async with serving(settings) as client:
        state = (await client.get("/state")).json()
        assert (state["task"], state["task_version"]) == ("capitals", task.version)
        right = (await client.post("/critique", json=ASKED | {"reference": "Roma|Rome"})).json()
        assert right["grade"] == "right"
        assert right["prompt_set"] == "stepwise@1"
        problem = (await client.post("/critique", json=ASKED | {"reference": "Rome|"})).json()
        assert "states an empty answer" in problem["grade_problem"]
        # The answer that a correction states is found by the task's form, and teaches as a reference.
        asked = (await client.post("/critique", json=ASKED | {"response": "Town: Paris\n"})).json()
        edit = {"interaction_id": asked["id"], "edited_response": "No, see above.\nTown: Rome"}
        assert (await client.post("/feedback", json=edit)).json()["grade"] == "wrong"
        refined = (
            await client.post("/refine", json=ASKED | {"samples": 2, "temperature": 0.7, "max_tokens": 16})
        ).json()
        assert refined["votes"] in (1, 2), refined
        shown = (await client.get("/critics/0")).json()
        assert (shown["task"], shown["task_version"]) == ("capitals", task.version)
    async with Database(database_url) as database, database.session() as session:
        stored = await store.interactions.read_interaction(session, UUID(right["id"]), scope=None)
        assert (stored.task, stored.task_version, stored.grader) == ("capitals", task.version, task.grader_version)
        with pytest.raises(Conflict, match="the database belongs to the task capitals, but GADFLY_TASK is math"):
            await store.critics.ensure_version_zero(session, "tiny")


async def test_a_grader_that_is_unavailable_costs_the_grade_until_it_is_back(
    tmp_path: Path, database_url: str, engine_url: str
) -> None:
    away = write_capitals(tmp_path / "away", 'kind = "http"\nretries = 0')
    settings = make_settings(tmp_path, database_url, engine_url, task=str(away), grader_url="http://127.0.0.1:9/grade")
    async with serving(settings) as client:
        answered = (await client.post("/critique", json=ASKED | {"reference": "rome."})).json()
    assert answered["verdict"] in ("correct", "incorrect", "unparsed")
    assert answered["grade"] is None
    assert answered["grade_problem"].startswith("not graded yet: no grader answers at http://127.0.0.1:9/grade")
    back = load_task(str(write_capitals(tmp_path / "back", 'kind = "exact"')))
    async with Database(database_url) as database, open_grader(back, settings) as grader:
        report = await regrade(database, grader=grader)
        async with database.session() as session:
            stored = await store.interactions.read_interaction(session, UUID(answered["id"]), scope=None)
    assert report.graded == 1
    assert (stored.grade, stored.grade_problem, stored.grader) == (Grade.RIGHT, None, back.grader_version)
