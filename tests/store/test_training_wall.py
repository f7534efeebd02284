"""The wall: the held-out rows that a session of training code can read, by trying."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from gadfly import store
from gadfly.records import Split
from gadfly.settings import SplitBlocks
from gadfly.store.database import Database
from gadfly.store.runs import TRAINING_ROLE
from gadfly.store.split import question_hash, split_of
from gadfly.store.training_data import labelled_answers, open_questions
from tests.support.postgres import SPLIT_SECRET
from tests.support.records import make_feedback, make_interaction

_SHARE = 0.5
_TABLES = ("interactions", "episodes", "critiques", "refinements", "feedback", "answers")


def _questions(split: Split) -> list[str]:
    texts = [f"What is {number} + 1?" for number in range(60)]
    return [item for item in texts if split_of(question_hash(item), _SHARE, secret=SPLIT_SECRET) is split][:5]


@pytest.fixture
async def filled(database: Database) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, base_model="tiny")
    for split in Split:
        for question in _questions(split):
            interaction = make_interaction(question=question, refined=True)
            async with database.session() as session:
                await store.interactions.insert_records(
                    session,
                    [interaction, make_feedback(interaction.id, correct=False, reference="2")],
                    heldout_share=_SHARE,
                    split_blocks=SplitBlocks.EXACT,
                )


@pytest.mark.usefixtures("filled")
async def test_training_code_sees_the_train_split_alone(database: Database, database_url: str) -> None:
    async with Database(database_url, role=TRAINING_ROLE) as walled:
        for table in _TABLES:
            async with walled.session() as session:
                seen = await session.scalar(text(f"SELECT count(*) FROM {table}"))
            async with database.session() as session:
                all_rows = await session.scalar(text(f"SELECT count(*) FROM {table}"))
            assert (seen, all_rows) == (5, 10), table
        async with walled.session() as session:
            questions = set(await session.scalars(text("SELECT question FROM interactions")))
        assert questions == set(_questions(Split.TRAIN))


async def test_held_out_questions_without_a_response_are_out_of_reach(database: Database, database_url: str) -> None:
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, base_model="tiny")
        for split in Split:
            rows = [
                make_interaction(question=question, reference="2", response=None, samples=0)
                for question in _questions(split)
            ]
            await store.interactions.insert_records(session, rows, heldout_share=_SHARE, split_blocks=SplitBlocks.EXACT)
    async with Database(database_url, role=TRAINING_ROLE) as walled, walled.session() as session:
        found = await open_questions(session, Split.TRAIN, limit=100)
        assert {item.question for item in found} == set(_questions(Split.TRAIN))
        assert await open_questions(session, Split.HELDOUT, limit=100) == []


@pytest.mark.usefixtures("filled")
async def test_held_out_rows_are_out_of_reach_also_when_asked_for(database_url: str) -> None:
    async with Database(database_url, role=TRAINING_ROLE) as walled:
        async with walled.session() as session:
            assert await labelled_answers(session, Split.HELDOUT, limit=100) == []
        async with walled.session() as session:
            assert len(await labelled_answers(session, Split.TRAIN, limit=100)) == 5


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE questions SET split = 'train'",
        "INSERT INTO interactions SELECT * FROM interactions",
        "DELETE FROM feedback",
        "SELECT digest FROM keys",
        "SELECT secret FROM split_secrets",
        "SELECT key FROM block_keys",
        "UPDATE critic_pointers SET version = 0",
        "UPDATE training_runs SET outcome = 'promote'",
        "UPDATE training_runs SET status = 'succeeded'",
        "UPDATE answers SET is_right = true",
        "UPDATE keys SET distrusted_at = now()",
    ],
)
async def test_training_code_cannot_move_the_wall_or_what_is_served(database_url: str, statement: str) -> None:
    async with Database(database_url, role=TRAINING_ROLE) as walled:
        with pytest.raises(ProgrammingError, match="permission denied"):
            async with walled.session() as session:
                await session.execute(text(statement))
