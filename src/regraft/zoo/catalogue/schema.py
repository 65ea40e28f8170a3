"""The tables of a catalogue, as SQLAlchemy sees them; `migrations/` makes them, and a test holds the two to each other.

checkpoints   one row a folder: what filters compare, and nothing else (a scan of it is short)
records       name and path as they are shown, and the whole Record as JSON
terms         fields of several values: (kind, value, checkpoint)
claims        results that cards state
risks         what `zoo check` lists
edges         lineage: child -> parent, with relation, p-value, evidence and where it is known from
measurements  our own results, with protocol, interval, machine, and the key of the outcomes of each example
state         what is still to be done (`relink`: parents are to be looked up again)
words         the full-text index: an FTS5 table in SQLite, tsvector columns in PostgreSQL (`fulltext.py`)
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

# Every revision of the schema, oldest first; the last is what this code reads and writes.
REVISIONS = ("0001", "0002", "0003")
VERSION_TABLE = "regraft_version"

metadata = MetaData()
Id = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's own row number only when it is called INTEGER
Key = Text().with_variant(Text(collation="C"), "postgresql")  # by code point, as SQLite does

_NUMBERS = (
    "layers", "hidden_size", "heads", "kv_heads", "ffn_size", "vocabulary_size", "max_length", "parameters",
    "encoder_parameters", "weight_bytes", "tensors", "label_count",
)  # fmt: skip
_WORDS = (
    "kind",
    "model_type",
    "task",
    "licence",
    "library",
    "tokenizer",
    "tokenizer_id",
    "hardware",
    "source",
    "revision",
)
_FLOATS = ("completeness", "hours", "emissions_kg", "energy_kwh")
INDEXED = ("layers", "hidden_size", "heads", "vocabulary_size", "max_length", "parameters", "weight_bytes", "label_count",
           "model_type", "task", "licence", "library", "tokenizer", "tokenizer_id", "hardware", "completeness", "hours",
           "emissions_kg", "name_key", "last_key")  # fmt: skip


def _owner(*, primary_key: bool = False) -> Column[int]:
    owner = ForeignKey("checkpoints.id", ondelete="CASCADE")
    return Column("checkpoint_id", Id, owner, nullable=False, primary_key=primary_key, autoincrement=False)


checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Id, primary_key=True),
    Column("path_key", Key, nullable=False, unique=True),
    Column("name_key", Key, nullable=False),
    Column("last_key", Key, nullable=False),
    Column("file_id", Text, nullable=False),
    *(Column(name, Key) for name in _WORDS),
    *(Column(name, BigInteger) for name in _NUMBERS),
    *(Column(name, Float(53)) for name in _FLOATS),
    Column("tied", Boolean),
    Column("licence_conflict", Boolean, nullable=False),
    Column("deep", Boolean, nullable=False),
    Column("gone", Boolean, nullable=False),
    Column("indexed_at", Float(53), nullable=False),
    Column("first_seen", Float(53)),
    Column("reader", Integer),
    *(Index(f"checkpoints_{name}", name) for name in INDEXED),
)

records = Table(
    "records",
    metadata,
    _owner(primary_key=True),
    Column("name", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("record", Text, nullable=False),
)

terms = Table(
    "terms",
    metadata,
    Column("kind", Key, primary_key=True),
    Column("value", Key, primary_key=True),
    _owner(primary_key=True),
    Index("terms_checkpoint", "checkpoint_id"),
    sqlite_with_rowid=False,
)

claims = Table(
    "claims",
    metadata,
    Column("id", Id, primary_key=True),
    _owner(),
    Column("metric_key", Key, nullable=False),
    Column("value", Float(53), nullable=False),
    Index("claims_metric", "metric_key", "value", "checkpoint_id"),
    Index("claims_checkpoint", "checkpoint_id", "metric_key"),
)

risks = Table(
    "risks",
    metadata,
    Column("id", Id, primary_key=True),
    _owner(),
    Column("severity", Key, nullable=False),
    Column("code", Key, nullable=False),
    Column("place", Text, nullable=False),
    Column("problem", Text, nullable=False),
    Index("risks_severity", "severity", "checkpoint_id"),
    Index("risks_checkpoint", "checkpoint_id"),
)

edges = Table(
    "edges",
    metadata,
    Column("id", Id, primary_key=True),
    Column("child_id", Id, ForeignKey("checkpoints.id", ondelete="CASCADE"), nullable=False),
    Column("parent_id", Id, ForeignKey("checkpoints.id", ondelete="SET NULL")),
    Column("parent", Text, nullable=False),
    Column("parent_key", Key, nullable=False),
    Column("parent_last", Key),
    Column("relation", Key, nullable=False),
    Column("source", Key, nullable=False),
    Column("p_value", Float(53)),
    Column("distance", Float(53)),
    Column("evidence", Text, nullable=False),
    UniqueConstraint("child_id", "source", "parent_key", "relation", name="edges_once"),
    Index("edges_parent", "parent_id", "child_id"),
    Index("edges_parent_key", "parent_key"),
)

state = Table("state", metadata, Column("name", Key, primary_key=True), Column("value", Text, nullable=False))

measurements = Table(
    "measurements",
    metadata,
    Column("id", Id, primary_key=True),
    _owner(),
    Column("file_id", Text, nullable=False),
    Column("identity", Text),
    Column("task_id", Key, nullable=False),
    Column("task", Text, nullable=False),
    Column("protocol", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("metric_key", Key, nullable=False),
    Column("value", Float(53), nullable=False),
    Column("low", Float(53)),
    Column("high", Float(53)),
    Column("n", BigInteger, nullable=False),
    Column("measured_at", Float(53), nullable=False),
    Column("machine", Text, nullable=False),
    Column("seconds", Float(53)),
    Column("energy_kwh", Float(53)),
    Column("outcomes", Text),
    Index("measurements_metric", "metric_key", "value", "checkpoint_id"),
    Index("measurements_checkpoint", "checkpoint_id", "metric_key"),
    Index("measurements_task", "task_id"),
)
