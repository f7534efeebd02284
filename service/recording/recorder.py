"""Acknowledged means durable: a record is committed, or on disk in the spool, before the caller gets its answer.

One task writes groups of records. It stores all pending records in one transaction and acknowledges them; meanwhile the
next group forms. No record waits for a timer, and under load many records share one commit. While Postgres is
unavailable, and until the spool has been replayed, groups go to the spool, so that records keep their order.
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
from gadfly.redaction import Redactor, redacted
from gadfly.service.recording.spool import Spool
from gadfly.settings import SplitBlocks
from gadfly.store.database import Database
from gadfly.store.interactions import Stored, insert_records
from gadfly.store.writer import InteractionWriter

_GROUP = 128  # a larger transaction saves little and makes its first caller wait for its last
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 5.0

# Errors that storing the same record again would repeat. Others may pass: an old schema, a missing permission.
_PERMANENT = (Conflict, NotFound, IntegrityError, DataError)

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A record is durable.

    `record` is the stored one: for feedback that repeats the newest feedback of the same key, that earlier feedback
    (`is_repeat`). Repeats in the spool (`is_spooled`) are not detected yet.
    """

    record: Record
    is_repeat: bool = False
    is_spooled: bool = False


@dataclass(frozen=True, slots=True)
class _Pending:
    record: Record
    acknowledgement: asyncio.Future[Acknowledgement]

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        if not self.acknowledgement.done():  # the caller may have disconnected; the record is stored all the same
            self.acknowledgement.set_result(acknowledgement)

    def fail(self, error: Exception) -> None:
        if not self.acknowledgement.done():
            self.acknowledgement.set_exception(error)


