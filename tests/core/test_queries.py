import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from core import queries
from core.database import Database
from core.errors import BadInput, Conflict, NotFound
from core.grading import Grade
from core.keys import issue_key
from core.queries import Claimed, Done, Filters, Held
from core.questions import question_hash
from core.records import CriticVersion, FeedbackSource, Interaction, Kind, Record, Split, Tier, new_id, now
from core.verdict import Verdict
from tests.records import make_critique, make_feedback, make_interaction

OWNER = new_id()


@pytest.fixture
async def store(database: Database) -> Database:
    """A database with version 0, as a service leaves it at its start."""
    async with database.session() as session:
        await queries.ensure_version_zero(session, "tiny")
    return database


async def keep(store: Database, *records: Record, heldout_share: float = 0.2) -> list[queries.Stored]:
    async with store.session() as session:
        return await queries.insert_records(session, records, heldout_share=heldout_share)


async def read(store: Database, id: UUID) -> Interaction:
    async with store.session() as session:
        return await queries.read_interaction(session, id, scope=None)


async def make_key(store: Database, name: str = "app") -> UUID:
    async with store.session() as session:
        key, _ = await issue_key(session, name=name, tier=Tier.CALLER)
    return key.id


# ------------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("refined", [False, True])
async def test_a_record_read_back_equals_the_record_written(store: Database, samples: int, refined: bool) -> None:
    interaction = make_interaction(samples=samples, refined=refined, request_id="r", fingerprint="f", reference="4")
    await keep(store, interaction)
    assert await read(store, interaction.id) == interaction


async def test_an_imported_interaction_names_no_critic(store: Database) -> None:
    empty = dict.fromkeys(("model", "prompt_set", "critic_version", "verdict", "latency_ms"))
    imported = make_interaction(samples=0, kind=Kind.IMPORT, **empty)
    await keep(store, imported)
    assert await read(store, imported.id) == imported
    spoken = make_interaction(episode_id=imported.episode_id)
    await keep(store, spoken)
    async with store.session() as session:  # the first critic that speaks in the episode pins it
        episode = await queries.find_episode(session, imported.episode_id, scope=None)
    assert episode == queries.Episode(question_hash(imported.question), 0)


async def test_storing_again_changes_nothing(store: Database) -> None:
    interaction = make_interaction(refined=True, request_id="r")
    feedback = make_feedback(interaction.id, correct=False)
    await keep(store, interaction, feedback)
    await keep(store, replace(interaction, response="other"), feedback)
    assert await read(store, interaction.id) == interaction
    async with store.session() as session:
        assert await queries.feedback_of(session, interaction.id) == [feedback]


@pytest.mark.parametrize("bad", ["nul \x00 here", "surrogate \ud800 here", "both \x00\udfff"])
async def test_text_that_postgres_cannot_hold_is_stored_with_replacements(store: Database, bad: str) -> None:
    clean = bad.replace("\x00", "\ufffd").replace("\ud800", "\ufffd").replace("\udfff", "\ufffd")
    interaction = make_interaction(
        question=bad,
        response=bad,
        request_id=bad,
        metadata={bad: [bad, {"x": (bad, float("nan"))}]},
        critiques=(make_critique(text=bad),),
    )
    feedback = make_feedback(interaction.id, comment=bad, metadata={bad: bad})
    await keep(store, interaction, feedback)
    stored = await read(store, interaction.id)
    assert (stored.question, stored.response, stored.critiques[0].text) == (clean, clean, clean)
    assert stored.metadata == {clean: [clean, {"x": [clean, None]}]}
    async with store.session() as session:
        assert await queries.find_by_request_id(session, bad, key_id=None) == stored
    (again,) = await keep(store, replace(feedback, id=new_id()))
    assert again.is_repeat


async def test_numbers_beyond_64_bits_stay_exact(store: Database) -> None:
    interaction = make_interaction(metadata={"big": 2**200, "small": 1e-300})
    await keep(store, interaction)
    assert await read(store, interaction.id) == interaction


async def test_a_question_keeps_its_side_when_the_share_changes(store: Database) -> None:
    async def split_of(question: str) -> Split:
        async with store.session() as session:
            hash_ = question_hash(question)
            value = await session.scalar(text("SELECT split FROM questions WHERE hash = :hash"), {"hash": hash_})
            return Split(value)

    first = make_interaction(question="Is it new?")
    await keep(store, first, heldout_share=0.0001)
    assert await split_of("Is it new?") is Split.TRAIN
    await keep(store, make_interaction(question=" is it NEW "), heldout_share=0.9999)
    assert await split_of("Is it new?") is Split.TRAIN
    await keep(store, make_interaction(question="And this?"), heldout_share=0.9999)
    assert await split_of("And this?") is Split.HELDOUT


