"""Scoreboards: how each critic does on the deployment's own labelled answers."""

import asyncio
import time

from gadfly import store
from gadfly.records import CriticVersion
from gadfly.scoreboard import Scoreboard, scoreboard
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.store.database import Database

_VALID_S = 2.0  # requests within this time share one scoreboard, which takes a fraction of a second to compute


class Scoreboards:
    """Reads the scoreboards of critics."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads: SingleFlight[Scoreboard] = SingleFlight()
        self._known: dict[int, tuple[float, Scoreboard]] = {}

    async def read(self, critic: CriticVersion) -> Scoreboard:
        """The scoreboard of a critic, at most two seconds old.

        Raises:
            StoreUnavailable: Postgres is unavailable.
        """
        known = self._known.get(critic.version)
        if known is not None and time.monotonic() - known[0] < _VALID_S:
            return known[1]
        return await self._reads.run(critic.version, lambda: self._read(critic))

    async def _read(self, critic: CriticVersion) -> Scoreboard:
        async with self._database.session() as session:
            answers = await store.scores.scored_answers(session, critic)
        found = await asyncio.to_thread(scoreboard, answers)
        self._known[critic.version] = (time.monotonic(), found)
        return found
