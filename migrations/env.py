"""Alembic's entry: runs migrations on the connection that `gadfly.store.database` passes, in its transaction."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, text

from gadfly.store.database import VERSION_TABLE
from gadfly.store.tables import StoredJson, StoredText, Table


def render(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Write our own column types as what they are in Postgres: a migration must not change when the code does."""
    if isinstance(item, StoredText):
        return "sa.Text()"
    if isinstance(item, StoredJson):
        context.imports.add("from sqlalchemy.dialects import postgresql")
        return "postgresql.JSONB()"
    return False


connection: Connection = context.config.attributes["connection"]
# A migration that waits for a lock makes every query behind it wait too: it gives up and is tried again instead.
connection.execute(text("SET LOCAL lock_timeout = '5s'"))
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    version_table=VERSION_TABLE,
    compare_type=True,
    compare_server_default=True,
    render_item=render,
)
context.run_migrations()
