"""let questions without a response and critics of other deployments in.

An imported question may have no response; then the actor samples answers to it. A critic that was pulled keeps what its
deployment of origin recorded about it.

Revision: 0010
After: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.alter_column("interactions", "response", existing_type=sa.Text(), nullable=True)
    op.add_column("critic_versions", sa.Column("origin", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("critic_versions", "origin")
    # The earlier schema has no place for a question without a response.
    op.execute("DELETE FROM interactions WHERE response IS NULL")
    op.alter_column("interactions", "response", existing_type=sa.Text(), nullable=False)
