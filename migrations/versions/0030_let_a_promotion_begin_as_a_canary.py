"""let a promotion begin as a canary: for a time its critic answers a share of the requests.

Swaps from before have none.

Revision: 0030
After: 0027
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0030"
down_revision = "0027"

_ACTIONS = (
    "distrust_key", "trust_key", "set_label", "create_key", "revoke_key", "promote", "rollback", "withdraw_feedback",
    "forget",
)  # fmt: skip
_OUTCOMES = ("widened", "rolled_back", "replaced")

_RUNNING = sa.text("started_at IS NOT NULL AND ended_at IS NULL")


def upgrade() -> None:
    moment = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "canaries",
        sa.Column("swap_id", sa.Uuid(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("for_s", sa.Integer(), nullable=True),
        sa.Column("for_requests", sa.Integer(), nullable=True),
        sa.Column("started_at", moment, nullable=True),
        sa.Column("ended_at", moment, nullable=True),
        sa.Column(
            "outcome",
            sa.Enum(*_OUTCOMES, name="canary_outcome", native_enum=False, create_constraint=True, length=32),
            nullable=True,
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["from_version"], ["critic_versions.version"], name=op.f("fk_canaries_from_version")),
        sa.ForeignKeyConstraint(["swap_id"], ["swaps.id"], name=op.f("fk_canaries_swap_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_canaries_version")),
        sa.PrimaryKeyConstraint("swap_id", name=op.f("pk_canaries")),
    )
    op.create_index("uq_canaries_running", "canaries", ["task"], unique=True, postgresql_where=_RUNNING)
    _allow(*_ACTIONS, "widen_canary")


def downgrade() -> None:
    op.execute("DELETE FROM admin_acts WHERE action = 'widen_canary'")
    _allow(*_ACTIONS)
    op.drop_table("canaries")


def _allow(*actions: str) -> None:
    op.drop_constraint(op.f("ck_admin_acts_action"), "admin_acts", type_="check")
    listed = ", ".join(f"'{action}'" for action in actions)
    op.create_check_constraint(op.f("ck_admin_acts_action"), "admin_acts", f"action IN ({listed})")
