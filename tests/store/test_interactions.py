import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.errors import BadInput, Conflict, NotFound
from gadfly.grading import Grade
from gadfly.records import CriticVersion, FeedbackSource, Interaction, Kind, Record, Split, Tier, new_id, now
from gadfly.store.claims import Claimed, Done, Held
from gadfly.store.database import Database
from gadfly.store.interactions import Filters
from gadfly.store.split import question_hash
from gadfly.verdict import Verdict
from tests.support.records import make_critique, make_feedback, make_interaction

OWNER = new_id()


@pytest.fixture
async def seeded(database: Database) -> Database:
    """A database with version 0, as a service leaves it at its start."""
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
    return database


async def keep(seeded: Database, *records: Record, heldout_share: float = 0.2) -> list[store.interactions.Stored]:
    async with seeded.session() as session:
        return await store.interactions.insert_records(session, records, heldout_share=heldout_share)


async def read(seeded: Database, id: UUID) -> Interaction:
    async with seeded.session() as session:
        return await store.interactions.read_interaction(session, id, scope=None)


async def make_key(seeded: Database, name: str = "app") -> UUID:
    async with seeded.session() as session:
        key, _ = await issue_key(session, name=name, tier=Tier.CALLER)
    return key.id


# ------------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("refined", [False, True])
async def test_a_record_read_back_equals_the_record_written(seeded: Database, samples: int, refined: bool) -> None:
    interaction = make_interaction(samples=samples, refined=refined, request_id="r", fingerprint="f", reference="4")
    await keep(seeded, interaction)
    assert await read(seeded, interaction.id) == interaction


async def test_an_imported_interaction_names_no_critic(seeded: Database) -> None:
    empty = dict.fromkeys(("model", "prompt_set", "critic_version", "verdict", "latency_ms"))
    imported = make_interaction(samples=0, kind=Kind.IMPORT, **empty)
    await keep(seeded, imported)
    assert await read(seeded, imported.id) == imported
    spoken = make_interaction(episode_id=imported.episode_id)
    await keep(seeded, spoken)
    async with seeded.session() as session:  # the first critic that speaks in the episode pins it
        episode = await store.interactions.find_episode(session, imported.episode_id, scope=None)
    assert episode == store.interactions.Episode(question_hash(imported.question), 0)


async def test_storing_again_changes_nothing(seeded: Database) -> None:
    interaction = make_interaction(refined=True, request_id="r")
    feedback = make_feedback(interaction.id, correct=False)
    await keep(seeded, interaction, feedback)
    await keep(seeded, replace(interaction, response="other"), feedback)
    assert await read(seeded, interaction.id) == interaction
    async with seeded.session() as session:
        assert await store.interactions.feedback_of(session, interaction.id) == [feedback]


@pytest.mark.parametrize("bad", ["nul \x00 here", "surrogate \ud800 here", "both \x00\udfff"])
async def test_text_that_postgres_cannot_hold_is_stored_with_replacements(seeded: Database, bad: str) -> None:
    clean = bad.replace("\x00", "\ufffd").replace("\ud800", "\ufffd").replace("\udfff", "\ufffd")
    interaction = make_interaction(
        question=bad,
        response=bad,
        request_id=bad,
        metadata={bad: [bad, {"x": (bad, float("nan"))}]},
        critiques=(make_critique(text=bad),),
    )
    feedback = make_feedback(interaction.id, comment=bad, metadata={bad: bad})
    await keep(seeded, interaction, feedback)
    stored = await read(seeded, interaction.id)
    assert (stored.question, stored.response, stored.critiques[0].text) == (clean, clean, clean)
    assert stored.metadata == {clean: [clean, {"x": [clean, None]}]}
    async with seeded.session() as session:
        assert await store.interactions.find_by_request_id(session, bad, key_id=None) == stored
    (again,) = await keep(seeded, replace(feedback, id=new_id()))
    assert again.is_repeat


async def test_numbers_beyond_64_bits_stay_exact(seeded: Database) -> None:
    interaction = make_interaction(metadata={"big": 2**200, "small": 1e-300})
    await keep(seeded, interaction)
    assert await read(seeded, interaction.id) == interaction


async def test_a_question_keeps_its_side_when_the_share_changes(seeded: Database) -> None:
    async def split_of(question: str) -> Split:
        async with seeded.session() as session:
            hash_ = question_hash(question)
            value = await session.scalar(text("SELECT split FROM questions WHERE hash = :hash"), {"hash": hash_})
            return Split(value)

    first = make_interaction(question="Is it new?")
    await keep(seeded, first, heldout_share=0.0001)
    assert await split_of("Is it new?") is Split.TRAIN
    await keep(seeded, make_interaction(question=" is it NEW "), heldout_share=0.9999)
    assert await split_of("Is it new?") is Split.TRAIN
    await keep(seeded, make_interaction(question="And this?"), heldout_share=0.9999)
    assert await split_of("And this?") is Split.HELDOUT


