"""What only the weights show, in folders damaged by hand; and protection against merging, made by the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from regraft.zoo.record.deep import deep_risks
from regraft.zoo.record.protected import compare, protected

Copy = Callable[..., Path]
LAYER = "encoder.layer.{}."


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, str]:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {risk.code: risk.where for risk in deep_risks(folder)}


def test_a_sound_checkpoint(tiny_bert: Path, tiny_gpt2: Path, tiny_adapter: Path) -> None:
    assert deep_risks(tiny_bert) == deep_risks(tiny_gpt2) == deep_risks(tiny_adapter) == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(tiny_bert: Path, copy_of: Copy, dtype: torch.dtype, value: float) -> None:
    name = LAYER.format(2) + "output.dense.bias"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in tensors:
            tensors[key] = tensors[key].to(dtype)
        tensors[name][3] = value

    assert damaged(copy_of(tiny_bert), change) == {"nan": name}


@pytest.mark.parametrize("value", [0.0, -0.0, 0.5])
def test_dead_layers(tiny_bert: Path, copy_of: Copy, value: float) -> None:
    name = LAYER.format(1) + "intermediate.dense.weight"
    assert damaged(copy_of(tiny_bert), lambda tensors: tensors[name].fill_(value)) == {"dead-layer": name}


def test_dead_rows(tiny_bert: Path, copy_of: Copy) -> None:
    name = LAYER.format(1) + "intermediate.dense.weight"
    assert damaged(copy_of(tiny_bert), lambda tensors: tensors[name][5:9].fill_(-0.0)) == {"dead-rows": name}


def test_duplicated_layers(tiny_bert: Path, copy_of: Copy) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.startswith(LAYER.format(1)):
                tensors[name.replace(".1.", ".3.", 1)] = tensors[name].clone()

    assert damaged(copy_of(tiny_bert), change) == {"duplicate-layer": "encoder.layer.1"}


def test_a_matrix_under_two_names(tiny_bert: Path, copy_of: Copy) -> None:
    first, second = (LAYER.format(at) + "attention.self.key.weight" for at in (0, 2))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[second] = tensors[first].clone()

    assert damaged(copy_of(tiny_bert), change) == {"duplicate-tensor": first}


def test_matrices_larger_than_a_block(tmp_path: Path) -> None:
    values = torch.ones(3, 2**21)  # rows of 8 MiB
    values[2, -1] = float("nan")
    save_file({"layers.0.a.weight": values, "layers.0.b.weight": torch.zeros(2, 2**21)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert {risk.code: risk.where for risk in deep_risks(tmp_path)} == {
        "nan": "layers.0.a.weight",
        "dead-layer": "layers.0.b.weight",
    }


# -- protection against merging


def saved(model: torch.nn.Module, folder: Path, state: dict[str, torch.Tensor]) -> Path:
    model.load_state_dict(state)
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def noisy(state: dict[str, torch.Tensor], size: float, seed: int = 1) -> dict[str, torch.Tensor]:
    """Every tensor moved by Gaussian noise of a share of its norm."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        found[name] = value + size * noise * value.norm() / noise.norm() if value.is_floating_point() else value
    return found


def merge_locked(state: dict[str, torch.Tensor], layers: int, heads: int) -> dict[str, torch.Tensor]:
    """MergeLock: per head a random invertible A between query and key, and B between value and output."""
    generator, found = torch.Generator().manual_seed(3), {name: value.clone() for name, value in state.items()}
    for layer in range(layers):
        at = LAYER.format(layer) + "attention."
        size = found[f"{at}self.query.weight"].shape[0] // heads
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            a, b = (
                torch.randn(size, size, generator=generator, dtype=torch.float64) + 2 * torch.eye(size) for _ in "ab"
            )
            for kind in ("weight", "bias"):
                for name, matrix in (("query", a), ("key", torch.linalg.inv(a).T), ("value", b)):
                    value = found[f"{at}self.{name}.{kind}"]
                    value[rows] = (matrix @ value[rows].double()).float()
            output = found[f"{at}output.dense.weight"]
            output[:, rows] = (output[:, rows].double() @ torch.linalg.inv(b)).float()
    return found


