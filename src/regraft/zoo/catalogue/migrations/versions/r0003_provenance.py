"""Where a checkpoint is from and since when it is known, by which reader it was read; parents found from weights as terms."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the columns; what was read before is read again."""
    for column in (
        sa.Column("source", KEY), sa.Column("revision", KEY), sa.Column("reader", sa.Integer),
        sa.Column("first_seen", sa.Float(53)),
    ):  # fmt: skip
        op.add_column("checkpoints", column)
    op.execute("UPDATE checkpoints SET first_seen = indexed_at")
    for name in ("name_key", "last_key"):
        op.execute(
            f"INSERT INTO terms (kind, value, checkpoint_id) SELECT DISTINCT 'parent', p.{name}, e.child_id FROM edges e "
            f"JOIN checkpoints p ON p.id = e.parent_id WHERE e.source = 'weights' AND p.{name} <> '' ON CONFLICT DO NOTHING"
        )
    # Risks that hang on parents are looked up by the next indexing.
    op.execute("INSERT INTO state (name, value) VALUES ('relink', '1') ON CONFLICT DO NOTHING")


def downgrade() -> None:
    """A catalogue is not made older."""
    raise NotImplementedError
