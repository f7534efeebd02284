"""How worn the held-out set is, and the retirement of worn questions into training.

A look is a gate that takes a question's answers as evidence. A question that was looked at often enough is retired:
it changes to the train side with its whole block, permanently, and the labels of its answers follow the votes again.
No other code moves a question. Why: docs/decisions/wear.md.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from sqlalchemy import ARRAY, BigInteger, LargeBinary, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import Split, now
from gadfly.settings import SplitBlocks
from gadfly.store.blocks import BlockKeys, block_keys
from gadfly.store.database import Database
from gadfly.store.labels import is_any_of, relabel
from gadfly.store.tables import AnswerRow, BlockKeyRow, InteractionRow, QuestionRow
from gadfly.store.wall import PLACING_LOCK, bigints
from gadfly.task_names import DEFAULT_TASK

_READ_LIMIT_S = 120.0
_MOVE_LIMIT_S = 60.0
_SECONDS_PER_DAY = 86_400

_COUNT_LOOKS = text(
    "WITH locked AS (SELECT hash FROM questions WHERE hash = ANY(:hashes) AND split = 'heldout'"
    " ORDER BY hash FOR NO KEY UPDATE)"
    " UPDATE questions SET looks = looks + 1 FROM locked WHERE questions.hash = locked.hash"
).bindparams(bindparam("hashes", type_=ARRAY(LargeBinary)))
_MOVE_KEYS = text(
    "WITH locked AS (SELECT key FROM block_keys WHERE key = ANY(:keys) ORDER BY key FOR NO KEY UPDATE)"
    " UPDATE block_keys AS stored SET in_training = true,"
    " split = CASE WHEN stored.key = ANY(:binding) THEN 'train' ELSE stored.split END"
    " FROM locked WHERE stored.key = locked.key"
).bindparams(bindparam("keys", type_=ARRAY(BigInteger)), bindparam("binding", type_=ARRAY(BigInteger)))
_MOVE_QUESTIONS = text(
    "WITH locked AS (SELECT hash FROM questions WHERE hash = ANY(:hashes) ORDER BY hash FOR NO KEY UPDATE)"
    " UPDATE questions SET split = 'train', retired_at = :at FROM locked WHERE questions.hash = locked.hash"
).bindparams(bindparam("hashes", type_=ARRAY(LargeBinary)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Wear:
    """How old a set of held-out questions is: looks and days of each, and how many others were retired so far."""

    questions: int
    looks_median: float
    looks_most: int
    days_median: float
    days_most: float
    retired: int

    def sentence(self) -> str:
        return (
            f"Before this run the {self.questions} held-out questions had been evidence {self.looks_median:g} times in "
            f"the median and {self.looks_most} times at most; they are {self.days_median:.1f} days old in the median "
            f"and {self.days_most:.1f} at most. {self.retired} questions were retired into training so far."
        )


async def read_wear(session: AsyncSession, hashes: Collection[bytes]) -> Wear | None:
    """The wear of these questions, which are of one task, before a gate looks at them; None without any."""
    rows = await session.execute(
        select(QuestionRow.looks, QuestionRow.created_at).where(is_any_of(QuestionRow.hash, hashes))
    )
    found = rows.all()
    if not found:
        return None
    looks = [row.looks for row in found]
    days = [_days_since(row.created_at) for row in found]
    of_task = select(QuestionRow.task).where(is_any_of(QuestionRow.hash, hashes)).limit(1).scalar_subquery()
    retired = await session.scalar(
        select(func.count()).where(QuestionRow.retired_at.is_not(None), QuestionRow.task == of_task)
    )
    return Wear(
        questions=len(found),
        looks_median=median(looks),
        looks_most=max(looks),
        days_median=round(median(days), 2),
        days_most=round(max(days), 2),
        retired=retired or 0,
    )


def _days_since(moment: datetime) -> float:
    return max(0.0, (now() - moment).total_seconds() / _SECONDS_PER_DAY)


async def count_looks(session: AsyncSession, hashes: Collection[bytes]) -> None:
    """Count a look at each of these questions. Those that are not held out stay as they are."""
    await session.execute(_COUNT_LOOKS, {"hashes": sorted(hashes)})


# ---------------------------------------------------------------------------------------------------------- retirement


@dataclass(frozen=True, kw_only=True, slots=True)
class Retired:
    """What a retirement did, in questions."""

    moved: int  # from the held-out side to the train side
    due: int  # looked at often enough before it, the moved ones among them


async def retire_worn(
    database: Database,
    *,
    after_looks: int,
    share: float,
    keep: int,
    blocks: SplitBlocks,
    task: str = DEFAULT_TASK,
) -> Retired:
    """Move worn held-out questions of a task to training, in one transaction, while no new question is placed.

    Args:
        database: the deployment's.
        after_looks: a block is worn when one of its questions was looked at so often; 0: none ever is.
        share: at most this share of the held-out questions moves at a time.
        keep: so many held-out questions with a text stay at least.
        blocks: the definition of a block, as in `place_questions`.
        task: the name of the task.

    The most looked-at blocks move first. One that is larger than what may move stays, and so does one with a question
    whose side a caller named.

    Raises:
        StoreUnavailable: Postgres is unavailable, or writers of questions did not end in time.
    """
    if not after_looks:
        return Retired(moved=0, due=0)
    async with _session(database, _READ_LIMIT_S) as session:
        worn = select(QuestionRow.hash).where(
            QuestionRow.split == Split.HELDOUT, QuestionRow.task == task, QuestionRow.looks >= after_looks
        )
        if await session.scalar(worn.limit(1)) is None:
            return Retired(moved=0, due=0)
        known = await _read_heldout(session, task, {})
    async with _session(database, _MOVE_LIMIT_S) as session:
        await session.execute(select(func.pg_advisory_xact_lock(PLACING_LOCK)))
        heldout = known | await _read_heldout(session, task, known)  # with those that arrived in between
        looks, pinned = await _looks(session, heldout.keys())
        heldout = {hash_: keys for hash_, keys in heldout.items() if hash_ in looks}
        opened = await _open_keys(session, heldout.values())
        due = [
            block
            for block in components(heldout, opened, blocks)
            if _most(block, looks) >= after_looks and pinned.isdisjoint(block)
        ]
        due.sort(key=lambda block: (-_most(block, looks), min(block)))
        room = min(int(share * len(heldout)), len(heldout) - keep)
        moving: list[bytes] = []
        for block in due:
            if len(moving) + len(block) <= room:
                moving += block
        await _move(session, {hash_: heldout[hash_] for hash_ in moving}, opened, blocks)
        return Retired(moved=len(moving), due=sum(map(len, due)))


def components(questions: Mapping[bytes, BlockKeys], opened: Collection[int], blocks: SplitBlocks) -> list[list[bytes]]:
    """The questions in groups: two are in one group if they share a binding key, or have such a chain between them."""
    parent = {hash_: hash_ for hash_ in questions}

    def root(hash_: bytes) -> bytes:
        while parent[hash_] != hash_:
            parent[hash_] = parent[parent[hash_]]
            hash_ = parent[hash_]
        return hash_

    first: dict[int, bytes] = {}
    for hash_ in sorted(questions):
        for key in _binding(questions[hash_], opened, blocks):
            parent[root(hash_)] = root(first.setdefault(key, hash_))
    groups: dict[bytes, list[bytes]] = {}
    for hash_ in sorted(questions):
        groups.setdefault(root(hash_), []).append(hash_)
    return list(groups.values())


def _binding(keys: BlockKeys, opened: Collection[int], blocks: SplitBlocks) -> list[int]:
    near = () if blocks is SplitBlocks.EXACT else keys.near
    return [keys.same, *(key for key in near if key not in opened)]


def _most(block: Iterable[bytes], looks: Mapping[bytes, int]) -> int:
    return max(looks[hash_] for hash_ in block)


@asynccontextmanager
async def _session(database: Database, limit_s: float) -> AsyncIterator[AsyncSession]:
    async with database.session(limit_s=limit_s) as session:
        await session.execute(text(f"SET LOCAL statement_timeout = {int(1000 * limit_s)}"))
        yield session


async def _read_heldout(session: AsyncSession, task: str, known: Mapping[bytes, BlockKeys]) -> dict[bytes, BlockKeys]:
    """The keys of the task's held-out questions with a text, without the known ones."""
    rows = await session.execute(
        select(QuestionRow.hash, InteractionRow.question)
        .ext(distinct_on(QuestionRow.hash))
        .join(InteractionRow, InteractionRow.question_hash == QuestionRow.hash)
        .where(QuestionRow.split == Split.HELDOUT, QuestionRow.task == task, ~is_any_of(QuestionRow.hash, known))
        .order_by(QuestionRow.hash, InteractionRow.created_at, InteractionRow.id)
    )
    return {row.hash: block_keys(row.question, task) for row in rows}


