"""make labels from votes.

Labels become rows of their own, `answers`, one for each text that was answered to a question. Rows from before get the
label that they had: of the newest feedback with `correct` about the text, and without one of the newest grade "right"
or "wrong". For held-out questions that label is frozen now. Votes are not counted here but by the service or the
trainer, which count rows without votes first (`gadfly.store.labels.refresh`).

The copy comes before every lock: creating a foreign key or a column locks a table until the migration ends.

Revision: 0005
After: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

_ROLE = "gadfly_training"
_COPY = r"""
INSERT INTO answers (question_hash, text_sha256, standing, is_right, source, key_id, changed_at, frozen_at)
SELECT DISTINCT ON (i.question_hash, sha256(convert_to(btrim(i.response, E' \t\n\r\f\x0b'), 'UTF8')))
    i.question_hash,
    sha256(convert_to(btrim(i.response, E' \t\n\r\f\x0b'), 'UTF8')),
    'none',
    coalesce(word.correct, i.grade = 'right'),
    CASE WHEN word.correct IS NULL THEN 'reference' WHEN word.source = 'import' THEN 'import' ELSE 'person' END,
    CASE WHEN word.correct IS NULL THEN coalesce(given.key_id, i.key_id) ELSE word.key_id END,
    coalesce(word.created_at, i.created_at),
    CASE WHEN q.split = 'heldout' THEN clock_timestamp() END
FROM interactions AS i
JOIN questions AS q ON q.hash = i.question_hash
LEFT JOIN (
    SELECT DISTINCT ON (interaction_id) interaction_id, correct, source, key_id, created_at
    FROM feedback WHERE correct IS NOT NULL ORDER BY interaction_id, created_at DESC, id DESC
) AS word ON word.interaction_id = i.id
LEFT JOIN (
    SELECT DISTINCT ON (interaction_id) interaction_id, key_id
    FROM feedback WHERE reference IS NOT NULL ORDER BY interaction_id, created_at DESC, id DESC
) AS given ON given.interaction_id = i.id
WHERE word.correct IS NOT NULL OR i.grade IN ('right', 'wrong')
ORDER BY 1, 2, word.created_at DESC NULLS LAST, i.created_at DESC, i.id DESC
"""


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("question_hash", sa.LargeBinary(), nullable=False),
        sa.Column("text_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("votes", postgresql.JSONB(), nullable=True),
        sa.Column("voted_right", sa.Boolean(), nullable=True),
        sa.Column("standing", _enum("standing", "none", "agreed", "disputed", "conflict"), nullable=False),
        sa.Column("is_right", sa.Boolean(), nullable=True),
        sa.Column("source", _enum("label_source", "person", "import", "reference", "admin"), nullable=True),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("changed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("frozen_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ruling", _enum("ruling", "right", "wrong", "none", "votes"), nullable=True),
        sa.PrimaryKeyConstraint("question_hash", "text_sha256", name=op.f("pk_answers")),
    )
    op.execute(_COPY)
    op.create_index(op.f("ix_answers_changed_at"), "answers", ["changed_at"], unique=False)
    op.create_table(
        "label_models",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fitted_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("model", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_label_models_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label_models")),
    )
    op.create_table(
        "admin_acts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column(
            "action",
            _enum("action", "distrust_key", "trust_key", "set_label", "create_key", "revoke_key"),
            nullable=False,
        ),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_admin_acts_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_admin_acts")),
    )
    op.create_foreign_key(op.f("fk_answers_question_hash"), "answers", "questions", ["question_hash"], ["hash"])
    op.create_foreign_key(op.f("fk_answers_key_id"), "answers", "keys", ["key_id"], ["id"])
    moment = postgresql.TIMESTAMP(timezone=True)
    for table in ("feedback", "interactions"):
        # First without the default: a column whose default changes from row to row would rewrite the table.
        op.add_column(table, sa.Column("stored_at", moment, nullable=True))
        op.alter_column(table, "stored_at", server_default=sa.text("clock_timestamp()"))
    op.add_column("interactions", sa.Column("text_sha256", sa.LargeBinary(), nullable=True))
    op.add_column("interactions", sa.Column("own_grade", sa.String(32), nullable=True))
    op.add_column("keys", sa.Column("distrusted_at", moment, nullable=True))
    op.execute(f"GRANT SELECT ON answers, label_models TO {_ROLE}")
    op.execute(f"GRANT SELECT (id, distrusted_at) ON keys TO {_ROLE}")
    op.execute("ALTER TABLE answers ENABLE ROW LEVEL SECURITY")
    op.execute("CREATE POLICY everybody ON answers USING (true) WITH CHECK (true)")
    op.execute(
        f"CREATE POLICY training ON answers AS RESTRICTIVE USING (current_user <> '{_ROLE}' OR EXISTS "
        "(SELECT FROM questions AS q WHERE q.hash = question_hash AND q.split = 'train')) WITH CHECK (true)"
    )


def downgrade() -> None:
    op.execute(f"REVOKE ALL (id, distrusted_at) ON keys FROM {_ROLE}")
    op.drop_column("keys", "distrusted_at")
    op.drop_column("interactions", "own_grade")
    op.drop_column("interactions", "text_sha256")
    op.drop_column("interactions", "stored_at")
    op.drop_column("feedback", "stored_at")
    op.drop_table("admin_acts")
    op.drop_table("label_models")
    op.drop_table("answers")


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=32)
