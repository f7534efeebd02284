"""The live critic judges a share of the answers of /v1/chat/completions in the background.

Callers of the actor ask for no critique, so their answers would have no verdict: nothing for the rollback watch to
compare with labels, and no doubtful answers to put before people. The engine runs these critiques after all requests.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

import structlog

from gadfly import store
from gadfly.adapters import BadAdapter
from gadfly.concurrency import gather
from gadfly.critique import critique
from gadfly.engine_client import Sampling
from gadfly.errors import AdapterRefused, EngineError, PromptTooLong, TooBusy
from gadfly.prompts import PromptSet
from gadfly.records import CriticVersion, now
from gadfly.repeating import repeat
from gadfly.service.answering.answer import words_of
from gadfly.service.critics.serving import CriticServing
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings
from gadfly.store.chat import Due
from gadfly.store.database import Database
from gadfly.tasks import ServedTasks

_EVERY_S = 5.0
_BATCH = 16  # answers a round
_CONCURRENT = 2
_PRIORITY = 20  # after requests (0) and rollouts (10)
_LONGEST_WAIT = timedelta(days=1)

log = structlog.get_logger(__name__)


class BackgroundJudge:
    """Has the live critic judge answers that are due, in the eldest replica."""

    def __init__(
        self, database: Database, critics: CriticServing, *, settings: Settings, tasks: ServedTasks, metrics: Metrics
    ) -> None:
        self._database = database
        self._critics = critics
        self._settings = settings
        self._tasks = tasks
        self._metrics = metrics

    async def run(self) -> None:
        """Judge a few answers every five seconds, until cancelled."""
        await repeat(self.judge, wait=partial(asyncio.sleep, _EVERY_S), failure="background_judging_failed")

    async def judge(self) -> int:
        """Judge a batch of answers; the number of verdicts, which is 0 while there are none or the engines are busy.

        An answer that waited for more than a day is given up, and so is one that does not fit the critic's context.
        """
        if not self._critics.replicas.is_eldest:
            return 0
        async with self._database.session() as session:
            answers = await store.chat.due_answers(
                session, since=now() - _LONGEST_WAIT, limit=_BATCH, tasks=self._tasks.names
            )
        of_tasks = [[each for each in answers if each.task == task] for task in self._tasks.names]
        return sum([await self._judge_of_task(each) for each in of_tasks if each])

    async def _judge_of_task(self, answers: Sequence[Due]) -> int:
        critic = await self._critics.pointers.resolve("live", answers[0].task)
        try:
            with self._critics.leases.take(critic.version, is_pinned=False):
                prompts = await self._critics.loader.ready(critic)
                return sum(await self._judge_all(critic, prompts, answers))
        except (AdapterRefused, BadAdapter, EngineError, TooBusy) as error:
            log.warning("background_judging_postponed", critic=critic.engine_name, reason=str(error))
            return 0

    async def _judge_all(self, critic: CriticVersion, prompts: PromptSet, answers: Sequence[Due]) -> list[bool]:
        slots = asyncio.Semaphore(_CONCURRENT)

        async def one(answer: Due) -> bool:
            async with slots:
                return await self._judge(critic, prompts, answer)

        return await gather(*map(one, answers))

    async def _judge(self, critic: CriticVersion, prompts: PromptSet, answer: Due) -> bool:
        parameters = {
            "n": 1,
            "temperature": self._settings.temperature,
            "max_tokens": self._settings.max_tokens,
            **words_of(prompts),
        }
        if critic.examples:
            parameters["examples"] = critic.examples
        try:
            [judged] = await critique(
                self._critics.engines,
                prompts,
                model=critic.engine_name,
                question=answer.question,
                response=answer.response,
                sampling=Sampling(
                    temperature=self._settings.temperature, max_tokens=self._settings.max_tokens, priority=_PRIORITY
                ),
            )
        except PromptTooLong as error:
            log.info("answer_not_judged", interaction_id=str(answer.interaction_id), reason=str(error))
            async with self._database.session() as session:
                await store.chat.give_up(session, answer.interaction_id)
            return False
        async with self._database.session() as session:
            is_stored = await store.chat.store_critique(
                session,
                answer.interaction_id,
                judged,
                critic=critic,
                prompt_set=prompts.name,
                parameters=parameters,
            )
        if is_stored:
            self._metrics.observe_critiques(critic.version, [judged], task=answer.task)
        return is_stored
