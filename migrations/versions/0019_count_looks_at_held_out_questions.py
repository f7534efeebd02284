"""count looks at held-out questions, and let worn ones be retired into training.

Looks of earlier gates are counted from their reports, which name questions by the first bytes of their hashes: one look
for each lineage under each live critic. No question changes its side here.

Revision: 0019
After: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("questions", sa.Column("looks", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("questions", sa.Column("retired_at", sa.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("questions", sa.Column("is_pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute(
        """
        UPDATE questions SET looks = seen.looks FROM (
            SELECT key, count(DISTINCT (gate ->> 'live', evidence ->> 'lineage')) AS looks
            FROM training_runs, LATERAL (SELECT gate -> 'numbers' -> 'evidence' AS evidence) AS report,
                jsonb_array_elements_text(
                    CASE WHEN jsonb_typeof(evidence -> 'questions') = 'array'
                        THEN evidence -> 'questions' ELSE '[]'::jsonb END
                ) AS key
            GROUP BY key
        ) AS seen
        WHERE split = 'heldout' AND substr(encode(hash, 'hex'), 1, 16) = seen.key
        """
    )


def downgrade() -> None:
    op.drop_column("questions", "is_pinned")
    op.drop_column("questions", "retired_at")
    op.drop_column("questions", "looks")
