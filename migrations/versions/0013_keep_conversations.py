"""keep conversations.

Answers of /v1/chat/completions are interactions of the kind `chat` with their whole conversation, and a share of them
waits for the live critic's critique.

Revision: 0013
After: 0012
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("interactions", sa.Column("conversation", postgresql.JSONB(none_as_null=True), nullable=True))
    _allow_kinds("critique", "refine", "chat", "import")
    op.create_table(
        "critiques_due",
        sa.Column("interaction_id", sa.UUID(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["interaction_id"], ["interactions.id"], name=op.f("fk_critiques_due_interaction_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("interaction_id", name=op.f("pk_critiques_due")),
    )


def downgrade() -> None:
    op.drop_table("critiques_due")
    # The release before has no such kind. Its imported rows are the ones that may lack a critic.
    op.execute("UPDATE interactions SET kind = 'import' WHERE kind = 'chat'")
    _allow_kinds("critique", "refine", "import")
    op.drop_column("interactions", "conversation")


def _allow_kinds(*kinds: str) -> None:
    """Replace the check of `kind`. Existing rows are checked under a lock that lets readers and writers continue."""
    values = ", ".join(f"'{kind}'" for kind in kinds)
    op.drop_constraint(op.f("ck_interactions_kind"), "interactions", type_="check")
    op.execute(f"ALTER TABLE interactions ADD CONSTRAINT ck_interactions_kind CHECK (kind IN ({values})) NOT VALID")
    op.execute("ALTER TABLE interactions VALIDATE CONSTRAINT ck_interactions_kind")
