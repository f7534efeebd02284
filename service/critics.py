"""Which critic a request gets: pointers and versions as Postgres says, with a memory for when it is away."""

import asyncio
from dataclasses import replace
from typing import Literal
from uuid import UUID

import structlog

from core import queries
from core.database import Database
from core.errors import BadInput, Conflict, NotFound, StoreUnavailable
from core.questions import question_hash
from core.records import CriticVersion, Critique, Pointer, Usage

_REFRESH_S = 1.0  # how long a pointer that another replica moved may go unseen

log = structlog.get_logger(__name__)


class Critics:
    """Resolves `live`, `candidate` or a version to a critic.

    Pointers are read again every second beside the requests, which therefore never wait for it. What was read stays
    known: versions are immutable, and while Postgres is away the last pointers go on counting.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions: dict[int, CriticVersion] = {}
        self._pointers: dict[Pointer, int] = {}

    @property
    def known_live(self) -> int | None:
        """The live version as last read; None before the first read."""
        return self._pointers.get("live")

    async def start(self, *, base_model: str) -> CriticVersion:
        """Make sure version 0 (the base model under the critic's prompt) exists, and return the live critic."""
        async with self._database.session() as session:
            await queries.ensure_version_zero(session, base_model=base_model)
        await self._refresh()
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
                await self._refresh()
            if choice not in self._versions:
                raise NotFound(f"there is no critic version {choice}")
            return self._versions[choice]
        if not self._pointers:
            await self._refresh()
        if choice not in self._pointers:
            raise Conflict(f"there is no {choice} critic now")
        return self._versions[self._pointers[choice]]

    async def pinned(self, episode_id: UUID, *, question: str, scope: UUID | None) -> int | None:
        """The version that an episode stays on; None for a new episode.

        Raises:
            BadInput: the episode is about another question.
            NotFound: it is another caller's.
        """
        async with self._database.session() as session:
            episode = await queries.find_episode(session, episode_id, scope=scope)
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
            found = await queries.find_critique(session, critique_id, scope=scope)
        if found is None:
            raise NotFound(f"there is no critique {critique_id}")
        critique, about = found
        if about != question_hash(question):
            raise BadInput("this critique is about another question", field="critique_id")
        return replace(critique, round=0, usage=Usage(), supplied=True)

    async def read_all(self) -> tuple[list[CriticVersion], dict[Pointer, int]]:
        """Every version, newest first, and which of them each pointer names."""
        await self._refresh()
        return list(self._versions.values()), self._pointers

    async def _refresh(self) -> None:
        async with self._database.session() as session:
            pointers = await queries.read_pointers(session)  # first: every version they name is then read too
            versions = await queries.list_critic_versions(session)
        self._versions = {critic.version: critic for critic in versions}
        self._pointers = pointers

    async def keep_fresh(self) -> None:
        """Read the pointers again and again, until cancelled."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await self._refresh()
            except StoreUnavailable:
                log.warning("critics_not_refreshed")
            except Exception:  # what was read stays true, and a replica must not end over a database that is changing
                log.exception("critics_not_refreshed")
