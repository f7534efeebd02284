"""Shadow judging: another critic judges a share of the live critic's answers too, off the path of responses.

After a promotion the critic before judges labelled answers; while a canary runs, each of the two judges the other's.
Both critics' verdicts on the same answers are what the rollback watch compares best: the critic before may have few
labelled answers of its own. Otherwise an undecided candidate judges new traffic, labelled or not: where it disagrees, a
label teaches most (`gadfly.store.label_queue`).
Callers never see these verdicts. The engine runs them after all requests.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog

from gadfly import store
from gadfly.adapters import BadAdapter
from gadfly.concurrency import gather
from gadfly.critique import critique
from gadfly.engine_client import Sampling
from gadfly.engine_pool import EnginePool
from gadfly.errors import AdapterRefused, EngineError, TooBusy
from gadfly.prompts import PromptSet
from gadfly.records import CriticVersion, now
from gadfly.repeating import repeat
from gadfly.service.critics.leases import Leases
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.pointers import CriticLine, CriticPointers
from gadfly.service.critics.replicas import Replicas
from gadfly.store.database import Database
from gadfly.store.shadow import Unjudged
from gadfly.verdict import Verdict

_EVERY_S = 10.0
_BATCH = 16  # answers a round
_CONCURRENT = 2
_RECENT = timedelta(hours=24)  # traffic that a candidate judges
_PRIORITY = 20  # after requests (0) and rollouts (10)

log = structlog.get_logger(__name__)


class ShadowJudge:
    """Has the critic before, or a candidate, judge answers of the live critic, in the eldest replica."""

    def __init__(
        self,
        database: Database,
        pointers: CriticPointers,
        *,
        engines: EnginePool,
        loader: Loader,
        leases: Leases,
        replicas: Replicas,
        share: float,
        candidate_share: float,
    ) -> None:
        """`share` is of the labelled answers after a promotion, `candidate_share` of the traffic with a candidate."""
        self._database = database
        self._pointers = pointers
        self._engines = engines
        self._loader = loader
        self._leases = leases
        self._replicas = replicas
        self._share = share
        self._candidate_share = candidate_share

    async def run(self) -> None:
        """Judge a few answers every ten seconds, until cancelled."""
        if self._share > 0 or self._candidate_share > 0:
            await repeat(self.judge, wait=partial(asyncio.sleep, _EVERY_S), failure="shadow_judging_failed")

    async def judge(self) -> int:
        """Judge a batch of answers; the number of verdicts, which is 0 while there are none or the engines are busy."""
        if not self._replicas.is_eldest:
            return 0
        return sum([await self._judge(line) for line in self._pointers])

    async def _judge(self, line: CriticLine) -> int:
        by, answers = await self._of_canary(line) or await self._todo(line)
        if by is None or not answers:
            return 0
        verdicts = await self._verdicts(await self._pointers.resolve(by), answers)
        async with self._database.session() as session:
            await store.shadow.insert_verdicts(session, by, verdicts)
        return len(verdicts)

    async def _of_canary(self, line: CriticLine) -> tuple[int, list[Unjudged]] | None:
        """While a canary runs, each of the two critics judges answers of the other: labelled ones first."""
        canary = line.running_canary
        if canary is None or canary.started_at is None:
            return None
        ways = [(canary.version, canary.from_version), (canary.from_version, canary.version)]
        for share, only_labelled in ((self._share, True), (self._candidate_share, False)):
            for live, by in ways if share > 0 else ():
                async with self._database.session() as session:
                    answers = await store.shadow.unjudged(
                        session,
                        live=live,
                        by=by,
                        since=canary.started_at,
                        share=share,
                        limit=_BATCH,
                        only_labelled=only_labelled,
                    )
                if answers:
                    return by, answers
        return None

    async def _todo(self, line: CriticLine) -> tuple[int | None, list[Unjudged]]:
        """The version of a task that judges now, and the answers that it has not judged. The watch comes first."""
        tested = line.tested_promotion()
        if tested is not None and self._share > 0:
            async with self._database.session() as session:
                labelled = await store.shadow.unjudged(
                    session,
                    live=tested.version,
                    by=tested.from_version,
                    since=await store.watch.live_since(session, line.task),
                    share=self._share,
                    limit=_BATCH,
                )
            if labelled:
                return tested.from_version, labelled
        live, candidate = line.current.get("live"), line.current.get("candidate")
        if live is None or candidate is None or self._candidate_share == 0:
            return None, []
        async with self._database.session() as session:
            recent = await store.shadow.unjudged(
                session,
                live=live,
                by=candidate,
                since=now() - _RECENT,
                share=self._candidate_share,
                limit=_BATCH,
                only_labelled=False,
            )
        return candidate, recent

    async def _verdicts(self, critic: CriticVersion, answers: Sequence[Unjudged]) -> list[tuple[UUID, Verdict]]:
        slots = asyncio.Semaphore(_CONCURRENT)

        async def one(prompts: PromptSet, answer: Unjudged) -> tuple[UUID, Verdict]:
            async with slots:
                [judged] = await critique(
                    self._engines,
                    prompts,
                    model=critic.engine_name,
                    question=answer.question,
                    response=answer.response,
                    sampling=Sampling(
                        temperature=answer.parameters["temperature"],
                        max_tokens=answer.parameters["max_tokens"],
                        priority=_PRIORITY,
                    ),
                )
            return answer.interaction_id, judged.stated

        try:
            with self._leases.take(critic.version, is_pinned=True):
                prompts = await self._loader.ready(critic)
                return await gather(*(one(prompts, answer) for answer in answers))
        except (AdapterRefused, BadAdapter, EngineError, TooBusy) as error:
            log.warning("shadow_judging_postponed", critic=critic.engine_name, reason=str(error))
            return []
