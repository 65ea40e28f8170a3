"""Loading: what comes out is the stored function, and nothing of it is left to chance."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoTokenizer,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    ModernBertConfig,
    ModernBertModel,
)

from regraft.checkpoint import load_encoder, load_sequence_classifier, load_tokenizer, max_length, open_checkpoint
from regraft.checkpoint.random_weights import BLOCK, normal
from regraft.errors import CheckpointError

Copy = Callable[..., Path]
TEXTS = ["the cat saw a dog", "rain and snow again", "we heard a very old violin"]


def states(model: Any, folder: Path, texts: list[str] = TEXTS) -> list[torch.Tensor]:
    """All hidden states of a model, the last after any final norm."""
    tokenizer = load_tokenizer(open_checkpoint(str(folder)))
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**batch, output_hidden_states=True)
    return [*found.hidden_states, found.last_hidden_state]


def same(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_the_whole_model_is_the_stock_model(tiny_bert: Path, tiny_gpt2: Path) -> None:
    for folder in (tiny_bert, tiny_gpt2):
        model = load_encoder(open_checkpoint(str(folder)))
        assert not model.training
        stock = AutoModel.from_pretrained(folder)
        for one, other in zip(states(model, folder), states(stock, folder), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_truncation_equals_the_hidden_state_of_the_full_model(layers: int, tiny_bert: Path) -> None:
    full = states(AutoModel.from_pretrained(tiny_bert), tiny_bert)
    model = load_encoder(open_checkpoint(f"{tiny_bert}#layers={layers}"))
    assert model.config.num_hidden_layers == layers
    same(states(model, tiny_bert)[-1], full[layers])


def test_truncation_of_a_decoder_keeps_the_final_norm(tiny_gpt2: Path) -> None:
    stock = AutoModel.from_pretrained(tiny_gpt2)
    model = load_encoder(open_checkpoint(f"{tiny_gpt2}#layers=2"))
    assert len(model.h) == 2
    same(states(model, tiny_gpt2)[-1], stock.ln_f(states(stock, tiny_gpt2)[2]))


def small(**settings: Any) -> dict[str, Any]:
    return {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "pad_token_id": 0,
            "max_position_embeddings": 64} | settings  # fmt: skip


@pytest.mark.parametrize("kind", ["distilbert", "modernbert", "albert"])
def test_truncation_of_other_architectures(kind: str, make_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    torch.manual_seed(0)
    if kind == "distilbert":
        config = DistilBertConfig(vocab_size=size, dim=32, n_layers=4, n_heads=2, hidden_dim=64, pad_token_id=0)
        model = DistilBertModel(config)
    elif kind == "albert":
        model = AlbertModel(AlbertConfig(vocab_size=size, embedding_size=16, num_hidden_layers=4, **small()))
    else:
        special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
        model = ModernBertModel(ModernBertConfig(vocab_size=size, num_hidden_layers=4, **small(**special)))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    full = states(AutoModel.from_pretrained(tmp_path), tmp_path)
    found = open_checkpoint(f"{tmp_path}#layers=3")
    cut = load_encoder(found)
    expected = full[3] if kind != "modernbert" else model.eval().final_norm(full[3])
    same(states(cut, tmp_path)[-1], expected)
    assert found.num_layers == 3
    assert found.encoder_parameters > 0
    assert found.parameters == sum(parameter.numel() for parameter in cut.parameters())


def test_a_masked_language_model_loses_only_its_head(tmp_path: Path, make_tokenizer: Any, bert_config: Any) -> None:
    model = BertForMaskedLM(bert_config())
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    found = open_checkpoint(str(tmp_path))
    assert "bert.encoder.layer.3.output.dense.weight" in found.tensors
    assert found.encoder_parameters == open_checkpoint(f"{tmp_path}#random=0").encoder_parameters
    encoder = load_encoder(found)
    assert torch.equal(states(encoder, tmp_path)[-1], states(model.bert, tmp_path)[-1])
    again = load_encoder(found)  # the pooler that the file lacks is drawn the same every time
    assert all(torch.equal(one, other) for one, other in zip(encoder.parameters(), again.parameters(), strict=True))
    assert encoder.pooler.dense.weight.std() > 0.01


def test_random_weights_depend_on_seed_and_name_alone(tiny_bert: Path) -> None:
    first = load_encoder(open_checkpoint(f"{tiny_bert}#random=0"))
    torch.manual_seed(99)
    again = load_encoder(open_checkpoint(f"{tiny_bert}#random=0"))
    cut = dict(load_encoder(open_checkpoint(f"{tiny_bert}#layers=2&random=0")).named_parameters())
    other = dict(load_encoder(open_checkpoint(f"{tiny_bert}#random=1")).named_parameters())
    for (name, one), two in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
        assert name not in cut or torch.equal(one, cut[name])
        if one.dim() == 2:
            assert not torch.equal(one, other[name])
            if "token_type" not in name:
                assert one.std().item() == pytest.approx(0.02, rel=0.1)
        else:
            assert torch.equal(one, torch.full_like(one, float("LayerNorm.weight" in name)))
    assert not first.embeddings.word_embeddings.weight[0].any(), "the padding token"


def test_random_weights_are_these() -> None:
    """Golden values: the same on every machine and every version of numpy and torch."""
    found = normal(3, 0, "embeddings.word_embeddings.weight")
    np.testing.assert_allclose(found, [-0.2773423492908478, 1.32991623878479, -0.505850076675415], rtol=1e-6)


def test_normal_is_standard_normal_across_blocks() -> None:
    values = normal(BLOCK + 1000, 3, "x").astype(np.float64)
    assert abs(values.mean()) < 0.005
    assert values.std() == pytest.approx(1, rel=0.005)
    assert (np.abs(values) < 1).mean() == pytest.approx(0.6827, abs=0.003)
    assert np.array_equal(normal(BLOCK, 3, "x"), values[:BLOCK].astype(np.float32))


@pytest.mark.parametrize("kind", ["Lora", "LoHa", "LoKr", "IA3"])
def test_a_merged_adapter_computes_what_peft_computes(
    kind: str, tiny_bert: Path, adapter_maker: Any, tmp_path: Path
) -> None:
    import peft

    folder = adapter_maker(tiny_bert, tmp_path / "adapter", kind)
    merged = load_encoder(open_checkpoint(f"{tiny_bert}+{folder}"))
    assert not any("lora" in name or "hada" in name for name, _ in merged.named_parameters())
    stock = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), folder)
    expected = states(stock, tiny_bert)[-1]
    torch.testing.assert_close(states(merged, tiny_bert)[-1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(states(AutoModel.from_pretrained(tiny_bert), tiny_bert)[-1], expected, atol=1e-3)


def test_an_adapter_over_a_truncated_base(tiny_bert: Path, tiny_adapter: Path) -> None:
    whole = states(load_encoder(open_checkpoint(f"{tiny_bert}+{tiny_adapter}")), tiny_bert)
    cut = states(load_encoder(open_checkpoint(f"{tiny_bert}+{tiny_adapter}#layers=2")), tiny_bert)
    same(cut[-1], whole[2])


def test_an_adapter_of_a_model_with_a_head(tiny_classifier: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(tiny_classifier)
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    stock = peft.get_peft_model(base, settings)
    stock.save_pretrained(tmp_path / "adapter")
    found = open_checkpoint(f"{tiny_classifier}+{tmp_path / 'adapter'}")
    assert found.labels is None
    merged = load_encoder(found)
    expected = states(stock.base_model.model.bert, tiny_classifier)[-1]
    torch.testing.assert_close(states(merged, tiny_classifier)[-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"name": "elsewhere"}, {"shape": (4, 31)}])
def test_an_adapter_that_does_not_fit(
    change: dict[str, Any], tiny_bert: Path, tiny_adapter: Path, copy_of: Copy
) -> None:
    folder = copy_of(tiny_adapter)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    moved = tensors.pop(name)
    tensors[name.replace("query", change.get("name", "query"))] = torch.zeros(change.get("shape", moved.shape))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_encoder(open_checkpoint(f"{tiny_bert}+{folder}"))
    assert str(folder) in caught.value.problem
    assert "Use it over its own base" in caught.value.remedy


def test_a_classifier_with_its_own_head(tiny_classifier: Path, tiny_bert: Path) -> None:
    found = open_checkpoint(str(tiny_classifier))
    batch = load_tokenizer(found)(TEXTS, padding=True, return_tensors="pt")
    model = load_sequence_classifier(found)
    assert model(**batch).logits.shape == (3, 3)
    assert tuple(model.config.id2label.values()) == found.labels
    with pytest.raises(CheckpointError, match="has no sequence classification head"):
        load_sequence_classifier(open_checkpoint(str(tiny_bert)))


def test_a_decoder_with_a_head_finds_the_last_token(make_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("gpt2")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=3)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = open_checkpoint(str(tmp_path))
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    model, padded = load_sequence_classifier(found), load_tokenizer(found)
    together = model(**padded(TEXTS, padding=True, return_tensors="pt")).logits
    for row, text in enumerate(TEXTS):
        same(together[row], model(**padded([text], return_tensors="pt")).logits[0])


def without(folder: Path, *parts: str) -> Path:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_missing_weights_are_not_replaced_by_random_ones(tiny_bert: Path, tiny_classifier: Path, copy_of: Copy) -> None:
    folder = without(copy_of(tiny_bert), "layer.1.attention.self.query.weight")
    with pytest.raises(CheckpointError, match=r"lack encoder.layer.1.attention.self.query.weight") as caught:
        load_encoder(open_checkpoint(str(folder)))
    assert str(folder) in caught.value.problem
    assert caught.value.remedy
    folder = without(copy_of(tiny_classifier, "headless"), "classifier")
    with pytest.raises(CheckpointError, match=r"lack classifier.bias, classifier.weight"):
        load_sequence_classifier(open_checkpoint(str(folder)))


def test_weights_that_do_not_fit_the_config(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(CheckpointError) as caught:
        load_encoder(open_checkpoint(str(folder)))
    assert str(folder) in caught.value.problem
    assert caught.value.remedy


def test_weights_that_transformers_would_not_use(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.attention.self.distance_embedding.weight"] = torch.zeros(127, 16)
    tensors["encoder.layer.0.attn.masked_bias"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"distance_embedding.weight, which the installed transformers"):
        load_encoder(open_checkpoint(str(folder)))


def test_loading_is_silent(
    tiny_bert: Path, copy_of: Copy, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = without(copy_of(tiny_bert), "pooler")
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_checkpoint(str(folder))
        load_encoder(found)
        load_tokenizer(found)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_half_precision(tiny_bert: Path) -> None:
    for reference in (str(tiny_bert), f"{tiny_bert}#random=0"):
        model = load_encoder(open_checkpoint(reference), dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_tokenizers(tiny_bert: Path, tiny_gpt2: Path) -> None:
    found = open_checkpoint(str(tiny_bert))
    assert load_tokenizer(found)(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(tiny_bert)(TEXTS)["input_ids"]
    assert max_length(found) == 64
    decoder = load_tokenizer(open_checkpoint(str(tiny_gpt2)))
    assert decoder.pad_token == decoder.eos_token == "[SEP]"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tokenizers_that_cannot_be_used(tiny_bert: Path, tiny_gpt2: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_gpt2, "no-padding")
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(CheckpointError, match="neither a padding nor an end-of-text token") as caught:
        load_tokenizer(open_checkpoint(str(folder)))
    assert str(folder) in caught.value.problem
    assert "pad_token" in caught.value.remedy

    folder = copy_of(tiny_bert, "damaged")
    edit(folder / "tokenizer.json", model={"type": "nonsense"})
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_tokenizer(open_checkpoint(str(folder)))
    assert str(folder) in caught.value.problem
    assert "save_pretrained" in caught.value.remedy

    folder = copy_of(tiny_bert, "too-many")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{number}" for number in range(5)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"has \d+ tokens, the model \d+") as caught:
        load_tokenizer(open_checkpoint(str(folder)))
    assert caught.value.remedy


def test_a_config_of_other_sizes_is_refused_by_tensor(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert, "other-sizes")
    edit(folder / "config.json", vocab_size=999)
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight do not fit config\.json") as caught:
        load_encoder(open_checkpoint(str(folder)))
    assert "belongs to the weights" in caught.value.remedy
    folder = copy_of(tiny_bert, "no-such-activation")
    edit(folder / "config.json", hidden_act="nonsense")
    with pytest.raises(CheckpointError, match="KeyError: 'nonsense'"):
        load_encoder(open_checkpoint(str(folder)))
