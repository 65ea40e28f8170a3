"""One round trip of each operation over a tiny model of every architecture: written, read by the stock class, and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from regraft import anatomy
from regraft.anatomy import Opened, Settings, open_bound
from regraft.anatomy.tiny import load_exactly, outputs, random_checkpoint
from regraft.checkpoint.quiet import quiet
from regraft.errors import ResizeError
from regraft.resize.certificate.same import difference
from regraft.resize.certificate.steps import asked, cut_step, grow_step, store_step
from regraft.resize.cuts import cut
from regraft.resize.formats.half import to_half
from regraft.resize.formats.int8 import int8_rounded, load_int8, pack_int8
from regraft.resize.formats.int8_module import Int8Linear
from regraft.resize.growth import coalesce, grow
from regraft.resize.linear import linear_layers
from regraft.resize.lowrank.engine import load_low_rank, low_rank, pack_low_rank
from regraft.resize.lowrank.modules import LowRankLinear
from regraft.resize.sparsity.engine import sparsify

TEXT = {"vocab_size": 23, "max_position_embeddings": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
GROUPED = TEXT | {"num_key_value_heads": 2, "head_dim": 4}
IMAGE = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 12, "num_labels": 3}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", TEXT | {"num_labels": 3}),
    "roberta": ("RobertaForMaskedLM", TEXT | {"pad_token_id": 1, "bos_token_id": 0}),
    "distilbert": ("DistilBertForMaskedLM", {"vocab_size": 23, "max_position_embeddings": 17, "dim": 16, "n_layers": 2,
                                             "n_heads": 4, "hidden_dim": 12}),
    "electra": ("ElectraForPreTraining", TEXT | {"embedding_size": 8}),
    "vit": ("ViTForImageClassification", IMAGE),
    "deit": ("DeiTForImageClassificationWithTeacher", IMAGE),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 23, "n_positions": 17, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 12,
                                 "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXT | {"hidden_size": 32, "rotary_pct": 0.5}),
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 3}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", GROUPED | {"sliding_window": 3}),
    "t5": ("T5ForConditionalGeneration", {"vocab_size": 23, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_layers": 2,
                                          "num_heads": 4, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0}),
    "opt": ("OPTForCausalLM", TEXT | {"ffn_dim": 12, "word_embed_proj_dim": 8}),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", sorted(MODELS))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Opened]:
    """A function that gives a model by its architecture, every parameter random, in float64."""
    made: dict[str, Opened] = {}

    def get(name: str) -> Opened:
        if name not in made:
            kind, config = MODELS[name]
            folder = tmp_path_factory.mktemp("round") / name
            with quiet():
                random_checkpoint(Settings({"model_type": name, "architectures": [kind], **config}, name), folder)
            made[name] = open_bound(str(folder))
        return made[name]

    return get


def computed(model: Any) -> dict[str, torch.Tensor]:
    return outputs(model)


def stock(folder: Path) -> Any:
    """The folder in its stock class, with no key missing, unexpected or mismatched."""
    return load_exactly(folder, open_bound(str(folder)).binding.settings)


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[key] - two[key]).abs().max() / one[key].abs().max()) for key in one)


def test_every_architecture_is_here() -> None:
    assert set(MODELS) == set(anatomy.known())


def layers_of(opened: Opened) -> list[str]:
    return sorted(axis for axis in opened.binding.anatomy.named_units() & opened.binding.carried)


@EVERY
def test_growth(name: str, tiny: Callable[[str], Opened], tmp_path: Path) -> None:
    opened = tiny(name)
    reference, depth = str(opened.folder), dict.fromkeys(layers_of(opened), 3)
    before = computed(stock(opened.folder))
    for number, sizes in enumerate(({"ffn": 17}, {"hidden": 2 * opened.binding.sizes["hidden"]}, depth)):
        grown = grow(reference, "lemon", sizes, tmp_path / f"lemon-{number}")
        assert grown.lossless or grown.statement.startswith("Nearly lossless"), grown.statement
        after = computed(stock(grown.folder))
        assert apart(before, after) < (1e-9 if grown.lossless else 0.05)
    assert not grow(reference, "aki", {"ffn": 17}, tmp_path / "aki").lossless
    stock(tmp_path / "aki")
    grow(reference, "decoalesce", {"ffn": 24}, tmp_path / "wide")
    coalesce(str(tmp_path / "wide"), {"ffn": 12}, tmp_path / "back")
    assert apart(before, computed(stock(tmp_path / "back"))) < 1e-9
    if name == "gemma2":  # layers of different kinds have no sum
        with pytest.raises(ResizeError, match="different kinds"):
            grow(reference, "learngene", depth, tmp_path / "line")
    else:
        grow(reference, "learngene", depth, tmp_path / "line")
        stock(tmp_path / "line")


@EVERY
def test_sparsity(name: str, tiny: Callable[[str], Opened], tmp_path: Path) -> None:
    opened = tiny(name)
    found = sparsify(opened, "sparse_magnitude", "2:4", tmp_path / "out")
    model = stock(tmp_path / "out")
    zeros = sum(int((one == 0).sum()) for one in model.parameters())
    assert [one.name for one in found] == list(linear_layers(opened))
    assert zeros == sum(one.zeros for one in found) == sum(one.size for one in found) // 2
    assert apart(computed(stock(opened.folder)), computed(model)) > 1e-3


@EVERY
def test_low_rank(name: str, tiny: Callable[[str], Opened], tmp_path: Path) -> None:
    opened = tiny(name)
    folded = low_rank(opened, "svd", tmp_path / "folded", rank=3)
    packed = pack_low_rank(opened, "svd", tmp_path / "packed", rank=3)
    assert all(one.saves for one in folded)
    assert len(packed) == len(folded)
    model = load_low_rank(tmp_path / "packed")
    assert sum(isinstance(one, LowRankLinear) for one in model.modules()) == len(folded)
    first = computed(stock(tmp_path / "folded"))
    assert apart(first, computed(model)) < 1e-9
    assert apart(computed(stock(opened.folder)), first) > 1e-3


@EVERY
def test_int8(name: str, tiny: Callable[[str], Opened], tmp_path: Path) -> None:
    opened = tiny(name)
    done = int8_rounded(opened, tmp_path / "rounded")
    pack_int8(opened, tmp_path / "packed")
    model = load_int8(tmp_path / "packed")
    assert sum(isinstance(one, Int8Linear) for one in model.modules()) == len(done) == len(linear_layers(opened))
    assert not any(isinstance(one, nn.Linear) and one.weight.dtype == torch.int8 for one in model.modules())
    first = computed(stock(tmp_path / "rounded"))
    assert apart(first, computed(model)) < 1e-9
    assert 0 < apart(computed(stock(opened.folder)), first) < 0.2


@EVERY
def test_sixteen_bits(name: str, tiny: Callable[[str], Opened], tmp_path: Path) -> None:
    opened = tiny(name)
    to_half(opened, "bf16", tmp_path / "out")
    model, whole = stock(tmp_path / "out"), stock(opened.folder)
    for key, one in whole.named_parameters():
        assert torch.equal(model.get_parameter(key), one.float().bfloat16().double()), key
    assert 0 < apart(computed(whole), computed(model)) < 0.3
    assert np.isfinite(apart(computed(whole), computed(model)))


@EVERY
def test_sixteen_bits_are_held_as_exactly_as_others(name: str, tiny: Callable[[str], Opened], tmp_path: Path) -> None:
    """Stored as bfloat16, cut in it, and grown in it: nothing is allowed for rounding."""
    whole = tiny(name)
    done = to_half(whole, "bf16", tmp_path / "half")
    half = open_bound(str(tmp_path / "half"))
    found = difference(whole, half, asked([store_step("bf16", done)]))
    assert found.within and found.tolerance == 1e-10 and found.rounding is not None and found.rounding > 1e-6
    made = cut(half, {"ffn": 7}, tmp_path / "small", criterion="magnitude")
    small = open_bound(str(tmp_path / "small"))
    found = difference(half, small, asked([cut_step(half, made.kept, made.plan, {})]))
    assert found.within and found.tolerance == 1e-10 and found.rounding is None
    grown = grow(str(half.folder), "lemon", {"ffn": 17}, tmp_path / "large", check=False)
    found = difference(half, open_bound(str(tmp_path / "large")), asked([grow_step(grown, 0)]))
    assert found.within and found.tolerance == 1e-10 and found.rounding is not None and found.rounding > 1e-6
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    key = next(one for one in sorted(tensors) if tensors[one].ndim == 2 and 7 in tensors[one].shape)
    tensors[key][0] *= 1 + 2.0**-6
    save_file(tensors, tmp_path / "small" / "model.safetensors", metadata={"format": "pt"})
    assert not difference(
        half, open_bound(str(tmp_path / "small")), asked([cut_step(half, made.kept, made.plan, {})])
    ).within
