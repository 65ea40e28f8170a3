"""What was measured here, beside what cards claim.

The outcomes of each example are a Parquet file under the store's root, `outcomes/<sha256>.parquet` (zstd, one row an example
in the task's order: correct, predicted, probability). They are evidence, not a cache: the store's clean-up leaves them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert, select

from regraft.errors import CatalogueError
from regraft.store import default_root, in_words, write_whole
from regraft.zoo.catalogue.schema import checkpoints, measurements
from regraft.zoo.catalogue.text import key, last_part, metric_key, plain
from regraft.zoo.record.record import Claim, Record

# Metrics that are shares, so that a card may write 91.3 for 0.913.
_SHARES = {"accuracy", "f1", "macro_f1", "micro_f1", "weighted_f1", "f1_macro", "f1_micro", "f1_weighted", "precision",
           "recall", "calibration_error", "exact_match", "top_1_accuracy", "top_5_accuracy", "matthews_correlation"}  # fmt: skip


@dataclass(frozen=True)
class Outcomes:
    """What a model answered: for each example whether it is right, the class (its number), and the probability given to it.

    correct [N] bool, predicted [N] int, probability [N] in [0, 1].
    """

    correct: NDArray[np.bool_]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float64]

    @classmethod
    def of(cls, correct: Any, predicted: Any, probability: Any) -> Outcomes:
        """From sequences.

        Raises:
            CatalogueError: Lengths that differ, none at all, or a probability outside [0, 1].
        """
        made = cls(
            np.asarray(correct, dtype=np.bool_), np.asarray(predicted, dtype=np.int64),
            np.asarray(probability, dtype=np.float64),
        )  # fmt: skip
        sizes = {array.shape for array in (made.correct, made.predicted, made.probability)}
        if len(sizes) != 1 or made.correct.ndim != 1 or made.correct.size == 0:
            raise CatalogueError(
                f"Outcomes of shapes {sorted(sizes)} do not belong together.", "Give one value an example in each."
            )
        if not ((made.probability >= 0) & (made.probability <= 1)).all():
            raise CatalogueError("A probability of an outcome is not in [0, 1].", "Give softmax outputs.")
        return made


@dataclass(frozen=True)
class Measurement:
    """One result: of which task and by which protocol, its value and 95 % interval, on how many examples, when and where.

    Args:
        task_id, task: Hash of the task's content, and what the user calls it.
        protocol: How it was measured, in words: "test split, as it is", "linear probe, 1,000 training examples".
        metric, value, low, high, n: `n` examples; the interval may be None.
        measured_at: Unix seconds.
        machine: Facts of the machine, as JSON values.
        seconds, energy_kwh: What the run took, where that is known.
        identity: The `checkpoint_id` of what was measured, where it is known.
        outcomes: The key of the outcomes of each example, or None.
        current: Whether the folder's files are still the ones that were measured.
    """

    task_id: str
    task: str
    protocol: str
    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    measured_at: float = 0.0
    machine: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    energy_kwh: float | None = None
    identity: str | None = None
    outcomes: str | None = None
    current: bool = True


@dataclass(frozen=True)
class Compared:
    """A metric, as claimed and as measured; `difference` = measured - claimed, where both speak of the same data.

    `verdict` is "within the interval", "below the claim", "above the claim", or "" where the two cannot be compared.
    """

    metric: str
    claim: Claim | None
    measurement: Measurement | None
    difference: float | None = None
    verdict: str = ""


def record(connection: Connection, number: int, file_id: str, found: Measurement) -> None:
    """Write a measurement of a checkpoint.

    Raises:
        CatalogueError: A value or an interval that is no number, or no examples.
    """
    ends = [one for one in (found.low, found.high) if one is not None]
    if not all(math.isfinite(one) for one in (found.value, *ends)) or found.n < 1 or not metric_key(found.metric):
        raise CatalogueError(
            f"A measurement of {found.metric!r} = {found.value} ({found.low} to {found.high}) on {found.n} examples is none.",
            "Give finite numbers and at least one example.",
        )
    connection.execute(
        insert(measurements).values(
            checkpoint_id=number, file_id=file_id, identity=found.identity, task_id=found.task_id, task=plain(found.task),
            protocol=plain(found.protocol), metric=plain(found.metric), metric_key=metric_key(found.metric),
            value=float(found.value), low=found.low, high=found.high, n=int(found.n),
            measured_at=found.measured_at or time.time(), machine=json.dumps(dict(found.machine), sort_keys=True, default=str),
            seconds=found.seconds, energy_kwh=found.energy_kwh, outcomes=found.outcomes,
        )
    )  # fmt: skip


def of(connection: Connection, number: int) -> list[Measurement]:
    """The measurements of a checkpoint, the oldest first."""
    columns = [
        column for column in measurements.c if column.name not in ("id", "checkpoint_id", "metric_key", "file_id")
    ]
    current = (measurements.c.file_id == checkpoints.c.file_id).label("current")
    statement = (
        select(*columns, current).join(checkpoints, checkpoints.c.id == measurements.c.checkpoint_id)
        .where(measurements.c.checkpoint_id == number).order_by(measurements.c.measured_at, measurements.c.id)
    )  # fmt: skip
    return [_built(dict(row)) for row in connection.execute(statement).mappings()]


def _built(found: dict[str, Any]) -> Measurement:
    return Measurement(**{**found, "machine": json.loads(found["machine"]), "current": bool(found["current"])})


def write_outcomes(outcomes: Outcomes, root: Path | None = None) -> str:
    """Keep outcomes; returns their key, the SHA-256 of the file.

    Raises:
        StoreError: The store cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {"correct": outcomes.correct, "predicted": outcomes.predicted, "probability": outcomes.probability}
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    name = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = outcomes_path(name, root)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise in_words(fault, path.parent) from fault
    if not path.exists():
        write_whole(path, buffer.getvalue())
    return name


