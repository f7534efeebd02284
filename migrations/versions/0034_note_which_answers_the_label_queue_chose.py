"""note which answers the label queue chose because of what critics said about them.

Labels from before count as not chosen: the queue kept no record.

Revision: 0034
After: 0033
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    op.create_table(
        "chosen_answers",
        sa.Column("question_hash", sa.LargeBinary(), nullable=False),
        sa.Column("text_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("chosen_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("question_hash", "text_sha256", name=op.f("pk_chosen_answers")),
    )
    op.execute("GRANT SELECT ON chosen_answers TO gadfly_training")


def downgrade() -> None:
    op.drop_table("chosen_answers")
