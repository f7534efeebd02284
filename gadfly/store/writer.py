"""Interactions without a grade stored in two round trips to Postgres, over a connection of its own.

What is stored, in which order locks are taken, and the side of a question are as in `insert_records`
(`gadfly/store/interactions.py`), which remains for all other records and for what goes wrong here. The first round trip
reads what decides the sides of new questions; the second one is a single statement, with the commit right behind it.
Rows travel as JSON, one parameter for each table: an encoder in C makes it, and Postgres has one in C to read it.

A question that this process saw stored is remembered: its row stays, with keys, whatever else is deleted.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import orjson
import psycopg
import structlog
from sqlalchemy import LargeBinary

from gadfly.records import Critique, Interaction, Refinement, Split, now
from gadfly.settings import SplitBlocks
from gadfly.storable import storable_json, storable_text
from gadfly.store.blocks import BlockKey, Blocks, block_keys
from gadfly.store.database import Database
from gadfly.store.interactions import critique_rows, due_rows, episode_rows, interaction_rows, refinement_rows
from gadfly.store.mapping import columns_of
from gadfly.store.split import question_hash, split_of
from gadfly.store.tables import (
    BlockKeyRow,
    CritiqueDueRow,
    CritiqueRow,
    EpisodeRow,
    ForgetOrderRow,
    InteractionRow,
    QuestionRow,
    RefinementRow,
    StoredJson,
    StoredText,
    Table,
    TombstoneRow,
)
from gadfly.store.wall import PLACING_LOCK, may_open, read_recent

_KNOWN_QUESTIONS = 50_000  # 32 bytes each

_LOCK = f"SELECT pg_advisory_xact_lock_shared({PLACING_LOCK})"
_READS = {
    "gadfly_lock": _LOCK,
    "gadfly_questions (bytea[])": "SELECT hash, is_keyed FROM ("  # noqa: S608
    + _LOCK
    + ") AS held LEFT JOIN questions ON hash = ANY($1)",
    "gadfly_keys (bigint[])": (
        "SELECT secret, key, split, questions, in_training, is_open"
        " FROM split_secrets LEFT JOIN block_keys ON key = ANY($1)"
    ),
    "gadfly_recent (text)": read_recent("$1"),
}

_CHANGED = "changed"  # the rows of known keys that a new question changes

log = structlog.get_logger(__name__)

Row = Mapping[str, Any]
Rows = dict[type[Table] | str, Sequence[Row]]


class InteractionWriter:
    """Writes groups of interactions. One group at a time: it holds one connection."""

    def __init__(self, database: Database, *, heldout_share: float, blocks: SplitBlocks) -> None:
        self._database = database
        self._heldout_share = heldout_share
        self._blocks = blocks
        self._stored: OrderedDict[bytes, None] = OrderedDict()  # questions with keys, the last used ones at the end
        self._reads_recent = False  # whether the last group needed the newest questions
        self._prepared: psycopg.AsyncConnection[Any] | None = None  # the connection with the prepared statements

    async def write(self, interactions: Sequence[Interaction]) -> bool:
        """Store interactions durably, those of each task in a transaction.

        Returns:
            False if some were not stored: `insert_records` then stores them, or says why it cannot.

        Raises:
            StoreUnavailable: Postgres is unavailable, or too slow.
        """
        if any(interaction.grade is not None for interaction in interactions):  # a vote, to be counted
            return False
        for task in sorted({interaction.task for interaction in interactions}):
            if not await self._write([each for each in interactions if each.task == task], task):
                return False
        return True

    async def _write(self, interactions: Sequence[Interaction], task: str) -> bool:
        hashes = {interaction.id: question_hash(interaction.question, task) for interaction in interactions}
        questions = {hashes[interaction.id]: interaction.question for interaction in interactions}
        async with self._database.own_connection() as connection:
            try:
                if connection is not self._prepared:
                    await _prepare(connection)
                    self._prepared = connection
                wall = await self._place(connection, questions, task)
                if wall is None:
                    return False
                rows = wall | {
                    EpisodeRow: episode_rows(interactions, hashes),
                    InteractionRow: interaction_rows(interactions, hashes),
                    CritiqueRow: critique_rows(interactions),
                    RefinementRow: refinement_rows(interactions),
                    CritiqueDueRow: due_rows(interactions),
                }
                places = ", ".join(["%s"] * len(_PARAMETERS))
                await _run(connection, f"EXECUTE gadfly_write ({places}); COMMIT", _parameters(rows, interactions))
            except (psycopg.OperationalError, psycopg.InterfaceError):
                raise
            except (psycopg.Error, TypeError) as error:
                # Also where another writer was first with a key: see `_write_statement`.
                log.debug("group_not_written_at_once", reason=type(error).__name__)
                self._forget(questions)  # an older backup of the database may lack them
                return False
        self._remember(questions)
        return True

    async def _place(
        self, connection: psycopg.AsyncConnection[Any], questions: Mapping[bytes, str], task: str
    ) -> Rows | None:
        """Begin the transaction. The wall's rows of new questions; None where a stored question has no keys yet."""
        unknown = {hash_: question for hash_, question in questions.items() if hash_ not in self._stored}
        if not unknown:
            await _run(connection, "BEGIN; EXECUTE gadfly_lock", [])
            return {QuestionRow: [], BlockKeyRow: [], _CHANGED: []}
        arriving = {hash_: block_keys(question, task) for hash_, question in unknown.items()}
        every = sorted({key for keys in arriving.values() for key in keys})
        read = "BEGIN; EXECUTE gadfly_questions (%s); EXECUTE gadfly_keys (%s)"
        if self._reads_recent:
            read += "; EXECUTE gadfly_recent (%s)"
        values = [_bytea_array(arriving), _array(every), *([task] if self._reads_recent else [])]
        _, known, keyed, *more = await _run(connection, read, values)
        for hash_, is_keyed in known:
            if hash_ is not None:
                if not is_keyed:
                    return None
                del arriving[hash_]
        secret = keyed[0][0]
        stored = {key: BlockKey(Split(split), *state) for _, key, split, *state in keyed if key is not None}
        self._reads_recent = may_open(arriving, stored)
        recent: Counter[Split] = Counter()
        if self._reads_recent:
            [rows] = more or await _run(connection, "EXECUTE gadfly_recent (%s)", [task])
            recent = Counter({Split(split): count for split, count in rows})
        before = frozenset(stored)
        wall = Blocks(stored, recent, self._heldout_share, self._blocks)
        splits = {
            hash_: wall.place(keys, split_of(hash_, self._heldout_share, secret=secret))
            for hash_, keys in arriving.items()
        }
        return {
            QuestionRow: [_question_row(hash_, splits[hash_], task) for hash_ in sorted(splits)],
            BlockKeyRow: _key_rows(wall.keys, wall.changed - before),
            _CHANGED: _key_rows(wall.keys, wall.changed & before),
        }

    def _forget(self, hashes: Iterable[bytes]) -> None:
        for hash_ in hashes:
            self._stored.pop(hash_, None)

    def _remember(self, hashes: Iterable[bytes]) -> None:
        for hash_ in hashes:
            self._stored[hash_] = None
            self._stored.move_to_end(hash_)
        while len(self._stored) > _KNOWN_QUESTIONS:
            self._stored.popitem(last=False)


