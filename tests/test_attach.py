"""Engines and an actor that Gadfly did not start, with names and keys of their own: real vLLM servers.

`foreign` runs the command that `gadfly doctor` prints. `plain` is vLLM as it comes, without adapters: as an engine it
serves version 0 only, and as another model behind an OpenAI endpoint it is an actor.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
import structlog

from gadfly import prompts, store
from gadfly.actor import open_actor
from gadfly.cli.doctor import CheckResult, Finding, examine
from gadfly.engine_client import ACTOR
from gadfly.engine_fleet import EngineFleet
from gadfly.engine_pool import EnginePool
from gadfly.grading import Grader
from gadfly.records import new_id
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.engines import RunEngines
from gadfly.trainer.measure.evaluate import Bench, evaluate
from gadfly.trainer.pool import sample_pool
from gadfly.training import Run, RunStatus, TrainConfig
from gadfly.votes import LabelSource
from tests.service.conftest import RIGHT, WRONG, make_settings
from tests.support import worlds
from tests.support.adapters import RANK, insert_version, publish_adapter
from tests.support.engines import ForeignEngine, launch_foreign, wait_for_foreign
from tests.support.services import free_port, read_events, serving

ENGINE_NAME, ENGINE_KEY = "lab/Tiny", "engine-secret"
ACTOR_NAME, ACTOR_KEY = "another-model", "actor-secret"
SIZES = {"engine_max_model_len": 4096, "engine_kv_cache_bytes": 64 * 2**20, "adapter_rank": RANK}

pytestmark = pytest.mark.timeout(600)  # the first test waits for two servers to start


@pytest.fixture(scope="module")
def servers(
    critic_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ForeignEngine, ForeignEngine]]:
    """`foreign` and `plain`, started side by side."""
    port = free_port()
    line = printed_line(Settings(engine_key=ENGINE_KEY, **SIZES), model=critic_model, port=port)
    assert ENGINE_KEY not in line
    with launch_foreign(line, port=port, home=tmp_path_factory.mktemp("foreign"), key=ENGINE_KEY) as foreign:
        port = free_port()
        line = (
            f"VLLM_ENABLE_V1_MULTIPROCESSING=0 TORCHDYNAMO_DISABLE=1 "
            f"python -m vllm.entrypoints.launchers.api_server.entry "
            f"--model {critic_model} --served-model-name {ACTOR_NAME} --api-key {ACTOR_KEY} --port {port} "
            f"--dtype float32 --enforce-eager --kv-cache-memory-bytes {64 * 2**20}"
        )
        with launch_foreign(line, port=port, home=tmp_path_factory.mktemp("plain")) as plain:
            wait_for_foreign(foreign)
            wait_for_foreign(plain)
            yield foreign, plain


@pytest.fixture
def foreign(servers: tuple[ForeignEngine, ForeignEngine]) -> ForeignEngine:
    return servers[0]


@pytest.fixture
def plain(servers: tuple[ForeignEngine, ForeignEngine]) -> ForeignEngine:
    return servers[1]


def printed_line(settings: Settings, *, model: Path, port: int) -> str:
    arguments = ["--model", str(model), "--name", ENGINE_NAME, "--device", "cpu", "--version", "0.32.0"]
    done = subprocess.run(
        [sys.executable, "-m", "gadfly.engine.serve_line", *arguments, "--port", str(port)],
        env=settings.to_environment() | {"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def attached(tmp_path: Path, database_url: str, foreign: ForeignEngine, plain: ForeignEngine) -> Settings:
    """A deployment on the foreign engine, with the other server as its actor."""
    actor = {"actor_url": f"{plain.url}/v1", "actor_model": ACTOR_NAME, "actor_key": ACTOR_KEY}
    return make_settings(tmp_path, database_url, foreign.url, engine_key=ENGINE_KEY, **actor, **SIZES)


@pytest.fixture
async def client(attached: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(attached) as client:
        yield client


async def test_it_answers_and_remembers_who_did(client: httpx.AsyncClient) -> None:
    critique = (await client.post("/critique", json=WRONG)).json()
    assert critique["verdict"] == "incorrect"
    refined = (await client.post("/refine", json={**WRONG, "reference": "7"})).json()
    assert refined["refined_grade"] == "right"
    assert refined["model"] == ACTOR_NAME
    assert (critique["model"], refined["rounds"][0]["critique"]["verdict"]) == ("tiny", "incorrect")
    usage = refined["rounds"][0]["refinement"]["usage"]
    assert usage["prompt_tokens"] > 50
    assert usage["completion_tokens"] > 1
    ready = (await client.get("/readyz")).json()
    assert ready["actor"]["ok"], ready
    assert ACTOR_NAME in ready["actor"]["detail"]
    assert (await client.get("/state")).json()["engines"][0]["adapters"] is True


async def test_the_dry_run_says_what_the_actor_costs_and_lacks(client: httpx.AsyncClient) -> None:
    plan = (await client.post("/admin/retrain", json={"dry_run": True})).json()
    found = [warning for warning in plan["warnings"] if "actor" in warning or "tokenizer" in warning]
    assert found[0].startswith(f"The run asks the actor {ACTOR_NAME} for up to ")
    assert "the run pays for its tokens" in found[1]
    assert "tokenizer is not known" in found[2], "that server was started without the route"


async def test_an_actor_streams(client: httpx.AsyncClient) -> None:
    most = 0
    for _ in range(5):  # a busy service may find the whole answer in one read
        events = await read_events(client, "/refine", WRONG)
        pieces = [data["text"] for name, data in events if name == "text" and data["role"] == "refinement"]
        assert "".join(pieces).strip() == events[-1][1]["refined_response"]
        most = max(most, len(pieces))
        if most > 1:
            break
    assert most > 1


async def test_a_critic_is_swapped_in(
    client: httpx.AsyncClient, attached: Settings, database: Database, critic_model: Path
) -> None:
    published = publish_adapter(attached.adapters_folder / "one", model=critic_model, seed=1)
    critic = await insert_version(database, published)
    answer = await client.post("/admin/promote", json={"version": critic.version})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "done"
    assert (await client.post("/critique", json=RIGHT)).json()["critic"]["version"] == critic.version


@pytest.mark.parametrize(("key", "words"), [("wrong", "refuses the key in"), (None, "needs a key: set")])
async def test_a_wrong_key_is_one_sentence(attached: Settings, key: str | None, words: str) -> None:
    settings = Settings(**{**attached.model_dump(), "engine_key": key})
    sentence = f"the engine at {settings.engine_urls[0]} {words} GADFLY_ENGINE_KEY"
    with structlog.testing.capture_logs() as logs:
        async with serving(settings, ready=False) as client:
            for _ in range(200):
                if (await client.get("/state")).json()["status"] == "running":
                    break
                await asyncio.sleep(0.05)
            refused = await client.post("/critique", json=RIGHT)
            await asyncio.sleep(2.5)  # the engine is asked once a second
            ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["engine"]["detail"]) == (503, sentence)
    assert (refused.status_code, refused.json()["title"], refused.json()["detail"]) == (503, "Engine refused", sentence)
    assert "retry-after" not in refused.headers
    found = await findings(settings)
    assert (found["engine"].outcome, found["engine"].says) == (CheckResult.FAIL, f"T{sentence[1:]}.")
    assert [log["reason"] for log in logs if log["event"] == "engine_refuses"] == [sentence]


async def test_a_wrong_key_of_the_actor_is_one_sentence(attached: Settings) -> None:
    settings = Settings(**{**attached.model_dump(), "actor_key": "wrong"})
    sentence = f"the actor at {settings.actor_url} refuses the key in GADFLY_ACTOR_KEY"
    async with serving(settings) as client:
        ready = (await client.get("/readyz")).json()
        refused = await client.post("/refine", json=WRONG)
        assert (await client.post("/critique", json=WRONG)).status_code == 200
    assert (ready["ready"], ready["actor"]["ok"], ready["actor"]["detail"]) == (True, False, sentence)
    assert (refused.status_code, refused.json()["detail"]) == (503, sentence)
    assert (await findings(settings))["actor"].says == f"T{sentence[1:]}."


async def test_an_engine_without_adapters_serves_version_0_and_says_so(
    tmp_path: Path, database_url: str, database: Database, plain: ForeignEngine, critic_model: Path
) -> None:
    settings = make_settings(tmp_path, database_url, plain.url, engine_key=ACTOR_KEY, **SIZES)
    published = publish_adapter(settings.adapters_folder / "one", model=critic_model, seed=1)
    limit = f"the engine at {plain.url} loads no adapters at run time (VLLM_ALLOW_RUNTIME_LORA_UPDATING)"
    async with serving(settings) as client:
        answer = (await client.post("/critique", json=WRONG)).json()
        assert (answer["critic"]["version"], answer["verdict"]) == (0, "incorrect")
        await asyncio.sleep(1.1)  # a positive result is cached for a second
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert limit in ready.json()["critic"]["detail"]
        assert (await client.get("/state")).json()["engines"][0]["adapters"] is False
        critic = await insert_version(database, published)
        promoted = await client.post("/admin/promote", json={"version": critic.version})
        assert promoted.status_code == 409
        assert promoted.json()["detail"].startswith(f"{limit}, so it serves version 0 only; `gadfly doctor`")
        assert (await client.post("/admin/retrain", json={})).status_code == 409
        plan = (await client.post("/admin/retrain", json={"dry_run": True})).json()
        assert any(limit in warning for warning in plan["warnings"])
    assert (await findings(settings))["engine"].says.startswith(f"{plain.url} loads no adapters at run time")


async def test_doctor_knows_what_an_engine_lacks(attached: Settings, plain: ForeignEngine, critic_model: Path) -> None:
    settings = Settings(**{**attached.model_dump(), "model": str(critic_model)})
    swap = (await findings(settings))["hot swap"]
    assert (swap.outcome, swap.do) == (CheckResult.OK, ""), swap
    for name in ("adapters", "slots 4", "rank 8", "plugin", "priorities", "prefix cache", "context 4096"):
        assert name in swap.says
    bare = Settings(**{**settings.model_dump(), "engine_urls": (plain.url,), "engine_key": ACTOR_KEY})
    swap = (await findings(bare))["hot swap"]
    assert swap.outcome is CheckResult.WARN
    assert "lacks adapters (--enable-lora), loading at run time (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)" in swap.says
    assert "does not show whether it has slots of 4, rank of 8" in swap.says
    assert f"--served-model-name {ACTOR_NAME}" in swap.do
    assert "--max-lora-rank 8" in swap.do


async def test_training_and_measuring_use_the_actor(attached: Settings) -> None:
    pool = EnginePool(EngineFleet.of(attached, timeout_s=60))
    actor = open_actor(attached, pool)
    engines = RunEngines(pool, uuid4(), 8)
    prompt_set = prompts.load(attached.prompts)
    gaps = await actor.gaps()
    assert [gap for gap in gaps if "greedy" in gap or "seeds" in gap] == [], "vLLM follows both"
    answers = [
        LabelledAnswer(
            interaction_id=new_id(), question_hash=b"1" * 32, question="How many days has a week?",
            response="WRONGMARK The answer is 8", is_right=False, source=LabelSource.REFERENCE, reference="7",
        )
    ]  # fmt: skip
    async with Grader(timeout_s=5) as grader:
        before = actor.spent
        config = TrainConfig(pool_samples=3, max_answer_tokens=32)
        sampled = await sample_pool(engines, actor, prompt_set, grader, answers, config, seed=0)
        assert sampled.items
        after_pool = actor.spent
        bench = Bench(
            engines=pool, actor=actor, prompts=prompt_set, grader=grader, max_critique_tokens=64, max_answer_tokens=32,
            concurrency=2,
        )  # fmt: skip
        [judged] = await evaluate(bench, answers, model=ACTOR, with_refinement=True)
    assert judged.refinement_tokens is not None
    assert (after_pool.requests, actor.spent.requests) == (before.requests + 1, before.requests + 2)
    assert actor.spent.usage.completion_tokens > after_pool.usage.completion_tokens > 0
    await actor.aclose()
    await pool.aclose()


async def test_a_run_trains_for_the_actor_and_reports_its_cost(
    tmp_path: Path, database_url: str, database: Database, attached: Settings, critic_model: Path
) -> None:
    settings = worlds.trainer_settings(
        home=tmp_path / "home", database_url=database_url, engine_urls=attached.engine_urls, model=critic_model
    ).model_copy(
        update={name: getattr(attached, name) for name in ("engine_key", "actor_url", "actor_model", "actor_key")}
    )
    await worlds.fill(database, base_model=str(critic_model), questions=24)
    run = await worlds.ask_for_run(database, steps_stage_1=2, steps_stage_2=1)
    log = tmp_path / "trainer.log"
    process = worlds.start_trainer(settings, log=log)
    try:
        ended = await over(database, run.id)
    finally:
        process.kill()
        process.wait()
    assert ended.status is RunStatus.SUCCEEDED, (ended, log.read_text()[-3000:])
    assert ended.manifest is not None
    assert ended.gate is not None
    assert ended.manifest["actor"] == ended.gate["actor"]["model"] == ACTOR_NAME
    assert "the run pays for its tokens" in ended.gate["actor"]["gaps"][0]
    assert ended.gate["actor"]["spent"]["requests"] > 20
    async with database.session() as session:
        events = await store.runs.events_after(session, run.id, after=0)
    spent = [event.data for event in events if "at its own endpoint" in str(event.data.get("message"))]
    assert len(spent) == 2, "one note for each phase"
    assert all(note["completion_tokens"] >= note["requests"] > 0 for note in spent)


async def over(database: Database, run_id: UUID, *, limit_s: float = 300) -> Run:
    deadline = time.monotonic() + limit_s
    while True:
        run = await worlds.read(database, run_id)
        if run.status.is_over or time.monotonic() > deadline:
            return run
        await asyncio.sleep(0.2)


async def findings(settings: Settings) -> dict[str, Finding]:
    return {finding.name: finding for finding in await examine(settings)}
