"""limit keys to tasks. Stored keys may use every task, as before.

Revision: 0021
After: 0020
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.add_column("keys", sa.Column("tasks", sa.ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    # Without the column they could use every task, which they were not given.
    op.execute("UPDATE keys SET revoked_at = coalesce(revoked_at, now()) WHERE tasks IS NOT NULL")
    op.drop_column("keys", "tasks")
