"""Turns at one grading process, fair between the callers of a service."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from contextvars import ContextVar
from types import TracebackType

grading_for: ContextVar[Hashable] = ContextVar("grading_for", default=None)
"""For whom this task grades: the id of a caller's key. A service sets it for each request."""


class Turns:
    """A lock that those who wait get in turn: one turn for each party, and within a party in order of arrival.

    A party with a hundred waiting calls thus delays another's by one turn, and not by a hundred.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._party: Hashable = None  # that has the turn
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()  # the next party first

    async def acquire(self) -> None:
        """Wait for a turn, for the party of `grading_for`."""
        party = grading_for.get()
        if not self._is_taken:
            self._is_taken, self._party = True, party
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(party, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release()  # the turn was given, and is given on
            raise

    def release(self) -> None:
        """End a turn; the party that has waited longest since its last turn gets the next one."""
        if self._party in self._waiting:
            self._waiting.move_to_end(self._party)
        while self._waiting:
            party, queue = next(iter(self._waiting.items()))
            turn = queue.popleft()
            if not queue:
                del self._waiting[party]
            if not turn.done():  # else its caller was cancelled
                self._party = party
                turn.set_result(None)
                return
        self._is_taken = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
