"""Reading weights: at their places, in little memory, in files that become shorter meanwhile; equal samples are told exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from regraft.checkpoint.ancestry import ancestry
from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.checkpoint.reading import read_at, read_raw
from regraft.errors import CheckpointError
from regraft.zoo.lineage import changes, direction, kinds
from regraft.zoo.lineage.family import Family, Member, squared_distances
from regraft.zoo.lineage.model import model_of
from regraft.zoo.lineage.sample import Sample, matrix_of, places, values_at
from regraft.zoo.record.protected import protected


@pytest.fixture
def matrix(tmp_path: Path) -> tuple[TensorInfo, torch.Tensor]:
    """A matrix in bfloat16 between two vectors."""
    values = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"a": torch.ones(3), "m": values, "z": torch.ones(5)}, tmp_path / "model.safetensors")
    return read_header(tmp_path / "model.safetensors")["m"], values


def test_elements_are_those_at_their_places(matrix: tuple[TensorInfo, torch.Tensor]) -> None:
    info, values = matrix
    flat = values.float().numpy().reshape(-1)
    at = np.array([0, 1, 2, 63, 700, 701, 11_999])
    assert (values_at(info, at) == flat[at]).all() and (values_at(info, np.arange(12_000)) == flat).all()
    assert (matrix_of(info, 7) == flat[:280].reshape(7, 40)).all() and matrix_of(info).shape == (300, 40)
    assert len(read_raw(info, 11_990, 20_000)) == 10 and not len(read_at(info, np.array([], int)))


def test_a_file_that_becomes_shorter_is_an_error_with_words(tmp_path: Path, tiny_bert: Path, copy_of: object) -> None:
    """It used to end the process with a signal: the file was mapped."""
    folder = copy_of(tiny_bert)  # type: ignore[operator]
    tensors = read_header(folder / "model.safetensors")
    one = model_of("x", frozenset(), tensors, ())
    names = [name for name, info in tensors.items() if len(info.shape) == 2]
    last = max((tensors[name] for name in names), key=lambda info: info.end)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(8 + 100)
    for work in (
        lambda: values_at(last, np.array([0, 5])),
        lambda: matrix_of(last),
        lambda: kinds.kind_of([("x", last, last)]),
        lambda: direction.direction([(last, last)]),
        lambda: changes.block_changes(one, one, {layer: layer for layer in one.layers}),
        lambda: ancestry(tensors, tensors),
    ):
        with pytest.raises(CheckpointError, match="became shorter while it was read"):
            work()
    assert protected(folder, tiny_bert) == (), "its header no longer fits, so there is nothing to compare"


def test_places_of_a_huge_tensor_take_no_memory() -> None:
    """A sparse file may claim any size: 2^50 elements here."""
    found = places("role", (2**40, 1024), 1024)
    assert len(found) == len(set(found.tolist())) == 1024 and found.max() < 2**50 and (np.diff(found) > 0).all()
    assert (found == places("role", (2**40, 1024), 1024)).all()


def test_equal_samples_have_no_distance_at_all() -> None:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((9, 2, 4097)).astype(np.float32)
    rows[5], rows[8] = rows[2], rows[2]
    flat = np.zeros(4097, int)
    model = model_of("x", frozenset(), {}, ())
    members = [Member(model, Sample(one, {}, np.full(4097, 1.7), flat == 0, flat), {0: 0, 1: 1}) for one in rows]
    found = squared_distances(Family(members, [], 1), members, [0, 1], [])
    alike = {tuple(pair) for pair in np.argwhere(found == 0).tolist()}
    assert alike == {(n, n) for n in range(9)} | {(a, b) for a in (2, 5, 8) for b in (2, 5, 8)}
