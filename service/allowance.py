"""A limit of so many a minute: a bucket that holds a minute's worth and refills evenly."""

_MINUTE_S = 60.0


class Allowance:
    """What is left of a limit, as the time at which it will be full again (the generic cell rate algorithm)."""

    __slots__ = ("_full_at",)

    def __init__(self) -> None:
        self._full_at = 0.0  # seconds of the caller's clock

    def wait_s(self, cost: float, per_minute: float, at: float) -> float:
        """The seconds until `cost`, at most `per_minute`, can be taken; 0: now."""
        return max(0.0, max(self._full_at, at) + cost * _MINUTE_S / per_minute - at - _MINUTE_S)

    def take(self, cost: float, per_minute: float, at: float) -> None:
        """Take `cost`, also where that leaves less than nothing."""
        self._full_at = max(self._full_at, at) + cost * _MINUTE_S / per_minute
