"""announce events to webhooks: endpoints, and an outbox that is written in the transaction of each event.

Training code announces alarms. It sees which endpoints want them, and no secret.

Revision: 0032
After: 0031
"""

import re

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0032"
down_revision = "0031"

_ROLE = "gadfly_training"
_NEW_ACTIONS = ("create_webhook", "delete_webhook")
_STATUSES = ("pending", "delivered", "dead")


def upgrade() -> None:
    moment = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column(
            "status",
            sa.Enum(*_STATUSES, name="delivery_status", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", moment, nullable=False),
        sa.Column("ended_at", moment, nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["endpoint_id", "next_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(op.f("ix_webhook_deliveries_status_id"), "webhook_deliveries", ["status", "id"])
    op.execute(f"GRANT SELECT (id, events) ON webhook_endpoints TO {_ROLE}")
    op.execute(f"GRANT INSERT ON webhook_deliveries TO {_ROLE}")
    _allow(*_actions(), *_NEW_ACTIONS)


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM admin_acts WHERE action = ANY(:new)").bindparams(new=list(_NEW_ACTIONS)))
    _allow(*(action for action in _actions() if action not in _NEW_ACTIONS))
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_endpoints")


def _actions() -> list[str]:
    """The acts that the constraint allows now."""
    constraint = op.get_bind().scalar(
        sa.text(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conname = 'ck_admin_acts_action' AND conrelid = 'admin_acts'::regclass"
        )
    )
    return re.findall(r"'([a-z_]+)'", str(constraint))


def _allow(*actions: str) -> None:
    op.drop_constraint(op.f("ck_admin_acts_action"), "admin_acts", type_="check")
    listed = ", ".join(f"'{action}'" for action in actions)
    op.create_check_constraint(op.f("ck_admin_acts_action"), "admin_acts", f"action IN ({listed})")
