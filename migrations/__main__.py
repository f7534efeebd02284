"""`python -m gadfly.migrations "add a column"`: writes a migration to the tables of `gadfly/store/tables.py`.

It compares them with the newest migration in a temporary Postgres. Review the migration that it writes.
"""

import sys
import tempfile
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from gadfly.store.database import MIGRATIONS, migrate, migration_config
from gadfly.store.embedded import EmbeddedPostgres


def main(message: str) -> None:
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as server:
        migrate(server.url)
        with create_engine(server.url).begin() as connection:
            number = max(int(path.name[:4]) for path in (MIGRATIONS / "versions").glob("[0-9]*.py")) + 1
            command.revision(migration_config(connection), message, autogenerate=True, rev_id=f"{number:04}")


if __name__ == "__main__":
    main(sys.argv[1])
