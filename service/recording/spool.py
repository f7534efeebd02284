"""Records on disk while Postgres is unavailable: as durable as a commit, in order, and deleted once Postgres has them.

    home/spool/<replica>/lock       locked (flock) by the process that owns the folder
    home/spool/<replica>/<id>.log   records, oldest first: each file holds about one transaction
    home/spool/rejected.jsonl       records that Postgres permanently refuses, each with its reason

Each record is one line: CRC-32 (hex), length in bytes, JSON. A line that a crash cut short was never acknowledged and
is dropped. When a process dies, the next process to start takes over its folder.

All methods block and must be called from one thread: see `service/recording/recorder.py`.
"""

import errno
import fcntl
import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any
from uuid import UUID

import structlog
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from gadfly.errors import SpoolFull, StoreUnavailable
from gadfly.records import Feedback, Interaction, Record, new_id, now
from gadfly.storable import storable_json

_SEGMENT_RECORDS = 200  # more than one group of the recorder, so that replay is faster than appending
_SEGMENT_BYTES = 4 * 2**20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

log = structlog.get_logger(__name__)


def _is_none(value: object) -> bool:
    return value is None


@dataclass(frozen=True, slots=True)
class _Line:
    """The content of a line: one of the two; the other is left out of the JSON."""

    interaction: Annotated[Interaction | None, Field(exclude_if=_is_none)] = None
    feedback: Annotated[Feedback | None, Field(exclude_if=_is_none)] = None


_LINE: TypeAdapter[_Line] = TypeAdapter(_Line)
_NEW_FIELDS = {  # of records, since release 0.1.0, each with its default
    "grader": None,
    "grade_problem": None,
    "conversation": None,
    "critique_due": False,
    "critique_id": None,
    "refinement_id": None,
    "helpful": None,
    "edited_reference": None,
    "task": "math",
    "task_version": None,
}
_OF_CRITIQUES = "calibrated_p_right"  # the same, of each critique


@dataclass(frozen=True, slots=True)
class _Place:
    """The position of a record's line. Offset and length in bytes."""

    path: Path
    offset: int
    length: int


@dataclass(slots=True)
class _Segment:
    path: Path
    size: int = 0
    records: int = 0
    # Per interaction: its id, its episode, and its (key, request id).
    interactions: list[tuple[UUID, UUID, tuple[UUID | None, str] | None]] = field(default_factory=list)
    feedback_on: list[UUID] = field(default_factory=list)  # the interaction of each feedback, in order


@dataclass(frozen=True, slots=True)
class Batch:
    """The oldest records of the spool: stored, then removed, together."""

    path: Path
    records: list[Record]


