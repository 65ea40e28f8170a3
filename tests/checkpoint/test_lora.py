"""LoRA adapters read without torch: held to peft's own merging, refused where they are something else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from regraft.checkpoint.adapter import open_adapter
from regraft.checkpoint.headers import read_tensors
from regraft.checkpoint.lora import Changes, Delta, changes, delta_rows, factors, inputs_first, load
from regraft.checkpoint.weights import read_values
from regraft.errors import CheckpointError, NonFiniteError

BERT = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """peft warns of transposes, of embeddings that it saves, and of tied heads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_model(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    if kind in ("bert", "classifier"):
        return (BertModel if kind == "bert" else BertForSequenceClassification)(BertConfig(**(BERT | settings)))
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**(GPT2 | settings)))
    return LlamaForCausalLM(LlamaConfig(**(LLAMA | settings)))


def make_adapter(model: Any, folder: Path, **settings: Any) -> Path:
    """Save an adapter whose every trained tensor was drawn at random. The model is used up."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**({"r": 4, "lora_alpha": 6} | settings)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return folder


def pair(kind: str, where: Path, settings: dict[str, Any], **model: Any) -> tuple[Path, Path]:
    """A base and an adapter over it."""
    make_model(kind, **model).save_pretrained(where / "base")
    return where / "base", make_adapter(make_model(kind, **model), where / "adapter", **settings)


def opened(base: Path, adapter: Path) -> Changes:
    return changes(open_adapter(adapter), read_tensors(base))


def merged(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """The base's tensors with the adapter's changes, by our reading."""
    found, out = opened(base, adapter), {}
    for name, info in read_tensors(base).items():
        values = read_values(found.replaced.get(name, info))
        if name in found.factors:
            assert load(found.factors[name]).add_to(values, 0)
        if name in found.offsets:
            offset = found.offsets[name]
            values = values + np.float32(offset.scale) * read_values(offset.values)
        out[name] = values.reshape(info.shape)
    return out


def merged_by_peft(kind: str, base: Path, adapter: Path) -> dict[str, np.ndarray]:
    wrapped = peft.PeftModel.from_pretrained(type(make_model(kind)).from_pretrained(base), adapter)
    return {name: value.numpy() for name, value in wrapped.merge_and_unload().state_dict().items()}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bert": ("bert", {"target_modules": ["query", "value", "dense"]}, {}),
    "bert, patterns": ("bert", {
        "target_modules": ["query", "key"], "rank_pattern": {"layer.1.attention.self.query": 2, "key": 3},
        "alpha_pattern": {"^encoder.layer.0.attention.self.query": 20}, "use_rslora": True,
    }, {}),
    "bert, all biases": ("bert", {"target_modules": ["query"], "bias": "all"}, {}),
    "bert, its own biases": ("bert", {"target_modules": ["query"], "bias": "lora_only"}, {}),
    "bert, norms": ("bert", {"target_modules": ["query"], "modules_to_save": ["LayerNorm"]}, {}),
    "classifier": ("classifier", {"target_modules": ["query"], "task_type": "SEQ_CLS"}, {}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "wpe"], "fan_in_fan_out": True}, {}),
    "gpt2, config of its head": ("gpt2", {"target_modules": ["c_proj", "lm_head"]}, {"tie_word_embeddings": False}),
    "gpt2, bias of B": ("gpt2", {"target_modules": ["c_attn"], "lora_bias": True, "fan_in_fan_out": True}, {}),
    "gpt2, shared embeddings": ("gpt2", {"target_modules": ["wte"]}, {}),
    "llama": ("llama", {"target_modules": ["q_proj", "k_proj", "down_proj"]}, {}),
    "llama, ends": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}, {"tie_word_embeddings": False}),
    "llama, saved embeddings": ("llama", {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"],
    }, {"tie_word_embeddings": False}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_what_peft_merges(case: str, tmp_path: Path) -> None:
    kind, settings, model = CASES[case]
    base, adapter = pair(kind, tmp_path, settings, **model)
    ours, theirs = merged(base, adapter), merged_by_peft(kind, base, adapter)
    before = {name: read_values(info) for name, info in read_tensors(base).items()}
    changed = opened(base, adapter).touched
    assert changed
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)
        assert (not np.array_equal(values.ravel(), before[name])) == (name in changed)


def test_rounds_once(tmp_path: Path) -> None:
    base, adapter = pair("bert", tmp_path, {"target_modules": ["query"], "r": 8})
    stored = load_file(adapter / "adapter_model.safetensors")
    tensors, found = read_tensors(base), opened(base, adapter).factors
    for name, one in found.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        down, up = (stored[f"{key}.lora_{part}.weight"].double().numpy() for part in "AB")
        exact = read_values(tensors[name]).astype(np.float64).reshape(16, 16) + 6 / 8 * up @ down
        values = read_values(tensors[name])
        load(one).add_to(values, 0)
        np.testing.assert_array_equal(values.reshape(16, 16), exact.astype(np.float32))
        np.testing.assert_array_equal(delta_rows(one, 3, 5), (6 / 8 * up @ down)[3:5].astype(np.float32))
        assert one.shape == (16, 16) and one.rank == 8 and one.loaded_bytes == 8 * 2 * 8 * 16


@given(
    rows=st.integers(1, 9), columns=st.sampled_from([1, 3, 700]), rank=st.integers(1, 5), seed=st.integers(0, 99),
    data=st.data(),
)  # fmt: skip
def test_any_blocks_give_the_same_bits(rows: int, columns: int, rank: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    delta = Delta(rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns)), 0.7)
    whole = rng.normal(size=rows * columns).astype(np.float32)
    parts = whole.copy()
    assert delta.add_to(whole, 0)
    cuts = sorted(data.draw(st.lists(st.integers(0, whole.size), max_size=4)))
    for start, stop in zip([0, *cuts], [*cuts, whole.size], strict=True):
        assert delta.add_to(parts[start:stop], start)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_in_any_float(tmp_path: Path, dtype: torch.dtype) -> None:
    base, adapter = pair("bert", tmp_path, {"target_modules": ["query"]})
    file = adapter / "adapter_model.safetensors"
    tensors = {name: value.to(dtype) for name, value in load_file(file).items()}
    save_file(tensors, file)
    (name, one), *_ = factors(open_adapter(adapter), read_tensors(base)).items()
    key = f"base_model.model.{name.removesuffix('.weight')}"
    exact = 1.5 * tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()
    np.testing.assert_array_equal(delta_rows(one, 0, 16), exact.float().numpy())


def test_adapter_of_a_model_with_a_head_over_one_without(tmp_path: Path) -> None:
    make_model("bert").save_pretrained(tmp_path / "base")
    adapter = make_adapter(
        make_model("classifier"), tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS", bias="lora_only"
    )
    found = opened(tmp_path / "base", adapter)
    assert set(found.factors) == {f"encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1)}
    assert set(found.replaced) == {f"encoder.layer.{layer}.attention.self.query.bias" for layer in (0, 1)}
    assert set(found.added) == {"classifier.weight", "classifier.bias"}


def test_adapter_of_an_encoder_over_a_model_with_a_head(tmp_path: Path) -> None:
    make_model("classifier").save_pretrained(tmp_path / "base")
    adapter = make_adapter(make_model("bert"), tmp_path / "adapter", target_modules=["query", "pooler.dense"])
    found = opened(tmp_path / "base", adapter)
    assert set(found.factors) == {
        "bert.pooler.dense.weight", *(f"bert.encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1))
    }  # fmt: skip
    assert not found.added


def test_a_head_tied_through_the_adapter_counts_once(tmp_path: Path) -> None:
    base, adapter = pair(
        "llama", tmp_path, {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        tie_word_embeddings=True,
    )  # fmt: skip
    found = opened(base, adapter)
    assert set(found.factors) == {"model.embed_tokens.weight"} and not found.added


def test_what_tells_a_transposed_base(tmp_path: Path) -> None:
    for kind, expected in (("bert", False), ("gpt2", True), ("llama", None)):
        make_model(kind).save_pretrained(tmp_path / kind)
        assert inputs_first(read_tensors(tmp_path / kind)) is expected


def edited(folder: Path, **entries: Any) -> Path:
    """The adapter with other entries in its config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"use_dora": True}, "use_dora is set: DoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which changed the base"),
        ({"target_parameters": ["w"]}, "LoRA of bare parameters"),
        ({"trainable_token_indices": [1]}, "single retrained token"),
        ({"layer_replication": [[0, 1]]}, "replicated layers"),
        ({"r": 3}, "says rank 3 for encoder.layer.0.attention.self.query, its factors have 4"),
        ({"rank_pattern": {"(": 3}}, r"rank_pattern has '\('"),
        ({"rank_pattern": [3]}, "rank_pattern is no object"),
        ({"lora_alpha": "much"}, "give 'much' for encoder"),
        ({"alpha_pattern": {"query": float("inf")}}, "give 'inf' for encoder"),
        ({"peft_type": "LOHA"}, "kind LOHA is no LoRA"),
        ({"peft_type": "IA3"}, "kind IA3 is no LoRA"),
    ],
)
def test_refused_by_its_config(tmp_path: Path, entries: dict[str, Any], words: str) -> None:
    base, adapter = pair("bert", tmp_path, {"target_modules": ["query"]})
    with pytest.raises(CheckpointError, match=words):
        opened(base, edited(adapter, **entries))


