"""Alembic's entry point. It runs migrations in one transaction: that of `gadfly.store.database`, or its own.

`gadfly migrate` passes a connection. The command `alembic` passes none, so the connection goes to GADFLY_DATABASE_URL.
"""

from logging.config import fileConfig
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.util import CommandError
from sqlalchemy import Connection, text

from gadfly.errors import GadflyError
from gadfly.settings import Settings
from gadfly.store.database import VERSION_TABLE, is_compared, migrating
from gadfly.store.tables import StoredJson, StoredText, StoredVotes, Table


def render(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Write Gadfly's column types as Postgres's types: a migration must not change when the code does."""
    if isinstance(item, StoredText):
        return "sa.Text()"
    if isinstance(item, StoredJson | StoredVotes):
        context.imports.add("from sqlalchemy.dialects import postgresql")
        return "postgresql.JSONB()"
    return False


def run(connection: Connection) -> None:
    """Run the migrations of the Alembic command in progress."""
    # A migration that waits for a lock blocks every query behind it, so it gives up and is retried instead.
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        version_table=VERSION_TABLE,
        include_object=is_compared,
        compare_type=True,
        compare_server_default=True,
        render_item=render,
    )
    context.run_migrations()


def run_command() -> None:
    """The same for `alembic` on a command line.

    Raises:
        CommandError: no database is set or it is unavailable, or the command only prints statements (--sql).
    """
    if context.config.config_file_name is not None:
        fileConfig(context.config.config_file_name, disable_existing_loggers=False)
    if context.is_offline_mode():
        raise CommandError("--sql is not supported: migrations read the database that they change")
    try:
        url = Settings.load().database_url
        if url is None:
            raise CommandError("set GADFLY_DATABASE_URL; `gadfly migrate` brings the embedded Postgres up to date")
        with migrating(url.get_secret_value()) as connection:
            run(connection)
    except GadflyError as error:
        raise CommandError(str(error)) from error


given: Connection | None = context.config.attributes.get("connection")
if given is None:
    run_command()
else:
    run(given)
