"""Two tasks on one engine, of which one is served by a critic by examples: the other task's critic stays as it is."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from gadfly import store
from gadfly.adapters import Probe, ProbeRecord, sha256_of_tokens
from gadfly.api_keys import issue_key
from gadfly.engine_client import Engine, Sampling
from gadfly.prompts import Example, PromptSet
from gadfly.records import CriticVersion, Tier
from gadfly.settings import Settings
from gadfly.store.critic_examples import PromptExamples
from gadfly.store.database import Database
from gadfly.tasks import load_tasks
from gadfly.training import TrainConfig, Trigger
from tests.service.conftest import QUESTION, RIGHT, WRONG, make_settings
from tests.support.records import make_interaction
from tests.support.services import serving, until
from tests.support.tasks import write_task

TASK = "capitals"
ASKED = {"question": "What is the capital of Italy?", "response": "Town: Rome.", "max_tokens": 48}
TOLERANCE = 1e-3  # of equal calls of an engine with other neighbours in their batch, in nats


@dataclass(frozen=True, slots=True)
class Both:
    """The service with both tasks, the roots of their lines, and two critics by examples of the second one."""

    client: httpx.AsyncClient
    database: Database
    settings: Settings
    roots: dict[str, int]
    critics: tuple[CriticVersion, CriticVersion]
    interactions: tuple[UUID, ...]  # of the first one's examples

    async def answer(self, path: str = "/critique", **body: Any) -> Any:
        answer = await self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def promote(self) -> None:
        swap = await self.client.post("/admin/promote", json={"version": self.critics[0].version})
        assert swap.json()["status"] == "done", swap.text
        assert swap.json()["task"] == TASK


@asynccontextmanager
async def opened(settings: Settings, database: Database, engine_url: str) -> AsyncIterator[Both]:
    async with serving(settings) as client:
        async with database.session() as session:
            roots = {
                task.name: (await store.critics.base_version(session, "tiny", task.name)).version
                for task in load_tasks(settings)
            }
        async with aclosing(Engine(engine_url, timeout_s=60)) as engine:
            made = [await insert_critic(database, settings, engine, roots[TASK], town) for town in ("Oslo", "Bern")]
        yield Both(client, database, settings, roots, (made[0][0], made[1][0]), made[0][1])


@pytest.fixture
async def both(tmp_path: Path, database: Database, database_url: str, engine_url: str) -> AsyncIterator[Both]:
    async with opened(settings_of(tmp_path, database_url, engine_url), database, engine_url) as both:
        yield both


def settings_of(home: Path, database_url: str, engine_url: str) -> Settings:
    head = f'name = "{TASK}"\ndescription = "Names of towns."\nprompts = "stepwise@1"'
    folder = write_task(home / "task", head=head, answer='form = "after"\nmarker = "Town:"', prompts=None)
    return make_settings(home, database_url, engine_url, tasks=str(folder), adapter_slots=2)


async def insert_critic(
    database: Database, settings: Settings, engine: Engine, parent: int, town: str
) -> tuple[CriticVersion, tuple[UUID, ...]]:
    """Store a critic as a run would: two answers about a town as examples, and what the engine answers under them."""
    task = load_tasks(settings).get(TASK)
    rows = [make_interaction(question=f"{town} {number}?", critic_version=parent, task=TASK) for number in range(2)]
    items = tuple(Example(f"{town} {number}?", f"Town: {town}", "A town.") for number in range(2))
    probe = await probe_record(engine, task.prompts.with_examples(items))
    async with database.session() as session:
        await store.interactions.insert_interactions(session, rows, heldout_share=0.0)
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN, task=TASK)).run
        critic = await store.critics.insert_critic(
            session,
            run_id=run.id,
            parent=parent,
            base_model="tiny",
            prompt_set=task.prompts.name,
            task=task.id,
            examples=PromptExamples(items=items, interactions=tuple(row.id for row in rows), probe=probe),
        )
    return critic, tuple(row.id for row in rows)


async def probe_record(engine: Engine, prompts: PromptSet) -> ProbeRecord:
    [reply] = await engine.chat(
        prompts.critique(question="Bonn?", response="Town: Bonn"),
        model="base",
        sampling=Sampling(max_tokens=4, with_tokens=True),
    )
    probe = Probe(
        question="Bonn?",
        response="Town: Bonn",
        prompt_tokens=(),
        prompt_sha256=sha256_of_tokens(reply.prompt_tokens),
        tokens=reply.tokens,
        logprobs=reply.logprobs,
        base_logprobs=reply.logprobs,
    )
    return ProbeRecord(prompt_set=prompts.name, tolerance=TOLERANCE, probes=(probe,))


async def test_examples_of_one_task_are_in_no_prompt_of_the_other(both: Both) -> None:
    plain = {"math": await both.answer(**RIGHT), TASK: await both.answer(**ASKED, task=TASK)}
    await both.promote()
    math, towns = await both.answer(**RIGHT), await both.answer(**ASKED, task=TASK)
    assert math["critic"] == plain["math"]["critic"] == {"version": 0, "adapter_sha256": None, "status": "untrained"}
    assert math["usage"]["prompt_tokens"] == plain["math"]["usage"]["prompt_tokens"]
    assert plain[TASK]["critic"]["version"] == both.roots[TASK]
    assert towns["critic"] == {"version": both.critics[0].version, "adapter_sha256": None, "status": "examples"}
    assert towns["usage"]["prompt_tokens"] > plain[TASK]["usage"]["prompt_tokens"] + 20
    refined = await both.answer("/refine", **ASKED, task=TASK)
    assert refined["critic"]["version"] == both.critics[0].version
    foreign = await both.client.post("/critique", json={**RIGHT, "critic": both.critics[0].version})
    assert foreign.status_code == 409, foreign.text
    assert "is a critic of the task capitals" in foreign.json()["detail"]
    root = await both.answer(**ASKED, task=TASK, critic=0)
    assert root["critic"]["version"] == both.roots[TASK], "version 0 is the root of the task's line, without examples"
    assert root["usage"]["prompt_tokens"] == plain[TASK]["usage"]["prompt_tokens"]


async def test_a_critic_by_examples_takes_no_slot(both: Both) -> None:
    await both.promote()
    for critic in both.critics * 2:  # one slot is left for critics that no pointer names
        answered = await both.answer(**ASKED, task=TASK, critic=critic.version)
        assert answered["critic"]["version"] == critic.version


async def test_a_deleted_example_moves_the_pointer_of_its_task_alone(both: Both) -> None:
    await both.promote()
    assert (await both.client.delete(f"/interactions/{both.interactions[0]}")).status_code == 204

    def is_left(versions: list[dict[str, Any]]) -> bool:
        return {each["version"] for each in versions if "live" in each["pointers"]} == set(both.roots.values())

    await until(both.client, "/critics", is_left, limit_s=20)
    assert (await both.answer(**ASKED, task=TASK))["critic"]["version"] == both.roots[TASK]
    swaps = (await both.client.get(f"/critics/{both.roots[TASK]}")).json()["swaps"]
    assert "was deleted" in swaps[0]["reason"]
    assert (await both.client.get("/critics/0")).json()["swaps"] == []
    refused = await both.client.post("/critique", json={**ASKED, "task": TASK, "critic": both.critics[0].version})
    assert refused.status_code == 409
    assert "cannot be served any more" in refused.json()["detail"]


async def test_a_prompt_and_a_guarded_answer_name_a_task(both: Both) -> None:
    await both.promote()
    prompted = await both.answer("/v1/completions", model=f"{TASK}/refined", prompt=ASKED["question"], max_tokens=16)
    assert prompted["gadfly"]["critic"]["status"] == "examples"
    assert await task_of(both, prompted["gadfly"]["interaction_id"]) == TASK
    judged = await both.client.post("/v1/completions", json={"model": f"{TASK}/critic", "prompt": "x"})
    assert judged.status_code == 400
    assert "use /v1/chat/completions" in judged.json()["error"]["message"]
    unknown = await both.client.post("/v1/completions", json={"model": "chess/actor", "prompt": "x"})
    assert unknown.status_code == 404
    for mode in ("block", "rewrite", "log"):
        decision = await both.answer("/beta/litellm_basic_guardrail_api", **guarded(mode, task=TASK))
        [id] = decision["gadfly"]["interaction_ids"]
        assert await task_of(both, id) == TASK, mode
    other = await both.answer("/beta/litellm_basic_guardrail_api", **guarded("block"))
    assert await task_of(both, other["gadfly"]["interaction_ids"][0]) == "math"
    strange = await both.client.post("/beta/litellm_basic_guardrail_api", json=guarded("block", task="chess"))
    assert strange.status_code == 404


async def test_a_key_of_one_task_guards_and_completes_that_task_alone(
    tmp_path: Path, database: Database, database_url: str, engine_url: str
) -> None:
    async with database.session() as session:
        _, secret = await issue_key(session, name="towns", tier=Tier.CALLER, tasks=(TASK,))
    key = {"Authorization": f"Bearer {secret}"}
    async with serving(settings_of(tmp_path, database_url, engine_url)) as client:
        for mode, task, status in (("log", TASK, 200), ("log", None, 403), ("block", None, 403)):
            path, body = "/beta/litellm_basic_guardrail_api", guarded(mode, **({"task": task} if task else {}))
            assert (await client.post(path, json=body, headers=key)).status_code == status, (mode, task)
        for model, status in ((f"{TASK}/actor", 200), ("actor", 403)):
            prompt = {"model": model, "prompt": QUESTION, "max_tokens": 8}
            assert (await client.post("/v1/completions", json=prompt, headers=key)).status_code == status, model


def guarded(mode: str, **options: Any) -> dict[str, Any]:
    return {
        "input_type": "response",
        "structured_messages": [{"role": "user", "content": QUESTION}],
        "texts": [WRONG["response"]],
        "additional_provider_specific_params": {"mode": mode, **options},
    }


async def task_of(both: Both, interaction_id: str) -> str:
    async with both.database.session() as session:
        return (await store.interactions.read_interaction(session, UUID(interaction_id), scope=None)).task
