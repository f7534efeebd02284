"""A migrated, empty database for each test: one that another test has used and that was emptied, where possible.

For a new one Postgres copies eight megabytes in hundreds of files, which takes 0.26 s of processor time. To empty one
takes a tenth of that.
"""

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from sqlalchemy import make_url

from tests.support.postgres import PostgresServer

TEMPLATE = "template_gadfly"
"""The name of the migrated database that all others are copies of."""

_CATALOGS = ("pg_attribute", "pg_attrdef", "pg_class", "pg_constraint", "pg_namespace", "pg_policy", "pg_proc",
             "pg_trigger", "pg_type")  # fmt: skip
_END_OTHERS: LiteralString = """
    SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_TABLES: LiteralString = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
_USED_SEQUENCES: LiteralString = """
    SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false) FROM pg_sequences
    WHERE last_value IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class _State:
    """The state that every test finds: the schema, as a number for each catalog, and the rows of the migrations."""

    schema: tuple[Any, ...]
    rows: Mapping[str, bytes]  # by table, only those that have some

    @classmethod
    def read(cls, connection: "Connection[Any]") -> "_State":
        used = connection.execute("SELECT sequencename FROM pg_sequences WHERE last_value IS NOT NULL").fetchall()
        assert not used, "the migrations took numbers that `_empty` would hand out again"
        rows = {table: _copy_out(connection, table) for (table,) in connection.execute(_TABLES).fetchall()}
        return cls(_schema(connection), {table: lines for table, lines in rows.items() if lines})


class Databases:
    """The databases of one server. All work on them is done in one thread, while a test uses another database."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._numbers = itertools.count()
        self._thread = ThreadPoolExecutor(1)
        with self._connect(TEMPLATE) as connection:
            self._state = _State.read(connection)
        self._free = [self._thread.submit(self._create) for _ in range(2)]

    def take(self) -> str:
        """The name of a migrated, empty database."""
        return self._free.pop(0).result()

    def give_back(self, name: str) -> None:
        """Empty the database for another test, or replace it if the test changed the schema."""
        self._free.append(self._thread.submit(self._renew, name))

    def close(self) -> None:
        self._thread.shutdown()
        for made in self._free:
            made.result()  # an error of the last one must be seen too

    def _create(self) -> str:
        name = f"test_{next(self._numbers)}"
        self._server.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        return name

    def _renew(self, name: str) -> str:
        try:
            with self._connect(name) as connection:
                connection.execute(_END_OTHERS)
                if _schema(connection) == self._state.schema:
                    _empty(connection, self._state)
                    return name
        except psycopg.OperationalError:  # the test dropped it
            pass
        self._server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        return self._create()

    def _connect(self, name: str) -> "Connection[Any]":
        url = make_url(self._server.url_of(name)).set(drivername="postgresql")
        return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


def _schema(connection: "Connection[Any]") -> tuple[Any, ...]:
    """Differs after every statement that changes a table, a function or a right: such a row gets a new transaction."""
    counts = sql.SQL(", ").join(
        sql.SQL("(SELECT ROW(count(*), max(xmin::text::bigint))::text FROM {})").format(sql.Identifier(catalog))
        for catalog in _CATALOGS
    )
    row = connection.execute(sql.SQL("SELECT {}").format(counts)).fetchone()
    assert row is not None
    return tuple(row)


def _empty(connection: "Connection[Any]", state: _State) -> None:
    """Put the migrations' rows in place of all others.

    The vacuum also gives back the pages of the deleted rows, so that new rows lie in the order in which they are
    written, as in a new database.
    """
    tables = [table for (table,) in connection.execute(_TABLES).fetchall()]
    filled: list[str] = []
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # no triggers, no foreign keys
        for table in tables:
            deleted = connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table))).rowcount
            if deleted:
                filled.append(table)
        connection.execute(_USED_SEQUENCES)
    if filled:
        connection.execute(sql.SQL("VACUUM (TRUNCATE) {}").format(sql.SQL(", ").join(map(sql.Identifier, filled))))
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        for table, lines in state.rows.items():
            with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))) as copy:
                copy.write(lines)


def _copy_out(connection: "Connection[Any]", table: str) -> bytes:
    with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(table))) as copy:
        return b"".join(bytes(part) for part in copy)
