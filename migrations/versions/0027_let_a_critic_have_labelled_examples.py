"""let a critic have labelled examples in its prompt, and keep the conversations of guarded calls for a while.

Critics from before have none. The training role may not read the examples: a run never starts from such a critic.

Revision: 0027
After: 0026
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.add_column("critic_versions", sa.Column("examples", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("critic_versions", sa.Column("examples_sha256", sa.Text(), nullable=True))
    op.create_table(
        "critic_examples",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("interaction_id", sa.Uuid(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("critique", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["interaction_id"], ["interactions.id"], name=op.f("fk_critic_examples_interaction_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_critic_examples_version")),
        sa.PrimaryKeyConstraint("version", "place", name=op.f("pk_critic_examples")),
    )
    op.create_index(op.f("ix_critic_examples_interaction_id"), "critic_examples", ["interaction_id"], unique=False)
    op.create_table(
        "critic_probes",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("record", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_critic_probes_version")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_critic_probes")),
    )
    op.create_table(
        "guarded_conversations",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("messages", postgresql.JSONB(), nullable=False),
        sa.Column("kept_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", "call_id", name=op.f("pk_guarded_conversations")),
    )
    op.create_index(op.f("ix_guarded_conversations_kept_at"), "guarded_conversations", ["kept_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_guarded_conversations_kept_at"), table_name="guarded_conversations")
    op.drop_table("guarded_conversations")
    # Earlier releases take a version without an adapter for the base model. With the path of a folder that does not
    # exist they refuse to serve it, so no pointer may name it.
    op.execute(
        """
        DELETE FROM critic_pointers
        WHERE name <> 'live' AND version IN (SELECT version FROM critic_versions WHERE examples > 0)
        """
    )
    op.execute(
        """
        UPDATE critic_pointers SET version = (
            SELECT min(base.version) FROM critic_versions AS base
            WHERE base.base_model = live.base_model AND base.task = live.task
                AND base.adapter_path IS NULL AND base.examples = 0
        )
        FROM critic_versions AS live
        WHERE name = 'live' AND live.version = critic_pointers.version AND live.examples > 0
        """
    )
    op.execute(
        "UPDATE critic_versions SET adapter_path = 'examples', adapter_sha256 = examples_sha256 WHERE examples > 0"
    )
    op.drop_table("critic_probes")
    op.drop_index(op.f("ix_critic_examples_interaction_id"), table_name="critic_examples")
    op.drop_table("critic_examples")
    op.drop_column("critic_versions", "examples_sha256")
    op.drop_column("critic_versions", "examples")
