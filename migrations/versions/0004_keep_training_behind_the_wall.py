"""keep training behind the wall.

Training code acts as the role `gadfly_training`, and row security shows that role only rows about questions of the
train split. All other roles see the same rows as before. A role belongs to the whole server, so it may exist already,
and it stays after a downgrade.

Revision: 0004
After: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"

_ROLE = "gadfly_training"
_READ = (
    "questions", "episodes", "interactions", "critiques", "refinements", "feedback", "critic_versions",
    "critic_pointers", "training_runs", "run_events",
)  # fmt: skip
# The rows of each table that the role may see. Tables that depend on interactions follow the role's view of them.
_WALL = {
    "interactions": "EXISTS (SELECT FROM questions AS q WHERE q.hash = question_hash AND q.split = 'train')",
    "episodes": "EXISTS (SELECT FROM questions AS q WHERE q.hash = question_hash AND q.split = 'train')",
    "critiques": "EXISTS (SELECT FROM interactions AS i WHERE i.id = interaction_id)",
    "refinements": "EXISTS (SELECT FROM interactions AS i WHERE i.id = interaction_id)",
    "feedback": "EXISTS (SELECT FROM interactions AS i WHERE i.id = interaction_id)",
}


def upgrade() -> None:
    op.execute(
        """
        DO $$
        BEGIN
            BEGIN
                IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'gadfly_training') THEN
                    CREATE ROLE gadfly_training NOLOGIN;
                END IF;
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL;  -- another database made it at the same time
            END;
            -- From Postgres 16 on, the creator of a role is a member of it, and still cannot act as it.
            IF NOT pg_has_role(current_user, 'gadfly_training',
                CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END) THEN
                EXECUTE format('GRANT gadfly_training TO %I', current_user);
            END IF;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the role gadfly_training is missing and may not be made here: have an administrator '
                    'run "CREATE ROLE gadfly_training NOLOGIN; GRANT gadfly_training TO %"', current_user;
        END $$
        """
    )
    op.execute(f"GRANT SELECT ON {', '.join(_READ)} TO {_ROLE}")
    op.execute(f"GRANT INSERT ON run_events TO {_ROLE}")
    op.execute(f"GRANT UPDATE (stage, step, steps, eta_s, manifest) ON training_runs TO {_ROLE}")
    # In whichever schema the tables are, the role may look up names in it.
    op.execute(f"DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO {_ROLE}', current_schema()); END $$")
    for table, condition in _WALL.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY everybody ON {table} USING (true) WITH CHECK (true)")
        op.execute(
            f"CREATE POLICY training ON {table} AS RESTRICTIVE USING (current_user <> '{_ROLE}' OR {condition})"
            " WITH CHECK (true)"
        )


def downgrade() -> None:
    for table in _WALL:
        op.execute(f"DROP POLICY training ON {table}")
        op.execute(f"DROP POLICY everybody ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute(f"REVOKE ALL ON {', '.join(_READ)} FROM {_ROLE}")
