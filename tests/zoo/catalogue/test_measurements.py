"""Measurements: what is put in comes out, outcomes of each example among it; claims and measurements stand side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from regraft.errors import CatalogueError
from regraft.store import Store
from regraft.zoo.catalogue import Catalogue, Measurement, Outcomes
from regraft.zoo.catalogue.measurements import compare, outcomes_path, read_outcomes
from regraft.zoo.record.record import Claim, Record

BASE = Measurement(
    "task-hash", "org/glue", "test split, as it is", "accuracy", 0.8, 5, 0.7, 0.9, 100.0, {"cores": 2}, 1.5, 0.01, "id"
)


@pytest.fixture
def one(catalogue: Catalogue, record_maker: Any) -> Record:
    record: Record = replace(record_maker(1), path="/one", claims=())
    catalogue.put([record])
    return record


def test_what_is_measured_comes_back(
    catalogue: Catalogue, one: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_STORE", str(tmp_path))
    outcomes = Outcomes.of([True, False, True, True, True], [3, 1, 2, 0, 1], np.linspace(0, 1, 5))
    put = catalogue.record_measurement("/one", BASE, outcomes)
    (found,) = catalogue.measurements("/one")
    assert found == put and replace(found, outcomes=None) == BASE
    table = pyarrow.parquet.read_table(outcomes_path(str(found.outcomes)))
    assert table.to_pylist()[1] == {"correct": False, "predicted": 1, "probability": 0.25} and table.num_rows == 5
    meta = pyarrow.parquet.read_metadata(outcomes_path(str(found.outcomes)))
    assert meta.row_group(0).column(0).compression == "ZSTD"
    back = read_outcomes(str(found.outcomes))
    assert all(
        (getattr(back, name) == getattr(outcomes, name)).all() for name in ("correct", "predicted", "probability")
    )
    Store().collect(limit=0)
    assert read_outcomes(str(found.outcomes)).correct.sum() == 4, "evidence is not cleaned up"
    assert catalogue.count("measured:accuracy>=0.8") == 1 and catalogue.count("measured:accuracy>0.8") == 0
    outcomes_path(str(found.outcomes)).write_bytes(b"PAR1")
    with pytest.raises(CatalogueError, match="are damaged"):
        read_outcomes(str(found.outcomes))
    outcomes_path(str(found.outcomes)).unlink()
    with pytest.raises(CatalogueError, match="cannot be read: No such file"):
        read_outcomes(str(found.outcomes))


def test_measurements_of_files_that_changed_are_marked(catalogue: Catalogue, one: Record) -> None:
    catalogue.record_measurement("/one", BASE)
    catalogue.put([replace(one, file_id="other")])
    catalogue.record_measurement("/one", replace(BASE, measured_at=200.0))
    assert [found.current for found in catalogue.measurements("/one")] == [False, True]
    catalogue.remove("/one")
    catalogue.put([one])
    assert catalogue.measurements("/one") == []


@pytest.mark.parametrize(
    "wrong",
    [{"value": float("nan")}, {"low": float("inf")}, {"n": 0}, {"metric": "--"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_is_no_measurement(catalogue: Catalogue, one: Record, wrong: dict[str, Any]) -> None:
    with pytest.raises(CatalogueError, match="is none"):
        catalogue.record_measurement("/one", replace(BASE, **wrong))
    assert catalogue.measurements("/one") == []


def test_what_are_no_outcomes(catalogue: Catalogue, one: Record) -> None:
    for correct, predicted, probability in (
        ([True], [1, 2], [0.5]),
        ([], [], []),
        ([True], [1], [1.5]),
        ([True], [1], [float("nan")]),
    ):
        with pytest.raises(CatalogueError):
            Outcomes.of(correct, predicted, probability)
    with pytest.raises(CatalogueError, match="1 outcomes of 5 examples"):
        catalogue.record_measurement("/one", BASE, Outcomes.of([True], [1], [0.5]))


def claim(metric: str, value: float, dataset: str | None = "glue") -> Claim:
    return Claim("text-classification", dataset, "test", metric, value)


@pytest.mark.parametrize(
    ("claimed", "difference", "verdict"),
    [
        (claim("Accuracy", 0.85), -0.05, "within the interval"),
        (claim("accuracy", 91.0), -0.11, "below the claim"),
        (claim("accuracy", 69.0), 0.11, "above the claim"),
        (claim("accuracy", 0.7), 0.1, "within the interval"),
        (claim("accuracy", 0.95, "imdb"), None, ""),  # other data
        (claim("accuracy", 0.95, "org/GLUE"), -0.15, "below the claim"),
    ],
)
def test_claimed_beside_measured(record_maker: Any, claimed: Claim, difference: float | None, verdict: str) -> None:
    (line,) = compare(replace(record_maker(1), claims=(claimed,)), [BASE])
    assert line.claim == claimed and line.measurement == BASE and line.verdict == verdict
    assert line.difference == (None if difference is None else pytest.approx(difference))


def test_each_claim_and_each_measurement_appears(record_maker: Any) -> None:
    record = replace(record_maker(1), claims=(claim("f1", 0.5), claim("accuracy", 0.9)))
    other = replace(BASE, metric="calibration_error", value=0.1)
    lines = compare(record, [BASE, other])
    assert [(line.metric, line.claim is None, line.measurement is None) for line in lines] == [
        ("accuracy", False, False), ("calibration_error", True, False), ("f1", False, True),
    ]  # fmt: skip
