"""The training wall in the database: the sides of new questions, decided with the questions that they are near to.

A writer of questions calls `place_questions` in its transaction. Writers that bring near-duplicates at the same time
wait for each other at the unique index of the keys; other writers do not wait. Every transaction takes its locks in one
order (new keys, stored keys, questions, each sorted), so that two of them cannot deadlock.
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
    Text,
    bindparam,
    delete,
    exists,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import Split, now
from gadfly.settings import SplitBlocks
from gadfly.store.blocks import LARGE, BlockKeys, Blocks, Key, block_keys
from gadfly.store.database import Database
from gadfly.store.split import split_of
from gadfly.store.tables import BlockKeyRow, InteractionRow, QuestionRow, SplitSecretRow

_RECENT = 1000  # the newest questions, which show whether a side is starved
_BATCH = 500
_BATCH_LIMIT_S = 60.0
_KEYING_LOCK = 0x6761_6466_7761  # one process at a time gives keys to stored questions

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
    session: AsyncSession, questions: Mapping[bytes, str], *, heldout_share: float, blocks: SplitBlocks
) -> None:
    """Store the questions that are new, each on its side for ever. At most once in a transaction.

    Args:
        session: the transaction that also stores what is about these questions.
        questions: the texts by `question_hash`, in the order of their arrival.
        heldout_share: the share of new blocks that is held out.
        blocks: which questions follow an earlier one.
    """
    stored = await session.execute(
        select(QuestionRow.hash, QuestionRow.split, QuestionRow.is_keyed).where(QuestionRow.hash.in_(questions))
    )
    is_keyed: dict[bytes, bool] = {}
    fixed: dict[bytes, Split] = {}
    for row in stored:
        is_keyed[row.hash] = row.is_keyed
        if not row.is_keyed:
            fixed[row.hash] = row.split
    arriving = {hash_: block_keys(question) for hash_, question in questions.items() if not is_keyed.get(hash_)}
    if not arriving:
        return
    splits = await _enter(session, arriving, fixed, heldout_share=heldout_share, blocks=blocks)
    moment = now()
    rows = [
        {"hash": hash_, "split": splits[hash_], "is_keyed": True, "created_at": moment}
        for hash_ in sorted(arriving.keys() - fixed.keys())
    ]
    if rows:
        connection = await session.connection()
        await connection.execute(insert(QuestionRow).on_conflict_do_nothing(index_elements=[QuestionRow.hash]), rows)
    await _mark_keyed(session, fixed)


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
            await _enter(session, keys, fixed, heldout_share=0.5, blocks=SplitBlocks.EXACT)  # all sides are fixed
            await _mark_keyed(session, fixed)
        keyed += len(rows)


async def apart_from_training(session: AsyncSession, questions: Mapping[bytes, str]) -> frozenset[bytes]:
    """The hashes of those questions, given with their texts, that no question of the train split is near to."""
    keys = {hash_: block_keys(question) for hash_, question in questions.items()}
    every = sorted({key for each in keys.values() for key in each})
    trained = await session.scalars(
        select(BlockKeyRow.key).where(BlockKeyRow.key == func.any(_bigints(every)), BlockKeyRow.in_training)
    )
    near = frozenset(trained)
    return frozenset(hash_ for hash_, each in keys.items() if near.isdisjoint(each))


async def _enter(
    session: AsyncSession,
    arriving: Mapping[bytes, BlockKeys],
    fixed: Mapping[bytes, Split],
    *,
    heldout_share: float,
    blocks: SplitBlocks,
) -> dict[bytes, Split]:
    """Decide the sides of questions and store their keys. `fixed` are the sides that are decided already."""
    while True:
        secret, stored = await _read_keys(session, {key for keys in arriving.values() for key in keys})
        known = frozenset(stored)
        may_open = len(arriving) >= LARGE or any(key.questions >= LARGE and not key.is_open for key in stored.values())
        recent = await _recent(session) if may_open and len(fixed) < len(arriving) else Counter[Split]()
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
        inserted = list(await session.scalars(_INSERT_KEYS, _columns(wall.keys, new))) if new else []
        if len(inserted) == len(new):
            if old := wall.changed & known:
                await session.execute(_UPDATE_KEYS, _columns(wall.keys, old))
            return splits
        # Another writer was first with some keys, and this transaction waited for its end. All keys are decided now.
        await session.execute(delete(BlockKeyRow).where(BlockKeyRow.key == func.any(_bigints(inserted))))


async def _read_keys(session: AsyncSession, keys: Collection[int]) -> tuple[bytes, dict[int, Key]]:
    """The deployment's secret, and those of the keys that are stored."""
    rows = await session.execute(
        select(
            SplitSecretRow.secret,
            BlockKeyRow.key,
            BlockKeyRow.split,
            BlockKeyRow.questions,
            BlockKeyRow.in_training,
            BlockKeyRow.is_open,
        ).outerjoin(BlockKeyRow, BlockKeyRow.key == func.any(_bigints(sorted(keys))))
    )
    secret = b""
    stored: dict[int, Key] = {}
    for row in rows:
        secret = row.secret
        if row.key is not None:
            stored[row.key] = Key(row.split, row.questions, row.in_training, row.is_open)
    assert secret, "the migration stores a secret"
    return secret, stored


async def _recent(session: AsyncSession) -> Counter[Split]:
    newest = select(QuestionRow.split).order_by(QuestionRow.created_at.desc()).limit(_RECENT).subquery()
    rows = await session.execute(select(newest.c.split, func.count()).group_by(newest.c.split))
    return Counter(dict(rows.all()))


async def _mark_keyed(session: AsyncSession, hashes: Collection[bytes]) -> None:
    if hashes:
        await session.execute(
            update(QuestionRow)
            .where(QuestionRow.hash.in_(hashes))
            .values(is_keyed=True)
            .execution_options(synchronize_session=False)
        )


def _bigints(values: Iterable[int]) -> ColumnElement[list[int]]:
    return literal(list(values), ARRAY(BigInteger))


def _columns(keys: Mapping[int, Key], chosen: Collection[int]) -> dict[str, list[Any]]:
    """Some of the keys as columns, in order of the keys."""
    ordered = sorted(chosen)
    return {
        "keys": ordered,
        "splits": [keys[key].split.value for key in ordered],
        "questions": [keys[key].questions for key in ordered],
        "in_training": [keys[key].in_training for key in ordered],
        "is_open": [keys[key].is_open for key in ordered],
    }
