"""Heartbeats: each replica tells the others through Postgres which critics it uses."""

import math
import time
from uuid import UUID

import structlog

from gadfly import store
from gadfly.errors import StoreUnavailable
from gadfly.records import Replica, new_id, now
from gadfly.store.database import Database

FRESH_S = 5.0  # a replica without a heartbeat for longer counts as dead, without requests in flight

log = structlog.get_logger(__name__)


class Replicas:
    """The live replicas of the deployment. The leases of all decide when a shared engine may unload a critic."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._started_at = now()
        self._known: list[Replica] = []
        self._beat_at = -math.inf
        self.id: UUID = new_id()

    @property
    def known(self) -> list[Replica]:
        """The replicas that were alive at the last heartbeat, this one included, the eldest first."""
        return self._known

    @property
    def age_s(self) -> float:
        """Age of the last heartbeat, in seconds: of this replica's view of the others, and of theirs of it."""
        return time.monotonic() - self._beat_at

    @property
    def is_eldest(self) -> bool:
        """Whether this replica does the work that exactly one must do. If it dies, the next eldest does it."""
        return bool(self._known) and self._known[0].id == self.id

    def others_use(self) -> set[int]:
        """Versions that another replica serves as live for a busy task, or has or recently had requests of."""
        return store.replicas.all_versions_in_use([replica for replica in self._known if replica.id != self.id])

    async def beat(
        self,
        *,
        live: dict[str, int],
        default: str,
        leases: dict[int, int],
        engines: tuple[str, ...],
        problem: str | None,
    ) -> None:
        """Store this replica's heartbeat and read those of the others.

        Args:
            live: the version that this replica answers with, by task.
            default: the name of the default task.
            leases: requests in flight by version (see `Leases.used_within`), with 0 the live critics of busy tasks.
            engines: the addresses of its engines, without passwords.
            problem: why it does not serve a live critic, if so.

        Raises:
            StoreUnavailable: Postgres is unavailable.
        """
        at, began_at = now(), time.monotonic()
        mine = Replica(
            id=self.id,
            started_at=self._started_at,
            seen_at=at,
            live_version=live.get(default),
            live=live,
            leases=leases,
            engines=engines,
            problem=problem,
        )
        async with self._database.session() as session:
            await store.replicas.upsert_replica(session, mine)
            self._known = await store.replicas.fresh_replicas(session, within_s=FRESH_S)
        self._beat_at = began_at

    async def leave(self) -> None:
        """Delete this replica's heartbeat. Without Postgres the others drop it after `FRESH_S`."""
        try:
            async with self._database.session() as session:
                await store.replicas.drop_replica(session, self.id)
        except StoreUnavailable:
            log.warning("replica_not_deregistered")
