"""The label queue: which answers to label next, who has which one, and what the gate still needs."""

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from gadfly import store
from gadfly.errors import NotFound
from gadfly.planning import detectable_gain, questions_for_gain
from gadfly.records import Interaction, QueueReason, Split, now
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.service.keyring import Caller
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.disputes import JudgedAnswer
from gadfly.store.label_queue import LabelledQuestions, WaitingAnswer
from gadfly.store.labels import text_sha256
from gadfly.store.split import question_hash
from gadfly.tasks import ServedTasks
from gadfly.tasks.training import train_config_of
from gadfly.training import TrainConfig

_COUNTS_VALID_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """An answer that was reserved for a labeller."""

    waiting: WaitingAnswer
    interaction: Interaction
    judged: JudgedAnswer | None  # None: there is no vote yet
    reserved_until: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What is missing until the gate sees a gain. Counts are held-out questions, by class."""

    detectable: float | None
    right: int
    wrong: int
    labels_right: int
    labels_wrong: int
    is_beyond_gate: bool


class LabelQueue:
    """Hands out answers to label."""

    def __init__(self, database: Database, *, settings: Settings, tasks: ServedTasks) -> None:
        self._database = database
        self._settings = settings
        self._tasks = tasks
        self._counts: dict[str | None, tuple[float, LabelledQuestions]] = {}
        self._reads: SingleFlight[LabelledQuestions] = SingleFlight()
        self._configs: dict[str, TrainConfig] = {}

    async def take(
        self, caller: Caller, *, labeller: str, limit: int, reserve_s: int, reasons: Collection[QueueReason]
    ) -> tuple[list[Taken], int]:
        """Reserve answers for a labeller, those that it has reserved already first; and how many more wait.

        Raises:
            StoreUnavailable: Postgres is unavailable.
        """
        name = _labeller(caller, labeller)
        async with self._database.session() as session:
            await store.label_queue.lock(session)
            own = await store.label_queue.reserved_by(session, name)
            found, waiting = await store.label_queue.waiting_answers(
                session,
                scope=caller.rows_of,
                voter=caller.key_id,
                labeller=name,
                limit=limit,
                heldout_share=self._settings.heldout_share,
                reasons=reasons,
            )
            # What was reserved and is not waiting any more has a label now.
            await store.label_queue.release(session, name, own - {item.answer for item in found})
            ordered = sorted(found, key=lambda item: item.answer not in own)  # stable: own first, then by worth
            until = now() + timedelta(seconds=reserve_s)
            chosen: list[WaitingAnswer] = []
            while ordered and len(chosen) < limit:
                batch, ordered = ordered[: limit - len(chosen)], ordered[limit - len(chosen) :]
                free = await store.label_queue.reserve(
                    session, [item.answer for item in batch], labeller=name, for_s=reserve_s
                )
                chosen += [item for item in batch if item.answer in free]
            await store.label_queue.note_chosen(session, [item.answer for item in chosen if item.is_by_worth])
            taken = []
            for item in chosen:
                interaction = await store.interactions.read_interaction(session, item.interaction_id, scope=None)
                judged = None
                with suppress(NotFound):
                    judged = await store.disputes.judged_answer(session, item.interaction_id)
                taken.append(Taken(waiting=item, interaction=interaction, judged=judged, reserved_until=until))
        return taken, waiting

    async def skip(self, caller: Caller, interaction: Interaction, *, labeller: str) -> None:
        """Not give an answer to this labeller for a week."""
        answer = (question_hash(interaction.question, interaction.task), text_sha256(interaction.response or ""))
        async with self._database.session() as session:
            await store.label_queue.lock(session)
            await store.label_queue.skip(session, answer, labeller=_labeller(caller, labeller))

    async def release(self, caller: Caller, *, labeller: str) -> None:
        """Let others have what this labeller has reserved."""
        async with self._database.session() as session:
            await store.label_queue.lock(session)
            await store.label_queue.release(session, _labeller(caller, labeller))

    async def counts(self, task: str | None) -> LabelledQuestions:
        """Questions of one task with labels, or of all: they are counted over all labels, at most ten seconds ago.

        Raises:
            NotFound: the task is not served.
        """
        name = None if task is None else self._tasks.get(task).name
        known = self._counts.get(name)
        if known is not None and time.monotonic() - known[0] < _COUNTS_VALID_S:
            return known[1]
        return await self._reads.run(name, partial(self._read_counts, name))

    async def _read_counts(self, task: str | None) -> LabelledQuestions:
        async with self._database.session() as session:
            found = await store.label_queue.labelled_questions(session, task)
        self._counts[task] = (time.monotonic(), found)
        return found

    async def today(self, caller: Caller) -> tuple[int, int]:
        """Labels of the last 24 hours: all, and those with a vote of this key."""
        async with self._database.session() as session:
            return await store.label_queue.labelled_today(session, voter=caller.key_id)

    async def needs(self, counts: LabelledQuestions, *, gain: float, task: str | None) -> Needs:
        """What is missing until the gate of a task sees a gain in discriminability, a share.

        Raises:
            NotFound: the task is not served.
            BadInput: the deployment's config file cannot be used.
        """
        served = self._tasks.get(task)
        if served.name not in self._configs:
            self._configs[served.name] = await asyncio.to_thread(train_config_of, served.task, self._settings)
        config = self._configs[served.name]
        right, wrong = counts.right[Split.HELDOUT], counts.wrong[Split.HELDOUT]
        wanted = questions_for_gain(gain, config)
        missing = max(0, wanted - right), max(0, wanted - wrong)
        labels = [round(count / store.label_queue.HELDOUT_LABELS) for count in missing]
        return Needs(
            detectable=detectable_gain(min(right, wrong), config),
            right=missing[0],
            wrong=missing[1],
            labels_right=labels[0],
            labels_wrong=labels[1],
            is_beyond_gate=wanted > config.evaluation_items // 2,
        )


def _labeller(caller: Caller, name: str) -> str:
    return f"{caller.key_id or 'local'}/{name}"
