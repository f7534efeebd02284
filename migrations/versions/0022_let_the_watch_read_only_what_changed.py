"""let the watch read only what changed, and the dry run only what it uses.

The time of a label's last change, with its source and key, gets a column of its own: NULL in rows from before, whose
labels the watch reads when it starts. The new indexes take some seconds per million interactions to build.

Revision: 0022
After: 0021
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"

_JUDGED_AT = "(parameters ->> 'judged_at')"


def upgrade() -> None:
    op.add_column("answers", sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=True))
    op.create_index("ix_answers_updated_at", "answers", ["updated_at"])
    op.create_index(
        "ix_answers_labelled", "answers", ["question_hash"], postgresql_where=sa.text("is_right IS NOT NULL")
    )
    op.create_index("ix_interactions_critic_version_stored_at", "interactions", ["critic_version", "stored_at"])
    op.create_index(
        "ix_interactions_judged_at",
        "interactions",
        [sa.text(_JUDGED_AT)],
        postgresql_where=sa.text(f"{_JUDGED_AT} IS NOT NULL"),
    )
    op.create_index("ix_shadow_verdicts_critic_version_created_at", "shadow_verdicts", ["critic_version", "created_at"])


def downgrade() -> None:
    op.drop_index("ix_shadow_verdicts_critic_version_created_at", "shadow_verdicts")
    op.drop_index("ix_interactions_judged_at", "interactions")
    op.drop_index("ix_interactions_critic_version_stored_at", "interactions")
    op.drop_index("ix_answers_labelled", "answers")
    op.drop_index("ix_answers_updated_at", "answers")
    op.drop_column("answers", "updated_at")
