"""A limit for addresses that send unknown keys or sessions, so that guessing them costs no work in Postgres."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from gadfly.errors import TooBusy
from gadfly.service.allowance import Allowance

_PER_MINUTE = 60
_MOST_ADDRESSES = 10_000


class Strangers:
    """Addresses that sent unknown keys, or cookies of unknown sessions, lately, in this process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, Allowance] = OrderedDict()

    def admit(self, address: str | None) -> None:
        """Check that a key or session which this process does not know may be looked up for an address.

        Raises:
            TooBusy: the address sent too many unknown ones.
        """
        bucket = self._buckets.get(address or "")
        wait_s = 0.0 if bucket is None else bucket.wait_s(1, _PER_MINUTE, self._clock())
        if wait_s > 0:
            raise TooBusy(
                f"this address sent more than {_PER_MINUTE} unknown keys or sessions a minute",
                retry_after_s=math.ceil(wait_s),
            )

    def note(self, address: str | None) -> None:
        """Count an unknown key or session of an address."""
        bucket = self._buckets.setdefault(address or "", Allowance())
        bucket.take(1, _PER_MINUTE, self._clock())
        self._buckets.move_to_end(address or "")
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
