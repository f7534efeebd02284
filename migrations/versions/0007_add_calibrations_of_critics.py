"""add calibrations of critics.

Critics from before have no calibration, and critiques from before no calibrated probability: both stay null.

Revision: 0007
After: 0006
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "critic_calibrations",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("slope", sa.Float(), nullable=False),
        sa.Column("intercept", sa.Float(), nullable=False),
        sa.Column("traffic_right", sa.Integer(), nullable=False),
        sa.Column("traffic_wrong", sa.Integer(), nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_critic_calibrations_version")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_critic_calibrations")),
    )
    op.add_column("critiques", sa.Column("calibrated_p_right", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("critiques", "calibrated_p_right")
    op.drop_table("critic_calibrations")
