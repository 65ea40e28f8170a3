"""The comparison with the original: exact in float64 for cuts and growth of several architectures, and it sees what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from regraft.anatomy import Identity, Plan, change, open_bound
from regraft.anatomy.tiny import load_exactly, outputs
from regraft.errors import ResizeError
from regraft.resize.certificate.same import difference
from regraft.resize.certificate.steps import Asked, Kept, asked, cut_step, grow_step, ranges, store_step, unranged
from regraft.resize.cuts import cut
from regraft.resize.formats.half import to_half
from regraft.resize.growth import grow

CUTS = {
    "bert": {"layer": 2, "ffn": 11},
    "gpt2": {"layer": 1, "ffn": 13},
    "llama": {"layer": 2, "kv": 1, "ffn": 7},
    "t5": {"layer": 2, "dec_layer": 1, "ffn": 9},
    "vit": {"heads": 3, "layer": 2, "ffn": 15},
}
ROWS = [[5, 7, 11, 3, 29, 8], [4, 9, 9, 6, 17, 30]]


def cut_of(folder: Path, sizes: dict[str, int], target: Path) -> tuple[Kept, Plan]:
    named = open_bound(str(folder)).binding.carried
    done = cut(str(folder), {axis: size for axis, size in sizes.items() if axis in named}, target, criterion="random")
    return done.kept, done.plan


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_computes_what_the_masked_original_does(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    parent = open_bound(str(folders(name)))
    kept, plan = cut_of(folders(name), CUTS[name], tmp_path / "small")
    result = open_bound(str(tmp_path / "small"))
    found = difference(parent, result, Asked("mask", kept=kept))
    assert found.largest <= 1e-10 * found.scale and found.within
    assert difference(parent, result, Asked("same")).largest > 1e-3  # the masks are not nothing
    again = asked([cut_step(parent, kept, plan, {})])
    assert again.computes == "mask"
    assert difference(parent, result, again).largest == found.largest


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_other_units_are_seen(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    parent = open_bound(str(folders(name)))
    kept, _ = cut_of(folders(name), {"ffn": 11}, tmp_path / "small")
    result = open_bound(str(tmp_path / "small"))
    for place, units in kept["ffn"].items():
        other = np.setdiff1d(np.arange(20), units)[:1]
        moved = {**kept["ffn"], place: np.sort(np.concatenate([units[1:], other]))}
        assert not difference(parent, result, Asked("mask", kept={"ffn": moved})).within


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_growth_and_what_is_none(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    parent = open_bound(str(folders(name)))
    deeper = {"layer": [0, Identity(0), 1, 2], "ffn": [*range(20), *range(10)]}
    change(parent, deeper, tmp_path / "large")
    found = difference(parent, open_bound(str(tmp_path / "large")), Asked("same"))
    assert found.largest <= 1e-10 * found.scale
    change(parent, {"layer": [0, 0, 1, 2]}, tmp_path / "stacked")
    assert not difference(parent, open_bound(str(tmp_path / "stacked")), Asked("same")).within


def twin(folder: Path, target: Path, *dtypes: torch.dtype) -> Path:
    """The checkpoint with its numbers rounded to one type after the other: the last is how they are stored."""
    made = Path(shutil.copytree(folder, target))
    tensors = load_file(made / "model.safetensors")
    for dtype in dtypes:
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    return made


def logits(folder: Path) -> np.ndarray:
    """Of the stock class in float64, on the same example as the comparison's."""
    return np.asarray(outputs(load_exactly(folder, open_bound(str(folder)).binding.settings))["logits"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_that_only_moved_are_held_exactly_in_any_type(
    dtype: torch.dtype, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    parent = open_bound(str(twin(folders("llama"), tmp_path / "parent", dtype)))
    kept, plan = cut_of(tmp_path / "parent", CUTS["llama"], tmp_path / "small")
    promised = asked([cut_step(parent, kept, plan, {})])
    found = difference(parent, open_bound(str(tmp_path / "small")), promised)
    assert found.within and found.tolerance == 1e-10 and found.rounding is None
    # One weight, by less than 1 % of it.
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    value = tensors["model.layers.0.mlp.up_proj.weight"][0, :1]
    value.copy_(torch.nextafter(value.float(), torch.tensor(9.0)) if dtype is torch.float32 else value * (1 + 2.0**-7))
    save_file(tensors, tmp_path / "small" / "model.safetensors", metadata={"format": "pt"})
    assert not difference(parent, open_bound(str(tmp_path / "small")), promised).within


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-10)])
def test_computed_numbers_are_held_by_their_type_and_rounding_is_said_apart(
    dtype: torch.dtype, bound: float, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """A cut of hidden scales the gains of RMS norms. Before rounding it is the cut of the same numbers held in float64."""
    rounded = twin(folders("llama"), tmp_path / "rounded", dtype)
    wide = twin(folders("llama"), tmp_path / "wide", dtype, torch.float64)
    parent = open_bound(str(rounded))
    kept, plan = cut_of(rounded, {"hidden": 16}, tmp_path / "small")
    found = difference(parent, open_bound(str(tmp_path / "small")), asked([cut_step(parent, kept, plan, {})]))
    assert found.within and found.tolerance == bound
    change(open_bound(str(wide)), {"hidden": kept["hidden"][()]}, tmp_path / "exact")
    costs = np.abs(logits(tmp_path / "exact") - logits(tmp_path / "small")).max()
    if dtype is torch.bfloat16:
        assert found.rounding == pytest.approx(costs, rel=1e-6) and costs > 1e-3
        assert f"before numbers are rounded; rounded to BF16 they differ by {costs:.1e}" in str(found)
    else:
        assert found.rounding is None and found.largest == pytest.approx(costs, rel=0.01, abs=1e-9)


def test_growth_in_sixteen_bits_is_computed_once_more(folders: Callable[[str], Path], tmp_path: Path) -> None:
    parent = open_bound(str(twin(folders("llama"), tmp_path / "parent", torch.bfloat16)))
    sizes = {"hidden": 36, "ffn": 30, "layer": 4}
    grown = grow(str(tmp_path / "parent"), "lemon", sizes, tmp_path / "large", seed=3, check=False)
    result, step = open_bound(str(tmp_path / "large")), grow_step(grown, 3)
    found = difference(parent, result, asked([step]))
    assert found.within and found.tolerance == 1e-10 and found.rounding is not None and found.rounding > 1e-3
    with pytest.raises(ResizeError, match="was not stored as what was computed"):
        difference(parent, result, asked([{**step, "seed": 4}]))  # other shares


def test_rounding_is_held_exactly_and_its_cost_is_said(folders: Callable[[str], Path], tmp_path: Path) -> None:
    whole = twin(folders("gpt2"), tmp_path / "whole", torch.float32)
    done = to_half(open_bound(str(whole)), "bf16", tmp_path / "half")
    result = open_bound(str(tmp_path / "half"))
    found = difference(open_bound(str(whole)), result, asked([store_step("bf16", done)]))
    assert found.within and found.tolerance == 1e-10
    costs = np.abs(logits(whole) - logits(tmp_path / "half")).max()
    assert found.rounding == pytest.approx(costs, rel=1e-6)
    assert f"which moves its outputs by {costs:.1e}" in str(found)


def test_tokens_are_compared_by_what_they_are(folders: Callable[[str], Path], tmp_path: Path) -> None:
    parent = open_bound(str(folders("llama")))
    kept = np.array([0, 1, 2, 9, 5, 30, 11, 20])
    change(parent, {"vocab": kept}, tmp_path / "narrow")
    result = open_bound(str(tmp_path / "narrow"))
    assert difference(parent, result, Asked("same", tokens=kept)).largest <= 1e-10
    assert not difference(parent, result, Asked("same", tokens=kept[::-1].copy())).within


def test_hidden_under_layer_norm_is_no_mask_and_says_why(folders: Callable[[str], Path], tmp_path: Path) -> None:
    parent = open_bound(str(folders("gpt2")))
    kept, plan = cut_of(folders("gpt2"), {"hidden": 18, "heads": 3}, tmp_path / "small")
    found = asked([cut_step(parent, kept, plan, {})])
    assert found.computes == "other" and "LayerNorm" in found.why


def test_sizes_that_change_twice_are_not_promised(folders: Callable[[str], Path], tmp_path: Path) -> None:
    parent = open_bound(str(folders("bert")))
    kept, plan = cut_of(folders("bert"), {"ffn": 11}, tmp_path / "small")
    step = cut_step(parent, kept, plan, {})
    assert asked([step, step]).computes == "other"
    assert asked([step, {"step": "store", "format": "bf16", "computes": "same", "why": ""}]).half == "bf16"


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60))
def test_ranges_are_read_back(units: list[int]) -> None:
    assert unranged(ranges(np.array(units))).tolist() == units
    assert ranges(np.arange(3, 9)) == "3-8"