async def _looks(session: AsyncSession, hashes: Collection[bytes]) -> tuple[dict[bytes, int], frozenset[bytes]]:
    """The looks at those of these questions that are held out, and the pinned ones among them."""
    result = await session.execute(
        select(QuestionRow.hash, QuestionRow.looks, QuestionRow.is_pinned).where(
            QuestionRow.split == Split.HELDOUT, is_any_of(QuestionRow.hash, hashes)
        )
    )
    rows = result.all()
    return {row.hash: row.looks for row in rows}, frozenset(row.hash for row in rows if row.is_pinned)


async def _open_keys(session: AsyncSession, questions: Iterable[BlockKeys]) -> frozenset[int]:
    every = sorted({key for keys in questions for key in keys.near})
    found = await session.scalars(
        select(BlockKeyRow.key).where(BlockKeyRow.key == func.any(bigints(every)), BlockKeyRow.is_open)
    )
    return frozenset(found)


async def _move(
    session: AsyncSession, moving: Mapping[bytes, BlockKeys], opened: Collection[int], blocks: SplitBlocks
) -> None:
    if not moving:
        return
    every = sorted({key for keys in moving.values() for key in keys})
    binding = sorted({key for keys in moving.values() for key in _binding(keys, opened, blocks)})
    connection = await session.connection()
    await connection.execute(_MOVE_KEYS, {"keys": every, "binding": binding})
    await connection.execute(_MOVE_QUESTIONS, {"hashes": sorted(moving), "at": now()})
    answers = await session.execute(
        select(AnswerRow.question_hash, AnswerRow.text_sha256)
        .where(is_any_of(AnswerRow.question_hash, moving))
        .order_by(AnswerRow.question_hash, AnswerRow.text_sha256)  # the order of all writers of labels
        .with_for_update()
    )
    thawed = {(question_hash, sha256) for question_hash, sha256 in answers}
    await session.execute(
        update(AnswerRow)
        .where(is_any_of(AnswerRow.question_hash, moving))
        .values(frozen_at=None)
        .execution_options(synchronize_session=False)
    )
    await relabel(session, thawed)