class Recorder:
    """Stores the records of one process.

    Example:
        >>> async with Recorder(database, home / "spool", heldout_share=0.2, spool_max_bytes=2**30) as recorder:
        ...     acknowledgement = await recorder.record(interaction)
    """

    def __init__(
        self,
        database: Database,
        spool: Path,
        *,
        heldout_share: float,
        spool_max_bytes: int,
        split_blocks: SplitBlocks = SplitBlocks.NEAR,
        redactor: Redactor | None = None,
    ) -> None:
        """`redactor` changes the texts of every record before it is stored anywhere, also in the spool."""
        self._redactor = redactor
        self._database = database
        self._heldout_share = heldout_share
        self._split_blocks = split_blocks
        self._writer = InteractionWriter(database, heldout_share=heldout_share, blocks=split_blocks)
        self._spool = Spool(spool, max_bytes=spool_max_bytes)
        self._files = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._pending: deque[_Pending] = deque()
        self._has_pending = asyncio.Event()
        self._has_spooled = asyncio.Event()
        self._order = asyncio.Lock()  # held while a group is written, and while a batch of the spool is replayed
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
        """Records that wait for the next group."""
        return len(self._pending)

    @property
    def spooled(self) -> int:
        """Records in the spool that are not in Postgres yet."""
        return self._spool.records

    @property
    def owner(self) -> UUID:
        """This process. No other process ever has the same id."""
        return self._spool.owner

    @property
    def dead_owners(self) -> Sequence[UUID]:
        """The processes of this deployment's folder that had died when this one started."""
        return self._spool.taken_over

    @property
    def spool_bytes(self) -> int:
        return self._spool.bytes

    async def start(self) -> None:
        """Take over the spooled records of earlier processes, and start to write.

        Raises:
            StoreUnavailable: the spool cannot be written to.
        """
        await self._with_files(self._spool.open)
        if not self._spool.is_empty:
            log.info("spool_replay_started", records=self._spool.records)
            self._has_spooled.set()
        self._tasks = [asyncio.create_task(self._write_groups()), asyncio.create_task(self._replay())]

    async def close(self) -> None:
        """Write the pending records, then stop. Spooled records stay in the spool until the next start."""
        if not self._tasks:
            return
        self._is_closing = True
        self._has_pending.set()
        writer, replayer = self._tasks
        replayer.cancel()
        await asyncio.gather(writer, replayer, return_exceptions=True)
        await self._with_files(self._spool.close)
        self._files.shutdown()
        self._tasks = []

    async def record(self, record: Record) -> Acknowledgement:
        """Return once the record is durable.

        Raises:
            SpoolFull: Postgres is unavailable and the spool has no room left.
            StoreUnavailable: Postgres is unavailable and the disk fails, the redactor fails, or the recorder is closed.
            Conflict: the request id belongs to another interaction, or the episode to another question.
            NotFound: the feedback is about an interaction that is not stored.
        """
        if self._is_closing or not self._tasks:
            raise StoreUnavailable("the service is stopping")
        if self._redactor is not None:
            record = await redacted(record, self._redactor)
        pending = _Pending(record, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        self._has_pending.set()
        return await pending.acknowledgement

    async def stored_form(self, text: str) -> str:
        """A text as it is stored. Raises as `record` where the redactor fails."""
        if self._redactor is None:
            return text
        [form] = await self._redactor.redact([text])
        return form

    async def lookup(self, interaction_id: UUID) -> Interaction | None:
        """The interaction with this id if it is in the spool; all others are in Postgres."""
        return None if self._spool.is_empty else await self._with_files(lambda: self._spool.find(interaction_id))

    async def lookup_request(self, request_id: str, *, key_id: UUID | None) -> Interaction | None:
        """The interaction with this request id of this key if it is in the spool; all others are in Postgres."""
        if self._spool.is_empty:
            return None
        return await self._with_files(lambda: self._spool.find_request(request_id, key_id=key_id))

    async def lookup_episode(self, episode_id: UUID) -> Interaction | None:
        """The first interaction of this episode that is in the spool, if any."""
        return None if self._spool.is_empty else await self._with_files(lambda: self._spool.find_episode(episode_id))

    async def lookup_feedback(self, interaction_id: UUID) -> list[Feedback]:
        """The feedback about an interaction that is in the spool, oldest first; all other is in Postgres."""
        return [] if self._spool.is_empty else await self._with_files(lambda: self._spool.find_feedback(interaction_id))

    async def _write_groups(self) -> None:
        while True:
            await self._has_pending.wait()
            async with self._order:
                group = [self._pending.popleft() for _ in range(min(_GROUP, len(self._pending)))]
                if group:
                    await self._write(group)
                elif self._is_closing:
                    return
                else:
                    self._has_pending.clear()

    async def _write(self, group: Sequence[_Pending]) -> None:
        self.groups += 1
        if self._spool.is_empty:
            group = await self._commit(group)
        if not group:
            return
        try:
            await self._with_files(lambda: self._spool.append([pending.record for pending in group]))
        except Exception as error:
            log.error("records_not_stored", reason=str(error), records=len(group))
            for pending in group:
                pending.fail(error)
        else:
            self._has_spooled.set()
            for pending in group:
                pending.acknowledge(Acknowledgement(pending.record, is_spooled=True))

    async def _commit(self, group: Sequence[_Pending]) -> Sequence[_Pending]:
        """Store a group in Postgres; return the records not stored because Postgres is unavailable."""
        started = time.perf_counter()
        try:
            stored = await self._store([pending.record for pending in group])
        except StoreUnavailable as error:
            log.warning("records_spooled", reason=str(error), records=len(group))
            return group
        except Exception as error:
            if len(group) == 1:
                group[0].fail(error)
                return []
            # One record caused the error: store each by itself, so that only that one fails.
            for index, pending in enumerate(group):
                if await self._commit([pending]):
                    return group[index:]
            return []
        self.last_commit_s = time.perf_counter() - started
        for pending, item in zip(group, stored, strict=True):
            pending.acknowledge(Acknowledgement(item.record, is_repeat=item.is_repeat))
        return []

    async def _store(self, records: Sequence[Record]) -> list[Stored]:
        interactions = [record for record in records if isinstance(record, Interaction)]
        if len(interactions) == len(records) and await self._writer.write(interactions):
            return [Stored(record, False) for record in records]
        try:
            async with self._database.session(limit_s=self._database.timeout_s) as session:
                return await insert_records(
                    session, records, heldout_share=self._heldout_share, split_blocks=self._split_blocks
                )
        except (IntegrityError, DataError):
            raise
        except DBAPIError as error:
            # Not caused by the record: a missing table or permission, a broken server. Spooled until that is fixed.
            raise StoreUnavailable(f"Postgres cannot store records: {error.orig}") from error

    async def _replay(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            await self._has_spooled.wait()
            try:
                await self._replay_oldest()
                retry_s = _FIRST_RETRY_S
            except Exception as error:
                if not isinstance(error, StoreUnavailable):
                    log.exception("spool_replay_failed", retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    async def _replay_oldest(self) -> None:
        # Check Postgres before taking the lock: groups must not wait for an attempt that fails.
        async with self._database.session(limit_s=self._database.timeout_s) as session:
            await session.execute(text("SELECT 1"))
        # No group is written meanwhile. A batch is larger than a group, so the spool shrinks under any load.
        async with self._order:
            await self._replay_batch()
            if self._spool.is_empty:
                self._has_spooled.clear()
                log.info("spool_replay_finished")

    async def _replay_batch(self) -> None:
        batch = await self._with_files(self._spool.oldest)
        try:
            for start in range(0, len(batch.records), self._batch_size):
                await self._store(batch.records[start : start + self._batch_size])
        except StoreUnavailable:
            # A batch that takes too long must not be retried at the same size. Records already stored are skipped.
            self._batch_size = max(1, self._batch_size // 2)
            raise
        except _PERMANENT:
            for record in batch.records:
                await self._replay_one(record)
        await self._with_files(lambda: self._spool.remove(batch))
        self._batch_size = _GROUP

    async def _replay_one(self, record: Record) -> None:
        reason = ""
        for variant in _variants(record):
            try:
                await self._store([variant])
                if isinstance(record, Interaction) and variant is not record:
                    log.warning(
                        "replayed_without_its_request_id", interaction=str(record.id), request_id=record.request_id
                    )
                return
            except _PERMANENT as error:
                reason = str(error)
        await self._with_files(lambda: self._spool.reject(record, reason))
        self.rejected += 1

    async def _with_files(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work)


def _variants(record: Record) -> Iterator[Record]:
    """The record as acknowledged, then without its request id, then in a new episode.

    While the record was in the spool, another replica may have answered the same request id, or started the same
    episode with another question. Both records were acknowledged, so both are stored; the first keeps the id.
    """
    yield record
    if isinstance(record, Interaction):
        if record.request_id is not None:
            record = replace(record, request_id=None)
            yield record
        yield replace(record, episode_id=new_id())
