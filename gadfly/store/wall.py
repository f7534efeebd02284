"""The training wall in the database: the sides of new questions, decided with the questions that they are near to.

A writer of questions calls `place_questions` in its transaction. Writers that bring near-duplicates at the same time
wait for each other at the unique index of the keys; other writers do not wait. Every transaction takes its locks in one
order (the placing lock, new keys, stored keys, questions, each sorted), so that two of them cannot deadlock.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    LargeBinary,
    Text,
    bindparam,
    delete,
    exists,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from gadfly.records import Split, now
from gadfly.settings import SplitBlocks
from gadfly.store.blocks import LARGE, BlockKey, BlockKeys, Blocks, block_keys
from gadfly.store.database import Database
from gadfly.store.split import split_of
from gadfly.store.tables import BlockKeyRow, InteractionRow, QuestionRow

_RECENT = 1000  # the newest questions, which show whether a side is starved
_BATCH = 500
_BATCH_LIMIT_S = 60.0
_KEYING_LOCK = 0x6761_6466_7761  # one process at a time gives keys to stored questions
PLACING_LOCK = 0x6761_6466_706C
"""Writers of questions share it, and the retirement of worn questions (`gadfly/store/wear.py`) holds it alone."""

_READ_QUESTIONS = text(
    "SELECT hash, split, is_keyed FROM (SELECT pg_advisory_xact_lock_shared(:lock)) AS held"
    " LEFT JOIN questions ON hash = ANY(:hashes)"
).bindparams(bindparam("hashes", type_=ARRAY(LargeBinary)), bindparam("lock", PLACING_LOCK, type_=BigInteger))
_INSERT_QUESTIONS = text(
    "INSERT INTO questions (hash, split, created_at, is_keyed, is_pinned)"
    " SELECT hash, split, :created_at, true, is_pinned"
    " FROM unnest(:hashes, :splits, :pinned) AS new (hash, split, is_pinned) ON CONFLICT DO NOTHING"
).bindparams(
    bindparam("hashes", type_=ARRAY(LargeBinary)),
    bindparam("splits", type_=ARRAY(Text)),
    bindparam("pinned", type_=ARRAY(Boolean)),
)
_MARK_KEYED = text(
    "WITH locked AS (SELECT hash FROM questions WHERE hash = ANY(:hashes) ORDER BY hash FOR NO KEY UPDATE)"
    " UPDATE questions SET is_keyed = true FROM locked WHERE questions.hash = locked.hash"
).bindparams(bindparam("hashes", type_=ARRAY(LargeBinary)))
_READ_KEYS = text(
    "SELECT secret, key, split, questions, in_training, is_open"
    " FROM split_secrets LEFT JOIN block_keys ON key = ANY(:keys)"
).bindparams(bindparam("keys", type_=ARRAY(BigInteger)))
_COLUMNS = (
    bindparam("keys", type_=ARRAY(BigInteger)),
    bindparam("splits", type_=ARRAY(Text)),
    bindparam("questions", type_=ARRAY(Integer)),
    bindparam("in_training", type_=ARRAY(Boolean)),
    bindparam("is_open", type_=ARRAY(Boolean)),
)
_INSERT_KEYS = text(
    "INSERT INTO block_keys (key, split, questions, in_training, is_open)"
    " SELECT * FROM unnest(:keys, :splits, :questions, :in_training, :is_open)"
    " ON CONFLICT DO NOTHING RETURNING key"
).bindparams(*_COLUMNS)
_UPDATE_KEYS = text(
    "WITH locked AS (SELECT key FROM block_keys WHERE key = ANY(:keys) ORDER BY key FOR NO KEY UPDATE)"
    " UPDATE block_keys AS stored SET questions = greatest(stored.questions, new.questions),"
    " in_training = stored.in_training OR new.in_training, is_open = stored.is_open OR new.is_open"
    " FROM unnest(:keys, :splits, :questions, :in_training, :is_open)"
    " AS new (key, split, questions, in_training, is_open) JOIN locked ON locked.key = new.key"
    " WHERE stored.key = new.key"
).bindparams(*_COLUMNS)


async def place_questions(
    session: AsyncSession,
    questions: Mapping[bytes, str],
    *,
    heldout_share: float,
    blocks: SplitBlocks,
    sides: Mapping[bytes, Split],
) -> None:
    """Store the questions that are new, each on its side. At most once in a transaction.

    Args:
        session: the transaction that also stores what is about these questions.
        questions: the texts by `question_hash`, in the order of their arrival.
        heldout_share: the share of new blocks that is held out.
        blocks: which questions follow an earlier one.
        sides: the side of a new question, by its hash, where the writer names one. It stays there permanently.
    """
    connection = await session.connection()
    stored = await connection.execute(_READ_QUESTIONS, {"hashes": list(questions)})
    is_keyed: dict[bytes, bool] = {}
    fixed: dict[bytes, Split] = {}
    for row in stored:
        if row.hash is None:  # none of them is stored
            continue
        is_keyed[row.hash] = row.is_keyed
        if not row.is_keyed:
            fixed[row.hash] = Split(row.split)
    arriving = {hash_: block_keys(question) for hash_, question in questions.items() if not is_keyed.get(hash_)}
    if not arriving:
        return
    new = sorted(arriving.keys() - fixed.keys())
    named = {hash_: sides[hash_] for hash_ in new if hash_ in sides}
    splits = await _enter(connection, arriving, fixed | named, heldout_share=heldout_share, blocks=blocks) | named
    if new:
        rows = {
            "hashes": new,
            "splits": [splits[hash_].value for hash_ in new],
            "pinned": [hash_ in named for hash_ in new],
            "created_at": now(),
        }
        await connection.execute(_INSERT_QUESTIONS, rows)
    await _mark_keyed(connection, fixed)


async def key_stored_questions(database: Database) -> int:
    """Give keys to the stored questions that have none, which earlier releases stored; return their number.

    Each keeps its side. Questions of the train split are first, so that a block with members on both sides belongs to
    training: its held-out members are near to training, and later members do not add to them. It continues where an
    earlier call was stopped. Questions whose interactions were deleted have no text, and wait until they return.

    Raises:
        StoreUnavailable: Postgres is unavailable.
    """
    keyed = 0
    any_text = (
        select(InteractionRow.question).where(InteractionRow.question_hash == QuestionRow.hash).limit(1)
    ).scalar_subquery()
    batch = (
        select(QuestionRow.hash, QuestionRow.split, any_text.label("question"))
        .where(~QuestionRow.is_keyed, exists().where(InteractionRow.question_hash == QuestionRow.hash))
        .order_by(QuestionRow.split.desc(), QuestionRow.created_at.desc())
        .limit(_BATCH)
    )
    while True:
        async with database.session(limit_s=_BATCH_LIMIT_S) as session:
            await session.execute(select(func.pg_advisory_xact_lock(_KEYING_LOCK)))
            rows = (await session.execute(batch)).all()
            if not rows:
                return keyed
            fixed = {row.hash: row.split for row in rows}
            keys = {row.hash: block_keys(row.question) for row in rows}
            connection = await session.connection()
            await _enter(connection, keys, fixed, heldout_share=0.5, blocks=SplitBlocks.EXACT)  # all sides are fixed
            await _mark_keyed(connection, fixed)
        keyed += len(rows)


async def apart_from_training(session: AsyncSession, questions: Mapping[bytes, str]) -> frozenset[bytes]:
    """The hashes of those questions, given with their texts, that no question of the train split is near to."""
    keys = {hash_: block_keys(question) for hash_, question in questions.items()}
    every = sorted({key for each in keys.values() for key in each})
    trained = await session.scalars(
        select(BlockKeyRow.key).where(BlockKeyRow.key == func.any(bigints(every)), BlockKeyRow.in_training)
    )
    near = frozenset(trained)
    return frozenset(hash_ for hash_, each in keys.items() if near.isdisjoint(each))


async def _enter(
    connection: AsyncConnection,
    arriving: Mapping[bytes, BlockKeys],
    fixed: Mapping[bytes, Split],
    *,
    heldout_share: float,
    blocks: SplitBlocks,
) -> dict[bytes, Split]:
    """Decide the sides of questions and store their keys. `fixed` are the sides that are decided already."""
    while True:
        secret, stored = await _read_keys(connection, {key for keys in arriving.values() for key in keys})
        known = frozenset(stored)
        may_open = len(arriving) >= LARGE or any(key.questions >= LARGE and not key.is_open for key in stored.values())
        recent = await _recent(connection) if may_open and len(fixed) < len(arriving) else Counter[Split]()
        wall = Blocks(stored, recent, heldout_share, blocks)
        splits = {
            hash_: wall.place(
                keys,
                fixed.get(hash_) or split_of(hash_, heldout_share, secret=secret),
                is_fixed=hash_ in fixed,
            )
            for hash_, keys in arriving.items()
        }
        new = wall.changed - known
        inserted = list((await connection.scalars(_INSERT_KEYS, _columns(wall.keys, new))).all()) if new else []
        if len(inserted) == len(new):
            if old := wall.changed & known:
                await connection.execute(_UPDATE_KEYS, _columns(wall.keys, old))
            return splits
        # Another writer was first with some keys, and this transaction waited for its end. All keys are decided now.
        await connection.execute(delete(BlockKeyRow).where(BlockKeyRow.key == func.any(bigints(inserted))))


async def _read_keys(connection: AsyncConnection, keys: Collection[int]) -> tuple[bytes, dict[int, BlockKey]]:
    """The deployment's secret, and those of the keys that are stored."""
    rows = (await connection.execute(_READ_KEYS, {"keys": sorted(keys)})).all()
    assert rows, "the migration stores a secret"
    stored = {
        row.key: BlockKey(Split(row.split), row.questions, row.in_training, row.is_open)
        for row in rows
        if row.key is not None
    }
    return rows[0].secret, stored


async def _recent(connection: AsyncConnection) -> Counter[Split]:
    newest = select(QuestionRow.split).order_by(QuestionRow.created_at.desc()).limit(_RECENT).subquery()
    rows = await connection.execute(select(newest.c.split, func.count()).group_by(newest.c.split))
    return Counter(dict(rows.all()))


async def _mark_keyed(connection: AsyncConnection, hashes: Collection[bytes]) -> None:
    if hashes:
        await connection.execute(_MARK_KEYED, {"hashes": list(hashes)})


def bigints(values: Iterable[int]) -> ColumnElement[list[int]]:
    """Keys as one parameter of a statement."""
    return literal(list(values), ARRAY(BigInteger))


def _columns(keys: Mapping[int, BlockKey], chosen: Collection[int]) -> dict[str, list[Any]]:
    """Some of the keys as columns, in order of the keys."""
    ordered = sorted(chosen)
    return {
        "keys": ordered,
        "splits": [keys[key].split.value for key in ordered],
        "questions": [keys[key].questions for key in ordered],
        "in_training": [keys[key].in_training for key in ordered],
        "is_open": [keys[key].is_open for key in ordered],
    }