async def test_a_request_id_is_one_interactions_and_each_keys_own(store: Database) -> None:
    key_id = await make_key(store)
    first = make_interaction(request_id="r")
    await keep(store, first)
    with pytest.raises(Conflict, match="request id"):
        await keep(store, make_interaction(request_id="r"))
    await keep(store, make_interaction(request_id="r", key_id=key_id))
    async with store.session() as session:
        assert await queries.find_by_request_id(session, "r", key_id=None) == first
        assert await queries.find_by_request_id(session, "R", key_id=None) is None


async def test_an_episode_is_about_one_question(store: Database) -> None:
    first = make_interaction()
    await keep(store, first, make_interaction(episode_id=first.episode_id))
    with pytest.raises(Conflict, match="another question"):
        await keep(store, make_interaction(episode_id=first.episode_id, question="What is 3 + 3?"))


async def test_writers_of_the_same_rows_do_not_deadlock(store: Database) -> None:
    async def write() -> None:
        records = [make_interaction(question=f"question {number}") for number in range(40)]
        for record in (records, records[::-1]):
            await keep(store, *[replace(item, id=new_id(), critiques=()) for item in record])

    await asyncio.gather(*(write() for _ in range(5)))


# ----------------------------------------------------------------------------------------------------------- feedback


async def test_feedback_that_says_the_same_again_is_a_repeat(store: Database) -> None:
    interaction = make_interaction()
    one = make_feedback(interaction.id, correct=True, metadata={"a": 1})
    two = make_feedback(interaction.id, correct=False)
    stored = await keep(store, interaction, one, replace(one, id=new_id()), two, replace(two, id=new_id()))
    assert [item.is_repeat for item in stored] == [False, False, True, False, True]
    assert [item.record for item in stored[1:]] == [one, one, two, two]
    (changed_back,) = await keep(store, replace(one, id=new_id(), created_at=now()))
    assert not changed_back.is_repeat  # only the newest counts: an opinion may change back
    (other_key,) = await keep(store, replace(one, id=new_id(), key_id=await make_key(store)))
    assert not other_key.is_repeat
    async with store.session() as session:
        assert len(await queries.feedback_of(session, interaction.id)) == 4


async def test_the_same_feedback_at_once_is_kept_once(store: Database) -> None:
    interaction = make_interaction()
    await keep(store, interaction)
    stored = await asyncio.gather(*(keep(store, make_feedback(interaction.id, rating=5)) for _ in range(10)))
    assert sorted(item.is_repeat for (item,) in stored) == [False] + [True] * 9
    assert len({item.record.id for (item,) in stored}) == 1


async def test_feedback_about_nothing_is_refused(store: Database) -> None:
    with pytest.raises(NotFound):
        await keep(store, make_feedback(new_id(), correct=True))


async def test_the_newest_reference_grades(store: Database) -> None:
    interaction = make_interaction(refined=True, reference="5", grade=Grade.RIGHT)
    (refinement,) = interaction.refinements
    newer = make_feedback(
        interaction.id, reference="4", grade=Grade.WRONG, refinement_grades={refinement.id: Grade.RIGHT}
    )
    older = make_feedback(
        interaction.id, reference="6", grade=Grade.NO_ANSWER, created_at=newer.created_at - timedelta(days=1)
    )
    await keep(store, interaction, newer)
    await keep(store, older)  # replayed late, it does not outvote the newer one
    await keep(store, make_feedback(interaction.id, correct=True))  # says nothing about the reference
    stored = await read(store, interaction.id)
    assert (stored.grade, stored.refinements[0].grade) == (Grade.WRONG, Grade.RIGHT)


# ------------------------------------------------------------------------------------------------------------ reading


