"""Critics by examples in the store: what goes with an interaction, and which version is the base model."""

from uuid import UUID

import pytest

from gadfly import store
from gadfly.adapters import Probe, ProbeRecord
from gadfly.prompts import Example
from gadfly.records import CriticStatus, CriticVersion
from gadfly.store.critic_examples import PromptExamples, sha256_of
from gadfly.store.database import Database
from gadfly.training import TrainConfig, Trigger
from tests.support.records import make_interaction

RECORD = ProbeRecord(
    prompt_set="stepwise@1",
    tolerance=1e-3,
    probes=(
        Probe(
            question="q",
            response="r",
            prompt_tokens=(),
            prompt_sha256="0" * 64,
            tokens=(1, 2),
            logprobs=(-0.5, -0.25),
            base_logprobs=(-0.5, -0.25),
        ),
    ),
)


@pytest.fixture
async def made(database: Database) -> tuple[Database, CriticVersion, tuple[UUID, ...]]:
    """Version 1, with two answers of the deployment as examples."""
    rows = [make_interaction(question=f"question {number}", critic_version=0) for number in range(2)]
    ids = tuple(row.id for row in rows)
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        await store.interactions.insert_interactions(session, rows, heldout_share=0.0)
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        examples = PromptExamples(
            items=tuple(Example(f"question {number}", "an answer", "a critique") for number in range(2)),
            interactions=ids,
            probe=RECORD,
        )
        version = await store.critics.insert_critic(
            session, run_id=run.id, parent=0, base_model="tiny", prompt_set="stepwise@1", examples=examples
        )
    return database, version, ids


async def test_a_critic_by_examples_is_read_as_it_was_stored(
    made: tuple[Database, CriticVersion, tuple[UUID, ...]],
) -> None:
    database, version, _ = made
    assert (version.version, version.examples, version.adapter_path) == (1, 2, None)
    assert version.status is CriticStatus.EXAMPLES
    assert not version.is_base
    assert version.engine_name == "base", "the engine serves the base model's weights"
    async with database.session() as session:
        items, record = await store.critic_examples.read_examples(session, 1)
        assert sha256_of(items) == version.examples_sha256
        assert record == RECORD
        assert await store.critic_examples.incomplete_versions(session) == frozenset()
        assert (await store.critics.base_version(session, "tiny")).version == 0
        assert await store.critic_examples.read_examples(session, 0) == ((), None)


async def test_an_example_goes_with_its_interaction(made: tuple[Database, CriticVersion, tuple[UUID, ...]]) -> None:
    database, version, ids = made
    async with database.session() as session:
        await store.interactions.delete_interaction(session, ids[0], scope=None)
    async with database.session() as session:
        items, _ = await store.critic_examples.read_examples(session, 1)
        assert [each.question for each in items] == ["question 1"]
        assert sha256_of(items) != version.examples_sha256
        assert await store.critic_examples.incomplete_versions(session) == frozenset({1})


async def test_the_training_role_cannot_read_examples(
    made: tuple[Database, CriticVersion, tuple[UUID, ...]], database_url: str
) -> None:
    del made
    async with Database(database_url, role=store.runs.TRAINING_ROLE) as training:
        with pytest.raises(Exception, match="permission denied"):
            async with training.session() as session:
                await store.critic_examples.read_examples(session, 1)