class Spool:
    """The part of the spool that one process owns, with an index of its records in memory.

    Args:
        folder: the deployment's spool, shared by all its processes on this machine.
        max_bytes: the most bytes that this process may keep in it.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._shared = folder
        self._max_bytes = max_bytes
        self._folder = folder / new_id().hex
        self._lock: IO[bytes] | None = None
        self._segments: deque[_Segment] = deque()
        self._active: int | None = None  # descriptor of the newest segment, while it is appended to
        self._places: dict[UUID, _Place] = {}
        self._requests: dict[tuple[UUID | None, str], UUID] = {}
        self._episodes: dict[UUID, UUID] = {}  # episode -> its first spooled interaction
        self._feedback: dict[UUID, deque[_Place]] = {}
        self.records = 0
        self.bytes = 0
        self.taken_over: list[UUID] = []  # the owners of the folders that were taken over

    @property
    def owner(self) -> UUID:
        """This process, as the owner of its folder."""
        return UUID(hex=self._folder.name)

    @property
    def is_empty(self) -> bool:
        return not self._segments

    @property
    def segments(self) -> int:
        return len(self._segments)

    def open(self) -> None:
        """Create this process's folder, and take over the folders of processes that died.

        Raises:
            StoreUnavailable: the folder cannot be written to.
        """
        try:
            self._shared.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Hidden until it is locked, so that no other process takes it over.
            hidden = self._shared / f".{self._folder.name}"
            hidden.mkdir(mode=0o700)
            self._lock = (hidden / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(self._folder)
            for other in sorted(self._shared.iterdir()):
                if other.is_dir() and other != self._folder and not other.name.startswith("."):
                    self._take_over(other)
            _sync_folder(self._folder)
            _sync_folder(self._shared)
        except OSError as error:
            raise StoreUnavailable(f"cannot write to the spool {self._shared}: {error.strerror}") from error
        for path in sorted(self._folder.glob("*.log")):
            self._index(path)

    def close(self) -> None:
        """Release the folder; records left in it wait for the next process."""
        self._seal()
        if self._lock is None:
            return
        if self.is_empty:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()
        self._lock = None

    def append(self, records: Sequence[Record]) -> None:
        """Write all of `records`, or none of them. They are on disk (fsync) when this returns.

        Raises:
            SpoolFull: the spool's limit is reached, or the disk is full.
            StoreUnavailable: the disk fails.
        """
        lines = [_encode(record) for record in records]
        size = sum(map(len, lines))
        if self.bytes + size > self._max_bytes:
            raise SpoolFull(f"Postgres is unavailable and the spool is at its limit of {self._max_bytes:,} bytes")
        try:
            self._write(b"".join(lines))
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise SpoolFull("Postgres is unavailable and the spool's disk is full") from error
            raise StoreUnavailable(
                f"Postgres is unavailable and the spool cannot be written: {error.strerror}"
            ) from error
        segment = self._segments[-1]
        for record, line in zip(records, lines, strict=True):
            self._remember(segment, record, segment.size, len(line))
            segment.size += len(line)
            self.bytes += len(line)
        if segment.records >= _SEGMENT_RECORDS or segment.size >= _SEGMENT_BYTES:
            self._seal()

    def oldest(self) -> Batch:
        """The records to store next. Records appended after this call are in later batches."""
        segment = self._segments[0]
        if len(self._segments) == 1:
            self._seal()
        records: list[Record] = []
        for _, line in _intact_lines(segment.path.read_bytes()):
            try:
                records.append(_decode(line))
            except ValidationError as error:
                self._write_rejected(
                    {"line": line.decode(errors="replace")}, f"this release cannot parse the line: {error}"
                )
        return Batch(segment.path, records)

    def remove(self, batch: Batch) -> None:
        """Delete the oldest batch; its records are stored."""
        segment = self._segments[0]
        assert segment.path == batch.path
        segment.path.unlink()
        _sync_folder(self._folder)
        self._segments.popleft()
        self.records -= segment.records
        self.bytes -= segment.size
        for id, episode, request in segment.interactions:
            self._places.pop(id, None)
            if self._episodes.get(episode) == id:
                del self._episodes[episode]  # the episode is in Postgres now
            if request is not None:
                self._requests.pop(request, None)
        for id in segment.feedback_on:
            self._feedback[id].popleft()
            if not self._feedback[id]:
                del self._feedback[id]

    def reject(self, record: Record, reason: str) -> None:
        """Move a record that Postgres permanently refuses to `rejected.jsonl`, for a person to inspect."""
        self._write_rejected(json.loads(_to_json(record)), reason)

    def find(self, interaction_id: UUID) -> Interaction | None:
        """The spooled interaction with this id."""
        place = self._places.get(interaction_id)
        if place is None:
            return None
        record = _read(place)
        assert isinstance(record, Interaction)
        return record

    def find_feedback(self, interaction_id: UUID) -> list[Feedback]:
        """The spooled feedback about an interaction, oldest first."""
        return [item for place in self._feedback.get(interaction_id, ()) if isinstance(item := _read(place), Feedback)]

    def find_request(self, request_id: str, *, key_id: UUID | None) -> Interaction | None:
        """The spooled interaction with this request id of this key."""
        id = self._requests.get((key_id, request_id))
        return None if id is None else self.find(id)

    def find_episode(self, episode_id: UUID) -> Interaction | None:
        """The first spooled interaction of an episode."""
        id = self._episodes.get(episode_id)
        return None if id is None else self.find(id)

    def _take_over(self, other: Path) -> None:
        try:
            lock = (other / "lock").open("wb")
        except FileNotFoundError:  # another starting process took it over first
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for path in sorted(other.glob("*.log")):
                path.rename(self._folder / path.name)
            _sync_folder(self._folder)
            shutil.rmtree(other, ignore_errors=True)
        with suppress(ValueError):
            self.taken_over.append(UUID(hex=other.name))
        log.info("spool_taken_over", folder=other.name, reason="the process that owned it died")

    def _index(self, path: Path) -> None:
        content = path.read_bytes()
        segment = _Segment(path, size=len(content))
        end = 0
        for offset, line in _intact_lines(content):
            if offset > end:
                self._report_damage(path, content[end:offset])
            end = offset + len(line)
            try:
                self._remember(segment, _decode(line), offset, len(line))
            except ValidationError:
                segment.records += 1  # `oldest` rejects it
                self.records += 1
        if end < len(content):
            log.warning("spool_tail_dropped", reason="a crash cut it short", path=str(path), bytes=len(content) - end)
        self.bytes += segment.size
        self._segments.append(segment)

    def _report_damage(self, path: Path, damaged: bytes) -> None:
        self._write_rejected({"line": damaged.decode(errors="replace")}, f"damaged in {path.name}")

    def _remember(self, segment: _Segment, record: Record, offset: int, length: int) -> None:
        segment.records += 1
        self.records += 1
        place = _Place(segment.path, offset, length)
        if isinstance(record, Feedback):
            segment.feedback_on.append(record.interaction_id)
            self._feedback.setdefault(record.interaction_id, deque()).append(place)
        else:
            request = None if record.request_id is None else (record.key_id, record.request_id)
            segment.interactions.append((record.id, record.episode_id, request))
            self._places[record.id] = place
            self._episodes.setdefault(record.episode_id, record.id)
            if request is not None:
                self._requests.setdefault(request, record.id)

    def _write(self, data: bytes) -> None:
        if self._active is None:
            path = self._folder / f"{new_id().hex}.log"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, data)
                _sync_folder(self._folder)
            except OSError:
                os.close(descriptor)
                path.unlink()
                raise
            self._active = descriptor
            self._segments.append(_Segment(path))
            return
        try:
            _write_all(self._active, data)
        except OSError:
            # The partial write was not acknowledged; later records must not follow it in the file.
            try:
                os.ftruncate(self._active, self._segments[-1].size)
            finally:
                self._seal()
            raise

    def _seal(self) -> None:
        if self._active is not None:
            os.close(self._active)
            self._active = None

    def _write_rejected(self, content: dict[str, Any], reason: str) -> None:
        line = json.dumps({"rejected_at": now().isoformat(), "reason": reason, **content}) + "\n"
        path = self._shared / "rejected.jsonl"
        with path.open("ab") as rejected:
            os.fchmod(rejected.fileno(), 0o600)
            fcntl.flock(rejected, fcntl.LOCK_EX)
            size = os.fstat(rejected.fileno()).st_size
            try:
                _write_all(rejected.fileno(), line.encode())
            except OSError:
                os.ftruncate(rejected.fileno(), size)
                raise
        log.error("record_rejected", reason=reason, path=str(path))


def _to_json(record: Record) -> bytes:
    line = _Line(interaction=record) if isinstance(record, Interaction) else _Line(feedback=record)
    # New fields without a value are left out, as in the lines of earlier releases.
    empty: dict[str, Any] = {
        name: True for name, default in _NEW_FIELDS.items() if getattr(record, name, default) == default
    }
    exclude: Any = {"feedback": empty}
    if isinstance(record, Interaction):
        uncalibrated = {
            n: {_OF_CRITIQUES} for n, each in enumerate(record.critiques) if each.calibrated_p_right is None
        }
        exclude = {"interaction": empty | {"critiques": uncalibrated}}
    try:
        return _LINE.dump_json(line, exclude=exclude)
    except PydanticSerializationError:  # a lone surrogate, which UTF-8 cannot represent: replaced, as in Postgres
        return json.dumps(storable_json(_LINE.dump_python(line, mode="json", exclude=exclude))).encode()


def _encode(record: Record) -> bytes:
    body = _to_json(record)
    return b"%08x %d %s\n" % (zlib.crc32(body), len(body), body)


def _decode(line: bytes) -> Record:
    value = _LINE.validate_json(line.split(b" ", 2)[2])
    record = value.interaction or value.feedback
    assert record is not None
    return record


def _read(place: _Place) -> Record:
    with place.path.open("rb") as segment:
        segment.seek(place.offset)
        ((_, line),) = _intact_lines(segment.read(place.length))
    return _decode(line)


def _intact_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Each intact line with its offset; damaged lines are skipped."""
    offset = 0
    for line in content.splitlines(keepends=True):
        if _is_intact(line):
            yield offset, line
        offset += len(line)


def _is_intact(line: bytes) -> bool:

    head, _, rest = line.partition(b" ")
    length, _, body = rest.partition(b" ")
    if not (body.endswith(b"\n") and length.isdigit() and int(length) == len(body) - 1):
        return False
    return head == b"%08x" % zlib.crc32(body[:-1])


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
