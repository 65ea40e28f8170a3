"""Output as a LoRA: loads in stock peft and gives the base plus the change, to the stated error."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from regraft.checkpoint.adapter import open_adapter
from regraft.checkpoint.blocks import is_embedding
from regraft.checkpoint.headers import read_tensors
from regraft.checkpoint.lora import changes, factors, load
from regraft.checkpoint.weights import read_values
from regraft.errors import CheckpointError, MethodError, NonFiniteError
from regraft.merge.lora.extract import Extraction, Held, LoraWriter
from regraft.merge.lora.fit import cannot_hold
from regraft.merge.methods.matrices import is_matrix
from regraft.merge.stack import Stack

MODELS: dict[str, Any] = {
    "bert": lambda: BertModel(BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16,
    )),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, bos_token_id=1, eos_token_id=2,
    )),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """peft warns of transposes and of tied heads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_base(kind: str, where: Path) -> Path:
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(where / "base")
    return where / "base"


def arrays(base: Path) -> dict[str, np.ndarray]:
    return {name: read_values(info).reshape(info.shape) for name, info in read_tensors(base).items()}


def changed(values: Mapping[str, np.ndarray], rank: int | None = None) -> dict[str, np.ndarray]:
    """Every matrix changed, by a full or by a low rank."""
    rng, out = np.random.default_rng(0), dict(values)
    for name, one in values.items():
        if one.ndim == 2:
            rows, columns = one.shape
            delta = rng.normal(size=one.shape) if rank is None else (
                rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
            )  # fmt: skip
            out[name] = (one + 0.05 * delta).astype(np.float32)
    return out


def writer(base: Path, rank: int, **settings: Any) -> LoraWriter:
    config = json.loads((base / "config.json").read_text())
    return LoraWriter(read_tensors(base), config, rank, **settings)


def extract(base: Path, merged: Mapping[str, np.ndarray], out: Path, rank: int, **settings: Any) -> Extraction:
    made = writer(base, rank, **settings)
    for name, values in arrays(base).items():
        made.add(name, values, merged[name])
    out.mkdir(exist_ok=True)
    return made.finish(out)


