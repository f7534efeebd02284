"""split questions by block.

The side of a new question follows from a secret of the deployment, made here, and from the stored keys of the questions
that it is near to. Stored questions keep their sides; `gadfly.store.wall.key_stored_questions` gives them keys after
the migration, in steps, so that no table is locked while it computes. The training role sees neither table.

Revision: 0006
After: 0005
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    secret_table = op.create_table(
        "split_secrets",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_split_secrets_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_split_secrets")),
    )
    op.bulk_insert(secret_table, [{"id": 1, "secret": secrets.token_bytes(32)}])
    op.create_table(
        "block_keys",
        sa.Column("key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "split",
            sa.Enum("train", "heldout", name="split", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("questions", sa.Integer(), nullable=False),
        sa.Column("in_training", sa.Boolean(), nullable=False),
        sa.Column("is_open", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_block_keys")),
    )
    op.add_column("questions", sa.Column("is_keyed", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index(op.f("ix_questions_created_at_split"), "questions", ["created_at", "split"])
    op.create_index(
        "ix_questions_unkeyed", "questions", ["split", "created_at"], postgresql_where=sa.text("NOT is_keyed")
    )


def downgrade() -> None:
    op.drop_index("ix_questions_unkeyed", table_name="questions")
    op.drop_index(op.f("ix_questions_created_at_split"), table_name="questions")
    op.drop_column("questions", "is_keyed")
    op.drop_table("block_keys")
    op.drop_table("split_secrets")
