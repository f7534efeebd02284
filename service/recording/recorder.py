"""Acknowledged is durable: a record is committed, or on disk in the spool, before its caller hears of it.

One task writes. It takes whatever is waiting, stores it in one transaction, and tells everybody; meanwhile the next
group gathers. Nobody waits for a timer, and under load many records share one commit. While Postgres is away, and until
all that was spooled has been replayed, groups go to the spool instead, so that records keep their order.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from gadfly.errors import Conflict, NotFound, StoreUnavailable
from gadfly.records import Feedback, Interaction, Record, new_id
from gadfly.service.recording.spool import Spool
from gadfly.store.database import Database
from gadfly.store.interactions import Stored, insert_records

_GROUP = 128  # more in one transaction saves little and makes its first caller wait for its last
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 5.0

# What Postgres says of a record that it will say again. Anything else may pass: a wrong release, a missing right.
_PERMANENT = (Conflict, NotFound, IntegrityError, DataError)

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Proof that a record is durable.

    `record` is what is kept: for feedback that repeats what the same key said last, that earlier feedback. In the spool
    (`is_spooled`) repeats are not told apart yet.
    """

    record: Record
    is_repeat: bool = False
    is_spooled: bool = False


@dataclass(frozen=True, slots=True)
class _Pending:
    record: Record
    receipt: asyncio.Future[Acknowledgement]

    def resolve(self, receipt: Acknowledgement) -> None:
        if not self.receipt.done():  # its caller may have gone; the record is kept all the same
            self.receipt.set_result(receipt)

    def fail(self, error: Exception) -> None:
        if not self.receipt.done():
            self.receipt.set_exception(error)


