"""add the job queue.

The tables and functions of procrastinate 3.10.0, as that release defines them; an upgrade of the library needs a
separate migration with its changes. They share the schema with Gadfly's tables, and all begin with `procrastinate_`.

Revision: 0003
After: 0002
"""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"

_SCHEMA = Path(__file__).parent.parent / "procrastinate-3.10.0.sql"


def upgrade() -> None:
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute(_SCHEMA.read_text(encoding="utf-8"))  # without parameters, so that it may hold many statements


def downgrade() -> None:
    op.execute(
        """
        DO $$
        DECLARE item record;
        BEGIN
            DROP TABLE procrastinate_events, procrastinate_periodic_defers, procrastinate_jobs, procrastinate_workers
                CASCADE;
            FOR item IN SELECT oid::regprocedure AS signature FROM pg_proc
                WHERE proname LIKE 'procrastinate\\_%' AND pronamespace = current_schema()::regnamespace
            LOOP
                EXECUTE 'DROP FUNCTION ' || item.signature || ' CASCADE';
            END LOOP;
            DROP TYPE procrastinate_job_to_defer_v1, procrastinate_job_event_type, procrastinate_job_status;
        END $$
        """
    )
