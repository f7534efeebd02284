"""forget with lineage: tombstones, orders to forget, and the critics that learned from what is gone.

Rows that were deleted before have no tombstone, and critics that learned from them have no mark. Unparsed verdicts are
rare, and their list gets an index.

Revision: 0026
After: 0025
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    op.create_index(
        op.f("ix_interactions_unparsed"),
        "interactions",
        ["created_at", "id"],
        postgresql_where=sa.text("verdict = 'unparsed'"),
    )
    moment = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "tombstones",
        sa.Column("interaction_id", sa.Uuid(), nullable=False),
        sa.Column("forgotten_at", moment, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("interaction_id", name=op.f("pk_tombstones")),
    )
    op.create_table(
        "forget_orders",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("ordered_at", moment, nullable=False),
        sa.Column("episode_id", sa.Uuid(), nullable=True),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("since", moment, nullable=True),
        sa.Column("until", moment, nullable=True),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_forget_orders")),
    )
    op.create_table(
        "critic_losses",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("answers", sa.Integer(), nullable=False),
        sa.Column("first_at", moment, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("last_at", moment, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_critic_losses_version")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_critic_losses")),
    )


def downgrade() -> None:
    op.drop_table("critic_losses")
    op.drop_table("forget_orders")
    op.drop_table("tombstones")
    op.drop_index(op.f("ix_interactions_unparsed"), "interactions")
