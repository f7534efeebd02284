"""A candidate judges recent traffic in the shadow, and its disagreements lead the label queue."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from gadfly import store
from gadfly.records import CriticVersion, now
from gadfly.service.critics.pointers import CriticPointers
from gadfly.service.critics.shadow import ShadowJudge
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.shadow import Unjudged
from gadfly.training import TrainConfig, Trigger
from gadfly.verdict import Verdict
from tests.service.conftest import serving_without_engine
from tests.service.test_label_queue import judged, keep, take


class Eldest:
    is_eldest = True


class Doubter(ShadowJudge):
    """A judge whose critic calls everything wrong."""

    async def _verdicts(self, critic: CriticVersion, answers: Sequence[Unjudged]) -> list[tuple[UUID, Verdict]]:
        return [(answer.interaction_id, Verdict.INCORRECT) for answer in answers]


async def judge_of(database: Database, *, candidate_share: float) -> Doubter:
    pointers = CriticPointers(database)
    await pointers.refresh()
    none = cast(Any, None)  # what only a critique by an engine needs
    return Doubter(
        database, pointers, engines=none, loader=none, leases=none, replicas=cast(Any, Eldest()),
        share=0.5, candidate_share=candidate_share,
    )  # fmt: skip


async def test_a_candidate_judges_recent_traffic_with_and_without_labels(
    engineless: Settings, database: Database
) -> None:
    sure, old = judged(1, 0.99), judged(2, 0.99, created_at=now() - timedelta(days=2))
    await keep(database, judged(3, 0.4), sure, old)
    assert await (await judge_of(database, candidate_share=1.0)).judge() == 0, "there is no candidate"
    async with database.session() as session:
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        await store.critics.insert_critic(
            session, run_id=run.id, parent=0, base_model="tiny", prompt_set="stepwise@1", adapter_path="/none",
            adapter_sha256="ab",
        )  # fmt: skip
        await store.critics.set_candidate(session, 1)
    assert await (await judge_of(database, candidate_share=0.0)).judge() == 0, "switched off"
    judge = await judge_of(database, candidate_share=1.0)
    assert await judge.judge() == 2, "the recent ones"
    assert await judge.judge() == 0, "each once"
    async with serving_without_engine(engineless) as client:
        [first, *_] = await take(client, limit=3)
        assert (first["interaction_id"], first["reason"]) == (str(sure.id), "disagreement")
        assert (first["other_critic"], first["other_verdict"]) == (1, "incorrect")
        assert first["why"] == "The critics 0 and 1 give different verdicts."
