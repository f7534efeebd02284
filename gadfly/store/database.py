"""Access to Postgres: a pool per process, transactions that belong to the caller, and the schema's state."""

import asyncio
import os
import select
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg import sql
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import Connection, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from gadfly.errors import StoreUnavailable
from gadfly.settings import Settings
from gadfly.store.breaker import Breaker, BreakerLimits
from gadfly.store.countdown import countdown
from gadfly.store.tables import Table

VERSION_TABLE = "gadfly_schema"
"""Alembic's table of the schema's revision. In a shared database the default name may belong to another program."""

MIGRATIONS = Path(__file__).parents[1] / "migrations"
T = TypeVar("T")
_POOL_PATIENCE = 4  # in a burst, waiting for a connection may take longer than a statement
_SNAPSHOT = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
_BREAKER = BreakerLimits()
_MIGRATION_PATIENCE_S = 60  # for another replica's migration
_MIGRATION_LOCK = 0x6761_6466_6C79  # "gadfly": replicas that start together migrate one after another


class Database:
    """A pool of connections to one Postgres.

    Example:
        >>> async with Database(url, pool=5, timeout_s=5.0) as database:
        ...     async with database.session() as session:
        ...         interaction = await read_interaction(session, id, scope=None)
    """

    def __init__(
        self,
        url: str,
        *,
        pool: int = 5,
        timeout_s: float = 5.0,
        role: str | None = None,
        breaker: BreakerLimits = _BREAKER,
    ) -> None:
        """`timeout_s` bounds connecting and each statement; the wait for a free connection may be four times as long.

        With a `role`, every connection has the rights of that database role.
        """
        self.url = url
        self.timeout_s = timeout_s
        self._role = role
        self._opened = _Opened()
        self._own: psycopg.AsyncConnection[Any] | None = None
        self._breaker = Breaker(self._probe, breaker)
        self._engine = create_async_engine(
            url,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=_POOL_PATIENCE * timeout_s,
            hide_parameters=True,  # errors would have callers' texts in their messages
            connect_args={**_connect_args(url, timeout_s, role), "async_creator_fn": self._opened.connect},
        )
        event.listen(self._engine.sync_engine, "checkout", _refuse_dead)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False, autoflush=False)

    @classmethod
    def of(cls, settings: Settings, url: str, *, role: str | None = None) -> Self:
        """The database at `url` (the settings' own, or the embedded server's) with the settings' limits."""
        return cls(url, pool=settings.database_pool, timeout_s=settings.database_timeout_s, role=role)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection, also those of tasks that were cancelled. Sessions in use fail."""
        await self._breaker.aclose()
        await self._engine.dispose()
        await self._opened.close()

    @asynccontextmanager
    async def session(self, *, limit_s: float | None = None, snapshot: bool = False) -> AsyncGenerator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises.

        In a `snapshot` all reads see one state of the database, and nothing can be written. A record that is read with
        several statements needs it, because other transactions may commit between them.

        Never keep it open while the engine generates. After `limit_s` seconds (default: twice `timeout_s`) the
        connection is cut, so a Postgres that hangs cannot block the caller. While Postgres does not answer at all, no
        connection is tried (`store/breaker.py`).

        Raises:
            StoreUnavailable: Postgres is unreachable, too slow or restarting, or all connections are in use. The
                outcome of a commit in progress is then unknown.
        """
        self._breaker.require_closed()
        try:
            with self._breaker.watching():
                async with self._sessions() as session:
                    raw = await self._connected(session, options=_SNAPSHOT if snapshot else {})
                    limit_s = 2 * self.timeout_s if limit_s is None else limit_s
                    with _watchdog(raw.fileno(), limit_s) as cut, self._breaker.releasing(cut):
                        try:
                            yield session
                            await session.commit()
                        finally:
                            await session.close()
        except (DBAPIError, PoolTimeout) as error:
            translated = _translated(error)
            if isinstance(translated, StoreUnavailable):
                self._breaker.suspect()
            raise translated from error

    @asynccontextmanager
    async def own_connection(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        """A connection beside the pool, for one user at a time. What the user does not commit is rolled back.

        It begins no transaction by itself, stays open between calls, and is cut after `timeout_s` seconds of one. For the few statements that every
        request waits for: a session of the pool costs several times their processing time.

        Raises:
            StoreUnavailable: as `session`. Other errors of psycopg pass.
        """  # noqa: E501
        self._breaker.require_closed()
        try:
            with self._breaker.watching():
                connection = await self._own_connection()
                with _watchdog(connection.fileno(), self.timeout_s) as cut, self._breaker.releasing(cut):
                    try:
                        yield connection
                    finally:
                        if connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
                            await connection.rollback()
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            await self._drop_own()
            self._breaker.suspect()
            raise StoreUnavailable(_why(error)) from error
        except asyncio.CancelledError:
            await self._drop_own()  # a statement may be unfinished
            raise

    async def _own_connection(self) -> psycopg.AsyncConnection[Any]:
        if self._own is not None and (self._own.closed or _has_unread(self._own)):
            await self._drop_own()
        if self._own is None:
            options = _connect_args(self.url, self.timeout_s, self._role)
            self._own = await self._in_time(self._opened.connect(_plain(self.url), autocommit=True, **options))
        return self._own

    async def _drop_own(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            await own.close()

    async def _in_time(self, waiting: Awaitable[T]) -> T:
        """Wait for a connection until the breaker opens."""
        limit = asyncio.timeout(None)
        loop = asyncio.get_running_loop()
        try:
            async with limit:
                with self._breaker.releasing(lambda: limit.reschedule(loop.time())):
                    return await waiting
        except TimeoutError:
            if not limit.expired():
                raise
            self._breaker.require_closed()
            raise StoreUnavailable("Postgres is unavailable: it did not answer") from None

    async def _connected(self, session: AsyncSession, *, options: Mapping[str, Any]) -> psycopg.AsyncConnection[Any]:
        """The session's connection, from the pool or new."""
        raw = await (await self._in_time(session.connection(execution_options=options))).get_raw_connection()
        connection = raw.driver_connection
        assert isinstance(connection, psycopg.AsyncConnection)
        return connection

    async def _probe(self) -> None:
        """Open a connection, which a server that works answers several times, and close it.

        A statement would show no more, and psycopg ends one on a silent connection only after some seconds.

        Raises:
            StoreUnavailable: Postgres accepts no connection.
        """
        try:
            connection = await self._opened.connect(
                _plain(self.url), autocommit=True, **_connect_args(self.url, self.timeout_s, None)
            )
            await connection.close()
        except psycopg.Error as error:
            raise StoreUnavailable(_why(error)) from error

    async def notices(self, channel: str) -> AsyncGenerator[None]:
        """One item when listening begins, and one for each notice that a committed transaction sends to `channel`.

        Holds a separate connection. A pooler between this process and Postgres may drop notices, so the caller must
        also poll from time to time.

        Raises:
            StoreUnavailable: Postgres is unavailable, or becomes so.
        """
        try:
            async with await psycopg.AsyncConnection.connect(
                _plain(self.url), autocommit=True, **_connect_args(self.url, self.timeout_s, None)
            ) as connection:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                yield
                async for _ in connection.notifies():
                    yield
        except psycopg.Error as error:
            raise StoreUnavailable(_why(error)) from error


class _Opened:
    """The open connections of one pool, including those that the pool lost.

    When a task is cancelled while its connection opens or returns to the pool, the pool may lose that connection. It
    would occupy a slot of the server until the garbage collector finds it.
    """

    def __init__(self) -> None:
        self._connections: set[psycopg.AsyncConnection[Any]] = set()
        self._opening: set[asyncio.Task[psycopg.AsyncConnection[Any]]] = set()
        self._is_closed = False

    async def connect(self, *args: Any, **options: Any) -> psycopg.AsyncConnection[Any]:
        """A new connection, with the arguments of psycopg's connect.

        Raises:
            psycopg.OperationalError: It cannot be opened, or the pool was closed.
        """
        if self._is_closed:
            raise psycopg.OperationalError("this process has closed its connections")
        opening = asyncio.create_task(psycopg.AsyncConnection.connect(*args, **options))
        self._opening.add(opening)
        opening.add_done_callback(self._keep)
        try:
            return await asyncio.shield(opening)  # cancelled in between, psycopg itself would lose the connection
        except asyncio.CancelledError:
            opening.add_done_callback(_finish)
            raise

    def _keep(self, opening: asyncio.Task[psycopg.AsyncConnection[Any]]) -> None:
        self._opening.discard(opening)
        self._connections = {connection for connection in self._connections if not connection.closed}
        if not opening.cancelled() and opening.exception() is None:
            self._connections.add(opening.result())

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in self._connections:
            await connection.close()
        self._connections.clear()


def _finish(opening: asyncio.Task[psycopg.AsyncConnection[Any]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().pgconn.finish()


def _plain(url: str) -> str:
    """The address as libpq reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _why(error: psycopg.Error) -> str:
    return f"Postgres is unavailable: {str(error).strip() or type(error).__name__}"


@contextmanager
def _watchdog(descriptor: int, limit_s: float) -> Generator[Callable[[], None]]:
    """Cut a connection after `limit_s` seconds, or when the caller does."""
    # Shutting the socket down makes the driver see a lost connection wherever it waits. It is done on a duplicate: if
    # the driver closes its descriptor in the meantime, another connection may already use the same number.
    with socket.socket(fileno=os.dup(descriptor)) as stream:

        def cut() -> None:
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

        with countdown(limit_s, cut):
            yield cut


def _connect_args(url: str, timeout_s: float, role: str | None) -> dict[str, Any]:
    milliseconds = max(1, int(timeout_s * 1000))
    given = make_url(url).query.get("options", "")
    options = given if isinstance(given, str) else " ".join(given)
    if role is not None:
        options += f" -c role={role}"
    return {
        "application_name": "gadfly",
        "client_encoding": "utf8",  # regardless of the database's own encoding
        "connect_timeout": max(2, round(timeout_s)),  # libpq's minimum
        "options": f"{options} -c statement_timeout={milliseconds} -c lock_timeout={milliseconds}".strip(),
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }


def _refuse_dead(connection: Any, record: Any, proxy: Any) -> None:
    # An idle connection has nothing to read unless the server closed it. Polling the socket costs no round trip and,
    # unlike a ping, cannot hang.
    if _has_unread(connection.driver_connection):
        raise InvalidatePoolError("the server closed the connection")


def _has_unread(connection: psycopg.AsyncConnection[Any]) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _translated(error: DBAPIError | PoolTimeout) -> Exception:
    if isinstance(error, PoolTimeout):
        return StoreUnavailable("Postgres is unavailable: all connections are in use", retry_after_s=1.0)
    is_unavailable = (
        error.connection_invalidated
        or isinstance(error, OperationalError | InterfaceError)
        # A standby refuses writes: its primary has become unavailable.
        or isinstance(error.orig, ReadOnlySqlTransaction)
    )
    if not is_unavailable:
        return error
    reason = str(error.orig).strip().partition("\n")[0] or type(error.orig).__name__
    return StoreUnavailable(f"Postgres is unavailable: {reason}")


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The state of a database's schema, compared with the one that this program needs."""

    current: str | None  # None: no schema yet
    head: str
    drift: tuple[str, ...]  # differences from gadfly/store/tables.py, without other programs' tables

    @property
    def is_current(self) -> bool:
        return self.current == self.head


def migration_config(connection: Connection) -> Config:
    """The configuration with which Alembic's commands run on `connection`, inside its transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


@contextmanager
def migrating(url: str) -> Generator[Connection]:
    """One transaction in which the schema may change. It waits for those that other replicas began before.

    Raises:
        StoreUnavailable: Postgres is unavailable, or another migration took longer than a minute.
    """
    with _connection(url) as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{_MIGRATION_PATIENCE_S}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        yield connection


def migrate(url: str) -> None:
    """Bring the schema up to date, in one transaction. Replicas that migrate concurrently wait for each other.

    Raises:
        StoreUnavailable: Postgres is unavailable, another session holds a lock that the migration needs, or the schema
            belongs to a newer release.
    """
    with migrating(url) as connection:
        try:
            command.upgrade(migration_config(connection), "head")
        except CommandError as error:
            raise StoreUnavailable(f"the database's schema belongs to a newer release: {error}") from error


def schema_state(url: str) -> SchemaState:
    """Compare a database's schema with the one that this program needs.

    Raises:
        StoreUnavailable: Postgres is unavailable.
    """
    with _connection(url) as connection:
        head = ScriptDirectory.from_config(migration_config(connection)).get_current_head()
        assert head is not None
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "include_object": is_compared,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        drift = compare_metadata(context, Table.metadata)
        return SchemaState(current=context.get_current_revision(), head=head, drift=tuple(map(str, drift)))


async def require_current_schema(database: Database) -> None:
    """Check that the database has this release's schema.

    Raises:
        StoreUnavailable: the schema belongs to another release, or Postgres is unavailable.
    """
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    async with database.session() as session:
        connection = await session.connection()
        current = await connection.run_sync(_current_revision)
    if current != head:
        raise StoreUnavailable(
            f"the database's schema has revision {current or 'none'}; this release needs {head}: run `gadfly migrate`"
        )


def _current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


@contextmanager
def _connection(url: str) -> Generator[Connection]:
    engine = create_engine(
        url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"application_name": "gadfly-migrate", "client_encoding": "utf8", "connect_timeout": 10},
    )
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise _translated(error) from error
    finally:
        engine.dispose()


def is_compared(item: Any, name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
    """Whether Alembic compares an item: not tables of the job queue or of other programs in the database."""
    return not (kind == "table" and reflected and counterpart is None)