def _question_row(hash_: bytes, split: Split, task: str) -> Row:
    return {"hash": hash_, "split": split, "created_at": now(), "is_keyed": True, "is_pinned": False, "task": task}


def _key_rows(keys: Mapping[int, BlockKey], chosen: Collection[int]) -> list[Row]:
    return [
        {
            "key": key,
            "split": keys[key].split,
            "questions": keys[key].questions,
            "in_training": keys[key].in_training,
            "is_open": keys[key].is_open,
        }
        for key in sorted(chosen)
    ]


# -------------------------------------------------------------------------------------------------------- the statement

_COLUMNS: dict[type[Table], tuple[str, ...]] = {  # in the order in which all writers store
    BlockKeyRow: ("key", "split", "questions", "in_training", "is_open"),
    QuestionRow: ("hash", "split", "created_at", "is_keyed", "is_pinned", "task"),
    EpisodeRow: ("id", "question_hash", "critic_version", "created_at"),
    InteractionRow: columns_of(InteractionRow, Interaction, "question_hash", "text_sha256", "own_grade"),
    CritiqueRow: columns_of(CritiqueRow, Critique, "interaction_id", "position"),
    RefinementRow: columns_of(RefinementRow, Refinement, "interaction_id", "position"),
    CritiqueDueRow: ("interaction_id", "created_at"),
}
# An imported episode has no critic until its first critique.
_EPISODE_CONFLICT = (
    "(id) DO UPDATE SET critic_version = excluded.critic_version"
    " WHERE stored.critic_version IS NULL AND excluded.critic_version IS NOT NULL"
)


