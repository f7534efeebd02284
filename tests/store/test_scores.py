"""Which labelled answers a critic's scoreboard counts."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text

from gadfly import store
from gadfly.grading import Grade
from gadfly.records import CriticVersion, Interaction, Kind, Split, now
from gadfly.scoreboard import scoreboard
from gadfly.store.database import Database
from gadfly.training import TrainConfig, Trigger
from gadfly.verdict import Verdict
from tests.support.records import make_critique, make_interaction, unrelated_question

START = now() - timedelta(days=1)
RIGHT: dict[str, Any] = {"reference": "4", "grade": Grade.RIGHT}
WRONG: dict[str, Any] = {"reference": "4", "grade": Grade.WRONG}


def judged(
    number: int, *, version: int = 0, minute: int = 0, verdict: Verdict = Verdict.CORRECT, **asked: Any
) -> Interaction:
    critique = make_critique(stated=Verdict.UNPARSED, verdict=verdict, p_correct=0.6, p_incorrect=0.2)
    return make_interaction(
        question=unrelated_question(number),
        created_at=START + timedelta(minutes=minute),
        critic_version=version,
        critiques=(critique, make_critique(sample=1)),
        **asked,
    )


async def keep(database: Database, *interactions: Interaction, heldout: bool = False) -> None:
    async with database.session() as session:
        share = 1 - 1e-9 if heldout else 1e-9
        await store.interactions.insert_records(session, list(interactions), heldout_share=share)


async def trained(database: Database, *, made: datetime) -> CriticVersion:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        critic = await store.critics.insert_critic(
            session, run_id=run.id, parent=0, base_model="tiny", prompt_set="p", adapter_path="x", adapter_sha256="ab"
        )
        await session.execute(text("UPDATE critic_versions SET created_at = :made WHERE version = 1"), {"made": made})
        return await store.critics.resolve_critic(session, critic.version)


async def test_the_verdicts_that_callers_got_on_labelled_answers_count(database: Database) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        zero = await store.critics.resolve_critic(session, 0)
    await keep(
        database,
        judged(1, minute=1, **RIGHT),
        judged(2, minute=2, verdict=Verdict.INCORRECT, **WRONG),
        judged(3),  # no label
        make_interaction(question=unrelated_question(4), kind=Kind.IMPORT, critic_version=None, critiques=(), **RIGHT),
    )
    async with database.session() as session:
        found = await store.scores.scored_answers(session, zero)
        assert len(await store.scores.scored_answers(session, zero, limit=1)) == 1
    assert [(item.was_right, item.verdict) for item in found] == [
        (False, Verdict.INCORRECT),
        (True, Verdict.CORRECT),
    ], "the newest first, by the served verdict of the first critique"
    board = scoreboard(found)
    assert board.right is not None
    assert (board.right.hits, board.answers) == (1, 2)


async def test_a_trained_critic_is_measured_on_questions_that_it_cannot_have_learned(database: Database) -> None:
    critic = await trained(database, made=now() + timedelta(hours=1))
    await keep(database, judged(1, version=1, **RIGHT))
    await keep(database, judged(2, version=1, **WRONG), heldout=True)
    async with database.session() as session:
        found = await store.scores.scored_answers(session, critic)
        assert [item.was_right for item in found] == [False], "the held-out one"
        splits = await session.scalars(text("SELECT split FROM questions ORDER BY split"))
        assert set(splits) == {Split.TRAIN.value, Split.HELDOUT.value}
        await session.execute(
            text("UPDATE critic_versions SET created_at = :made"), {"made": now() - timedelta(days=9)}
        )
    async with database.session() as session:
        later = await store.critics.resolve_critic(session, critic.version)
        assert len(await store.scores.scored_answers(session, later)) == 2, "both questions are newer than the critic"
