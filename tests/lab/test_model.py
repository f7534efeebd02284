"""The committed model is the one that its page names, and solves, refines and critiques as the lab needs."""

import random
import re
from collections.abc import AsyncIterator

import pytest

from gadfly.base_model import base_sha256
from gadfly.critique import sample_critiques
from gadfly.engine_client import ACTOR, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.grading import Grade, Grader
from gadfly.lab import study, world
from gadfly.lab.__main__ import MODEL
from gadfly.lab.engine import Generator, connect
from gadfly.lab.pretrain import PROMPTS
from gadfly.lab.world import PERFECT, Care
from gadfly.verdict import Verdict, parse_critique

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(str(MODEL), device="cpu")


@pytest.fixture
async def pool(generator: Generator) -> AsyncIterator[EnginePool]:
    pool = EnginePool([connect(generator)])
    yield pool
    await pool.aclose()


def test_its_page_names_its_weights() -> None:
    [named] = re.findall(r"[0-9a-f]{64}", (MODEL / "README.md").read_text(encoding="utf-8"))
    assert base_sha256(str(MODEL)) == named
    assert study.PROMPTS == "bare@1"


async def test_it_solves_imperfectly(pool: EnginePool) -> None:
    problems = world.problems(world.LabSplit.IN_DOMAIN, 96, seed=11)
    replies = [
        await pool.chat(
            PROMPTS.solve(question=one.text), model=ACTOR, sampling=Sampling(max_tokens=64, temperature=1.0, seed=place)
        )
        for place, one in enumerate(problems)
    ]
    async with Grader(timeout_s=10) as grader:
        grades = await grader.grade_all(
            [(reply.text, str(one.answer)) for [reply], one in zip(replies, problems, strict=True)]
        )
    assert 0.4 < sum(grade is Grade.RIGHT for grade in grades) / len(grades) < 0.8


@pytest.mark.parametrize("care", [PERFECT, Care(overlooks=0.0, overlooks_far=0.0, suspects=0.5)])
async def test_it_follows_the_critique_right_or_wrong(pool: EnginePool, care: Care) -> None:
    rng = random.Random(3)
    followed = 0
    for one in world.problems(world.LabSplit.IN_DOMAIN, 48, seed=12):
        answer = world.slip(rng, one, share=0.3)
        judgements = world.judge(rng, answer, care)
        prompt = PROMPTS.refine(question=one.text, response=world.solution(answer), critique=world.critique(judgements))
        [reply] = await pool.chat(prompt, model=ACTOR, sampling=Sampling(max_tokens=64))
        followed += reply.text.strip() == world.solution(world.refine(one, judgements))
    assert followed / 48 > 0.85


async def test_its_critic_keeps_the_format(pool: EnginePool) -> None:
    for one in world.problems(world.LabSplit.IN_DOMAIN, 24, seed=13):
        [found] = await sample_critiques(
            pool, PROMPTS, model=ACTOR, question=one.text, response=world.solution(world.solve(one)),
            sampling=Sampling(max_tokens=128),
        )  # fmt: skip
        parsed = parse_critique(found.text)
        assert parsed.verdict is not Verdict.UNPARSED
        assert len(parsed.steps) == len(one.operations)
