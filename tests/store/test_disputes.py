"""Labels of several keys on a real database: overruled, frozen, decided by an admin, distrusted, counted together."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text

from gadfly import store
from gadfly.errors import NotFound
from gadfly.grading import Grade
from gadfly.records import AdminAction, Feedback, Interaction, Record, Ruling, Split, new_id, now
from gadfly.settings import SplitBlocks
from gadfly.store.critics import insert_critic
from gadfly.store.database import Database
from gadfly.store.disputes import Taught, critics_taught_by, disputed_answers, judged_answer, rule
from gadfly.store.keys import insert_key, set_trust
from gadfly.store.labels import read_model, refresh, stored_text_sha256, text_sha256
from gadfly.store.runs import request_run, save_manifest
from gadfly.store.split import question_hash, split_of
from gadfly.store.tables import InteractionRow
from gadfly.store.training_data import LabelledAnswer, labelled_answers, traffic_counts
from gadfly.store.watch import verdict_outcomes
from gadfly.trainer.manifest import describe
from gadfly.training import TrainConfig, Trigger
from gadfly.votes import LabelSource, Vote, VoteAgreement, Voter
from tests.support.postgres import SPLIT_SECRET
from tests.support.records import make_feedback, make_interaction, make_key

ALL_TRAIN, ALL_HELDOUT = 1e-9, 1 - 1e-9
A, B, C = KEYS = [new_id() for _ in range(3)]


@pytest.fixture
async def seeded(database: Database) -> Database:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        for number, id in enumerate(KEYS):
            await insert_key(session, make_key(id=id, name="abc"[number]), bytes([number]))
    return database


async def keep(seeded: Database, *records: Record, heldout_share: float = ALL_TRAIN) -> None:
    async with seeded.session() as session:
        await store.interactions.insert_records(
            session, records, heldout_share=heldout_share, split_blocks=SplitBlocks.EXACT
        )


def answer(key: UUID | None, **fields: Any) -> Interaction:
    return make_interaction(key_id=key, **fields)


def said(interaction: Interaction, correct: bool, key: UUID | None = None, **fields: Any) -> Feedback:
    return make_feedback(interaction.id, key_id=key or interaction.key_id, correct=correct, **fields)


async def labels(seeded: Database, split: Split = Split.TRAIN) -> list[bool]:
    return [item.is_right for item in await answers(seeded, split)]


async def answers(seeded: Database, split: Split = Split.TRAIN) -> list[LabelledAnswer]:
    async with seeded.session() as session:
        return await labelled_answers(session, split, limit=1000)


async def decide(seeded: Database, interaction: Interaction, ruling: Ruling) -> tuple[bool | None, bool | None]:
    async with seeded.session() as session:
        before, found = await rule(session, interaction.id, ruling)
    return before, found.is_right


# ------------------------------------------------------------------------------------------------------- several keys


async def test_another_keys_word_does_not_turn_graded_answers_around(seeded: Database) -> None:
    """One key logs 60 right answers with references and says so; the other calls the same texts wrong."""
    questions = [f"What is {number} + 1?" for number in range(60)]
    heldout = {
        question
        for question in questions
        if split_of(question_hash(question), 0.2, secret=SPLIT_SECRET) is Split.HELDOUT
    }
    assert 5 < len(heldout) < 20
    for key, correct in ((A, True), (B, False)):
        for question in questions:
            given = {"reference": "4", "grade": Grade.RIGHT} if key == A else {}
            asked = answer(key, question=question, response="The answer is 4", **given)
            await keep(seeded, asked, said(asked, correct), heldout_share=0.2)
    for _ in range(2):
        assert await labels(seeded, Split.HELDOUT) == [True] * len(heldout)
        assert await labels(seeded) == [True] * (60 - len(heldout))
        await refresh(seeded)
    async with seeded.session() as session:
        assert await traffic_counts(session) == (120, 0)
        model = await read_model(session)
        outcomes = await verdict_outcomes(session, 0)
    assert model.reliability(Voter(B, LabelSource.PERSON)).right < 0.3
    assert model.reliability(Voter(A, LabelSource.REFERENCE)).right > 0.9
    assert {(outcome.was_right, outcome.key_id) for outcome in outcomes} == {(True, A)}


async def test_votes_about_one_text_that_arrive_together_are_all_counted(seeded: Database) -> None:
    asked = [answer(key) for key in KEYS]
    await keep(seeded, *asked)
    await asyncio.gather(*(keep(seeded, said(item, True)) for item in asked))
    async with seeded.session() as session:
        found = await judged_answer(session, asked[0].id)
    assert {vote.key_id for vote in found.votes} == set(KEYS)
    assert (found.standing, found.is_right) == (VoteAgreement.AGREED, True)


async def test_more_votes_make_a_label_more_certain(seeded: Database) -> None:
    once, twice = answer(A, question="a"), answer(A, question="b")
    await keep(seeded, once, twice, said(once, False), said(twice, False), said(twice, False, B))
    by_question = {item.question: item for item in await answers(seeded)}
    assert by_question["a"].certainty == pytest.approx(0.95)
    assert by_question["b"].certainty == pytest.approx(0.95**2 / (0.95**2 + 0.05**2))
    assert (by_question["a"].key_id, by_question["b"].key_id) == (A, None)


async def test_a_reference_serves_if_it_agrees_with_the_label(seeded: Database) -> None:
    mine, theirs = answer(A, reference="4", grade=Grade.RIGHT), answer(B)
    await keep(seeded, mine, theirs)
    await keep(seeded, make_feedback(theirs.id, key_id=B, reference="9", grade=Grade.NO_ANSWER))
    assert [item.reference for item in await answers(seeded)] == ["4"], "the newer one says nothing about the answer"
    await keep(seeded, make_feedback(theirs.id, key_id=B, reference="5", grade=Grade.WRONG))
    assert await answers(seeded) == [], "references that disagree"
    await decide(seeded, mine, Ruling.WRONG)
    [found] = await answers(seeded)
    assert (found.reference, found.source, found.certainty) == ("5", LabelSource.ADMIN, 1.0)
    await decide(seeded, mine, Ruling.RIGHT)
    assert [item.reference for item in await answers(seeded)] == ["4"]


# ------------------------------------------------------------------------------------------------ frozen and decided


async def test_a_held_out_label_is_frozen_and_later_votes_are_kept(seeded: Database) -> None:
    asked = answer(A)
    await keep(seeded, asked, said(asked, True), heldout_share=ALL_HELDOUT)
    await keep(seeded, said(asked, False, B), said(asked, False, C))
    assert await labels(seeded, Split.HELDOUT) == [True]
    async with seeded.session() as session:
        found = await judged_answer(session, asked.id)
        [(_, listed)] = await disputed_answers(session, only_conflicts=False, limit=10)
    assert listed == found
    assert (found.is_right, found.voted_right, found.standing, len(found.votes)) == (
        True,
        False,
        VoteAgreement.DISPUTED,
        3,
    )
    assert found.frozen_at is not None
    await keep(seeded, said(asked, False))
    async with seeded.session() as session:
        [(_, listed)] = await disputed_answers(session, only_conflicts=False, limit=10)
        assert await disputed_answers(session, only_conflicts=True, limit=10) == []
    assert (listed.standing, listed.is_right) == (VoteAgreement.AGREED, True), (
        "all votes agree, against the frozen label"
    )


async def test_an_admin_changes_a_frozen_label_and_may_let_the_votes_decide_again(seeded: Database) -> None:
    asked = answer(A)
    await keep(seeded, asked, said(asked, True), heldout_share=ALL_HELDOUT)
    await keep(seeded, said(asked, False))
    steps = [(Ruling.WRONG, True, False), (Ruling.RIGHT, False, True), (Ruling.NONE, True, None)]
    for ruling, before, after in steps:
        assert await decide(seeded, asked, ruling) == (before, after)
    assert await labels(seeded, Split.HELDOUT) == []
    assert await decide(seeded, asked, Ruling.VOTES) == (None, False), "frozen anew with what the votes say now"
    await keep(seeded, said(asked, True))
    assert await labels(seeded, Split.HELDOUT) == [False]


async def test_a_conflict_has_no_label_until_an_admin_decides(seeded: Database) -> None:
    one, other = answer(A, reference="4", grade=Grade.RIGHT), answer(B, reference="5", grade=Grade.WRONG)
    agreed = answer(A, question="agreed", reference="4", grade=Grade.RIGHT)
    await keep(seeded, one, other, agreed)
    assert len(await answers(seeded)) == 1
    async with seeded.session() as session:
        [(key, found)] = await disputed_answers(session, only_conflicts=True, limit=10)
        assert await disputed_answers(session, only_conflicts=True, limit=10, after=key) == []
    assert (found.interaction_id, found.question, found.standing) == (other.id, other.question, VoteAgreement.CONFLICT)
    assert set(found.votes) == {
        Vote(A, LabelSource.REFERENCE, True),
        Vote(B, LabelSource.REFERENCE, False),
    }
    assert await decide(seeded, one, Ruling.RIGHT) == (None, True)
    async with seeded.session() as session:
        assert await disputed_answers(session, only_conflicts=False, limit=10) == []
    await keep(seeded, said(other, False), said(one, False, C))
    assert await labels(seeded) == [True, True], "votes do not change what an admin decided"


async def test_rulings_need_an_interaction_and_labels_a_vote(seeded: Database) -> None:
    unlabelled = answer(A)
    await keep(seeded, unlabelled)
    async with seeded.session() as session:
        with pytest.raises(NotFound, match="there is no vote about the answer"):
            await judged_answer(session, unlabelled.id)
        with pytest.raises(NotFound, match="there is no interaction"):
            await rule(session, new_id(), Ruling.RIGHT)
    assert await decide(seeded, unlabelled, Ruling.WRONG) == (None, False), "an admin may label what has no vote"


async def test_the_votes_of_a_deleted_interaction_count_no_more(seeded: Database) -> None:
    mine, theirs = answer(A), answer(B)
    await keep(seeded, mine, theirs, said(mine, True), said(theirs, False))
    assert await labels(seeded) == []
    for gone, left in ((theirs, [True]), (mine, [])):
        async with seeded.session() as session:
            await store.interactions.delete_interaction(session, gone.id, scope=None)
        assert await labels(seeded) == left
    async with seeded.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM answers")) == 0


# --------------------------------------------------------------------------------------------------------- distrusted


async def test_the_labels_of_a_distrusted_key_count_no_more_and_then_again(seeded: Database) -> None:
    hers, both, held = answer(B, question="a"), answer(A, question="b"), answer(B, question="c")
    await keep(seeded, hers, both, said(hers, True), said(both, True), said(both, True, B))
    await keep(seeded, held, said(held, True), heldout_share=ALL_HELDOUT)
    assert (await labels(seeded), await labels(seeded, Split.HELDOUT)) == ([True, True], [True])
    for is_trusted, train, heldout in ((False, [True], []), (True, [True, True], [True])):
        async with seeded.session() as session:
            key = await set_trust(session, B, is_trusted=is_trusted)
        assert (key.distrusted_at is None) is is_trusted
        await refresh(seeded)
        assert (await labels(seeded), await labels(seeded, Split.HELDOUT)) == (train, heldout)
    async with seeded.session() as session:
        with pytest.raises(NotFound, match="there is no key"):
            await set_trust(session, new_id(), is_trusted=False)


async def test_the_critics_that_learned_from_a_key_are_named_with_those_that_continue_them(seeded: Database) -> None:
    hers, his = answer(B, question="a"), answer(A, question="b")
    await keep(seeded, hers, his, said(hers, True), said(his, True))
    found = {item.question: item for item in await answers(seeded)}
    lessons = [([his], 0), ([hers, his], 0), ([his], 2), ([his], 0)]
    for number, (lesson, parent) in enumerate(lessons, start=1):
        async with seeded.session() as session:
            run = (await request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
            entries = [describe(found[item.question]) for item in lesson]
            await save_manifest(session, run.id, {"answers": entries})
            version = await insert_critic(
                session,
                run_id=run.id,
                parent=parent,
                base_model="tiny",
                prompt_set="stepwise@1",
                adapter_path=str(run.id),
                adapter_sha256="ab" * 32,
            )
        assert version.version == number
    async with seeded.session() as session:
        assert await critics_taught_by(session, B) == [Taught(2, 1), Taught(3, 0)]
        assert await critics_taught_by(session, C) == []
        assert [critic.version for critic in await critics_taught_by(session, A)] == [1, 2, 3, 4]


async def test_acts_are_listed_newest_first(seeded: Database) -> None:
    subjects = [new_id() for _ in range(3)]
    for subject in subjects:
        async with seeded.session() as session:
            await store.acts.record_act(session, AdminAction.DISTRUST_KEY, subject, key_id=A, reason="because")
    async with seeded.session() as session:
        first, *rest = await store.acts.list_acts(session, limit=10)
        assert [act.subject for act in (first, *rest)] == [str(subject) for subject in reversed(subjects)]
        assert (first.key_id, first.reason, first.action) == (A, "because", AdminAction.DISTRUST_KEY)
        assert abs(first.at - now()) < timedelta(minutes=1)
        assert await store.acts.list_acts(session, limit=1, before=first.id) == rest[:1]


# ------------------------------------------------------------------------------------------------------------ refresh


async def test_a_refresh_takes_back_the_labels_of_a_key_that_proves_unreliable(seeded: Database) -> None:
    """B calls everything wrong. 40 of its texts are graded as right for A, so its other labels count for nothing."""
    for number in range(40):
        mine = answer(A, question=f"{number}?", reference="4", grade=Grade.RIGHT)
        theirs = answer(B, question=f"{number}?")
        await keep(seeded, mine, theirs, said(theirs, False))
    alone = [answer(B, question=f"alone {number}?") for number in range(3)]
    for item in alone:
        await keep(seeded, item, said(item, False))
    held = answer(B, question="held out?")
    await keep(seeded, held, said(held, False), heldout_share=ALL_HELDOUT)
    assert (await labels(seeded)).count(False) == 3
    await refresh(seeded)
    assert (await labels(seeded)).count(False) == 0
    assert await labels(seeded, Split.HELDOUT) == [False], "a frozen label stays; an admin may change it"
    later = answer(B, question="later?")
    await keep(seeded, later, said(later, False))
    assert (await labels(seeded)).count(False) == 0, "new votes are weighed alike"


async def test_a_refresh_freezes_the_labels_of_questions_that_became_held_out(seeded: Database) -> None:
    asked = answer(A)
    await keep(seeded, asked, said(asked, True))
    async with seeded.session() as session:
        await session.execute(text("UPDATE questions SET split = 'heldout'"))
    await refresh(seeded)
    await keep(seeded, said(asked, False))
    assert await labels(seeded, Split.HELDOUT) == [True]


async def test_labels_of_an_earlier_release_are_counted_at_the_first_refresh(seeded: Database) -> None:
    for share, question in ((ALL_TRAIN, "train?"), (ALL_HELDOUT, "held out?")):
        asked = answer(A, question=question, reference="4", grade=Grade.RIGHT)
        await keep(seeded, asked, said(asked, False, B), heldout_share=share)
    async with seeded.session() as session:
        # What the migration makes of them: the label of the newest word, and frozen where it is held out.
        await session.execute(
            text(
                "UPDATE answers SET votes = NULL, is_right = false, source = 'person', standing = 'none', key_id = NULL"
            )
        )
        await session.execute(text("UPDATE interactions SET text_sha256 = NULL, own_grade = NULL, stored_at = NULL"))
        await session.execute(text("UPDATE feedback SET stored_at = NULL"))
    assert (await labels(seeded), await labels(seeded, Split.HELDOUT)) == ([False], [False])
    assert [item.certainty for item in await answers(seeded)] == [0.95]
    await refresh(seeded)
    assert (await labels(seeded), await labels(seeded, Split.HELDOUT)) == ([True], [False])
    async with seeded.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM interactions WHERE text_sha256 IS NULL")) == 0


@pytest.mark.parametrize("response", ["x", " \t\n\r\f\vx\n", "\u00a0x\u2003", "é ∑ x", "x\x00y", "\ud800 x", " "])
async def test_a_text_has_one_hash_here_and_in_the_database(seeded: Database, response: str) -> None:
    asked = answer(A, response=response)
    await keep(seeded, asked)
    async with seeded.session() as session:
        here = await session.scalar(select(InteractionRow.text_sha256))
        await session.execute(text("UPDATE interactions SET text_sha256 = NULL"))
        assert await session.scalar(select(stored_text_sha256())) == here == text_sha256(response)
