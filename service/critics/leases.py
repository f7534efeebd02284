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

        self._places = 0  # texts that the requests in flight generate at the same time

    @property
    def counts(self) -> Counter[int]:
        """Requests in flight, by version."""
        return Counter(self._leases.values())

    @contextmanager
    def take(self, version: int, *, is_pinned: bool, places: int = 1) -> Iterator[None]:
        """Lease a version to a request. `is_pinned`: the request needs a version other than the live one.

        `places`: texts that it generates at the same time. One that generates more than the limit is admitted alone.

        Raises:
            TooBusy: the limit of requests in flight is reached.
        """
        self._require_room(places)
        lease = next(self._numbers)
        gauge = self._metrics.in_flight.labels(str(version))
        self._leases[lease] = version
        self._places += places
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
            self._places -= places
            if lease in self._ended:
                self._ended.pop(lease).set()
            if is_pinned:
                self._pinned_at[version] = time.monotonic()
            gauge.dec()

    @contextmanager
    def converse(self, *, places: int = 1) -> Iterator[None]:
        """Count a request of the actor, which needs no critic.

        Raises:
            TooBusy: as `take`.
        """
        self._require_room(places)
        gauge = self._metrics.in_flight.labels("actor")
        self._places += places
        gauge.inc()
        try:
            yield
        finally:
            self._places -= places
            gauge.dec()

    def _require_room(self, places: int) -> None:
        if self._places > 0 and self._places + places > self._limit:
            raise TooBusy(
                f"{self._places} texts are being generated, and this service's limit is {self._limit}; this request "
                f"needs {places}"
            )

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
