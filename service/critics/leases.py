"""Which critic each request in flight uses, so that no engine unloads a critic before its requests end."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from gadfly.errors import ActorTimeout, ActorUnavailable, EngineError, TooBusy
from gadfly.service.metrics import Metrics


class Leases:
    """Leases of critic versions: a request holds one from its first call of the engine to its last."""

    def __init__(self, *, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._numbers = count()
        self._leases: dict[int, int] = {}  # lease -> version
        self._pinned_at: dict[int, float] = {}  # version -> monotonic seconds
        self._ended: dict[int, asyncio.Event] = {}  # by lease, for the leases of an `InFlight`
        self.failed: Counter[int] = Counter()  # requests that failed with an engine error, by version

        self._conversations = 0  # requests of the actor alone

    @property
    def counts(self) -> Counter[int]:
        """Requests in flight, by version."""
        return Counter(self._leases.values())

    @contextmanager
    def take(self, version: int, *, is_pinned: bool) -> Iterator[None]:
        """Lease a version to a request. `is_pinned`: the request needs a version other than the live one.

        Raises:
            TooBusy: the limit of requests in flight is reached.
        """
        self._require_room()
        lease = next(self._numbers)
        gauge = self._metrics.in_flight.labels(str(version))
        self._leases[lease] = version
        gauge.inc()
        try:
            yield
        except (ActorUnavailable, ActorTimeout):
            raise  # not the critic's fault
        except EngineError:
            self.failed[version] += 1
            raise
        finally:
            del self._leases[lease]
            if lease in self._ended:
                self._ended.pop(lease).set()
            if is_pinned:
                self._pinned_at[version] = time.monotonic()
            gauge.dec()

    @contextmanager
    def converse(self) -> Iterator[None]:
        """Count a request of the actor, which needs no critic.

        Raises:
            TooBusy: as `take`.
        """
        self._require_room()
        gauge = self._metrics.in_flight.labels("actor")
        self._conversations += 1
        gauge.inc()
        try:
            yield
        finally:
            self._conversations -= 1
            gauge.dec()

    def _require_room(self) -> None:
        if len(self._leases) + self._conversations >= self._limit:
            raise TooBusy(f"{self._limit} requests are in flight, which is this service's limit")

    def in_flight(self, version: int) -> "InFlight":
        """The requests of a version that are in flight now."""
        leases = [lease for lease, leased in self._leases.items() if leased == version]
        return InFlight([self._ended.setdefault(lease, asyncio.Event()) for lease in leases])

    def used_within(self, seconds: float) -> dict[int, int]:
        """Requests in flight, by version. Includes, with 0, versions whose last pinned request ended within `seconds`.

        More requests of such a version may follow.
        """
        since = time.monotonic() - seconds
        return {version: 0 for version, at in self._pinned_at.items() if at >= since} | dict(self.counts)


@dataclass(frozen=True, slots=True)
class InFlight:
    """Requests that were in flight at one moment: an event per request, set when it ends."""

    ends: list[asyncio.Event]

    async def all_ended(self) -> None:
        """Return when all of them have ended."""
        for end in self.ends:
            await end.wait()
