"""Checkpoints, what filters and searches need of them, claims, risks, lineage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
REAL = sa.Float(53)

INDEXED = (
    "layers", "hidden_size", "heads", "vocabulary_size", "max_length", "parameters", "weight_bytes", "label_count",
    "model_type", "task", "licence", "library", "tokenizer", "tokenizer_id", "hardware", "completeness", "hours",
    "emissions_kg", "name_key", "last_key",
)  # fmt: skip


def _owner(*, primary_key: bool = False) -> sa.Column[int]:
    owner = sa.ForeignKey("checkpoints.id", ondelete="CASCADE")
    return sa.Column("checkpoint_id", ID, owner, nullable=False, primary_key=primary_key, autoincrement=False)


def upgrade() -> None:
    """Make the tables."""
    words = ("kind", "model_type", "task", "licence", "library", "tokenizer", "tokenizer_id", "hardware")
    numbers = ("layers", "hidden_size", "heads", "kv_heads", "ffn_size", "vocabulary_size", "max_length", "parameters",
               "encoder_parameters", "weight_bytes", "tensors", "label_count")  # fmt: skip
    op.create_table(
        "checkpoints",
        sa.Column("id", ID, primary_key=True),
        sa.Column("path_key", KEY, nullable=False, unique=True),
        sa.Column("name_key", KEY, nullable=False),
        sa.Column("last_key", KEY, nullable=False),
        sa.Column("file_id", sa.Text, nullable=False),
        *(sa.Column(name, KEY) for name in words),
        *(sa.Column(name, sa.BigInteger) for name in numbers),
        *(sa.Column(name, REAL) for name in ("completeness", "hours", "emissions_kg", "energy_kwh")),
        sa.Column("tied", sa.Boolean),
        sa.Column("licence_conflict", sa.Boolean, nullable=False),
        sa.Column("deep", sa.Boolean, nullable=False),
        sa.Column("gone", sa.Boolean, nullable=False),
        sa.Column("indexed_at", REAL, nullable=False),
    )
    for name in INDEXED:
        op.create_index(f"checkpoints_{name}", "checkpoints", [name])
    op.create_table(
        "records",
        _owner(primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_table(
        "terms",
        sa.Column("kind", KEY, primary_key=True),
        sa.Column("value", KEY, primary_key=True),
        _owner(primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_index("terms_checkpoint", "terms", ["checkpoint_id"])
    op.create_table(
        "claims",
        sa.Column("id", ID, primary_key=True),
        _owner(),
        sa.Column("metric_key", KEY, nullable=False),
        sa.Column("value", REAL, nullable=False),
    )
    op.create_index("claims_metric", "claims", ["metric_key", "value", "checkpoint_id"])
    op.create_index("claims_checkpoint", "claims", ["checkpoint_id", "metric_key"])
    op.create_table(
        "risks",
        sa.Column("id", ID, primary_key=True),
        _owner(),
        sa.Column("severity", KEY, nullable=False),
        sa.Column("code", KEY, nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
    )
    op.create_index("risks_severity", "risks", ["severity", "checkpoint_id"])
    op.create_index("risks_checkpoint", "risks", ["checkpoint_id"])
    op.create_table(
        "edges",
        sa.Column("id", ID, primary_key=True),
        sa.Column("child_id", ID, sa.ForeignKey("checkpoints.id", ondelete="CASCADE"), nullable=False),
        sa.Column("parent_id", ID, sa.ForeignKey("checkpoints.id", ondelete="SET NULL")),
        sa.Column("parent", sa.Text, nullable=False),
        sa.Column("parent_key", KEY, nullable=False),
        sa.Column("parent_last", KEY),
        sa.Column("relation", KEY, nullable=False),
        sa.Column("source", KEY, nullable=False),
        sa.Column("p_value", REAL),
        sa.Column("distance", REAL),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.UniqueConstraint("child_id", "source", "parent_key", "relation", name="edges_once"),
    )
    op.create_index("edges_parent", "edges", ["parent_id", "child_id"])
    op.create_index("edges_parent_key", "edges", ["parent_key"])
    op.create_table("state", sa.Column("name", KEY, primary_key=True), sa.Column("value", sa.Text, nullable=False))
    _full_text()


def _full_text() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE VIRTUAL TABLE words USING fts5(name, anywhere, tokenize = 'ascii', detail = 'column')")
        op.execute(
            "CREATE TRIGGER words_go AFTER DELETE ON checkpoints BEGIN DELETE FROM words WHERE rowid = old.id; END"
        )
        return
    op.execute(
        "CREATE TABLE words (checkpoint_id BIGINT PRIMARY KEY REFERENCES checkpoints (id) ON DELETE CASCADE, "
        "name TSVECTOR NOT NULL, anywhere TSVECTOR NOT NULL)"
    )
    op.execute("CREATE INDEX words_name ON words USING gin (name)")
    op.execute("CREATE INDEX words_anywhere ON words USING gin (anywhere)")


def downgrade() -> None:
    """A catalogue is not made older."""
    raise NotImplementedError