async def test_a_key_sees_its_own_rows(store: Database) -> None:
    mine, theirs = await make_key(store), await make_key(store)
    interaction = make_interaction(key_id=mine)
    await keep(store, interaction)
    async with store.session() as session:
        critique = interaction.critiques[0]
        for scope in (None, mine):
            assert await queries.read_interaction(session, interaction.id, scope=scope) == interaction
            found = await queries.find_critique(session, critique.id, scope=scope)
            assert found == (critique, question_hash(interaction.question))
            assert (await queries.list_interactions(session, scope=scope, filters=Filters(), limit=5)).interactions
        assert await queries.find_critique(session, critique.id, scope=theirs) is None
        assert not (await queries.list_interactions(session, scope=theirs, filters=Filters(), limit=5)).interactions
        with pytest.raises(NotFound):
            await queries.read_interaction(session, interaction.id, scope=theirs)
        with pytest.raises(NotFound):
            await queries.delete_interaction(session, interaction.id, scope=theirs)


async def test_pages_show_every_row_once_newest_first(store: Database) -> None:
    moment = now() - timedelta(hours=1)
    records = [make_interaction(created_at=moment + timedelta(seconds=number // 3)) for number in range(10)]
    await keep(store, *records)
    seen: list[UUID] = []
    cursor = None
    pages = 0
    while pages == 0 or cursor is not None:
        async with store.session() as session:
            page = await queries.list_interactions(session, scope=None, filters=Filters(), limit=4, cursor=cursor)
        await keep(store, make_interaction())  # newer than the first page: not part of this walk
        seen += [item.id for item in page.interactions]
        cursor, pages = page.next_cursor, pages + 1
    assert pages == 3
    assert seen == [item.id for item in sorted(records, key=lambda item: (item.created_at, item.id), reverse=True)]


@pytest.mark.parametrize("cursor", ["", "x", "????", "bm9uZQ==", "MjAyNi0wMS0wMXww", "ü"])
async def test_a_made_up_cursor_is_bad_input(store: Database, cursor: str) -> None:
    async with store.session() as session:
        with pytest.raises(BadInput, match="cursor"):
            await queries.list_interactions(session, scope=None, filters=Filters(), limit=4, cursor=cursor)


async def test_filters_narrow(store: Database) -> None:
    moment = now()
    target = make_interaction(
        refined=True, question="Held out?", verdict=Verdict.CORRECT, grade=Grade.RIGHT, reference="4", created_at=moment
    )
    await keep(store, target, heldout_share=0.9999)
    await keep(
        store,
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
    async with store.session() as session:
        for fields in matching:
            page = await queries.list_interactions(session, scope=None, filters=Filters(**fields), limit=5)
            assert [item.id for item in page.interactions] == [target.id], fields
        others = Filters(created_before=moment, has_feedback=False, split=Split.TRAIN)
        page = await queries.list_interactions(session, scope=None, filters=others, limit=5)
        assert len(page.interactions) == 1
        nothing = Filters(critic_version=7)
        assert not (await queries.list_interactions(session, scope=None, filters=nothing, limit=5)).interactions


async def test_forgetting_leaves_no_text(store: Database) -> None:
    interaction = make_interaction(refined=True, request_id="r")
    sibling = make_interaction(episode_id=interaction.episode_id)
    await keep(store, interaction, sibling, make_feedback(interaction.id, comment="secret"), heldout_share=0.0001)

    async def count(table: str) -> int:
        async with store.session() as session:
            return int(await session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)

    async with store.session() as session:
        await queries.delete_interaction(session, interaction.id, scope=None)
    assert [await count(table) for table in ("interactions", "refinements", "feedback", "episodes")] == [1, 0, 0, 1]
    async with store.session() as session:
        await queries.delete_interaction(session, sibling.id, scope=None)
    assert [await count(table) for table in ("interactions", "critiques", "episodes", "questions")] == [0, 0, 0, 1]
    await keep(store, make_interaction(), heldout_share=0.9999)  # the question returns, on the side it had
    async with store.session() as session:
        counts = await queries.count_rows(session)
        assert counts.questions == {Split.TRAIN: 1, Split.HELDOUT: 0}
        with pytest.raises(NotFound):
            await queries.delete_interaction(session, interaction.id, scope=None)


async def test_forgetting_the_last_of_an_episode_while_another_joins(store: Database) -> None:
    for _ in range(10):
        first = make_interaction()
        second = make_interaction(episode_id=first.episode_id)
        await keep(store, first)

        async def forget(id: UUID = first.id) -> None:
            async with store.session() as session:
                await queries.delete_interaction(session, id, scope=None)

        await asyncio.gather(forget(), keep(store, second))
        assert await read(store, second.id) == second


async def test_counts(store: Database) -> None:
    labelled = make_interaction(question="a", reference="4", grade=Grade.WRONG)
    called = make_interaction(question="b", refined=True)
    await keep(
        store,
        labelled,
        called,
        make_interaction(question="c"),
        make_feedback(called.id, correct=True),
        heldout_share=0.0001,
    )
    async with store.session() as session:
        counts = await queries.count_rows(session)
    assert counts.interactions == {Kind.CRITIQUE: 2, Kind.REFINE: 1, Kind.IMPORT: 0}
    assert counts.feedback == 1
    assert counts.questions == {Split.TRAIN: 3, Split.HELDOUT: 0}
    assert counts.labelled == {Split.TRAIN: 2, Split.HELDOUT: 0}


async def test_streaming_yields_whole_interactions_in_batches(store: Database) -> None:
    records = [make_interaction(samples=2, refined=True, question=f"q{number}") for number in range(7)]
    feedback = make_feedback(records[0].id, source=FeedbackSource.IMPORT, correct=True)
    await keep(store, *records, feedback)
    async with store.session() as session:
        batches = [batch async for batch in queries.stream_interactions(session, Filters(), batch=3)]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    logged = [item for batch in batches for item in batch]
    assert [item.interaction for item in logged] == records
    assert [item.feedback for item in logged] == [(feedback,)] + [()] * 6


# ----------------------------------------------------------------------------------------------------- critics, claims


async def test_version_zero_is_made_once_and_live(database: Database) -> None:
    async with database.session() as session:
        zero = await queries.ensure_version_zero(session, "tiny")
        assert (zero.version, zero.base_model, zero.engine_name) == (0, "tiny", "base")
    async with database.session() as session:
        assert await queries.ensure_version_zero(session, "tiny") == zero
        assert await queries.resolve_critic(session, "live") == zero
        assert await queries.resolve_critic(session, 0) == zero
        assert await queries.list_critic_versions(session) == [zero]
        assert await queries.read_pointers(session) == {"live": 0}
        missing: list[Any] = [7, "candidate"]
        for choice in missing:
            with pytest.raises(NotFound):
                await queries.resolve_critic(session, choice)
        with pytest.raises(Conflict, match="tiny, not other"):
            await queries.ensure_version_zero(session, "other")
    assert isinstance(zero, CriticVersion)


async def claim(
    store: Database, request_id: str = "r", *, lease_s: float = 60.0, **fields: Any
) -> Claimed | Held | Done:
    arguments: dict[str, Any] = {"key_id": None, "fingerprint": "f", "owner": OWNER} | fields
    async with store.session() as session:
        return await queries.claim_request(session, request_id=request_id, lease_s=lease_s, **arguments)


async def test_of_many_at_once_one_gets_the_claim(store: Database) -> None:
    outcomes = await asyncio.gather(*(claim(store, owner=new_id()) for _ in range(20)))
    assert sum(isinstance(outcome, Claimed) for outcome in outcomes) == 1
    held = next(outcome for outcome in outcomes if isinstance(outcome, Held))
    assert held.fingerprint == "f"
    assert timedelta(seconds=50) < held.until - now() < timedelta(seconds=61)
    assert isinstance(await claim(store, key_id=new_id()), Claimed)  # another caller's id of the same name


async def test_a_claim_ends_with_its_interaction_or_its_release(store: Database) -> None:
    assert isinstance(await claim(store, "kept"), Claimed)
    interaction = make_interaction(request_id="kept", fingerprint="f")
    await keep(store, interaction)
    assert await claim(store, "kept") == Done("f", interaction.id)
    released = await claim(store, "released")
    assert isinstance(released, Claimed)
    async with store.session() as session:
        await queries.release_claim(session, released.claim_id)
    assert isinstance(await claim(store, "released"), Claimed)
    async with store.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM request_claims")) == 1


async def test_a_claim_that_ran_out_is_taken_over_unless_it_was_extended(store: Database) -> None:
    lost, extended = await claim(store, "lost", lease_s=0.2), await claim(store, "extended", lease_s=0.2)
    assert isinstance(lost, Claimed)
    assert isinstance(extended, Claimed)
    async with store.session() as session:
        assert await queries.extend_claims(session, OWNER, [extended.claim_id], lease_s=60.0) == {extended.claim_id}
    await asyncio.sleep(0.25)
    taken = await claim(store, "lost", owner=new_id())
    assert isinstance(taken, Claimed)
    assert isinstance(await claim(store, "extended", owner=new_id()), Held)
    async with store.session() as session:
        assert await queries.extend_claims(session, OWNER, [lost.claim_id, taken.claim_id], lease_s=60.0) == set()
