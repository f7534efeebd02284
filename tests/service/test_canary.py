"""Canaries without an engine: which critic a request gets, when a canary ends, and what it teaches."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.cli.main import app
from gadfly.errors import Conflict
from gadfly.grading import Grade
from gadfly.records import (
    Canary,
    CanaryOutcome,
    CanaryTerms,
    CriticVersion,
    Interaction,
    SwapKind,
    Tier,
    new_id,
    now,
)
from gadfly.service.critics.canaries import Canaries
from gadfly.service.critics.pointers import CriticLine, CriticPointers
from gadfly.service.critics.shadow import ShadowJudge
from gadfly.service.critics.watch import RollbackWatch
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.shadow import Unjudged
from gadfly.store.tables import CanaryRow
from gadfly.verdict import Verdict
from tests.service.conftest import serving_without_engine
from tests.service.test_label_queue import take
from tests.support.records import make_critique, make_interaction, unrelated_question
from tests.support.versions import seed_versions

TERMS = CanaryTerms(share=0.5, for_s=3600, for_requests=None)


class Eldest:
    is_eldest = True


@pytest.fixture
async def seeded(database: Database) -> Database:
    """Versions 0 to 3, of which 0 is live."""
    await seed_versions(database)
    return database


async def move(
    database: Database, version: int | None, kind: SwapKind = SwapKind.PROMOTE, canary: CanaryTerms | None = None
) -> None:
    async with database.session() as session:
        swap = await store.swaps.request_swap(session, version=version, kind=kind, canary=canary, reason="because")
        await store.swaps.move_pointer(session, swap.id)


async def newest(database: Database) -> Canary:
    async with database.session() as session:
        return (await store.canaries.list_canaries(session, ["math"], limit=1))[0]


async def read(database: Database) -> CriticPointers:
    pointers = CriticPointers(database)
    await pointers.refresh()
    return pointers


def shares(line: CriticLine, requests: int = 2000) -> dict[int | None, float]:
    got = [line.live_for(uuid4().bytes) for _ in range(requests)]
    return {version: got.count(version) / requests for version in set(got)}


# --------------------------------------------------------------------------------------------------------- which critic


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_request_gets_the_same_critic_each_time_and_the_share_holds(share: float) -> None:
    def line_of(swap_id: UUID) -> CriticLine:
        canary = Canary(
            swap_id=swap_id, task="math", version=2, from_version=1, share=share, for_s=None, for_requests=None,
            started_at=now(), ended_at=None, outcome=None, reason=None,
        )  # fmt: skip
        return CriticLine("math", current={"live": 2, "previous": 1}, serving=2, canary=canary)

    swap_id = new_id()
    first, replica, other = line_of(swap_id), line_of(swap_id), line_of(new_id())
    episodes = [uuid4().bytes for _ in range(4000)]
    drawn = [first.live_for(episode) for episode in episodes]
    assert drawn == [replica.live_for(episode) for episode in episodes], "in every replica"
    assert drawn.count(2) / len(drawn) == pytest.approx(share, abs=5 * (share * (1 - share) / 4000) ** 0.5)
    both = sum(a == b == 2 for a, b in zip(drawn, map(other.live_for, episodes), strict=True)) / len(drawn)
    assert both == pytest.approx(share**2, abs=0.04), "another canary draws anew"


async def test_a_canary_begins_with_the_move_and_ends_with_a_rollback(seeded: Database) -> None:
    await move(seeded, 1)
    pointers = await read(seeded)
    line = pointers.default
    line.serving = 1
    async with seeded.session() as session:
        swap = await store.swaps.request_swap(session, version=2, kind=SwapKind.GATE, canary=TERMS)
    await pointers.refresh()
    assert shares(line) == {1: 1.0}, "the pointer has not moved"
    async with seeded.session() as session:
        await store.swaps.move_pointer(session, swap.id)
    await pointers.refresh()
    assert shares(line) == {1: 1.0}, "this replica has not proven version 2 yet"
    line.serving = 2
    assert shares(line) == {1: pytest.approx(0.5, abs=0.06), 2: pytest.approx(0.5, abs=0.06)}
    assert pointers.live_versions() == {1, 2}, "both stay loaded"
    assert shares((await read(seeded)).default)[2] == pytest.approx(0.5, abs=0.06), "and after a restart"
    with pytest.raises(Conflict, match="version 2 is a canary"):
        await move(seeded, 3)
    await move(seeded, None, SwapKind.ROLLBACK)
    assert shares((await read(seeded)).default) == {1: 1.0}
    await pointers.refresh()
    assert shares(line) == {1: 1.0}, "also while this replica still serves version 2"
    await pointers.refresh()
    assert shares(line) == {1: 1.0}
    line.serving = 1
    await pointers.refresh()
    assert line.canary is None
    ended = await newest(seeded)
    assert (ended.outcome, ended.reason) == (CanaryOutcome.ROLLED_BACK, "because")
    await move(seeded, 3)
    assert shares((await read(seeded)).default) == {3: 1.0}, "without terms, all requests at once"


async def test_a_refused_swap_begins_no_canary(seeded: Database) -> None:
    async with seeded.session() as session:
        swap = await store.swaps.request_swap(session, version=1, kind=SwapKind.PROMOTE, canary=TERMS)
        await store.swaps.finish_swap(session, swap.id, store.swaps.SwapStatus.REFUSED, "no engine")
        assert await store.canaries.open_canaries(session) == {}
        assert await store.canaries.list_canaries(session, ["math"], limit=5) == []
    await move(seeded, 2)
    assert shares((await read(seeded)).default) == {2: 1.0}


async def test_another_base_model_ends_a_canary(seeded: Database) -> None:
    await move(seeded, 1, canary=TERMS)
    async with seeded.session() as session:
        await store.critics.ensure_version_zero(session, "another")
    assert (await newest(seeded)).outcome is CanaryOutcome.REPLACED


def test_the_settings_give_what_a_promotion_leaves_out() -> None:
    off = Settings(model="tiny")
    on = Settings(model="tiny", canary_share=0.1, canary_s=60, canary_requests=500)
    assert off.canary_terms() is None
    assert off.canary_terms(share=0.2) == CanaryTerms(share=0.2, for_s=3600, for_requests=None)
    assert on.canary_terms() == CanaryTerms(share=0.1, for_s=60, for_requests=500)
    assert on.canary_terms(for_requests=9) == CanaryTerms(share=0.1, for_s=60, for_requests=9)
    assert on.canary_terms(share=0.0) is None


# ----------------------------------------------------------------------------------------------------------- its end


def judged(version: int, *, is_verdict_right: bool, **fields: Any) -> list[Interaction]:
    """A right and a wrong answer with their labels."""
    return [
        make_interaction(
            critic_version=version,
            response=f"answer {new_id()}",
            reference="4",
            grade=grade,
            critiques=(make_critique(stated=said if is_verdict_right else other),),
            **fields,
        )
        for grade, said, other in (
            (Grade.RIGHT, Verdict.CORRECT, Verdict.INCORRECT),
            (Grade.WRONG, Verdict.INCORRECT, Verdict.CORRECT),
        )
    ]


async def keep(database: Database, records: Sequence[Any]) -> None:
    async with database.session() as session:
        await store.interactions.insert_records(session, records, heldout_share=0.2)


async def keeper(database: Database, *, with_watch: bool = True) -> Canaries:
    pointers = await read(database)
    watch = RollbackWatch(database, pointers, is_on=True, shadow_share=0.5) if with_watch else None
    return Canaries(database, pointers, watch=watch, replicas=cast(Any, Eldest()))


async def begun(database: Database, seconds_ago: float) -> None:
    async with database.session() as session:
        await session.execute(update(CanaryRow).values(started_at=now() - timedelta(seconds=seconds_ago)))


async def test_it_answers_all_requests_after_its_time(seeded: Database) -> None:
    await move(seeded, 1, canary=TERMS)
    await (await keeper(seeded)).check()
    assert (await newest(seeded)).ended_at is None, "it is not due"
    await begun(seeded, 3601)
    await (await keeper(seeded)).check()
    ended = await newest(seeded)
    assert ended.outcome is CanaryOutcome.WIDENED
    assert ended.reason == "3600 s have passed; evidence of a loss 0.5 from 0 pairs of both classes"
    assert shares((await read(seeded)).default) == {1: 1.0}


@pytest.mark.parametrize("with_watch", [True, False])
async def test_it_answers_all_requests_after_so_many_answers(seeded: Database, with_watch: bool) -> None:
    await move(seeded, 1, canary=CanaryTerms(share=0.5, for_s=None, for_requests=4))
    await keep(
        seeded,
        [*judged(0, is_verdict_right=True), *judged(0, is_verdict_right=True), *judged(1, is_verdict_right=True)],
    )
    await (await keeper(seeded, with_watch=with_watch)).check()
    assert (await newest(seeded)).ended_at is None, "two answers of its own"
    await keep(seeded, judged(1, is_verdict_right=True))
    await (await keeper(seeded, with_watch=with_watch)).check()
    ended = await newest(seeded)
    assert ended.outcome is CanaryOutcome.WIDENED
    assert (ended.reason or "").startswith("it has given 4 answers")


async def test_a_worse_critic_goes_back_instead(seeded: Database) -> None:
    await move(seeded, 1, canary=TERMS)
    await begun(seeded, 3601)
    worse = [record for _ in range(30) for record in judged(1, is_verdict_right=False)]
    others = [record for _ in range(40) for record in judged(0, is_verdict_right=True)]
    await keep(seeded, others + worse)
    await (await keeper(seeded)).check()
    async with seeded.session() as session:
        swap = await store.swaps.pending_swap(session)
        assert swap is not None
        assert (swap.kind, swap.version) == (SwapKind.WATCH, 0)
    assert (await newest(seeded)).ended_at is None
    canaries = await keeper(seeded)
    await canaries.check()
    with pytest.raises(Conflict, match="a swap to version 0 is in progress"):
        await canaries.widen("math", version=1, reason=None, key_id=None)
    async with seeded.session() as session:
        await store.swaps.move_pointer(session, swap.id)
    ended = await newest(seeded)
    assert ended.outcome is CanaryOutcome.ROLLED_BACK
    assert "version 1 judges 0.0% of right answers" in (ended.reason or "")


async def test_without_a_canary_the_history_of_the_critic_before_counts(seeded: Database) -> None:
    long_ago = now() - timedelta(days=2)
    history = [record for _ in range(40) for record in judged(0, is_verdict_right=True, created_at=long_ago)]
    await keep(seeded, history)
    await move(seeded, 1)
    pointers = await read(seeded)
    watch = RollbackWatch(seeded, pointers, is_on=True, shadow_share=0.5)
    await keep(seeded, [record for _ in range(30) for record in judged(1, is_verdict_right=False)])
    evidence = await watch.check()
    assert evidence is not None
    assert evidence.units == 30, "without a canary, they do"


async def test_outcomes_of_the_critic_before_count_from_the_beginning_of_a_canary(seeded: Database) -> None:
    long_ago = now() - timedelta(days=2)
    await keep(seeded, [record for _ in range(40) for record in judged(0, is_verdict_right=True, created_at=long_ago)])
    await move(seeded, 1, canary=TERMS)
    await keep(seeded, judged(0, is_verdict_right=True))
    await keep(seeded, [record for _ in range(30) for record in judged(1, is_verdict_right=False)])
    evidence = await RollbackWatch(seeded, await read(seeded), is_on=True, shadow_share=0.5).check()
    assert evidence is not None
    assert evidence.units == 1


async def test_a_loss_by_the_labels_of_one_key_among_several_waits_for_a_person(seeded: Database) -> None:
    async with seeded.session() as session:
        ann, _ = await issue_key(session, name="ann", tier=Tier.CALLER)
        await issue_key(session, name="bob", tier=Tier.CALLER)
    await move(seeded, 1, canary=TERMS)
    await begun(seeded, 3601)
    worse = [record for _ in range(30) for record in judged(1, is_verdict_right=False, key_id=ann.id)]
    others = [record for _ in range(40) for record in judged(0, is_verdict_right=True)]
    await keep(seeded, others + worse)
    canaries = await keeper(seeded)
    await canaries.check()
    assert (await newest(seeded)).ended_at is None
    assert canaries.held("math") == "labels show a loss, but only those of one key: a person has to decide"
    await canaries.widen("math", version=1, reason="ann tests the service", key_id=None)
    ended = await newest(seeded)
    assert (ended.outcome, ended.reason) == (CanaryOutcome.WIDENED, "ann tests the service")
    await canaries.check()
    assert canaries.held("math") is None
    async with seeded.session() as session:
        [act, *_] = await store.acts.list_acts(session, limit=5)
    assert (act.action, act.details) == ("widen_canary", {"version": 1, "from_version": 0})


# ------------------------------------------------------------------------------------------------------ what it teaches


class Contrarian(ShadowJudge):
    """A judge whose critics call everything wrong."""

    async def _verdicts(self, critic: CriticVersion, answers: Sequence[Unjudged]) -> list[tuple[UUID, Verdict]]:
        return [(answer.interaction_id, Verdict.INCORRECT) for answer in answers]


async def test_each_critic_judges_the_answers_of_the_other_for_the_watch_and_the_queue(
    engineless: Settings, seeded: Database
) -> None:
    await move(seeded, 1, canary=TERMS)
    labelled = [*judged(0, is_verdict_right=True), *judged(1, is_verdict_right=True)]

    def unlabelled(number: int, version: int) -> Interaction:
        critique = make_critique(p_correct=0.99, p_incorrect=0.01, stated=Verdict.CORRECT, verdict=Verdict.CORRECT)
        return make_interaction(question=unrelated_question(number), critiques=(critique,), critic_version=version)

    open_ones = [unlabelled(1, 0), unlabelled(2, 1)]
    await keep(seeded, [*labelled, *open_ones])
    none = cast(Any, None)  # what only a critique by an engine needs
    judge = Contrarian(
        seeded, await read(seeded), engines=none, loader=none, leases=none, replicas=cast(Any, Eldest()),
        share=1.0, candidate_share=1.0,
    )  # fmt: skip
    assert [await judge.judge() for _ in range(5)] == [2, 2, 1, 1, 0], "labelled ones of both first, then the others"
    async with seeded.session() as session:
        pairs = await store.watch.paired_outcomes(session, 1, before=0)
    # Both verdicts on a right and a wrong answer of each; the critic that judges in the shadow calls all of them wrong.
    outcomes = sorted((old.was_right, old.is_verdict_right, new.is_verdict_right) for old, new in pairs)
    assert outcomes == [(False, True, True), (False, True, True), (True, False, True), (True, True, False)]
    async with serving_without_engine(engineless) as client:
        found = {item["interaction_id"]: item for item in await take(client, limit=5)}
        for answer, other in zip(open_ones, (1, 0), strict=True):
            item = found[str(answer.id)]
            assert (item["reason"], item["other_critic"], item["other_verdict"]) == ("disagreement", other, "incorrect")


# -------------------------------------------------------------------------------------------------------------- the API


async def test_an_admin_sees_and_ends_a_canary(engineless: Settings, seeded: Database) -> None:
    await move(seeded, 1, canary=TERMS)
    await keep(seeded, judged(1, is_verdict_right=True))
    async with serving_without_engine(engineless) as client:
        [canary] = (await client.get("/admin/canaries")).json()
        shown = {name: canary[name] for name in ("version", "from_version", "share", "ended_at", "answers", "held")}
        assert shown == {
            "version": 1, "from_version": 0, "share": 0.5, "ended_at": None, "answers": 2, "held": None,
        }  # fmt: skip
        wrong = await client.post("/admin/canaries/widen", json={"version": 3})
        assert (wrong.status_code, wrong.json()["detail"]) == (409, "the canary is version 1, and not 3")
        ended = await client.post("/admin/canaries/widen", json={"version": 1, "reason": "quiet"})
        assert (ended.status_code, ended.json()["outcome"], ended.json()["reason"]) == (200, "widened", "quiet")
        again = await client.post("/admin/canaries/widen", json={})
        assert (again.status_code, again.json()["detail"]) == (409, "no canary is running for this task")
        for body in ({"share": 1}, {"share": -0.1}, {"for_s": 0}, {"for_requests": 0}, {"for_s": 60}, {}):
            answer = await client.post("/admin/promote", json={"version": 2, "canary": body})
            assert answer.status_code == 422, body


async def test_a_canary_is_seen_and_ended_by_the_command_line(engineless: Settings, seeded: Database) -> None:
    await move(seeded, 1, canary=TERMS)
    await keep(seeded, judged(1, is_verdict_right=True))
    async with serving_without_engine(engineless) as client:

        async def gadfly(*arguments: str) -> str:
            command = [*arguments, "--url", str(client.base_url)]
            result = await asyncio.to_thread(CliRunner().invoke, app, command)
            assert result.exit_code == 0, result.output
            return " ".join(result.stdout.split())  # with the log of the service, which is in this process

        running = await gadfly("canaries")
        assert "math: version 1 answers 50% of the requests (2 answers; version 0: 0) since" in running
        assert "for 3600 s" in running
        assert "version 1 widened; answered 50% of the requests" in await gadfly("widen", "1", "--reason", "quiet")
        assert (await gadfly("canaries", "--task", "math")).endswith("version 0: 0): quiet")
