"""let several tasks share a deployment.

Questions, pointers, swaps and runs get the task that their rows belong to. A database belonged to one task until now:
that of its live critic. Of `math` nothing else changes. Of another task the hash of a question is computed with the
task's name from here on (`gadfly.store.split.question_hash`), so the stored hashes are computed anew from the old ones,
and the keys of near-duplicates are deleted: the next start of the service makes them again.

A downgrade keeps the pointers of one task, `math` if it has any, and refuses the pending swaps of the others. Hashes
stay as they are: the release before then takes a question of another task than `math` for a new one.

Revision: 0020
After: 0019
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0019"

_OF_QUESTION = ("answers", "episodes", "interactions")
_TASK = "(SELECT task FROM critic_pointers WHERE name = 'live')"


def upgrade() -> None:
    for table in ("questions", "critic_pointers", "swaps", "training_runs"):
        # A constant default is stored once for all existing rows, so no row is rewritten.
        op.add_column(table, sa.Column("task", sa.Text(), server_default=sa.text("'math'"), nullable=False))
    op.add_column(
        "replicas",
        sa.Column("live", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
    )
    op.execute(
        "UPDATE critic_pointers SET task = critic.task FROM critic_versions AS critic"
        " WHERE critic.version = critic_pointers.version AND critic.task <> 'math'"
    )
    op.execute(
        "UPDATE swaps SET task = critic.task FROM critic_versions AS critic"
        " WHERE critic.version = swaps.version AND critic.task <> 'math'"
    )
    op.execute(f"UPDATE training_runs SET task = {_TASK} WHERE {_TASK} <> 'math'")  # noqa: S608  # no outside text
    _hash_questions_with_their_task()
    op.drop_constraint("pk_critic_pointers", "critic_pointers", type_="primary")
    op.create_primary_key("pk_critic_pointers", "critic_pointers", ["task", "name"])
    op.drop_index("uq_swaps_pending", table_name="swaps")
    op.create_index("uq_swaps_pending", "swaps", ["task"], unique=True, postgresql_where=sa.text("status = 'pending'"))
    op.drop_index("ix_questions_created_at_split", table_name="questions")
    op.create_index("ix_questions_task_created_at_split", "questions", ["task", "created_at", "split"])
    op.create_index("ix_training_runs_task_created_at", "training_runs", ["task", "created_at"])


def _hash_questions_with_their_task() -> None:
    others = op.get_bind().execute(sa.text("SELECT EXISTS (SELECT FROM interactions WHERE task <> 'math' LIMIT 1)"))
    if not others.scalar_one():
        return
    op.execute(
        "CREATE TEMPORARY TABLE new_hashes ON COMMIT DROP AS SELECT DISTINCT question_hash AS old, task,"
        " sha256(convert_to('task', 'UTF8') || '\\x00'::bytea || convert_to(task, 'UTF8') || '\\x00'::bytea"
        " || question_hash) AS new FROM interactions WHERE task <> 'math'"
    )
    for table in _OF_QUESTION:
        op.drop_constraint(f"fk_{table}_question_hash", table, type_="foreignkey")
    op.drop_constraint("fk_interactions_episode_id_question_hash", "interactions", type_="foreignkey")
    op.execute(
        "UPDATE questions SET hash = new, task = new_hashes.task, is_keyed = false FROM new_hashes WHERE hash = old"
    )
    for table in _OF_QUESTION:
        op.execute(f"UPDATE {table} SET question_hash = new FROM new_hashes WHERE question_hash = old")  # noqa: S608
    op.execute("DELETE FROM block_keys")
    for table in _OF_QUESTION:
        op.create_foreign_key(f"fk_{table}_question_hash", table, "questions", ["question_hash"], ["hash"])
    op.create_foreign_key(
        "fk_interactions_episode_id_question_hash",
        "interactions",
        "episodes",
        ["episode_id", "question_hash"],
        ["id", "question_hash"],
    )


def downgrade() -> None:
    op.drop_index("ix_training_runs_task_created_at", table_name="training_runs")
    op.drop_index("ix_questions_task_created_at_split", table_name="questions")
    op.create_index("ix_questions_created_at_split", "questions", ["created_at", "split"])
    op.execute(
        "DELETE FROM critic_pointers WHERE task <>"
        " (SELECT task FROM critic_pointers WHERE name = 'live' ORDER BY task <> 'math', task LIMIT 1)"
    )
    op.execute(
        "UPDATE swaps SET status = 'refused', finished_at = now(), reason = 'the release before has one task'"
        " WHERE status = 'pending' AND task NOT IN (SELECT task FROM critic_pointers)"
    )
    op.drop_index("uq_swaps_pending", table_name="swaps")
    op.create_index(
        "uq_swaps_pending", "swaps", ["status"], unique=True, postgresql_where=sa.text("status = 'pending'")
    )
    op.drop_constraint("pk_critic_pointers", "critic_pointers", type_="primary")
    op.create_primary_key("pk_critic_pointers", "critic_pointers", ["name"])
    op.drop_column("replicas", "live")
    for table in ("training_runs", "swaps", "critic_pointers", "questions"):
        op.drop_column(table, "task")
