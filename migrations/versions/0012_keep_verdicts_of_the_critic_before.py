"""keep verdicts of the critic before.

After a promotion the critic before judges a share of the labelled answers too, so that the rollback watch compares both
critics on the same answers.

Revision: 0012
After: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "shadow_verdicts",
        sa.Column("interaction_id", sa.UUID(), nullable=False),
        sa.Column("critic_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column(
            "stated",
            sa.Enum(
                "correct", "incorrect", "unparsed", name="stated", native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["interaction_id"],
            ["interactions.id"],
            name=op.f("fk_shadow_verdicts_interaction_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["critic_version"], ["critic_versions.version"], name=op.f("fk_shadow_verdicts_critic_version")
        ),
        sa.PrimaryKeyConstraint("interaction_id", "critic_version", name=op.f("pk_shadow_verdicts")),
    )


def downgrade() -> None:
    op.drop_table("shadow_verdicts")
