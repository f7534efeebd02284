"""keep the tokens of answers that are deleted on their day, so that a key's limit still counts them.

What was deleted before is not counted: it is gone, and the day ends.

Revision: 0036
After: 0034
"""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0034"


def upgrade() -> None:
    op.create_table(
        "deleted_usage",
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_deleted_usage_key_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key_id", "day", name=op.f("pk_deleted_usage")),
    )


def downgrade() -> None:
    op.drop_table("deleted_usage")