def _without_b(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.encoder.layer.0.attention.self.query.lora_B.weight"]


def _integers(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        tensors[name] = tensors[name].to(torch.int8)


def _magnitudes(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.encoder.layer.0.attention.self.query.lora_magnitude_vector"] = torch.ones(16)


def _flat(tensors: dict[str, torch.Tensor]) -> None:
    name = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    tensors[name] = tensors[name].flatten()


def _uneven(tensors: dict[str, torch.Tensor]) -> None:
    name = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    tensors[name] = tensors[name][:3].clone()


def _nothing(tensors: dict[str, torch.Tensor]) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_b, "holds only A.weight of encoder.layer.0.attention.self.query, expected A and B"),
        (_integers, "is I8, expected one of F64"),
        (_magnitudes, "lora_magnitude_vector' belongs to no plain LoRA"),
        (_flat, r"are \[64\] and \[16, 4\], expected matrices"),
        (_uneven, r"are \[3, 16\] and \[16, 4\], expected \[r, in\]"),
        (_nothing, "holds no tensor"),
    ],
)
def test_refused_by_its_tensors(tmp_path: Path, damage: Callable[[dict[str, torch.Tensor]], None], words: str) -> None:
    base, adapter = pair("bert", tmp_path, {"target_modules": ["query"]})
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=words):
        opened(base, adapter)


