"""limit how much a key may use. Stored keys have no limits, as before.

Revision: 0033
After: 0032
"""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"

_LIMITS = ("requests_per_minute", "engine_calls_per_minute", "max_in_flight")
_ACTIONS = (
    "distrust_key", "trust_key", "set_label", "create_key", "revoke_key", "promote", "rollback", "withdraw_feedback",
    "forget", "widen_canary", "create_webhook", "delete_webhook",
)  # fmt: skip


def upgrade() -> None:
    for name in _LIMITS:
        op.add_column("keys", sa.Column(name, sa.Integer(), nullable=True))
    op.add_column("keys", sa.Column("tokens_per_day", sa.BigInteger(), nullable=True))
    _allow(*_ACTIONS, "limit_key")


def downgrade() -> None:
    # Without the columns they could use as much as every key, which they were not given.
    op.execute(
        "UPDATE keys SET revoked_at = coalesce(revoked_at, now()) "
        "WHERE num_nonnulls(requests_per_minute, engine_calls_per_minute, max_in_flight, tokens_per_day) > 0"
    )
    op.execute("DELETE FROM admin_acts WHERE action = 'limit_key'")
    _allow(*_ACTIONS)
    for name in (*_LIMITS, "tokens_per_day"):
        op.drop_column("keys", name)


def _allow(*actions: str) -> None:
    op.drop_constraint(op.f("ck_admin_acts_action"), "admin_acts", type_="check")
    listed = ", ".join(f"'{action}'" for action in actions)
    op.create_check_constraint(op.f("ck_admin_acts_action"), "admin_acts", f"action IN ({listed})")
