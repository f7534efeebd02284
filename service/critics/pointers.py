"""Which critic a request gets: pointers and versions as Postgres says, with a memory for when it is away."""

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

import structlog

from gadfly import store
from gadfly.errors import BadInput, Conflict, NotFound, StoreUnavailable
from gadfly.records import CriticHistory, CriticVersion, Critique, Pointer, Swap, Usage
from gadfly.repeating import repeat
from gadfly.store.database import Database
from gadfly.store.split import question_hash

_REFRESH_S = 1.0  # how long a pointer that another replica moved may go unseen when its notice is lost

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Swaps:
    """Where the deployment stands with moving its live pointer."""

    pending: Swap | None = None
    last: Swap | None = None  # the newest that is over, done or refused
    last_done: Swap | None = None


class CriticPointers:
    """Resolves `live`, `candidate` or a version to a critic.

    Pointers are read again every second, and when a notice comes, beside the requests, which therefore never wait for
    it. What was read stays known: versions are immutable, and while Postgres is away the last pointers go on counting.
    Where the live pointer has moved, `live` means what was live before until this replica serves the new one
    (`serving`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions: dict[int, CriticVersion] = {}
        self._read_at = -math.inf
        self._refresh_requested = asyncio.Event()
        self._reading = asyncio.Lock()
        # Readings are numbered by request; one reading answers all requests made before it began.
        self._requested_readings = 0
        self._answered_readings = 0
        self._failure: StoreUnavailable | None = None  # of the last reading
        self.current: dict[Pointer, int] = {}
        self.swaps = Swaps()
        self.serving: int | None = None
        self._refreshed = asyncio.Event()  # set after each reading, for whoever acts on it to clear

    @property
    def known_live(self) -> int | None:
        """The version that answers as live here; None before the first read."""
        return self.current.get("live") if self.serving is None else self.serving

    @property
    def age_s(self) -> float:
        """How old the last reading is."""
        return time.monotonic() - self._read_at

    def known(self, version: int) -> CriticVersion | None:
        """A version as last read."""
        return self._versions.get(version)

    async def start(self, *, base_model: str) -> CriticVersion:
        """Make sure version 0 (the base model under the critic's prompt) exists, and return the live critic."""
        async with self._database.session() as session:
            await store.critics.ensure_version_zero(session, base_model=base_model)
        await self.refresh()
        return await self.resolve("live")

    async def resolve(self, choice: Literal["live", "candidate"] | int) -> CriticVersion:
        """The critic that `choice` means.

        Raises:
            NotFound: no such version.
            Conflict: there is no candidate now.
            StoreUnavailable: the database is away and was never asked before.
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

    async def pinned(self, episode_id: UUID, *, question: str, scope: UUID | None) -> int | None:
        """The version that an episode stays on; None for a new episode.

        Raises:
            BadInput: the episode is about another question.
            NotFound: it is another caller's.
        """
        async with self._database.session() as session:
            episode = await store.interactions.find_episode(session, episode_id, scope=scope)
        if episode is None:
            return None
        if episode.question_hash != question_hash(question):
            raise BadInput("this episode is about another question", field="episode_id")
        return episode.critic_version

    async def earlier_critique(self, critique_id: UUID, *, question: str, scope: UUID | None) -> Critique:
        """A critique of this question that was given before, with its verdict, to be used again.

        Raises:
            BadInput: it is about another question.
            NotFound: there is none that this caller may see.
        """
        async with self._database.session() as session:
            found = await store.interactions.find_critique(session, critique_id, scope=scope)
        if found is None:
            raise NotFound(f"there is no critique {critique_id}")
        critique, about = found
        if about != question_hash(question):
            raise BadInput("this critique is about another question", field="critique_id")
        return replace(critique, round=0, usage=Usage(), supplied=True)

    async def read_all(self) -> tuple[list[CriticVersion], dict[Pointer, int]]:
        """Every version, newest first, and which of them each pointer names."""
        await self.refresh()
        return list(self._versions.values()), self.current

    async def history(self, critic: CriticVersion) -> CriticHistory:
        """The gate's report, the swaps and the receipts of a version.

        Raises:
            StoreUnavailable: the database is away.
        """
        async with self._database.session() as session:
            run = None if critic.run_id is None else await store.runs.read_run(session, critic.run_id)
            return CriticHistory(
                outcome=None if run is None else run.outcome,
                gate=None if run is None else run.gate,
                swaps=await store.swaps.list_swaps(session, critic.version),
                receipts=await store.swaps.receipts(session, critic.version),
            )

    async def refresh(self) -> None:
        """Read pointers, versions and swaps now, as they are at one moment.

        One reading at a time, so that none is replaced by an older one; it is for all who asked before it began.

        Raises:
            StoreUnavailable: the database is away.
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
        async with self._database.session() as session:
            await store.critics.read_at_once(session)
            swaps = Swaps(
                await store.swaps.pending_swap(session),
                await store.swaps.last_swap(session),
                await store.swaps.last_swap(session, done=True),
            )
            pointers = await store.critics.read_pointers(session)
            versions = await store.critics.list_critic_versions(session)
        self._versions = {critic.version: critic for critic in versions}
        self.current, self.swaps = pointers, swaps
        self._read_at = time.monotonic()
        self._refreshed.set()

    def refresh_soon(self) -> None:
        """Have the next reading done now."""
        self._refresh_requested.set()

    async def run_refresh(self) -> None:
        """Read again and again, until cancelled."""
        await repeat(self.refresh, wait=self._requested_or_due, failure="critics_not_refreshed")

    async def next_reading(self) -> None:
        """Wait for the next reading of the pointers. For one waiter."""
        await self._refreshed.wait()
        self._refreshed.clear()

    async def _requested_or_due(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH_S):
                await self._refresh_requested.wait()
        self._refresh_requested.clear()

    async def run_listener(self) -> None:
        """Hurry whenever a swap was asked for or is over, until cancelled."""
        while True:
            try:
                async for _ in self._database.notices(store.swaps.CHANNEL):
                    self.refresh_soon()
            except StoreUnavailable:
                await asyncio.sleep(_REFRESH_S)
