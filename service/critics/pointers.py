"""Which critic a request gets: pointers and versions as last read from Postgres, also while it is unavailable."""

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

import structlog

from gadfly import store
from gadfly.calibration import Calibration
from gadfly.errors import BadInput, Conflict, NotFound, StoreUnavailable
from gadfly.records import CriticHistory, CriticVersion, Critique, Pointer, Swap, SwapKind, TaskId, Usage
from gadfly.repeating import repeat
from gadfly.store.database import Database
from gadfly.store.split import question_hash

_REFRESH_S = 1.0  # also how long this replica may miss a move of a pointer whose notification is lost

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Swaps:
    """The deployment's swaps that matter now."""

    pending: Swap | None = None
    last: Swap | None = None  # the newest that is done or refused
    last_done: Swap | None = None


class CriticPointers:
    """Resolves `live`, `candidate` or a version to a critic.

    A background task reads the pointers once a second and at each notification, so requests never wait for a reading.
    While Postgres is unavailable the last reading stays valid: versions are immutable. After the live pointer has
    moved, `live` means the previous critic until this replica serves the new one (`serving`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions: dict[int, CriticVersion] = {}
        self._calibrations: dict[int, Calibration] = {}
        self._read_at = -math.inf
        self._refresh_requested = asyncio.Event()
        self._reading = asyncio.Lock()
        # Requests for a reading are counted; one reading serves every request made before it began.
        self._requested_readings = 0
        self._answered_readings = 0
        self._failure: StoreUnavailable | None = None  # the error of the last reading
        self.current: dict[Pointer, int] = {}
        self._refining: int | None = None
        self.swaps = Swaps()
        self.serving: int | None = None
        self._refreshed = asyncio.Event()  # set after each reading, cleared by `next_reading`

    @property
    def known_live(self) -> int | None:
        """The version that this replica answers with as live; None before the first reading."""
        return self.current.get("live") if self.serving is None else self.serving

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

    async def start(self, *, base_model: str, task: TaskId) -> CriticVersion:
        """Create version 0 (the base model under the critic's prompt) if it is missing, and return the live critic."""
        async with self._database.session() as session:
            await store.critics.ensure_version_zero(session, base_model, task=task)
        await self.refresh()
        return await self.resolve("live")

    async def resolve(self, choice: Literal["live", "candidate"] | int) -> CriticVersion:
        """The critic that `choice` means.

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
            return self._versions[choice]
        if not self.current:
            await self.refresh()
        if choice == "live" and self.serving is not None:
            return self._versions[self.serving]
        if choice not in self.current:
            raise Conflict(f"there is no {choice} critic now")
        return self._versions[self.current[choice]]

    def for_refinement(self, critic: CriticVersion) -> CriticVersion:
        """The critic that answers /refine in the place of one that learned verdicts only; else the critic itself."""
        if not critic.verdict_only or self._refining is None:
            return critic
        return self._versions[self._refining]

    async def pinned(self, episode_id: UUID, *, question: str, scope: UUID | None) -> int | None:
        """The version that an episode is pinned to; None for a new episode.

        Raises:
            BadInput: the episode is about another question.
            NotFound: the episode is another caller's.
        """
        async with self._database.session() as session:
            episode = await store.interactions.find_episode(session, episode_id, scope=scope)
        if episode is None:
            return None
        if episode.question_hash != question_hash(question):
            raise BadInput("this episode is about another question", field="episode_id")
        return episode.critic_version

    async def earlier_critique(self, critique_id: UUID, *, question: str, scope: UUID | None) -> Critique:
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
        if hash_of_question != question_hash(question):
            raise BadInput("this critique is about another question", field="critique_id")
        return replace(critique, round=0, usage=Usage(), supplied=True)

    async def read_all(self) -> tuple[list[CriticVersion], dict[Pointer, int]]:
        """Every version, newest first, and the version of each pointer."""
        await self.refresh()
        return list(self._versions.values()), self.current

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
            swaps = Swaps(
                await store.swaps.pending_swap(session),
                await store.swaps.last_swap(session),
                await store.swaps.last_swap(session, done=True),
            )
            pointers = await store.critics.read_pointers(session)
            versions = await store.critics.list_critic_versions(session)
            self._calibrations = await store.calibrations.list_calibrations(session)
            refining = await store.critics.refining_version(session) if "live" in pointers else None
        self._versions = {critic.version: critic for critic in versions}
        self.current, self.swaps, self._refining = pointers, swaps, refining
        self._read_at = time.monotonic()
        self._refreshed.set()

    def refresh_soon(self) -> None:
        """Have the background task read now instead of at the next second."""
        self._refresh_requested.set()

    async def run_refresh(self) -> None:
        """Read once a second, and whenever `refresh_soon` is called, until cancelled."""
        await repeat(self.refresh, wait=self._requested_or_due, failure="critics_not_refreshed")

    async def next_reading(self) -> None:
        """Wait for the next reading of the pointers. For one waiting task only."""
        await self._refreshed.wait()
        self._refreshed.clear()

    async def _requested_or_due(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH_S):
                await self._refresh_requested.wait()
        self._refresh_requested.clear()

    async def run_listener(self) -> None:
        """Refresh when Postgres notifies of a requested or finished swap, until cancelled."""
        while True:
            try:
                async for _ in self._database.notices(store.swaps.CHANNEL):
                    self.refresh_soon()
            except StoreUnavailable:
                await asyncio.sleep(_REFRESH_S)
