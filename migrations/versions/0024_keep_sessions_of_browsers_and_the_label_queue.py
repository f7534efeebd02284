"""keep sessions of browsers, and what people took from the label queue.

Acts of admins gain the moves of the live pointer and withdrawn feedback of others.

Revision: 0024
After: 0022
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0024"
down_revision = "0022"

_ACTIONS = ("distrust_key", "trust_key", "set_label", "create_key", "revoke_key")
_NEW_ACTIONS = ("promote", "rollback", "withdraw_feedback", "forget")


def upgrade() -> None:
    moment = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "browser_sessions",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_browser_sessions_key_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_browser_sessions")),
    )
    op.create_table(
        "label_reservations",
        sa.Column("question_hash", sa.LargeBinary(), nullable=False),
        sa.Column("text_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("labeller", sa.Text(), nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("question_hash", "text_sha256", name=op.f("pk_label_reservations")),
    )
    op.create_table(
        "label_skips",
        sa.Column("labeller", sa.Text(), nullable=False),
        sa.Column("question_hash", sa.LargeBinary(), nullable=False),
        sa.Column("text_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("skipped_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("labeller", "question_hash", "text_sha256", name=op.f("pk_label_skips")),
    )
    op.create_index(
        op.f("ix_answers_standing"), "answers", ["standing"], postgresql_where=sa.text("standing = 'conflict'")
    )
    _allow(*_ACTIONS, *_NEW_ACTIONS)


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM admin_acts WHERE action = ANY(:new)").bindparams(new=list(_NEW_ACTIONS)))
    _allow(*_ACTIONS)
    op.drop_index(op.f("ix_answers_standing"), "answers")
    op.drop_table("label_skips")
    op.drop_table("label_reservations")
    op.drop_table("browser_sessions")


def _allow(*actions: str) -> None:
    op.drop_constraint(op.f("ck_admin_acts_action"), "admin_acts", type_="check")
    listed = ", ".join(f"'{action}'" for action in actions)
    op.create_check_constraint(op.f("ck_admin_acts_action"), "admin_acts", f"action IN ({listed})")
