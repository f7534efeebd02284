"""say which task an interaction was asked under and a critic was trained on.

What is stored already belongs to the task `math`, the only one there was. The columns are of each row, so that one
database can hold several tasks later.

Revision: 0015
After: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    for table in ("interactions", "critic_versions"):
        # A constant default is stored once for all existing rows, so no row is rewritten.
        op.add_column(table, sa.Column("task", sa.Text(), server_default=sa.text("'math'"), nullable=False))
        op.add_column(table, sa.Column("task_version", sa.Text(), nullable=True))


def downgrade() -> None:
    for table in ("critic_versions", "interactions"):
        op.drop_column(table, "task_version")
        op.drop_column(table, "task")