_PARAMETERS = ("new_keys", "changed_keys", "changed", "claims", *(table.__tablename__ for table in _COLUMNS))
_TYPES = {"new_keys": "int", "changed_keys": "bigint[]"}  # the others are JSON


def _parameter(name: str) -> str:
    return f"${_PARAMETERS.index(name) + 1}"


def _write_statement() -> str:
    """Takes `_PARAMETERS`. Each part waits for the one before it, so that locks are taken in one order.

    If another writer has stored one of the keys in the meantime, the question may belong to that one's block. Then the
    number of inserted keys is wrong, and the division fails, before anything else is locked. It also fails where one of
    the interactions was forgotten already.
    """
    parts = [
        f"new_block_keys AS ({_insertion(BlockKeyRow)} ON CONFLICT DO NOTHING RETURNING 1)",
        f"checked AS (SELECT 1 / (count(*) = {_parameter('new_keys')} AND NOT EXISTS ({_forgotten()}))::int AS done"  # noqa: S608
        " FROM new_block_keys)",
        "locked AS (SELECT stored.key FROM block_keys AS stored"  # noqa: S608
        f" WHERE stored.key = ANY({_parameter('changed_keys')}) AND (SELECT done FROM checked) = 1"
        " ORDER BY stored.key FOR NO KEY UPDATE)",
        "changed AS (UPDATE block_keys AS stored SET questions = greatest(stored.questions, new.questions),"  # noqa: S608
        " in_training = stored.in_training OR new.in_training, is_open = stored.is_open OR new.is_open"
        f" FROM json_populate_recordset(NULL::block_keys, {_parameter('changed')}) AS new"
        " JOIN locked ON locked.key = new.key WHERE stored.key = new.key RETURNING 1)",
    ]
    before = "changed"
    for table in tuple(_COLUMNS)[1:]:
        conflict = _EPISODE_CONFLICT if table is EpisodeRow else f"({_primary_key(table)}) DO NOTHING"
        name = f"new_{table.__tablename__}"
        after = f"(SELECT done FROM checked) = 1 AND (SELECT count(*) FROM {before}) >= 0"  # noqa: S608
        parts.append(f"{name} AS ({_insertion(table)} WHERE {after} ON CONFLICT {conflict} RETURNING 1)")
        before = name
    parts.append(
        f"ended AS (DELETE FROM request_claims USING json_to_recordset({_parameter('claims')})"  # noqa: S608
        f" AS done (request_id text, key_id uuid) WHERE (SELECT count(*) FROM {before}) >= 0"
        " AND request_claims.request_id = done.request_id"
        " AND request_claims.key_id IS NOT DISTINCT FROM done.key_id RETURNING 1)"
    )
    return f"WITH {', '.join(parts)} SELECT count(*) FROM ended"  # noqa: S608


