"""Which critic the requests at work need, so that none is taken away under them."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from gadfly.errors import EngineError, TooBusy
from gadfly.service.metrics import Metrics


class Leases:
    """Counted per critic version, from a request's first call of the engine to its last."""

    def __init__(self, *, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._numbers = count()
        self._leases: dict[int, int] = {}  # lease -> version
        self._pinned_at: dict[int, float] = {}  # version -> monotonic seconds
        self._ended: dict[int, asyncio.Event] = {}  # by lease, for those that somebody waits for
        self.failed: Counter[int] = Counter()  # requests that the engine failed, by version

    @property
    def counts(self) -> Counter[int]:
        """Requests at work by version."""
        return Counter(self._leases.values())

    @contextmanager
    def take(self, version: int, *, is_pinned: bool) -> Iterator[None]:
        """Keep a version for a request; `is_pinned` when it is not the live one that the request asks for.

        Raises:
            TooBusy: as many requests as the service allows are at work.
        """
        if len(self._leases) >= self._limit:
            raise TooBusy(f"{self._limit} requests are at work already")
        lease = next(self._numbers)
        gauge = self._metrics.in_flight.labels(str(version))
        self._leases[lease] = version
        gauge.inc()
        try:
            yield
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

    def in_flight(self, version: int) -> "InFlight":
        """The requests of a version that are at work now."""
        leases = [lease for lease, its in self._leases.items() if its == version]
        return InFlight([self._ended.setdefault(lease, asyncio.Event()) for lease in leases])

    def used_within(self, seconds: float) -> dict[int, int]:
        """Requests at work by version, and 0 for each version that lately had a pinned one: others may follow."""
        since = time.monotonic() - seconds
        return {version: 0 for version, at in self._pinned_at.items() if at >= since} | dict(self.counts)


@dataclass(frozen=True, slots=True)
class InFlight:
    """Some requests, and each one's end."""

    ends: list[asyncio.Event]

    async def all_ended(self) -> None:
        """Return when none of them is at work any more."""
        for end in self.ends:
            await end.wait()