def loaded_by_peft(kind: str, base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """The merged weights; nothing that peft expects may be missing, nothing left over."""
    model = peft.PeftModel.from_pretrained(type(MODELS[kind]()).from_pretrained(base), adapter)
    expected = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert {name.replace(".default", "") for name in expected} == set(load_file(adapter / "adapter_model.safetensors"))
    return {name: value.numpy() for name, value in model.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("rank", [3, 16])
def test_stock_peft_gives_the_change_to_the_stated_error(kind: str, rank: int, tmp_path: Path) -> None:
    base = make_base(kind, tmp_path)
    values = arrays(base)
    merged = changed(values)
    found = extract(base, merged, tmp_path / "lora", rank)
    theirs = loaded_by_peft(kind, base, tmp_path / "lora")
    missing = whole = 0.0
    for name, one in merged.items():
        if one.ndim != 2:
            continue
        delta = one.astype(np.float64) - values[name]
        error = float(np.linalg.norm(theirs[name] - one.astype(np.float64)))
        best = float(np.sqrt((np.linalg.svd(delta, compute_uv=False)[rank:] ** 2).sum()))
        assert found.held[name].norm == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert found.held[name].error == pytest.approx(best, abs=1e-5)
        assert found.held[name].error == pytest.approx(error, abs=1e-5)
        missing, whole = missing + error**2, whole + float(np.sum(delta**2))
    assert found.relative == pytest.approx(np.sqrt(missing / whole), abs=1e-5)
    assert not found.lost and found.lost_share == 0.0
    assert (found.relative < 1e-5) == (rank == 16)


def test_lower_ranks_are_found_and_written_as_patterns(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path)
    values = arrays(base)
    merged = changed(values, 2)
    plain = "model.layers.0.self_attn.q_proj.weight"
    merged[plain] = changed(values)[plain]
    merged["model.layers.1.self_attn.q_proj.weight"] = values["model.layers.1.self_attn.q_proj.weight"]
    found = extract(base, merged, tmp_path / "lora", 6)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6 and config["task_type"] == "CAUSAL_LM"
    assert found.held[plain].rank == 6
    assert {one.rank for name, one in found.held.items() if name != plain} == {2}
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["rank_pattern"]["^model.layers.0.mlp.up_proj"] == 2
    assert "model.layers.1.self_attn.q_proj" not in config["target_modules"]
    theirs = loaded_by_peft("llama", base, tmp_path / "lora")
    for name, one in merged.items():
        if name != plain:
            np.testing.assert_allclose(theirs[name], one, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("dtype", "least", "most"), [("bfloat16", 1e-4, 1e-2), ("float16", 1e-5, 1e-3)])
def test_rounding_of_the_factors_is_part_of_the_error(tmp_path: Path, dtype: str, least: float, most: float) -> None:
    base = make_base("bert", tmp_path)
    merged = changed(arrays(base))
    found = extract(base, merged, tmp_path / "lora", 16, dtype=dtype)
    assert least < found.relative < most
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {str(value.dtype) for value in stored.values()} == {f"torch.{dtype}"}
    ours = factors(open_adapter(tmp_path / "lora"), read_tensors(base))
    for name, one in ours.items():
        error = np.linalg.norm(arrays(base)[name] + load(one).rows(0, one.shape[0]) - merged[name])
        assert found.held[name].error == pytest.approx(error, rel=1e-3)


def test_bfloat16_is_rounded_as_torch_does(tmp_path: Path) -> None:
    base = make_base("bert", tmp_path)
    merged = changed(arrays(base))
    extract(base, merged, tmp_path / "exact", 4)
    extract(base, merged, tmp_path / "rounded", 4, dtype="bfloat16")
    exact, rounded = (load_file(tmp_path / one / "adapter_model.safetensors") for one in ("exact", "rounded"))
    for name, value in exact.items():
        # The exact ones went through float32 on their way; a double rounding may differ by one unit in a few places.
        assert (value.bfloat16() == rounded[name]).float().mean() > 0.99


def test_a_single_element_that_moved_is_held(tmp_path: Path) -> None:
    base = make_base("bert", tmp_path)
    values = arrays(base)
    name = "pooler.dense.weight"
    merged = values | {name: values[name].copy()}
    merged[name][3, 5] += np.float32(1e-5)
    found = extract(base, merged, tmp_path / "lora", 4)
    assert found.held[name].rank == 1 and found.relative < 1e-6


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    base = make_base("gpt2", tmp_path)
    merged = changed(arrays(base))
    for name in ("one", "two"):
        extract(base, merged, tmp_path / name, 3)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_changed_norms_and_biases_are_refused_unless_allowed(tmp_path: Path) -> None:
    base = make_base("bert", tmp_path)
    values = arrays(base)
    merged = changed(values)
    bias, norm = "encoder.layer.0.output.dense.bias", "encoder.layer.1.output.LayerNorm.weight"
    merged[bias], merged[norm] = values[bias] + 1, values[norm] + 2
    words = rf"cannot hold the changes of {bias} \(no matrix\), {norm} \(no matrix\): \d+\.\d\d% of the whole change"
    with pytest.raises(CheckpointError, match=words):
        extract(base, merged, tmp_path / "lora", 16)
    assert not list((tmp_path / "lora").iterdir())
    found = extract(base, merged, tmp_path / "lora", 16, allow_lost=True)
    lost = 16 * 1.0**2 + 16 * 2.0**2
    whole = lost + sum(one.norm**2 for one in found.held.values())
    assert {name: round(size, 4) for name, (size, _) in found.lost.items()} == {bias: 4.0, norm: 8.0}
    assert found.lost_share == pytest.approx(lost / whole) and found.relative == pytest.approx(
        np.sqrt(lost / whole), abs=1e-6
    )


def test_embeddings_that_a_head_shares_are_not_held(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path)
    config = json.loads((base / "config.json").read_text())
    tensors = dict(read_tensors(base))
    name = "model.embed_tokens.weight"
    assert name not in cannot_hold(tensors, config)
    del tensors["lm_head.weight"]
    assert "shared" in cannot_hold(tensors, config | {"tie_word_embeddings": True})[name]
    assert name not in cannot_hold(tensors, config | {"tie_word_embeddings": False})
    assert name not in cannot_hold(tensors, config | {"tie_word_embeddings": True, "architectures": ["LlamaModel"]})
    assert "shared" in cannot_hold(read_tensors(base), config | {"is_encoder_decoder": True})[name]
    assert cannot_hold(tensors, config)["model.norm.weight"] == "no matrix"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert.embeddings.word_embeddings.weight", True),
        ("transformer.wte.weight", True),
        ("gpt_neox.embed_in.weight", True),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", True),
        ("embed_out.weight", False),
        ("encoder.embedding_hidden_mapping_in.weight", False),
        ("embeddings_project.weight", False),
        ("model.layers.0.mlp.up_proj.weight", False),
        ("word_embeddings.bias", False),
        ("model.embed_tokens_per_layer.weight", True),
        ("encoder.wordembeddings.weight", True),
    ],
)
def test_embeddings_are_told_by_their_names(name: str, expected: bool) -> None:
    """By one rule, for LoRAs and for methods of matrices."""
    assert is_embedding(name) is expected
    assert is_matrix(Stack.of([np.zeros((3, 2))], name=name), "vector") is not expected


