"""Which critic a request gets: pointers and versions as last read from Postgres, also while it is unavailable.

Each task has a line of critics: pointers, swaps and the critic that this replica answers with.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal
from uuid import UUID

import structlog

from gadfly import store
from gadfly.calibration import Calibration
from gadfly.errors import BadInput, Conflict, NotFound, StoreUnavailable
from gadfly.records import Canary, CriticHistory, CriticVersion, Critique, Pointer, Swap, SwapKind, TaskId, Usage
from gadfly.repeating import repeat
from gadfly.store.database import Database
from gadfly.store.split import question_hash
from gadfly.task_names import DEFAULT_TASK

_REFRESH_S = 1.0  # also how long this replica may miss a move of a pointer whose notification is lost

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Swaps:
    """The deployment's swaps that matter now."""

    pending: Swap | None = None
    last: Swap | None = None  # the newest that is done or refused
    last_done: Swap | None = None


@dataclass(eq=False, slots=True)
class CriticLine:
    """The critics of one task, as last read.

    After the live pointer has moved, `live` means the previous critic until this replica serves the new one
    (`serving`).
    """

    task: str
    current: dict[Pointer, int] = field(default_factory=dict)
    swaps: Swaps = Swaps()
    serving: int | None = None
    canary: Canary | None = None  # running, or begun by the pending swap; only for a moment after it was rolled back
    refining: int | None = None  # answers /refine in the place of a live critic that learned verdicts only
    _used_at: float = -math.inf
    _refreshed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def known_live(self) -> int | None:
        """The version that this replica answers with as live; None before the first reading."""
        return self.current.get("live") if self.serving is None else self.serving

    @property
    def running_canary(self) -> Canary | None:
        """The canary that shares this replica's requests with the critic before; None while it answers none."""
        canary = self.canary
        return canary if canary is not None and canary.version == self.known_live else None

    def answering(self) -> set[int]:
        """The versions that requests for the live critic get."""
        canary = self.running_canary
        versions = {self.known_live, None if canary is None else canary.from_version}
        return {version for version in versions if version is not None}

    def live_for(self, sticky: bytes) -> int | None:
        """The version that answers as live: the same for the same bytes as long as a canary runs."""
        canary = self.running_canary
        if canary is None:
            return self.known_live
        drawn = hashlib.blake2b(sticky, digest_size=8, key=canary.swap_id.bytes).digest()
        return canary.version if int.from_bytes(drawn) < canary.share * 2**64 else canary.from_version

    def note_canary(self, canary: Canary | None) -> None:
        """Note the open canary as read together with the pointers.

        If it was rolled back and this replica still serves its critic, no new request gets that any more.
        """
        left = self.running_canary
        if canary is None and left is not None and self.current.get("live") == left.from_version:
            canary = replace(left, share=0.0)
        self.canary = canary

    def note_use(self) -> None:
        """Note a request of this task."""
        self._used_at = time.monotonic()

    def was_used_within(self, seconds: float) -> bool:
        return time.monotonic() - self._used_at < seconds

    def tested_promotion(self) -> Swap | None:
        """The promotion that the rollback watch tests: the last swap, if the gate or an admin promoted the live critic.

        None while a rollback is requested, and after one: a rollback is never undone automatically.
        """
        last, pending = self.swaps.last_done, self.swaps.pending
        if last is None or last.kind not in (SwapKind.GATE, SwapKind.PROMOTE):
            return None
        if self.current.get("live") != last.version or self.current.get("previous") != last.from_version:
            return None
        if pending is not None and pending.kind in (SwapKind.ROLLBACK, SwapKind.WATCH):
            return None
        return last

    def note_reading(self) -> None:
        """Wake the task that waits for a reading."""
        self._refreshed.set()

    async def next_reading(self) -> None:
        """Wait for the next reading of the pointers. For one waiting task only."""
        await self._refreshed.wait()
        self._refreshed.clear()


