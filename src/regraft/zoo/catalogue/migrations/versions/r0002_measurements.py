"""Results that were measured here."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
REAL = sa.Float(53)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "measurements",
        sa.Column("id", ID, primary_key=True),
        sa.Column("checkpoint_id", ID, sa.ForeignKey("checkpoints.id", ondelete="CASCADE"), nullable=False),
        sa.Column("file_id", sa.Text, nullable=False),
        sa.Column("identity", sa.Text),
        sa.Column("task_id", KEY, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("protocol", sa.Text, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("metric_key", KEY, nullable=False),
        sa.Column("value", REAL, nullable=False),
        sa.Column("low", REAL),
        sa.Column("high", REAL),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("measured_at", REAL, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("seconds", REAL),
        sa.Column("energy_kwh", REAL),
        sa.Column("outcomes", sa.Text),
    )
    op.create_index("measurements_metric", "measurements", ["metric_key", "value", "checkpoint_id"])
    op.create_index("measurements_checkpoint", "measurements", ["checkpoint_id", "metric_key"])
    op.create_index("measurements_task", "measurements", ["task_id"])


def downgrade() -> None:
    """A catalogue is not made older."""
    raise NotImplementedError
