"""keep training behind the wall.

Training code works as the role `gadfly_training`, and row security shows that role only what was said about questions
of the train split. Everybody else sees what they saw. A role belongs to the whole server, so it may exist already, and
it stays when this goes down.

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
# What the role may see of each table. The tables that depend on interactions see them as the role does.
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
            -- From Postgres 16 on, whoever makes a role is a member of it and may yet not act as it.
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
    # Wherever the tables lie: the role may look a name up in that schema.
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
