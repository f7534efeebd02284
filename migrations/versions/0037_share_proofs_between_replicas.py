"""share the proofs that engines answer with a critic's weights between replicas.

Revision: 0037
After: 0036
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    op.create_table(
        "engine_proofs",
        sa.Column("process", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("replica_id", sa.Uuid(), nullable=False),
        sa.Column(
            "proved_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("proof", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_engine_proofs_version")),
        sa.PrimaryKeyConstraint("process", "version", name=op.f("pk_engine_proofs")),
    )


def downgrade() -> None:
    op.drop_table("engine_proofs")