def test_an_adapter_for_another_base_names_what_does_not_fit(tmp_path: Path) -> None:
    _, adapter = pair("bert", tmp_path, {"target_modules": ["query"], "modules_to_save": ["pooler"]})
    make_model("bert", hidden_size=32).save_pretrained(tmp_path / "wider")
    words = r"does not fit: encoder.layer.0.attention.self.query.weight is \[32, 32\], the factors make \[16, 16\]"
    with pytest.raises(CheckpointError, match=words):
        opened(tmp_path / "wider", adapter)
    make_model("bert", num_hidden_layers=1).save_pretrained(tmp_path / "shorter")
    with pytest.raises(CheckpointError, match=r"changes encoder.layer.1.attention.self.query, which the base does not"):
        opened(tmp_path / "shorter", adapter)
    make_model("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=r"and encoder.layer.1.attention.self.query|, which the base does not have"
    ):
        opened(tmp_path / "other", adapter)


def test_a_base_with_two_fitting_parts_is_refused(tmp_path: Path) -> None:
    _, adapter = pair("bert", tmp_path, {"target_modules": ["query"]})
    tensors = {
        f"{tower}.{name}": value
        for tower in ("left", "right")
        for name, value in make_model("bert").state_dict().items()
    }
    (tmp_path / "towers").mkdir()
    save_file(tensors, tmp_path / "towers" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"fits more than one part of the base \(left\., right\.\)"):
        opened(tmp_path / "towers", adapter)


def test_factors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base, adapter = pair("bert", tmp_path, {"target_modules": ["query"]})
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, file)
    one = opened(base, adapter).factors["encoder.layer.0.attention.self.query.weight"]
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        load(one)


def test_a_product_that_overflows_is_noticed() -> None:
    values = np.zeros(4, np.float32)
    assert not Delta(np.full((2, 1), 1e30), np.full((1, 2), 1e30), 1.0).add_to(values, 0)
