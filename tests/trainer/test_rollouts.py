"""Rollouts and the actor's pool on a real engine: tokens, rewards, refinements, and their storage."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from gadfly.actor import BaseActor
from gadfly.engine_client import ACTOR
from gadfly.engine_pool import EnginePool
from gadfly.grading import Grade, Grader
from gadfly.prompts import load
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.engines import RunEngines, sweep
from gadfly.trainer.pool import sample_pool
from gadfly.trainer.rollouts import Collector, KeptGroup, Rollout, RolloutGroup
from gadfly.trainer.workspace import Lines
from gadfly.training import Stage, TrainConfig
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource
from tests.support import worlds

PROMPTS = load("stepwise@1")
CONFIG = TrainConfig.read(worlds.GLANCE)


def item(number: int, response: str, *, is_right: bool, reference: str | None = worlds.REFERENCE) -> LabelledAnswer:
    return LabelledAnswer(
        interaction_id=UUID(int=number),
        question_hash=number.to_bytes(32),
        question=f"Question {number}: how many days has a week?",
        response=response,
        is_right=is_right,
        source=LabelSource.REFERENCE,
        reference=reference,
    )


ITEMS = [item(1, worlds.RIGHT, is_right=True), item(2, worlds.WRONG, is_right=False)]


@pytest.fixture
async def engines(engine_url: str) -> AsyncIterator[RunEngines]:
    pool = EnginePool.connect([engine_url], timeout_s=60)
    found = RunEngines(pool, uuid4(), 32, patience_s=5)
    yield found
    await found.unload_all()
    await pool.aclose()


@pytest.fixture
async def collector(engines: RunEngines) -> AsyncIterator[Collector]:
    async with Grader(timeout_s=5) as grader:
        yield Collector(engines=engines, actor=BaseActor(engines.pool), prompts=PROMPTS, grader=grader, config=CONFIG)


async def test_stage_1_rewards_the_verdict_and_does_not_refine(collector: Collector, tmp_path: Path) -> None:
    groups = await collector.collect(
        ITEMS, stage=Stage.STAGE_1, model=ACTOR, adapter_sha256="a", seed="0", file=tmp_path / "0.jsonl"
    )
    assert [group.item for group in groups] == ITEMS
    for group in groups:
        right = Verdict.CORRECT if group.item.is_right else Verdict.INCORRECT
        assert len(group.rollouts) == CONFIG.samples_per_prompt
        for rollout in group.rollouts:
            assert rollout.refined is None
            assert len(rollout.tokens) == len(rollout.logprobs)
            assert rollout.score == float(rollout.verdict is right)
        assert group.to_group().prompt == group.prompt


async def test_stage_2_refines_with_each_critique_and_adds_the_reward(collector: Collector, tmp_path: Path) -> None:
    groups = await collector.collect(
        ITEMS, stage=Stage.STAGE_2, model=ACTOR, adapter_sha256="a", seed="0", file=tmp_path / "0.jsonl"
    )
    for group in groups:
        right = Verdict.CORRECT if group.item.is_right else Verdict.INCORRECT
        for rollout in group.rollouts:
            assert rollout.refined is Grade.RIGHT  # the tiny actor answers 7 to every question
            assert rollout.score == pytest.approx(1.0 + 0.2 * (rollout.verdict is right))


async def test_stored_groups_are_not_sampled_again(collector: Collector, tmp_path: Path) -> None:
    file = tmp_path / "0.jsonl"
    first = await collector.collect(ITEMS, stage=Stage.STAGE_1, model=ACTOR, adapter_sha256="a", seed="0", file=file)
    again = await collector.collect(
        ITEMS, stage=Stage.STAGE_1, model="no such model", adapter_sha256="a", seed="0", file=file
    )
    assert again == first
    size = file.stat().st_size
    other = await collector.collect(ITEMS, stage=Stage.STAGE_1, model=ACTOR, adapter_sha256="b", seed="0", file=file)
    assert file.stat().st_size > size  # other weights: sampled again, with the same seeds
    assert other == first


async def test_the_actor_answers_each_question_with_a_reference_once(engines: RunEngines) -> None:
    items = [*ITEMS, item(1, "another answer", is_right=False), item(3, "no reference", is_right=True, reference=None)]
    config = CONFIG.model_copy(update={"pool_samples": 3, "pool_questions": 10})
    async with Grader(timeout_s=5) as grader:
        actor = BaseActor(engines.pool)
        pool = await sample_pool(engines, actor, PROMPTS, grader, items, config, seed=0)
        again = await sample_pool(engines, actor, PROMPTS, grader, items, config, seed=0)
    assert pool == again
    assert {found.question_hash for found in pool.items} <= {items[0].question_hash, items[1].question_hash}
    for found in pool.items:
        assert found.sample is not None
        assert found.is_right == ("7" in found.response)
    assert len({(found.question_hash, found.response) for found in pool.items}) == len(pool.items)


async def test_the_adapters_of_a_killed_run_are_unloaded(
    engines: RunEngines, critic_model: Path, tmp_path: Path
) -> None:
    from tests.support.tiny_models import random_adapter  # noqa: PLC0415  # torch takes seconds to import

    folder = random_adapter(tmp_path / "adapter", model=critic_model, seed=3)
    await engines.load(engines.name("00000-abc"), folder)
    [engine] = engines.pool.members
    assert engines.name("00000-abc") in await engine.models()
    await sweep(engines.pool, engines.run_id)
    assert engines.name("00000-abc") not in await engine.models()


def test_a_group_read_from_a_file_is_the_group_written(tmp_path: Path) -> None:
    rollout = Rollout(
        text="Correctness of the final answer: Wrong",
        verdict=Verdict.INCORRECT,
        verdict_lines=1,
        finish_reason=None,
        tokens=(5, 6),
        logprobs=(-0.1 - 0.2, -1 / 3),
        refined=Grade.NO_ANSWER,
        score=0.2,
    )
    kept = KeptGroup(
        place=3,
        adapter="ab",
        group=RolloutGroup(item=ITEMS[0].sampled(1, "7", is_right=True), prompt=(1,), rollouts=(rollout,)),
    )
    lines = Lines(tmp_path / "0.jsonl", KeptGroup)
    lines.append(kept)
    assert list(lines.read()) == [kept]