async def test_a_request_id_is_one_interactions_and_each_keys_own(seeded: Database) -> None:
    key_id = await make_key(seeded)
    first = make_interaction(request_id="r")
    await keep(seeded, first)
    with pytest.raises(Conflict, match="request id"):
        await keep(seeded, make_interaction(request_id="r"))
    await keep(seeded, make_interaction(request_id="r", key_id=key_id))
    async with seeded.session() as session:
        assert await store.interactions.find_by_request_id(session, "r", key_id=None) == first
        assert await store.interactions.find_by_request_id(session, "R", key_id=None) is None


async def test_an_episode_is_about_one_question(seeded: Database) -> None:
    first = make_interaction()
    await keep(seeded, first, make_interaction(episode_id=first.episode_id))
    with pytest.raises(Conflict, match="another question"):
        await keep(seeded, make_interaction(episode_id=first.episode_id, question="What is 3 + 3?"))


async def test_writers_of_the_same_rows_do_not_deadlock(seeded: Database) -> None:
    async def write() -> None:
        records = [make_interaction(question=f"question {number}") for number in range(40)]
        for record in (records, records[::-1]):
            await keep(seeded, *[replace(item, id=new_id(), critiques=()) for item in record])

    await asyncio.gather(*(write() for _ in range(5)))


# ----------------------------------------------------------------------------------------------------------- feedback


async def test_feedback_that_says_the_same_again_is_a_repeat(seeded: Database) -> None:
    interaction = make_interaction()
    one = make_feedback(interaction.id, correct=True, metadata={"a": 1})
    two = make_feedback(interaction.id, correct=False)
    stored = await keep(seeded, interaction, one, replace(one, id=new_id()), two, replace(two, id=new_id()))
    assert [item.is_repeat for item in stored] == [False, False, True, False, True]
    assert [item.record for item in stored[1:]] == [one, one, two, two]
    (changed_back,) = await keep(seeded, replace(one, id=new_id(), created_at=now()))
    assert not changed_back.is_repeat  # only the newest counts: an opinion may change back
    (other_key,) = await keep(seeded, replace(one, id=new_id(), key_id=await make_key(seeded)))
    assert not other_key.is_repeat
    async with seeded.session() as session:
        assert len(await store.interactions.feedback_of(session, interaction.id)) == 4


async def test_the_same_feedback_at_once_is_kept_once(seeded: Database) -> None:
    interaction = make_interaction()
    await keep(seeded, interaction)
    stored = await asyncio.gather(*(keep(seeded, make_feedback(interaction.id, rating=5)) for _ in range(10)))
    assert sorted(item.is_repeat for (item,) in stored) == [False] + [True] * 9
    assert len({item.record.id for (item,) in stored}) == 1


async def test_feedback_about_nothing_is_refused(seeded: Database) -> None:
    with pytest.raises(NotFound):
        await keep(seeded, make_feedback(new_id(), correct=True))


async def test_the_newest_reference_grades(seeded: Database) -> None:
    interaction = make_interaction(refined=True, reference="5", grade=Grade.RIGHT)
    (refinement,) = interaction.refinements
    newer = make_feedback(
        interaction.id, reference="4", grade=Grade.WRONG, refinement_grades={refinement.id: Grade.RIGHT}
    )
    older = make_feedback(
        interaction.id, reference="6", grade=Grade.NO_ANSWER, created_at=newer.created_at + timedelta(days=1)
    )
    await keep(seeded, interaction, older)
    await keep(seeded, newer)  # by the database's clock; the clock of the process that took the older one is ahead
    await keep(seeded, make_feedback(interaction.id, correct=True))  # says nothing about the reference
    stored = await read(seeded, interaction.id)
    assert (stored.grade, stored.refinements[0].grade) == (Grade.WRONG, Grade.RIGHT)


# ------------------------------------------------------------------------------------------------------------ reading


async def test_a_key_sees_its_own_rows(seeded: Database) -> None:
    mine, theirs = await make_key(seeded), await make_key(seeded)
    interaction = make_interaction(key_id=mine)
    await keep(seeded, interaction)
    async with seeded.session() as session:
        critique = interaction.critiques[0]
        for scope in (None, mine):
            assert await store.interactions.read_interaction(session, interaction.id, scope=scope) == interaction
            found = await store.interactions.find_critique(session, critique.id, scope=scope)
            assert found == (critique, question_hash(interaction.question))
            assert (
                await store.interactions.list_interactions(session, scope=scope, filters=Filters(), limit=5)
            ).interactions
        assert await store.interactions.find_critique(session, critique.id, scope=theirs) is None
        assert not (
            await store.interactions.list_interactions(session, scope=theirs, filters=Filters(), limit=5)
        ).interactions
        with pytest.raises(NotFound):
            await store.interactions.read_interaction(session, interaction.id, scope=theirs)
        with pytest.raises(NotFound):
            await store.interactions.delete_interaction(session, interaction.id, scope=theirs)


