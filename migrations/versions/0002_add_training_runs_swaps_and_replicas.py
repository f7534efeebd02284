"""add training runs, swaps and replicas.

Revision: 0002
After: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:

    op.create_table(
        "training_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "queued",
                "running",
                "succeeded",
                "failed",
                "cancelled",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column(
            "trigger",
            sa.Enum(
                "admin",
                "schedule",
                "labels",
                "reproduce",
                name="trigger",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("config", postgresql.JSONB(), nullable=False),
        sa.Column("reproduces", sa.Uuid(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("cancel_requested_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "stage",
            sa.Enum(
                "select",
                "pool",
                "warm_start",
                "stage_1",
                "stage_2",
                "evaluate",
                "publish",
                name="stage",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=True,
        ),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("eta_s", sa.Double(), nullable=True),
        sa.Column("manifest", postgresql.JSONB(), nullable=True),
        sa.Column("gate", postgresql.JSONB(), nullable=True),
        sa.Column(
            "outcome",
            sa.Enum(
                "promote",
                "reject",
                "not_enough_evidence",
                name="outcome",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=True,
        ),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_training_runs_key_id")),
        sa.ForeignKeyConstraint(["reproduces"], ["training_runs.id"], name=op.f("fk_training_runs_reproduces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_runs")),
    )
    op.create_index(op.f("ix_training_runs_created_at_id"), "training_runs", ["created_at", "id"], unique=False)
    op.create_index(
        "uq_training_runs_request_id_key_id",
        "training_runs",
        ["request_id", "key_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_table(
        "run_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "status",
                "stage",
                "step",
                "validation",
                "note",
                "alarm",
                "gate",
                "published",
                name="event_kind",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_run_events_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_events")),
    )
    op.create_index(op.f("ix_run_events_run_id_id"), "run_events", ["run_id", "id"], unique=False)
    op.create_table(
        "replicas",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("seen_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("live_version", sa.Integer(), nullable=True),
        sa.Column("leases", postgresql.JSONB(), nullable=False),
        sa.Column("engines", postgresql.JSONB(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["live_version"], ["critic_versions.version"], name=op.f("fk_replicas_live_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replicas")),
    )
    op.create_table(
        "swaps",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "gate",
                "promote",
                "rollback",
                "watch",
                name="swap_kind",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum(
                "pending", "done", "refused", name="swap_status", native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.Column("requested_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["from_version"], ["critic_versions.version"], name=op.f("fk_swaps_from_version")),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_swaps_key_id")),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_swaps_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_swaps")),
    )
    op.create_index(op.f("ix_swaps_version_requested_at"), "swaps", ["version", "requested_at"], unique=False)
    op.create_index(
        "uq_swaps_pending", "swaps", ["status"], unique=True, postgresql_where=sa.text("status = 'pending'")
    )
    op.create_table(
        "swap_receipts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("swap_id", sa.Uuid(), nullable=False),
        sa.Column("replica_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["swap_id"], ["swaps.id"], name=op.f("fk_swap_receipts_swap_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version"], ["critic_versions.version"], name=op.f("fk_swap_receipts_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_swap_receipts")),
        sa.UniqueConstraint("swap_id", "replica_id", name=op.f("uq_swap_receipts_swap_id_replica_id")),
    )
    op.create_index(
        op.f("ix_swap_receipts_version_created_at"), "swap_receipts", ["version", "created_at"], unique=False
    )
    op.add_column("critic_versions", sa.Column("run_id", sa.Uuid(), nullable=True))
    op.add_column("critic_versions", sa.Column("prompt_set", sa.Text(), nullable=True))
    op.create_unique_constraint(op.f("uq_critic_versions_run_id"), "critic_versions", ["run_id"])
    op.create_foreign_key(op.f("fk_critic_versions_run_id"), "critic_versions", "training_runs", ["run_id"], ["id"])


def downgrade() -> None:

    op.drop_constraint(op.f("fk_critic_versions_run_id"), "critic_versions", type_="foreignkey")
    op.drop_constraint(op.f("uq_critic_versions_run_id"), "critic_versions", type_="unique")
    op.drop_column("critic_versions", "prompt_set")
    op.drop_column("critic_versions", "run_id")
    op.drop_index(op.f("ix_swap_receipts_version_created_at"), table_name="swap_receipts")
    op.drop_table("swap_receipts")
    op.drop_index("uq_swaps_pending", table_name="swaps", postgresql_where=sa.text("status = 'pending'"))
    op.drop_index(op.f("ix_swaps_version_requested_at"), table_name="swaps")
    op.drop_table("swaps")
    op.drop_table("replicas")
    op.drop_index(op.f("ix_run_events_run_id_id"), table_name="run_events")
    op.drop_table("run_events")
    op.drop_index(
        "uq_training_runs_request_id_key_id",
        table_name="training_runs",
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.drop_index(op.f("ix_training_runs_created_at_id"), table_name="training_runs")
    op.drop_table("training_runs")
