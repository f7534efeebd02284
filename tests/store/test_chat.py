"""Answers of chat completions as they are stored: their conversations, and the critiques that they wait for."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.util import await_only

from gadfly import store
from gadfly.records import CriticVersion, Interaction, Kind, Usage, new_id, now
from gadfly.service.recording.spool import Spool
from gadfly.store.database import Database
from gadfly.store.interactions import Filters
from gadfly.verdict import Verdict
from tests.support.records import make_critique, make_feedback, make_interaction

CONVERSATION = {"messages": [{"role": "user", "content": "q 🙂"}, {"role": "assistant", "content": "r"}]}
CRITIC = CriticVersion(
    version=0, parent=None, base_model="tiny", adapter_path=None, adapter_sha256=None, created_at=now()
)
PARAMETERS = {"n": 1, "temperature": 0.7, "max_tokens": 64}


def make_chat(**fields: Any) -> Interaction:
    unjudged: dict[str, Any] = dict.fromkeys(("critic_version", "adapter_sha256", "verdict", "prompt_set"))
    defaults: dict[str, Any] = {
        "kind": Kind.CHAT,
        "conversation": CONVERSATION,
        "critique_due": True,
        "parameters": {"model": "actor"},
    }
    return make_interaction(samples=0, **(unjudged | defaults | fields))


async def keep(database: Database, *records: Any) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        await store.interactions.insert_records(session, records, heldout_share=0.2)


async def judge(database: Database, answer: Interaction) -> bool:
    async with database.session() as session:
        return await store.chat.store_critique(
            session, answer.id, make_critique(), critic=CRITIC, prompt_set="stepwise@1", parameters=PARAMETERS
        )


async def due(database: Database, *, since: timedelta = timedelta(days=1)) -> list[Any]:
    async with database.session() as session:
        answers = await store.chat.due_answers(session, since=now() - since, limit=10)
        return [answer.interaction_id for answer in answers]


async def test_a_conversation_read_back_equals_the_one_written(database: Database) -> None:
    answer = make_chat()
    await keep(database, answer)
    async with database.session() as session:
        read = await store.interactions.read_interaction(session, answer.id, scope=None)
        page = await store.interactions.list_interactions(session, scope=None, filters=Filters(), limit=5)
    assert read == replace(answer, critique_due=False)
    assert [each.conversation for each in page.interactions] == [None], "a list does not carry conversations"


def test_the_spool_keeps_conversations(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=2**20)
    spool.open()
    answer = make_chat()
    spool.append([answer])
    assert spool.find(answer.id) == answer
    spool.close()


async def test_a_critique_that_was_due_is_stored_once(database: Database) -> None:
    answer, other = make_chat(created_at=now() - timedelta(seconds=2)), make_chat()
    await keep(database, answer, other, make_chat(critique_due=False))
    assert await due(database) == [answer.id, other.id]
    assert await judge(database, answer)
    assert not await judge(database, answer), "it is judged"
    assert await due(database) == [other.id]
    async with database.session() as session:
        judged = await store.interactions.read_interaction(session, answer.id, scope=None)
        episode = await store.interactions.find_episode(session, answer.episode_id, scope=None)
    assert (judged.critic_version, judged.verdict, len(judged.critiques)) == (0, Verdict.INCORRECT, 1)
    assert judged.parameters.pop("judged_at") <= now().isoformat()
    assert judged.parameters == {"model": "actor", **PARAMETERS}
    assert judged.usage == answer.usage == Usage(prompt_tokens=40, completion_tokens=25), "the answer's own"
    assert episode is not None
    assert episode.critic_version == 0


async def test_an_answer_can_be_read_while_it_is_judged(database: Database) -> None:
    """It is read with several statements; a commit between them once made a critique without a critic."""
    answer = make_chat()
    await keep(database, answer)
    judged = []

    def judge_between(state: ORMExecuteState) -> None:
        if state.is_relationship_load and not judged:
            judged.append(await_only(judge(database, answer)))

    async with database.session(snapshot=True) as session:
        event.listen(session.sync_session, "do_orm_execute", judge_between)
        read = await store.interactions.read_interaction(session, answer.id, scope=None)
    assert (read.critic_version, read.critiques) == (None, ())
    assert judged == [True]


async def test_a_replay_of_the_spool_does_not_judge_an_answer_again(database: Database) -> None:
    answer = make_chat()
    await keep(database, answer)
    assert await judge(database, answer)
    async with database.session() as session:
        await store.interactions.insert_records(session, [answer], heldout_share=0.2)
    assert not await judge(database, answer)
    assert await due(database) == []


async def test_deleted_and_old_answers_are_not_judged(database: Database) -> None:
    deleted, old = make_chat(), make_chat(created_at=now() - timedelta(days=2))
    await keep(database, deleted, old)
    async with database.session() as session:
        await store.interactions.delete_interaction(session, deleted.id, scope=None)
    assert await due(database) == []
    assert not await judge(database, deleted)


@pytest.mark.parametrize("is_right", [True, False])
async def test_the_watch_sees_verdicts_from_the_background(database: Database, is_right: bool) -> None:
    answer = make_chat()
    await keep(database, answer, make_feedback(answer.id, correct=is_right, key_id=None, id=new_id()))
    async with database.session() as session:
        assert await store.watch.verdict_outcomes(session, 0) == []
    await judge(database, answer)
    async with database.session() as session:
        [outcome] = await store.watch.verdict_outcomes(session, 0)
    assert (outcome.was_right, outcome.is_verdict_right) == (is_right, not is_right)


async def test_a_verdict_that_comes_after_its_label_takes_the_last_place(database: Database) -> None:
    """The watch's test may be looked at at any time, as long as outcomes keep their places."""
    first, second = make_chat(response="12"), make_chat(response="13")
    await keep(database, first, second)
    await keep(database, make_feedback(first.id, correct=True), make_feedback(second.id, correct=False))
    await judge(database, second)
    await judge(database, first)
    async with database.session() as session:
        outcomes = await store.watch.verdict_outcomes(session, 0)
    assert [outcome.was_right for outcome in outcomes] == [False, True]
