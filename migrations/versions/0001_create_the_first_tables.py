"""create the first tables.

Revision: 0001
After: nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "critic_versions",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("adapter_path", sa.Text(), nullable=True),
        sa.Column("adapter_sha256", sa.Text(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["parent"], ["critic_versions.version"], name=op.f("fk_critic_versions_parent")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_critic_versions")),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "tier",
            sa.Enum("caller", "admin", name="tier", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("revoked_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_keys_digest")),
    )
    op.create_table(
        "questions",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "split",
            sa.Enum("train", "heldout", name="split", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_questions")),
    )
    op.create_table(
        "request_claims",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("owner", sa.Uuid(), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request_claims")),
    )
    op.create_index(
        "uq_request_claims_request_id_key_id",
        "request_claims",
        ["request_id", "key_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "critic_pointers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("moved_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("name IN ('live', 'candidate', 'previous')", name=op.f("ck_critic_pointers_name")),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_critic_pointers_version")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_critic_pointers")),
    )
    op.create_table(
        "episodes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("question_hash", sa.LargeBinary(), nullable=False),
        sa.Column("critic_version", sa.Integer(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["critic_version"], ["critic_versions.version"], name=op.f("fk_episodes_critic_version")
        ),
        sa.ForeignKeyConstraint(["question_hash"], ["questions.hash"], name=op.f("fk_episodes_question_hash")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_episodes")),
        sa.UniqueConstraint("id", "question_hash", name=op.f("uq_episodes_id_question_hash")),
    )
    op.create_table(
        "interactions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum("critique", "refine", "import", name="kind", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("episode_id", sa.Uuid(), nullable=False),
        sa.Column("question_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column(
            "grade",
            sa.Enum("right", "wrong", "no_answer", name="grade", native_enum=False, create_constraint=True, length=32),
            nullable=True,
        ),
        sa.Column("metadata", postgresql.JSONB(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("prompt_set", sa.Text(), nullable=True),
        sa.Column("critic_version", sa.Integer(), nullable=True),
        sa.Column("adapter_sha256", sa.Text(), nullable=True),
        sa.Column(
            "verdict",
            sa.Enum(
                "correct", "incorrect", "unparsed", name="verdict", native_enum=False, create_constraint=True, length=32
            ),
            nullable=True,
        ),
        sa.Column("refined_response", sa.Text(), nullable=True),
        sa.Column(
            "stop_reason",
            sa.Enum(
                "rounds", "judged_correct", name="stop_reason", native_enum=False, create_constraint=True, length=32
            ),
            nullable=True,
        ),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["critic_version"], ["critic_versions.version"], name=op.f("fk_interactions_critic_version")
        ),
        sa.ForeignKeyConstraint(
            ["episode_id", "question_hash"],
            ["episodes.id", "episodes.question_hash"],
            name=op.f("fk_interactions_episode_id_question_hash"),
        ),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_interactions_key_id")),
        sa.ForeignKeyConstraint(["question_hash"], ["questions.hash"], name=op.f("fk_interactions_question_hash")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_interactions")),
    )
    op.create_index(op.f("ix_interactions_created_at_id"), "interactions", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_interactions_episode_id"), "interactions", ["episode_id"], unique=False)
    op.create_index(
        op.f("ix_interactions_key_id_created_at_id"), "interactions", ["key_id", "created_at", "id"], unique=False
    )
    op.create_index(op.f("ix_interactions_question_hash"), "interactions", ["question_hash"], unique=False)
    op.create_index(
        "uq_interactions_request_id_key_id",
        "interactions",
        ["request_id", "key_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_table(
        "critiques",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("interaction_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column(
            "stated",
            sa.Enum(
                "correct", "incorrect", "unparsed", name="stated", native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.Column(
            "verdict",
            sa.Enum(
                "correct", "incorrect", "unparsed", name="verdict", native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.Column(
            "verdict_source",
            sa.Enum(
                "stated", "read", "none", name="verdict_source", native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.Column("p_correct", sa.Double(), nullable=True),
        sa.Column("p_incorrect", sa.Double(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("supplied", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["interaction_id"], ["interactions.id"], name=op.f("fk_critiques_interaction_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_critiques")),
    )
    op.create_index(op.f("ix_critiques_interaction_id"), "critiques", ["interaction_id"], unique=False)
    op.create_table(
        "feedback",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("interaction_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column(
            "source",
            sa.Enum("caller", "import", name="source", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("correct", sa.Boolean(), nullable=True),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("edited_response", sa.Text(), nullable=True),
        sa.Column("rating", sa.Integer(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), nullable=False),
        sa.Column(
            "grade",
            sa.Enum("right", "wrong", "no_answer", name="grade", native_enum=False, create_constraint=True, length=32),
            nullable=True,
        ),
        sa.Column("refinement_grades", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name=op.f("ck_feedback_rating")),
        sa.ForeignKeyConstraint(
            ["interaction_id"], ["interactions.id"], name=op.f("fk_feedback_interaction_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_feedback_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
    )
    op.create_index(
        op.f("ix_feedback_interaction_id_created_at_id"),
        "feedback",
        ["interaction_id", "created_at", "id"],
        unique=False,
    )
    op.create_table(
        "refinements",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("interaction_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("critique_id", sa.Uuid(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column(
            "grade",
            sa.Enum("right", "wrong", "no_answer", name="grade", native_enum=False, create_constraint=True, length=32),
            nullable=True,
        ),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["critique_id"], ["critiques.id"], name=op.f("fk_refinements_critique_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["interaction_id"], ["interactions.id"], name=op.f("fk_refinements_interaction_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refinements")),
    )
    op.create_index(op.f("ix_refinements_critique_id"), "refinements", ["critique_id"], unique=False)
    op.create_index(op.f("ix_refinements_interaction_id"), "refinements", ["interaction_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_refinements_interaction_id"), table_name="refinements")
    op.drop_index(op.f("ix_refinements_critique_id"), table_name="refinements")
    op.drop_table("refinements")
    op.drop_index(op.f("ix_feedback_interaction_id_created_at_id"), table_name="feedback")
    op.drop_table("feedback")
    op.drop_index(op.f("ix_critiques_interaction_id"), table_name="critiques")
    op.drop_table("critiques")
    op.drop_index(
        "uq_interactions_request_id_key_id",
        table_name="interactions",
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.drop_index(op.f("ix_interactions_question_hash"), table_name="interactions")
    op.drop_index(op.f("ix_interactions_key_id_created_at_id"), table_name="interactions")
    op.drop_index(op.f("ix_interactions_episode_id"), table_name="interactions")
    op.drop_index(op.f("ix_interactions_created_at_id"), table_name="interactions")
    op.drop_table("interactions")
    op.drop_table("episodes")
    op.drop_table("critic_pointers")
    op.drop_index(
        "uq_request_claims_request_id_key_id", table_name="request_claims", postgresql_nulls_not_distinct=True
    )
    op.drop_table("request_claims")
    op.drop_table("questions")
    op.drop_table("keys")
    op.drop_table("critic_versions")