async def test_pages_show_every_row_once_newest_first(seeded: Database) -> None:
    moment = now() - timedelta(hours=1)
    records = [make_interaction(created_at=moment + timedelta(seconds=number // 3)) for number in range(10)]
    await keep(seeded, *records)
    seen: list[UUID] = []
    cursor = None
    pages = 0
    while pages == 0 or cursor is not None:
        async with seeded.session() as session:
            page = await store.interactions.list_interactions(
                session, scope=None, filters=Filters(), limit=4, cursor=cursor
            )
        await keep(seeded, make_interaction())  # newer than the first page: not part of this walk
        seen += [item.id for item in page.interactions]
        cursor, pages = page.next_cursor, pages + 1
    assert pages == 3
    assert seen == [item.id for item in sorted(records, key=lambda item: (item.created_at, item.id), reverse=True)]


@pytest.mark.parametrize("cursor", ["", "x", "????", "bm9uZQ==", "MjAyNi0wMS0wMXww", "ü"])
async def test_a_made_up_cursor_is_bad_input(seeded: Database, cursor: str) -> None:
    async with seeded.session() as session:
        with pytest.raises(BadInput, match="cursor"):
            await store.interactions.list_interactions(session, scope=None, filters=Filters(), limit=4, cursor=cursor)


async def test_filters_narrow(seeded: Database) -> None:
    moment = now()
    target = make_interaction(
        refined=True, question="Held out?", verdict=Verdict.CORRECT, grade=Grade.RIGHT, reference="4", created_at=moment
    )
    await keep(seeded, target, heldout_share=0.9999)
    await keep(
        seeded,
        make_feedback(target.id, correct=True),
        make_interaction(created_at=moment - timedelta(days=1)),
        heldout_share=0.0001,
    )
    matching: list[dict[str, Any]] = [
        {"kind": Kind.REFINE},
        {"verdict": Verdict.CORRECT},
        {"grade": Grade.RIGHT},
        {"split": Split.HELDOUT},
        {"episode_id": target.episode_id},
        {"created_from": moment},
        {"created_from": moment, "created_before": moment + timedelta(seconds=1), "critic_version": 0},
        {"has_feedback": True},
    ]
    async with seeded.session() as session:
        for fields in matching:
            page = await store.interactions.list_interactions(session, scope=None, filters=Filters(**fields), limit=5)
            assert [item.id for item in page.interactions] == [target.id], fields
        others = Filters(created_before=moment, has_feedback=False, split=Split.TRAIN)
        page = await store.interactions.list_interactions(session, scope=None, filters=others, limit=5)
        assert len(page.interactions) == 1
        nothing = Filters(critic_version=7)
        assert not (
            await store.interactions.list_interactions(session, scope=None, filters=nothing, limit=5)
        ).interactions


async def test_forgetting_leaves_no_text(seeded: Database) -> None:
    interaction = make_interaction(refined=True, request_id="r")
    sibling = make_interaction(episode_id=interaction.episode_id)
    await keep(seeded, interaction, sibling, make_feedback(interaction.id, comment="secret"), heldout_share=0.0001)

    async def count(table: str) -> int:
        async with seeded.session() as session:
            return int(await session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)

    async with seeded.session() as session:
        await store.interactions.delete_interaction(session, interaction.id, scope=None)
    assert [await count(table) for table in ("interactions", "refinements", "feedback", "episodes")] == [1, 0, 0, 1]
    async with seeded.session() as session:
        await store.interactions.delete_interaction(session, sibling.id, scope=None)
    assert [await count(table) for table in ("interactions", "critiques", "episodes", "questions")] == [0, 0, 0, 1]
    await keep(seeded, make_interaction(), heldout_share=0.9999)  # the question returns, on the side it had
    async with seeded.session() as session:
        counts = await store.interactions.count_rows(session)
        assert counts.questions == {Split.TRAIN: 1, Split.HELDOUT: 0}
        with pytest.raises(NotFound):
            await store.interactions.delete_interaction(session, interaction.id, scope=None)


async def test_forgetting_the_last_of_an_episode_while_another_joins(seeded: Database) -> None:
    for _ in range(10):
        first = make_interaction()
        second = make_interaction(episode_id=first.episode_id)
        await keep(seeded, first)

        async def forget(id: UUID = first.id) -> None:
            async with seeded.session() as session:
                await store.interactions.delete_interaction(session, id, scope=None)

        await asyncio.gather(forget(), keep(seeded, second))
        assert await read(seeded, second.id) == second


async def test_counts(seeded: Database) -> None:
    labelled = make_interaction(question="a", reference="4", grade=Grade.WRONG)
    called = make_interaction(question="b", refined=True)
    await keep(
        seeded,
        labelled,
        called,
        make_interaction(question="c"),
        make_feedback(called.id, correct=True),
        heldout_share=0.0001,
    )
    async with seeded.session() as session:
        counts = await store.interactions.count_rows(session)
    assert counts.interactions == {Kind.CRITIQUE: 2, Kind.REFINE: 1, Kind.CHAT: 0, Kind.IMPORT: 0}
    assert counts.feedback == 1
    assert counts.questions == {Split.TRAIN: 3, Split.HELDOUT: 0}
    assert counts.labelled == {Split.TRAIN: 2, Split.HELDOUT: 0}


async def test_streaming_yields_whole_interactions_in_batches(seeded: Database) -> None:
    records = [make_interaction(samples=2, refined=True, question=f"q{number}") for number in range(7)]
    feedback = make_feedback(records[0].id, source=FeedbackSource.IMPORT, correct=True)
    await keep(seeded, *records, feedback)
    async with seeded.session() as session:
        batches = [batch async for batch in store.interactions.stream_interactions(session, Filters(), batch=3)]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    logged = [item for batch in batches for item in batch]
    assert [item.interaction for item in logged] == records
    assert [item.feedback for item in logged] == [(feedback,)] + [()] * 6


# ----------------------------------------------------------------------------------------------------- critics, claims


async def test_version_zero_is_made_once_and_live(database: Database) -> None:
    async with database.session() as session:
        zero = await store.critics.ensure_version_zero(session, "tiny")
        assert (zero.version, zero.base_model, zero.engine_name) == (0, "tiny", "base")
    async with database.session() as session:
        assert await store.critics.ensure_version_zero(session, "tiny") == zero
        assert await store.critics.resolve_critic(session, "live") == zero
        assert await store.critics.resolve_critic(session, 0) == zero
        assert await store.critics.list_critic_versions(session) == [zero]
        assert await store.critics.read_pointers(session) == {"live": 0}
        missing: list[Any] = [7, "candidate"]
        for choice in missing:
            with pytest.raises(NotFound):
                await store.critics.resolve_critic(session, choice)
    assert isinstance(zero, CriticVersion)


async def claim(
    seeded: Database, request_id: str = "r", *, lease_s: float = 60.0, **fields: Any
) -> Claimed | Held | Done:
    arguments: dict[str, Any] = {"key_id": None, "fingerprint": "f", "owner": OWNER} | fields
    async with seeded.session() as session:
        return await store.claims.claim_request(session, request_id=request_id, lease_s=lease_s, **arguments)


async def test_of_many_at_once_one_gets_the_claim(seeded: Database) -> None:
    outcomes = await asyncio.gather(*(claim(seeded, owner=new_id()) for _ in range(20)))
    assert sum(isinstance(outcome, Claimed) for outcome in outcomes) == 1
    held = next(outcome for outcome in outcomes if isinstance(outcome, Held))
    assert held.fingerprint == "f"
    assert timedelta(seconds=50) < held.until - now() < timedelta(seconds=61)
    assert isinstance(await claim(seeded, key_id=new_id()), Claimed)  # another caller's id of the same name


async def test_a_claim_ends_with_its_interaction_or_its_release(seeded: Database) -> None:
    assert isinstance(await claim(seeded, "kept"), Claimed)
    interaction = make_interaction(request_id="kept", fingerprint="f")
    await keep(seeded, interaction)
    assert await claim(seeded, "kept") == Done("f", interaction.id)
    released = await claim(seeded, "released")
    assert isinstance(released, Claimed)
    async with seeded.session() as session:
        await store.claims.release_claim(session, released.claim_id)
    assert isinstance(await claim(seeded, "released"), Claimed)
    async with seeded.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM request_claims")) == 1


async def test_a_claim_that_ran_out_is_taken_over_unless_it_was_extended(seeded: Database) -> None:
    lost, extended = await claim(seeded, "lost", lease_s=0.2), await claim(seeded, "extended", lease_s=0.2)
    assert isinstance(lost, Claimed)
    assert isinstance(extended, Claimed)
    async with seeded.session() as session:
        assert await store.claims.extend_claims(session, OWNER, [extended.claim_id], lease_s=60.0) == {
            extended.claim_id
        }
    await asyncio.sleep(0.25)
    taken = await claim(seeded, "lost", owner=new_id())
    assert isinstance(taken, Claimed)
    assert isinstance(await claim(seeded, "extended", owner=new_id()), Held)
    async with seeded.session() as session:
        assert await store.claims.extend_claims(session, OWNER, [lost.claim_id, taken.claim_id], lease_s=60.0) == set()