class Recorder:
    """Writes a process's records.

    Example:
        >>> async with Recorder(database, home / "spool", heldout_share=0.2, spool_max_bytes=2**30) as recorder:
        ...     receipt = await recorder.record(interaction)
    """

    def __init__(self, database: Database, spool: Path, *, heldout_share: float, spool_max_bytes: int) -> None:
        self._database = database
        self._heldout_share = heldout_share
        self._spool = Spool(spool, max_bytes=spool_max_bytes)
        self._files = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._waiting: deque[_Pending] = deque()
        self._has_waiting = asyncio.Event()
        self._has_spooled = asyncio.Event()
        self._order = (
            asyncio.Lock()
        )  # held while a group goes to its place, and while the spool's last part is replayed
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._batch_size = _GROUP
        self.groups = 0
        self.rejected = 0
        self.last_commit_s = 0.0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def pending(self) -> int:
        """Records that wait for their group."""
        return len(self._waiting)

    @property
    def spooled(self) -> int:
        """Records in the spool, not yet in Postgres."""
        return self._spool.records

    @property
    def spool_bytes(self) -> int:
        return self._spool.bytes

    async def start(self) -> None:
        """Take over what earlier processes left in the spool, and begin to write.

        Raises:
            StoreUnavailable: the spool cannot be written to.
        """
        await self._with_files(self._spool.open)
        if not self._spool.is_empty:
            log.info("replaying the spool", records=self._spool.records)
            self._has_spooled.set()
        self._tasks = [asyncio.create_task(self._write_groups()), asyncio.create_task(self._replay())]

    async def close(self) -> None:
        """Write what waits, then stop. What is in the spool stays there for the next start."""
        if not self._tasks:
            return
        self._is_closing = True
        self._has_waiting.set()
        writer, replayer = self._tasks
        replayer.cancel()
        await asyncio.gather(writer, replayer, return_exceptions=True)
        await self._with_files(self._spool.close)
        self._files.shutdown()
        self._tasks = []

    async def record(self, record: Record) -> Acknowledgement:
        """Return once the record is durable.

        Raises:
            SpoolFull: Postgres is away and there is no room left on disk.
            StoreUnavailable: Postgres is away and the disk fails, or the recorder is closed.
            Conflict: the request id of an interaction belongs to another, or its episode to another question.
            NotFound: feedback about an interaction that is not stored.
        """
        if self._is_closing or not self._tasks:
            raise StoreUnavailable("the service is stopping")
        waiting = _Pending(record, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._has_waiting.set()
        return await waiting.receipt

    async def lookup(self, interaction_id: UUID) -> Interaction | None:
        """The interaction with this id if it is in the spool. Postgres knows all others."""
        return None if self._spool.is_empty else await self._with_files(lambda: self._spool.find(interaction_id))

    async def lookup_request(self, request_id: str, *, key_id: UUID | None) -> Interaction | None:
        """The interaction that this key's request id stands for if it is in the spool. Postgres knows all others."""
        if self._spool.is_empty:
            return None
        return await self._with_files(lambda: self._spool.find_request(request_id, key_id=key_id))

    async def lookup_episode(self, episode_id: UUID) -> Interaction | None:
        """The first interaction of an episode that is in the spool. Postgres knows all other episodes."""
        return None if self._spool.is_empty else await self._with_files(lambda: self._spool.find_episode(episode_id))

    async def lookup_feedback(self, interaction_id: UUID) -> list[Feedback]:
        """The feedback about an interaction that is in the spool, oldest first. Postgres knows all other."""
        return [] if self._spool.is_empty else await self._with_files(lambda: self._spool.find_feedback(interaction_id))

    async def _write_groups(self) -> None:
        while True:
            await self._has_waiting.wait()
            async with self._order:
                group = [self._waiting.popleft() for _ in range(min(_GROUP, len(self._waiting)))]
                if group:
                    await self._write(group)
                elif self._is_closing:
                    return
                else:
                    self._has_waiting.clear()

    async def _write(self, group: Sequence[_Pending]) -> None:
        self.groups += 1
        if self._spool.is_empty:
            group = await self._commit(group)
        if not group:
            return
        try:
            await self._with_files(lambda: self._spool.append([waiting.record for waiting in group]))
        except Exception as error:
            log.error("a record could not be kept", error=str(error), records=len(group))
            for waiting in group:
                waiting.fail(error)
        else:
            self._has_spooled.set()
            for waiting in group:
                waiting.resolve(Acknowledgement(waiting.record, is_spooled=True))

    async def _commit(self, group: Sequence[_Pending]) -> Sequence[_Pending]:
        """Store a group in Postgres; return what could not be stored because Postgres is away."""
        started = time.perf_counter()
        try:
            stored = await self._store([waiting.record for waiting in group])
        except StoreUnavailable as error:
            log.warning("Postgres is away: keeping records on disk", error=str(error))
            return group
        except Exception as error:
            if len(group) == 1:
                group[0].fail(error)
                return []
            # One of them is at fault: the others must not suffer for it.
            for index, waiting in enumerate(group):
                if await self._commit([waiting]):
                    return group[index:]
            return []
        self.last_commit_s = time.perf_counter() - started
        for waiting, item in zip(group, stored, strict=True):
            waiting.resolve(Acknowledgement(item.record, is_repeat=item.is_repeat))
        return []

    async def _store(self, records: Sequence[Record]) -> list[Stored]:
        try:
            async with self._database.session(limit_s=self._database.timeout_s) as session:
                return await insert_records(session, records, heldout_share=self._heldout_share)
        except (IntegrityError, DataError):
            raise
        except DBAPIError as error:
            # Not the record's fault: a missing table or right, a broken server. Kept until that is put right.
            raise StoreUnavailable(f"Postgres does not take records: {error.orig}") from error

    async def _replay(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            await self._has_spooled.wait()
            try:
                await self._replay_oldest()
                retry_s = _FIRST_RETRY_S
            except Exception as error:
                if not isinstance(error, StoreUnavailable):
                    log.exception("replaying the spool failed and will be tried again")
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    async def _replay_oldest(self) -> None:
        # Asked first whether Postgres is there: if not, nobody must wait for the attempt.
        async with self._database.session(limit_s=self._database.timeout_s) as session:
            await session.execute(text("SELECT 1"))
        # No group moves meanwhile. A file holds more than a group, so the spool shrinks however many callers there are.
        async with self._order:
            await self._replay_batch()
            if self._spool.is_empty:
                self._has_spooled.clear()
                log.info("the spool is replayed: Postgres has everything again")

    async def _replay_batch(self) -> None:
        batch = await self._with_files(self._spool.oldest)
        try:
            for start in range(0, len(batch.records), self._batch_size):
                await self._store(batch.records[start : start + self._batch_size])
        except StoreUnavailable:
            # What takes too long must not be tried unchanged for ever. What was stored already is not stored again.
            self._batch_size = max(1, self._batch_size // 2)
            raise
        except _PERMANENT:
            for record in batch.records:
                await self._replay_one(record)
        await self._with_files(lambda: self._spool.remove(batch))
        self._batch_size = _GROUP

    async def _replay_one(self, record: Record) -> None:
        reason = ""
        for form in _variants(record):
            try:
                await self._store([form])
                return
            except _PERMANENT as error:
                reason = str(error)
        await self._with_files(lambda: self._spool.reject(record, reason))
        self.rejected += 1

    async def _with_files(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work)


def _variants(record: Record) -> Iterator[Record]:
    """A record as it was acknowledged, then without what others may have taken while it waited.

    Another replica answered the same request id, and both were acknowledged: the first stored keeps the id. So with an
    episode that was begun about another question.
    """
    yield record
    if isinstance(record, Interaction):
        if record.request_id is not None:
            record = replace(record, request_id=None)
            yield record
        yield replace(record, episode_id=new_id())