def permuted(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The hidden units of every feed-forward layer in another order."""
    found = dict(state)
    for layer in range(layers):
        at = LAYER.format(layer)
        order = torch.randperm(
            state[f"{at}intermediate.dense.bias"].shape[0], generator=torch.Generator().manual_seed(layer)
        )
        for name in ("intermediate.dense.weight", "intermediate.dense.bias"):
            found[at + name] = state[at + name][order]
        found[f"{at}output.dense.weight"] = state[f"{at}output.dense.weight"][:, order].contiguous()
    return found


@pytest.fixture
def bert(bert_config: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    return transformers.BertModel(bert_config()).eval()


def outputs(folder: Path) -> np.ndarray:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.arange(2, 14).reshape(2, 6)).last_hidden_state)


@pytest.mark.parametrize("tuned", [0.0, 0.05])
def test_a_locked_model_is_found_and_computes_what_it_did(bert: Any, tmp_path: Path, tuned: float) -> None:
    state = {name: value.clone() for name, value in bert.state_dict().items()}
    base = saved(bert, tmp_path / "base", state)
    expert = saved(bert, tmp_path / "expert", noisy(state, tuned))
    locked = saved(bert, tmp_path / "locked", merge_locked(noisy(state, tuned), 4, 2))
    np.testing.assert_allclose(outputs(locked), outputs(expert), atol=2e-4)
    assert [risk.code for risk in protected(locked, base)] == ["merge-protected"] * 2
    assert {one.pair for one in compare(locked, base) if one.protected} == {"attention scores", "attention values"}
    assert protected(expert, base) == ()


def test_a_permuted_model_is_found_and_computes_what_it_did(bert: Any, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in bert.state_dict().items()}
    base = saved(bert, tmp_path / "base", state)
    mixed = saved(bert, tmp_path / "mixed", permuted(state, 4))
    np.testing.assert_allclose(outputs(mixed), outputs(base), atol=1e-5)
    assert {one.pair for one in compare(mixed, base) if one.protected} == {"feed-forward"}


@pytest.mark.parametrize("size", [0.01, 0.1, 0.5, 2.0])
def test_training_is_no_protection_however_far_it_goes(bert: Any, tmp_path: Path, size: float) -> None:
    state = {name: value.clone() for name, value in bert.state_dict().items()}
    base = saved(bert, tmp_path / "base", state)
    assert protected(saved(bert, tmp_path / "tuned", noisy(state, size)), base) == ()


def test_unrelated_models_are_none(bert: Any, bert_config: Callable[..., Any], tmp_path: Path) -> None:
    bert.save_pretrained(tmp_path / "base")
    torch.manual_seed(7)
    transformers.BertModel(bert_config()).save_pretrained(tmp_path / "other")
    assert protected(tmp_path / "other", tmp_path / "base") == ()
    transformers.BertModel(bert_config(hidden_size=48)).save_pretrained(tmp_path / "wider")
    assert protected(tmp_path / "wider", tmp_path / "base") == ()


def test_heads_that_share_keys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaModel(config)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for layer in model.layers:  # a scaling passes rotary positions
            layer.self_attn.q_proj.weight.mul_(3)
            layer.self_attn.k_proj.weight.div_(3)
            layer.mlp.up_proj.weight.mul_(-4)
            layer.mlp.down_proj.weight.div_(-4)
    model.save_pretrained(tmp_path / "scaled")
    np.testing.assert_allclose(outputs(tmp_path / "scaled"), outputs(tmp_path / "base"), atol=1e-4)
    assert {one.pair for one in compare(tmp_path / "scaled", tmp_path / "base") if one.protected} == {
        "attention scores", "feed-forward",
    }  # fmt: skip
    assert {one.pair for one in compare(tmp_path / "scaled", tmp_path / "base")} == {
        "attention scores", "attention values", "feed-forward",
    }  # fmt: skip
