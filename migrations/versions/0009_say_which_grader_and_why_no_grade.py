"""say which grader gave a grade, and why there is none.

Grades from before have no version: `gadfly regrade` finds them by that. Every reference from before could be read.

Revision: 0009
After: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"

_TABLES = ("interactions", "feedback")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("grader", sa.Integer(), nullable=True))
        op.add_column(table, sa.Column("grade_problem", sa.Text(), nullable=True))


def downgrade() -> None:
    for table in _TABLES:
        op.drop_column(table, "grade_problem")
        op.drop_column(table, "grader")
