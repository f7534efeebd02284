"""Tasks of a deployment: prompts, answer form, grader and critics of each answer, and what is stored names it."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.grading import Grade
from gadfly.records import Tier
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.regrading import regrade
from gadfly.tasks import load_task, open_grader
from tests.service.conftest import make_settings, serving_without_engine
from tests.support.records import make_interaction
from tests.support.services import serving
from tests.support.tasks import PROMPTS, write_task

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


async def test_tasks_share_a_deployment(tmp_path: Path, database_url: str, engine_url: str) -> None:
    folder = write_capitals(tmp_path / "task", 'kind = "choice"')
    write_task(
        tmp_path / "words",
        'kind = "exact"',
        head='name = "words"\ndescription = "Verdicts in other words."\nprompts = "prompts.toml"',
        prompts=PROMPTS.replace('"Right"', '"keep"').replace('"Wrong"', '"send back"'),
    )
    settings = make_settings(tmp_path, database_url, engine_url, tasks=f"{folder},{tmp_path / 'words'}")
    asked = ASKED | {"response": "The answer is (B).\nTown: B", "max_tokens": 24}
    async with serving(settings) as client:
        # A request without a task is one of the default task, and a text asked under two tasks is two questions.
        math = (await client.post("/critique", json=asked | {"reference": "B"})).json()
        capitals = (await client.post("/critique", json=asked | {"reference": "C", "task": "capitals"})).json()
        assert (math["task"], math["critic"]["version"], math["grade"]) == ("math", 0, "right")
        assert (capitals["task"], capitals["critic"]["version"], capitals["grade"]) == ("capitals", 1, "wrong")
        assert (await client.post("/critique", json=asked | {"task": "capitals", "critic": 0})).json()["critic"][
            "version"
        ] == 1, "version 0 is the untrained critic of each task"
        refused = await client.post("/critique", json=asked | {"critic": 1})
        assert (refused.status_code, "critic of the task capitals" in refused.json()["detail"]) == (409, True)
        refused = await client.post("/critique", json=asked | {"task": "birds"})
        assert (refused.status_code, refused.json()["detail"]) == (
            404,
            "the task 'birds' is not served here; the tasks are math, capitals, words",
        )
        refused = await client.post("/critique", json=asked | {"task": "capitals", "episode_id": math["episode_id"]})
        assert refused.status_code == 422, "an episode stays with its task"

        # What is listed.
        tasks = (await client.get("/tasks")).json()
        assert [(task["name"], task["is_default"], task["live_critic"]) for task in tasks] == [
            ("math", True, 0),
            ("capitals", False, 1),
            ("words", False, 2),
        ]
        assert tasks[2]["verdict_words"] == {"correct": "keep", "incorrect": "send back"}
        listed = (await client.get("/interactions", params={"task": "capitals"})).json()["items"]
        assert {item["task"] for item in listed} == {"capitals"}
        assert [critic["task"] for critic in (await client.get("/critics")).json()] == ["words", "capitals", "math"]
        [root] = (await client.get("/critics", params={"task": "capitals"})).json()
        assert (root["version"], root["pointers"]) == (1, ["live"])
        state = (await client.get("/state")).json()
        assert (state["task"], state["live_critic"]) == ("math", 0)
        assert {task["name"]: task["live_critic"] for task in state["tasks"]} == {"math": 0, "capitals": 1, "words": 2}
        assert 'gadfly_live_critic{task="capitals"} 1.0' in (await client.get("/metrics")).text
        models = {card["id"] for card in (await client.get("/v1/models")).json()["data"]}
        assert {"actor", "refined", "critic@0", "capitals/refined", "capitals/critic@1", "words/critic@2"} <= models
        assert not {"math/actor", "critic@1"} & models

        # Feedback is graded by the grader of its interaction, and a run learns from its task alone.
        feedback = {"interaction_id": capitals["id"], "reference": "B"}
        assert (await client.post("/feedback", json=feedback)).json()["grade"] == "right"
        for task in ("math", "capitals", "words"):
            planned = await client.post("/admin/retrain", json={"dry_run": True, "task": task})
            assert planned.status_code == 200, planned.text
            plan = planned.json()
            assert sum(plan[part]["answers"] for part in ("stage_1", "validation", "heldout")) <= 1
            assert (plan["guessing"] is not None) is (task == "capitals" and plan["stage_1"]["answers"] > 0)
        nothing = await client.post("/admin/retrain", json={"task": "words"})
        assert (nothing.status_code, "no labelled answer" in nothing.json()["detail"]) == (409, True)

        # Verdicts in a task's own words: read from the engine where the text states none.
        words = (await client.post("/critique", json=asked | {"task": "words"})).json()
        assert words["verdict_source"] == "read"
        assert words["verdict"] in ("correct", "incorrect")
        own = {"task": "words", "critique": "Correctness of the final answer: send back", "when": "if_incorrect"}
        refined = (await client.post("/refine", json=asked | own)).json()
        assert (refined["verdict"], refined["stop_reason"]) == ("incorrect", "rounds")
        shown = (await client.get(f"/interactions/{refined['id']}")).json()
        assert shown["parameters"]["verdict_words"] == ["keep", "send back"]


async def test_chat_models_of_a_task(tmp_path: Path, database_url: str, engine_url: str) -> None:
    folder = write_capitals(tmp_path / "task", 'kind = "exact"')
    settings = make_settings(tmp_path, database_url, engine_url, tasks=str(folder), chat_critique_share=1.0)
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": ASKED["question"]}], "max_tokens": 16}
    async with serving(settings) as client:
        for model, task in (("capitals/actor", "capitals"), ("actor", "math"), ("math/refined", "math")):
            answer = (await client.post("/v1/chat/completions", json=asked | {"model": model})).json()
            assert answer["model"] == model
            stored = (await client.get(f"/interactions/{answer['gadfly']['interaction_id']}")).json()
            assert stored["task"] == task
        turns = [*asked["messages"], {"role": "assistant", "content": "Town: Rome"}]
        critic = (
            await client.post("/v1/chat/completions", json={"model": "capitals/critic", "messages": turns})
        ).json()
        assert critic["gadfly"]["critic"]["version"] == 1
        for model in ("birds/actor", "/actor", "capitals/", "capitals/critic@0x"):
            refused = await client.post("/v1/chat/completions", json=asked | {"model": model})
            assert refused.status_code == 404, model
        # The critic of its task judges an answer in the background.
        for _ in range(100):
            listed = (await client.get("/interactions", params={"task": "capitals", "kind": "chat"})).json()["items"]
            if listed[0]["critic"] is not None:
                break
            await asyncio.sleep(0.2)
        assert listed[0]["critic"]["version"] == 1


async def test_a_key_may_be_limited_to_tasks(tmp_path: Path, database_url: str, engine_url: str) -> None:
    folder = write_capitals(tmp_path / "task", 'kind = "exact"')
    settings = make_settings(tmp_path, database_url, engine_url, tasks=str(folder))
    async with Database(database_url) as database, database.session() as session:
        key, secret = await issue_key(session, name="limited", tier=Tier.CALLER, tasks=("capitals",))
        assert (await store.keys.list_keys(session))[0].tasks == key.tasks == ("capitals",)
    asked = ASKED | {"max_tokens": 16}
    async with serving(settings) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        assert (await client.post("/critique", json=asked | {"task": "capitals"})).status_code == 200
        refused = await client.post("/critique", json=asked)
        assert (refused.status_code, refused.json()["detail"]) == (403, "this key is limited to other tasks than math")
        chat = {"model": "actor", "messages": [{"role": "user", "content": "Hello"}]}
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 403
        assert [critic["task"] for critic in (await client.get("/critics")).json()] == ["capitals"]
        assert (await client.get("/critics/0")).status_code == 403
        models = {card["id"] for card in (await client.get("/v1/models")).json()["data"]}
        assert models == {"capitals/actor", "capitals/refined", "capitals/critic", "capitals/critic@1"}


async def test_words_with_the_same_tokens_are_refused_with_the_reason(
    tmp_path: Path, database_url: str, engine_url: str
) -> None:
    folder = write_task(
        tmp_path / "task",
        head='name = "same"\ndescription = "A test."\nprompts = "prompts.toml"',
        prompts=PROMPTS.replace('"Right"', '"good"').replace('"Wrong"', '"good grief"'),
    )
    async with serving(make_settings(tmp_path, database_url, engine_url, tasks=str(folder))) as client:
        for _ in range(50):
            refused = await client.post("/critique", json=ASKED | {"task": "same", "max_tokens": 8})
            if refused.status_code == 409:
                break
            await asyncio.sleep(0.1)
        assert "do not distinguish the verdict words 'good' and 'good grief'" in refused.json()["detail"]
        assert (await client.post("/critique", json=ASKED | {"max_tokens": 8})).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


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
        report = await regrade(database, grader=grader, task=back.name)
        async with database.session() as session:
            stored = await store.interactions.read_interaction(session, UUID(answered["id"]), scope=None)
    assert report.graded == 1
    assert (stored.grade, stored.grade_problem, stored.grader) == (Grade.RIGHT, None, back.grader_version)


async def test_a_task_is_trained_by_its_own_options(tmp_path: Path, engineless: Settings, database: Database) -> None:
    own = "[training]\nsteps_stage_1 = 3\nevaluation_items = 30\n[schedule]\nafter_labels = 9"
    folder = write_task(
        tmp_path / "towns", f'kind = "exact"\n{own}', head='name = "towns"\ndescription = "d"', prompts=None
    )
    settings = engineless.model_copy(update={"tasks": (str(folder),), "train_schedule": "0 3 * * *"})
    labelled = make_interaction(
        question="Of Italy?", reference="Rome", grade=Grade.WRONG, task="towns", critic_version=None, critiques=()
    )
    async with database.session() as session:
        await store.interactions.insert_records(session, [labelled], heldout_share=1 - 1e-9)
    async with serving_without_engine(settings) as client:
        math, towns = (await client.get("/tasks")).json()
        assert (math["training"], math["schedule"]) == ({}, {"cron": "0 3 * * *", "after_labels": 0, "own": []})
        assert towns["training"] == {"steps_stage_1": 3, "evaluation_items": 30}
        assert towns["schedule"] == {"cron": "0 3 * * *", "after_labels": 9, "own": ["after_labels"]}
        asked = {"dry_run": True, "config": {"steps_stage_2": 1}}
        plan = (await client.post("/admin/retrain", json={**asked, "task": "towns"})).json()
        assert plan["steps"] == 4
        assert {option["name"]: (option["value"], option["source"]) for option in plan["options"]} == {
            "steps_stage_1": (3, "task"),
            "steps_stage_2": (1, "request"),
            "max_critique_tokens": (settings.max_tokens, "served"),
            "max_answer_tokens": (settings.max_tokens, "served"),
            "evaluation_items": (30, "task"),
        }
        assert (await client.post("/admin/retrain", json={**asked, "task": "math"})).json()["steps"] == 21

        async def progress(**params: Any) -> dict[str, Any]:
            return dict((await client.get("/labels/progress", params={"target_points": 15, **params})).json())

        one, other, both = await progress(task="towns"), await progress(task="math"), await progress()
        assert (one["heldout"]["wrong"], other["heldout"]["wrong"], both["heldout"]["wrong"]) == (1, 0, 1)
        assert (one["beyond_gate"], other["beyond_gate"], both["beyond_gate"]) == (True, False, False)
        assert (await client.get("/labels/progress", params={"task": "birds"})).status_code == 404
