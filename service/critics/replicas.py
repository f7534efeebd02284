"""What this process says of itself to the other replicas, and what they say."""

import math
import time
from uuid import UUID

import structlog

from gadfly import store
from gadfly.errors import StoreUnavailable
from gadfly.records import Replica, new_id, now
from gadfly.store.database import Database

FRESH_S = 5.0  # who was not heard of for longer has no requests at work that one could wait for

log = structlog.get_logger(__name__)


class Replicas:
    """Heartbeats. Leases of all replicas decide when a critic may be unloaded from an engine that they share."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._started_at = now()
        self._known: list[Replica] = []
        self._beat_at = -math.inf
        self.id: UUID = new_id()

    @property
    def known(self) -> list[Replica]:
        """Those that were alive at the last heartbeat, this one among them."""
        return self._known

    @property
    def age_s(self) -> float:
        """How old the last heartbeat is: what this replica knows of the others, and they of it."""
        return time.monotonic() - self._beat_at

    @property
    def is_eldest(self) -> bool:
        """Whether it is for this replica to do what one of them has to do. When it falls silent, the next one is."""
        return bool(self._known) and self._known[0].id == self.id

    def others_use(self) -> set[int]:
        """Versions that another replica answers with, or has or lately had requests of."""
        return store.replicas.all_versions_in_use([replica for replica in self._known if replica.id != self.id])

    async def beat(
        self, *, live: int | None, leases: dict[int, int], engines: tuple[str, ...], problem: str | None
    ) -> None:
        """Say that this replica lives and what it does, and hear from the others.

        Raises:
            StoreUnavailable: the database is away.
        """
        at, began_at = now(), time.monotonic()
        mine = Replica(
            id=self.id,
            started_at=self._started_at,
            seen_at=at,
            live_version=live,
            leases=leases,
            engines=engines,
            problem=problem,
        )
        async with self._database.session() as session:
            await store.replicas.upsert_replica(session, mine)
            self._known = await store.replicas.fresh_replicas(session, within_s=FRESH_S)
        self._beat_at = began_at

    async def leave(self) -> None:
        """Say that this replica ends; one that cannot is forgotten after some seconds."""
        try:
            async with self._database.session() as session:
                await store.replicas.drop_replica(session, self.id)
        except StoreUnavailable:
            log.warning("replica_left_without_a_word")