def read_outcomes(name: str, root: Path | None = None) -> Outcomes:
    """Outcomes by their key.

    Raises:
        CatalogueError: They are not in this store, or are damaged.
    """
    import pyarrow
    import pyarrow.parquet

    path = outcomes_path(name, root)
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise CatalogueError(
            f"The outcomes {path} cannot be read: {fault.strerror or fault}.",
            "They are kept where they were measured: set REGRAFT_STORE to that store.",
        ) from fault
    if hashlib.sha256(content).hexdigest() != name:
        raise CatalogueError(f"The outcomes {path} are damaged.", "Measure again.")
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    return Outcomes(*(table[column].to_numpy() for column in ("correct", "predicted", "probability")))


def outcomes_path(name: str, root: Path | None = None) -> Path:
    """Where outcomes lie."""
    return (default_root() if root is None else root) / "outcomes" / f"{name}.parquet"


def compare(found: Record, measured: Sequence[Measurement]) -> list[Compared]:
    """Claims and measurements side by side, by metric; each appears at least once."""
    lines = []
    used = set()
    for claim in found.claims:
        same = [one for one in measured if metric_key(one.metric) == metric_key(claim.metric)]
        about = [one for one in same if _same_data(claim, one)]
        for one in about or same:
            used.add(id(one))
            lines.append(_compared(claim, one, bool(about)))
        if not same:
            lines.append(Compared(claim.metric, claim, None))
    lines += [Compared(one.metric, None, one) for one in measured if id(one) not in used]
    return sorted(lines, key=lambda line: metric_key(line.metric))


def _same_data(claim: Claim, measurement: Measurement) -> bool:
    named = {key(last_part(text)) for text in (claim.dataset, claim.task) if text}
    return key(last_part(measurement.task)) in named or key(measurement.task) in named


def _compared(claim: Claim, found: Measurement, about: bool) -> Compared:
    if not about or not math.isfinite(claim.value):
        return Compared(claim.metric, claim, found)
    percent = metric_key(claim.metric) in _SHARES and 1 < claim.value <= 100 and found.value <= 1
    claimed = claim.value / 100 if percent else claim.value
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    verdict = (
        "within the interval" if low <= claimed <= high else "below the claim" if high < claimed else "above the claim"
    )
    return Compared(claim.metric, claim, found, found.value - claimed, verdict)
