"""let feedback be about a critique or a refinement, let ratings be labels, and mark critics that learned verdicts only.

Feedback from before is about the response of its interaction. A critic from before is marked if the manifest of its run
names no answer with a reference; a run that graded none of its answers had none.

Revision: 0014
After: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


_SOURCES = ("person", "import", "reference", "admin")


def _allow(*sources: str) -> None:
    op.drop_constraint(op.f("ck_answers_label_source"), "answers", type_="check")
    names = ", ".join(f"'{source}'" for source in sources)
    op.create_check_constraint(op.f("ck_answers_label_source"), "answers", f"source IN ({names})")


def upgrade() -> None:
    _allow("person", "import", "reference", "rating", "admin")
    op.add_column("feedback", sa.Column("critique_id", sa.Uuid(), nullable=True))
    op.add_column("feedback", sa.Column("refinement_id", sa.Uuid(), nullable=True))
    op.add_column("feedback", sa.Column("helpful", sa.Boolean(), nullable=True))
    op.add_column("feedback", sa.Column("edited_reference", sa.Text(), nullable=True))
    for name in ("critique", "refinement"):
        op.create_foreign_key(
            op.f(f"fk_feedback_{name}_id"), "feedback", f"{name}s", [f"{name}_id"], ["id"], ondelete="CASCADE"
        )
        op.create_index(op.f(f"ix_feedback_{name}_id"), "feedback", [f"{name}_id"], unique=False)
    op.create_check_constraint(op.f("ck_feedback_about"), "feedback", "critique_id IS NULL OR refinement_id IS NULL")
    op.add_column(
        "critic_versions", sa.Column("verdict_only", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.execute(
        "UPDATE critic_versions SET verdict_only = true FROM training_runs AS run WHERE run.id = critic_versions.run_id"
        " AND (run.manifest -> 'label_sources' ->> 'reference')::int = 0"
        " AND NOT EXISTS (SELECT FROM run_events AS event WHERE event.run_id = run.id AND event.kind = 'stage'"
        " AND event.data ->> 'stage' = 'stage_2')"
    )


def downgrade() -> None:
    op.execute("UPDATE answers SET is_right = NULL, source = NULL, key_id = NULL WHERE source = 'rating'")
    op.execute('UPDATE answers SET votes = NULL WHERE votes @> \'[{"source": "rating"}]\'')  # to be counted again
    _allow(*_SOURCES)
    op.drop_column("critic_versions", "verdict_only")
    op.drop_constraint(op.f("ck_feedback_about"), "feedback", type_="check")
    for name in ("refinement", "critique"):
        op.drop_index(op.f(f"ix_feedback_{name}_id"), table_name="feedback")
        op.drop_constraint(op.f(f"fk_feedback_{name}_id"), "feedback", type_="foreignkey")
    for column in ("edited_reference", "helpful", "refinement_id", "critique_id"):
        op.drop_column("feedback", column)