class CriticPointers:
    """Resolves `live`, `candidate` or a version to a critic.

    A background task reads the pointers once a second and at each notification, so requests never wait for a reading.
    While Postgres is unavailable the last reading stays valid: versions are immutable.
    """

    def __init__(self, database: Database, tasks: Sequence[str] = (DEFAULT_TASK,)) -> None:
        """`tasks` are the names of the served ones, the default one first."""
        self._database = database
        self._lines = {task: CriticLine(task) for task in tasks}
        self.default = self._lines[tasks[0]]
        self._base_model: str | None = None
        self._versions: dict[int, CriticVersion] = {}
        self._calibrations: dict[int, Calibration] = {}
        self._read_at = -math.inf
        self._refresh_requested = asyncio.Event()
        self._reading = asyncio.Lock()
        # Requests for a reading are counted; one reading serves every request made before it began.
        self._requested_readings = 0
        self._answered_readings = 0
        self._failure: StoreUnavailable | None = None  # the error of the last reading
        self.incomplete: frozenset[int] = frozenset()  # versions that have lost an example of their prompt

    def __iter__(self) -> Iterator[CriticLine]:
        return iter(self._lines.values())

    def line(self, task: str) -> CriticLine:
        """The critics of a served task."""
        return self._lines[task]

    def line_of(self, critic: CriticVersion) -> CriticLine | None:
        """The line that a critic belongs to; None where its task is not served."""
        return self._lines.get(critic.task)

    def live_versions(self) -> set[int]:
        """The versions that this replica answers with as live: one for each task, and two while a canary runs."""
        return set().union(*(line.answering() for line in self))

    def pointed(self) -> set[int]:
        """The versions that any pointer of a served task names, or this replica answers with."""
        named = {version for line in self for version in line.current.values()}
        return named | self.live_versions()

    @property
    def age_s(self) -> float:
        """Age of the last reading, in seconds."""
        return time.monotonic() - self._read_at

    def known(self, version: int) -> CriticVersion | None:
        """A version as last read."""
        return self._versions.get(version)

    def calibration(self, version: int) -> Calibration | None:
        """The calibration of a version, which is stored with it; None where it has none."""
        return self._calibrations.get(version)

    async def start(self, *, base_model: str, tasks: Sequence[TaskId]) -> CriticVersion:
        """Create the root of each task's line if it is missing, and return the live critic of the default task."""
        self._base_model = base_model
        async with self._database.session() as session:
            for task in tasks:
                await store.critics.ensure_version_zero(session, base_model, task=task)
        await self.refresh()
        return await self.resolve("live")

    async def resolve(self, choice: Literal["live", "candidate"] | int, task: str | None = None) -> CriticVersion:
        """The critic that `choice` means for a served task, without one for the default task.

        Version 0 means the root of the task's line, whatever its number.

        Raises:
            NotFound: no such version.
            Conflict: there is no candidate now.
            StoreUnavailable: Postgres is unavailable, and no reading has succeeded yet or the version is new.
        """
        if isinstance(choice, int):
            if choice not in self._versions:
                await self.refresh()
            if choice not in self._versions:
                raise NotFound(f"there is no critic version {choice}")
            found = self._versions[choice]
            return found if choice or task in (None, found.task) else self._root(task) or found
        line = self.default if task is None else self._lines[task]
        if not line.current:
            await self.refresh()
        if choice == "live" and line.serving is not None:
            return self._versions[line.serving]
        if choice not in line.current:
            raise Conflict(f"there is no {choice} critic now")
        return self._versions[line.current[choice]]

    def live_for(self, sticky: bytes, task: str) -> CriticVersion | None:
        """The critic that answers as live what these bytes identify: an episode, or a caller's question.

        None before the first reading of the pointers.
        """
        version = self._lines[task].live_for(sticky)
        return None if version is None else self._versions[version]

    def _root(self, task: str | None) -> CriticVersion | None:
        roots = (
            critic
            for critic in self._versions.values()
            if critic.is_base and critic.task == task and critic.base_model == self._base_model
        )
        return next(roots, None)

    def for_refinement(self, critic: CriticVersion) -> CriticVersion:
        """The critic that answers /refine in the place of one that learned verdicts only; else the critic itself."""
        line = self.line_of(critic)
        if not critic.verdict_only or line is None or line.refining is None:
            return critic
        return self._versions[line.refining]

    async def pinned(self, episode_id: UUID, *, question: str, task: str, scope: UUID | None) -> int | None:
        """The version that an episode is pinned to; None for a new episode.

        Raises:
            BadInput: the episode is about another question, or was begun under another task.
            NotFound: the episode is another caller's.
        """
        async with self._database.session() as session:
            episode = await store.interactions.find_episode(session, episode_id, scope=scope)
        if episode is None:
            return None
        if episode.question_hash != question_hash(question, task):
            raise BadInput("this episode is about another question", field="episode_id")
        return episode.critic_version

    async def earlier_critique(self, critique_id: UUID, *, question: str, task: str, scope: UUID | None) -> Critique:
        """A stored critique of this question, with its verdict, to be used again.

        Raises:
            BadInput: the critique is about another question.
            NotFound: no such critique, or not one that this caller may see.
        """
        async with self._database.session() as session:
            match = await store.interactions.find_critique(session, critique_id, scope=scope)
        if match is None:
            raise NotFound(f"there is no critique {critique_id}")
        critique, hash_of_question = match
        if hash_of_question != question_hash(question, task):
            raise BadInput("this critique is about another question", field="critique_id")
        return replace(critique, round=0, usage=Usage(), supplied=True)

    async def read_all(self) -> list[CriticVersion]:
        """Every version of every task, newest first."""
        await self.refresh()
        return list(self._versions.values())

    def names_of(self, critic: CriticVersion) -> list[Pointer]:
        """The pointers of a critic's task that name it, as last read."""
        line = self.line_of(critic)
        pointers = {} if line is None else line.current
        return sorted(name for name, version in pointers.items() if version == critic.version)

    async def history(self, critic: CriticVersion) -> CriticHistory:
        """The gate's report, the calibration, the swaps and the swap receipts of a version.

        Raises:
            StoreUnavailable: Postgres is unavailable.
        """
        async with self._database.session() as session:
            run = None if critic.run_id is None else await store.runs.read_run(session, critic.run_id)
            return CriticHistory(
                outcome=None if run is None else run.outcome,
                gate=None if run is None else run.gate,
                calibration=await store.calibrations.read_calibration(session, critic.version),
                swaps=await store.swaps.list_swaps(session, critic.version),
                receipts=await store.swaps.receipts(session, critic.version),
                forgotten=await store.forgetting.loss_of(session, critic.version),
            )

    async def refresh(self) -> None:
        """Read pointers, versions and swaps now, all from one snapshot of the database.

        Readings run one at a time, so that an older one never replaces a newer one. Callers that wait share the next.

        Raises:
            StoreUnavailable: Postgres is unavailable.
        """
        self._requested_readings += 1
        number = self._requested_readings
        async with self._reading:
            if self._answered_readings < number:
                answered = self._requested_readings
                try:
                    await self._read()
                    self._failure = None
                except StoreUnavailable as error:
                    self._failure = error
                self._answered_readings = answered
            if self._failure is not None:
                raise StoreUnavailable(str(self._failure), retry_after_s=self._failure.retry_after_s)

    async def _read(self) -> None:
        async with self._database.session(snapshot=True) as session:
            pending = await store.swaps.pending_swaps(session)
            last = await store.swaps.last_swaps(session)
            last_done = await store.swaps.last_swaps(session, done=True)
            pointers = await store.critics.read_all_pointers(session)
            canaries = await store.canaries.open_canaries(session)
            versions = {critic.version: critic for critic in await store.critics.list_critic_versions(session)}
            self._calibrations = await store.calibrations.list_calibrations(session)
            incomplete = (
                await store.critic_examples.incomplete_versions(session)
                if any(critic.examples for critic in versions.values())
                else frozenset()
            )
            refining = {
                task: await store.critics.refining_version(
                    session, task, canary=None if canaries.get(task) is None else canaries[task].version
                )
                for task in self._lines
                if any(
                    versions[version].verdict_only for version in _answering(pointers.get(task, {}), canaries.get(task))
                )
            }
        self._versions = versions
        self.incomplete = incomplete
        for task, line in self._lines.items():
            line.current = pointers.get(task, {})
            line.swaps = Swaps(pending.get(task), last.get(task), last_done.get(task))
            line.refining = refining.get(task)
            line.note_canary(canaries.get(task))
        self._read_at = time.monotonic()
        for line in self:
            line.note_reading()

    def refresh_soon(self) -> None:
        """Have the background task read now instead of at the next second."""
        self._refresh_requested.set()

    async def run_refresh(self) -> None:
        """Read once a second, and whenever `refresh_soon` is called, until cancelled."""
        await repeat(self.refresh, wait=self._requested_or_due, failure="critics_not_refreshed")

    async def _requested_or_due(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH_S):
                await self._refresh_requested.wait()
        self._refresh_requested.clear()

    async def run_listener(self) -> None:
        """Refresh when Postgres notifies of a requested or finished swap, until cancelled."""
        while True:
            try:
                async for _ in self._database.notices(store.notices.CRITICS_CHANGED):
                    self.refresh_soon()
            except StoreUnavailable:
                await asyncio.sleep(_REFRESH_S)


def _answering(pointers: Mapping[Pointer, int], canary: Canary | None) -> list[int]:
    """The versions that answer as live: two of them while a canary runs."""
    live = pointers.get("live")
    return [version for version in (live, None if canary is None else canary.from_version) if version is not None]
