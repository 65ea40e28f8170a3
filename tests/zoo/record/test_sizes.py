"""Sizes of configs are those that transformers reads; parameters are those that its models count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

from regraft.zoo.record import read_record

# Three layers of 32 with four heads, in each family's own words, and its name for the feed-forward size.
COMMON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 99}
FFN = {"intermediate_size": 48}
FAMILIES = {
    "Bert": (COMMON | FFN, "intermediate_size"),
    "Roberta": (COMMON | FFN, "intermediate_size"),
    "XLMRoberta": (COMMON | FFN, "intermediate_size"),
    "Electra": (COMMON | FFN | {"embedding_size": 32}, "intermediate_size"),
    "Albert": (COMMON | FFN | {"embedding_size": 16}, "intermediate_size"),
    "DebertaV2": (COMMON | FFN, "intermediate_size"),
    "MPNet": (COMMON | FFN, "intermediate_size"),
    "DistilBert": ({"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "vocab_size": 99}, "hidden_dim"),
    "T5": ({"d_model": 32, "num_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 48, "vocab_size": 99}, "d_ff"),
    "Bart": ({"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4, "vocab_size": 99,
              "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}, "encoder_ffn_dim"),
    "GPT2": ({"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99}, None),
    "GPTNeo": ({"hidden_size": 32, "num_layers": 3, "num_heads": 4,
                "attention_types": [[["global"], 3]], "vocab_size": 99}, None),
    "GPTNeoX": (COMMON | FFN, "intermediate_size"),
    "Bloom": ({"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99}, None),
    "OPT": (COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32}, "ffn_dim"),
    "Llama": (COMMON | FFN | {"num_key_value_heads": 2}, "intermediate_size"),
    "Mistral": (COMMON | FFN | {"num_key_value_heads": 2}, "intermediate_size"),
    "Qwen2": (COMMON | FFN | {"num_key_value_heads": 2}, "intermediate_size"),
    "Qwen3": (COMMON | FFN | {"num_key_value_heads": 2, "head_dim": 8}, "intermediate_size"),
    "Gemma": (COMMON | FFN | {"num_key_value_heads": 1, "head_dim": 8}, "intermediate_size"),
    "Phi": (COMMON | FFN | {"num_key_value_heads": 2}, "intermediate_size"),
    "ViT": ({key: COMMON[key] for key in COMMON if key != "vocab_size"} | FFN | {"image_size": 16, "patch_size": 8},
            "intermediate_size"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_counts_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    settings, ffn = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**settings))
    model.save_pretrained(tmp_path)
    record, config = read_record(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert record.kind == "checkpoint"
    assert record.model_type == config.model_type
    assert record.architectures == (f"{family}Model",)
    assert (record.layers, record.hidden_size, record.heads) == (
        config.num_hidden_layers, config.hidden_size, config.num_attention_heads,
    )  # fmt: skip
    assert record.vocabulary_size == getattr(config, "vocab_size", None)
    assert record.ffn_size == (128 if ffn is None else getattr(config, ffn))
    if "num_key_value_heads" in settings:
        assert record.kv_heads == config.num_key_value_heads
    assert record.parameters == model.num_parameters()
    stacks = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    inside = {
        id(p): p.numel() for name, p in model.named_parameters() if any(name.startswith(f"{one}.") for one in stacks)
    }
    if family != "DebertaV2":  # relative embeddings lie beside the layers, in no list
        assert record.encoder_parameters == sum(inside.values())
    assert record.weight_bytes == sum(record.dtypes.values())
    assert not [risk for risk in record.risks if risk.severity == "danger"]


def test_usable_positions_of_a_model_that_counts_from_its_padding(tmp_path: Path) -> None:
    transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1).save_pretrained(tmp_path)
    assert read_record(tmp_path).max_length == 512


@pytest.mark.parametrize("value", ["1e400", "-3", "0", '"12"', "true", "99999999999999999999999999", "[12]"])
def test_absurd_sizes_are_left_out(tmp_path: Path, value: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "bert", "num_hidden_layers": {value}}}')
    record = read_record(tmp_path)
    assert record.kind == "checkpoint"
    assert record.layers is None


def test_the_text_tower_of_a_model_with_several(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "x", "vision_config": {"hidden_size": 8}, "text_config": {"hidden_size": 16, "num_hidden_layers": 2}}'
    )
    record = read_record(tmp_path)
    assert (record.hidden_size, record.layers) == (16, 2)