def test_a_sum_of_adapters_is_held_exactly(tmp_path: Path) -> None:
    base = make_base("gpt2", tmp_path)
    tensors = read_tensors(base)
    folders = []
    for number, (rank, targets) in enumerate([(2, ["c_attn", "c_proj", "wte"]), (3, ["c_attn"])]):
        model = peft.get_peft_model(
            MODELS["gpt2"](),
            peft.LoraConfig(r=rank, lora_alpha=5, target_modules=targets, fan_in_fan_out=True, init_lora_weights=False),
        )
        folders.append(tmp_path / f"adapter{number}")
        model.save_pretrained(folders[-1])
    parts = [changes(open_adapter(folder), tensors).factors for folder in folders]
    made = writer(base, 1)
    for name in tensors:
        made.add_sum(name, [part.get(name) for part in parts], [0.5, -2.0])
    (tmp_path / "lora").mkdir()
    found = made.finish(tmp_path / "lora")
    assert found.relative < 1e-6
    assert found.held["transformer.h.0.attn.c_attn.weight"].rank == 5
    assert found.held["transformer.wte.weight"].rank == 2
    theirs, before = loaded_by_peft("gpt2", base, tmp_path / "lora"), arrays(base)
    for name, one in tensors.items():
        expected = before[name].astype(np.float64)
        for weight, part in zip([0.5, -2.0], parts, strict=True):
            if name in part:
                expected += weight * load(part[name]).rows(0, one.shape[0])
        np.testing.assert_allclose(theirs[name], expected, atol=2e-6, err_msg=name)


def test_bad_input(tmp_path: Path) -> None:
    base = make_base("bert", tmp_path)
    values = arrays(base)
    with pytest.raises(MethodError, match="rank 0 was asked for"):
        writer(base, 0)
    with pytest.raises(MethodError, match="LoRA of int8 was asked for"):
        writer(base, 2, dtype="int8")
    name = "pooler.dense.weight"
    with pytest.raises(CheckpointError, match=r"is \[8, 16\], the base has \[16, 16\]"):
        writer(base, 2).add(name, values[name], values[name][:8])
    with pytest.raises(CheckpointError, match="the base has nothing"):
        writer(base, 2).add("head.weight", values[name], values[name])
    with pytest.raises(CheckpointError, match="there is nothing to write"):
        extract(base, values, tmp_path / "lora", 2)
    with pytest.raises(NonFiniteError, match="overflow float16"):
        writer(base, 2, dtype="float16").add(name, values[name], values[name] + np.float32(1e12))
    with pytest.raises(NonFiniteError, match="holds NaN or infinite"):
        writer(base, 2).add(name, values[name], values[name] * np.float32(np.nan))
    with pytest.raises(CheckpointError, match=r"make \[16, 8\]"):
        writer(base, 2).add_factors(name, np.ones((1, 8)), np.ones((16, 1)))
    with pytest.raises(CheckpointError, match="no matrix"):
        writer(base, 2).add_factors("pooler.dense.bias", np.ones((1, 16)), np.ones((1, 1)))


def test_no_change_has_no_error() -> None:
    assert Held(0, 0.0, 0.0).relative == 0.0
    empty = Extraction({}, {})
    assert empty.relative == 0.0 and empty.lost_share == 0.0