def _forgotten() -> str:
    """As `gadfly.store.forgetting.forgotten`."""
    name = InteractionRow.__tablename__
    same = " AND ".join(
        f"(wish.{column} IS NULL OR wish.{column} = new.{column})" for column in ("episode_id", "key_id", "kind")
    )
    return (
        f"SELECT FROM json_populate_recordset(NULL::{name}, {_parameter(name)}) AS new WHERE new.kind <> 'import' AND ("  # noqa: S608
        f"EXISTS (SELECT FROM {TombstoneRow.__tablename__} WHERE interaction_id = new.id) OR"
        f" EXISTS (SELECT FROM {ForgetOrderRow.__tablename__} AS wish WHERE new.created_at < wish.ordered_at AND {same}"
        " AND (wish.since IS NULL OR new.created_at >= wish.since)"
        " AND (wish.until IS NULL OR new.created_at < wish.until)))"
    )


def _insertion(table: type[Table]) -> str:
    name, columns = table.__tablename__, ", ".join(_COLUMNS[table])
    source = f"json_populate_recordset(NULL::{name}, {_parameter(name)})"
    return f"INSERT INTO {name} AS stored ({columns}) SELECT {columns} FROM {source}"  # noqa: S608


async def _prepare(connection: psycopg.AsyncConnection[Any]) -> None:
    types = ", ".join(_TYPES.get(name, "json") for name in _PARAMETERS)
    statements = _READS | {f"gadfly_write ({types})": _write_statement()}
    for name, statement in statements.items():
        await connection.execute(f"PREPARE {name} AS {statement}")


async def _run(connection: psycopg.AsyncConnection[Any], statements: str, values: Sequence[Any]) -> list[list[Any]]:
    """Several statements in one round trip; the rows of each. The driver puts the values into the text, escaped."""
    async with psycopg.AsyncClientCursor(connection) as cursor:
        await cursor.execute(statements, values)
        found = []
        while True:
            found.append([] if cursor.description is None else await cursor.fetchall())
            if not cursor.nextset():
                return found


def _primary_key(table: type[Table]) -> str:
    return ", ".join(column.name for column in table.__mapper__.primary_key)


def _parameters(rows: Rows, interactions: Sequence[Interaction]) -> list[Any]:
    claims = [
        {"request_id": storable_text(item.request_id), "key_id": item.key_id}
        for item in interactions
        if item.request_id is not None
    ]
    values = {
        "new_keys": len(rows[BlockKeyRow]),
        "changed_keys": _array(row["key"] for row in rows[_CHANGED]),
        "changed": _json(BlockKeyRow, rows[_CHANGED]),
        "claims": orjson.dumps(claims).decode(),
        **{table.__tablename__: _json(table, rows[table]) for table in _COLUMNS},
    }
    return [values[name] for name in _PARAMETERS]


def _json(table: type[Table], rows: Sequence[Row]) -> str:
    if not rows:
        return "[]"
    converters = _converters(table)
    return orjson.dumps(
        [
            {
                name: convert(value) if value is not None and (convert := converters.get(name)) else value
                for name, value in row.items()
            }
            for row in rows
        ]
    ).decode()


@cache
def _converters(table: type[Table]) -> dict[str, Callable[[Any], Any]]:
    """What makes a value of a column JSON that Postgres can store."""
    found: dict[str, Callable[[Any], Any]] = {}
    for column in table.__table__.columns:
        if isinstance(column.type, StoredText):
            found[column.name] = storable_text
        elif isinstance(column.type, StoredJson):
            found[column.name] = storable_json
        elif isinstance(column.type, LargeBinary):
            found[column.name] = _hex
    return found


def _hex(value: bytes) -> str:
    return f"\\x{value.hex()}"


def _array(values: Iterable[int]) -> str:
    return f"{{{','.join(map(str, values))}}}"


def _bytea_array(values: Iterable[bytes]) -> str:
    quoted = (rf'"\\x{value.hex()}"' for value in values)
    return f"{{{','.join(quoted)}}}"
