"""A time limit that a pause of this process does not use up."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

_TICKS = 4


@contextmanager
def countdown(limit_s: float, expire: Callable[[], None]) -> Generator[None]:
    """Call `expire` after `limit_s` seconds, unless the block ends earlier.

    The limit is counted in ticks, one timer after the other. If the event loop stands still (a long callback, a virtual
    machine that was paused), the answer of the other side may have arrived meanwhile, and one long timer would expire
    before the answer is read. So a pause of any length counts as one tick.
    """
    loop = asyncio.get_running_loop()
    left = _TICKS
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal left, timer
        left -= 1
        if left:
            timer = loop.call_later(limit_s / _TICKS, tick)
        else:
            expire()

    timer = loop.call_later(limit_s / _TICKS, tick)
    try:
        yield
    finally:
        timer.cancel()
