"""search interactions, and keep what runs learned from.

`learning_ledger` holds what each answer earned in a run; runs of earlier releases have no rows. Events gain samples of
a run's critiques. While the indexes are built, which takes about half a minute per million interactions, new records
wait in the spool and reads go on.

Revision: 0025
After: 0024
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"

_ROLE = "gadfly_training"
_KINDS = ("status", "stage", "step", "validation", "note", "alarm", "gate", "published")


def upgrade() -> None:
    op.create_table(
        "learning_ledger",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("interaction_id", sa.Uuid(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("draws", sa.Integer(), nullable=False),
        sa.Column("critiques", sa.Integer(), nullable=False),
        sa.Column("mean_score", sa.Float(), nullable=False),
        sa.Column("verdicts_right", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.Integer(), nullable=False),
        sa.Column("last_step", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_learning_ledger_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "interaction_id", "answer", "stage", name=op.f("pk_learning_ledger")),
    )
    op.create_index(op.f("ix_learning_ledger_interaction_id"), "learning_ledger", ["interaction_id"])
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON learning_ledger TO {_ROLE}")
    op.create_index(
        op.f("ix_interactions_text"),
        "interactions",
        [
            sa.text(
                "to_tsvector('simple'::regconfig, (\"left\"(question, 20000) || ' '::text) "
                "|| \"left\"(COALESCE(response, ''::text), 20000))"
            )
        ],
        postgresql_using="gin",
    )
    op.create_index(
        op.f("ix_critiques_confidence"),
        "critiques",
        [sa.text("(p_correct / NULLIF(p_correct + p_incorrect, 0::double precision))")],
        postgresql_where=sa.text("round = 0 AND sample = 0 AND NOT supplied"),
    )
    op.create_index(
        op.f("ix_interactions_critic_version_created_at_id"), "interactions", ["critic_version", "created_at", "id"]
    )
    _allow(*_KINDS, "samples")


def downgrade() -> None:
    op.execute("DELETE FROM run_events WHERE kind = 'samples'")
    _allow(*_KINDS)
    op.drop_index(op.f("ix_interactions_critic_version_created_at_id"), "interactions")
    op.drop_index(op.f("ix_critiques_confidence"), "critiques")
    op.drop_index(op.f("ix_interactions_text"), "interactions")
    op.drop_table("learning_ledger")


def _allow(*kinds: str) -> None:
    op.drop_constraint(op.f("ck_run_events_event_kind"), "run_events", type_="check")
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.create_check_constraint(op.f("ck_run_events_event_kind"), "run_events", f"kind IN ({listed})")
