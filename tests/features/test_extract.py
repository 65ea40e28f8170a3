"""Features: plain hidden states pooled by hand, one pass for all truncations, computed once."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from regraft.checkpoint import Checkpoint, open_checkpoint
from regraft.errors import CheckpointError, NonFiniteError, StoreError
from regraft.features import Features, Joined, extract, extract_all, shared_passes
from regraft.features.extract import _shares
from regraft.store import Store

TEXTS = ["the cat saw a dog", "rain", "we heard a very old violin again and again", "snow and wind", "cow", "a " * 90]
LIMIT = 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every forward pass of a transformers model."""
    seen: list[int] = []
    call = PreTrainedModel.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "input_ids" in kwargs:
            seen.append(len(kwargs["input_ids"]))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "__call__", counted)
    return seen


def by_hand(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and first token of every layer, each text alone and without padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    mean, first = [], []
    for text in TEXTS:
        with torch.no_grad():
            encoded = tokenizer(text, truncation=True, max_length=LIMIT, return_tensors="pt")
            layers = torch.stack(model(**encoded, output_hidden_states=True).hidden_states)[:, 0]
        mean.append(layers.mean(1))
        first.append(layers[:, 0])
    return torch.stack(mean, 1).numpy(), torch.stack(first, 1).numpy()


def opened(folder: Path, fragment: str = "") -> Checkpoint:
    found = open_checkpoint(f"{folder}{fragment}")
    return found.renamed(f"{folder.name}{fragment}")


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_gpt2"])
def test_features_are_hidden_states_pooled_by_hand(fixture: str, request: pytest.FixtureRequest, store: Store) -> None:
    folder = request.getfixturevalue(fixture)
    found = extract(opened(folder), TEXTS, store=store)
    mean, first = by_hand(folder)
    assert found.by_layer.dtype == np.float32
    assert found.by_layer.shape == (opened(folder).num_layers + 1, len(TEXTS), 32)
    np.testing.assert_allclose(found.by_layer, mean, atol=1e-5)
    np.testing.assert_allclose(found.first, first, atol=1e-5)
    np.testing.assert_allclose(found.last, mean[-1], atol=1e-5)
    np.testing.assert_allclose(found.mean, mean.mean(0), atol=1e-5)
    assert np.array_equal(found.all, np.concatenate(list(found.by_layer), axis=1))


def test_features_of_a_tokenizer_that_pads_on_the_left(tiny_bert: Path, copy_of: Any, store: Store) -> None:
    folder = copy_of(tiny_bert)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == "left"
    found = extract(opened(folder), TEXTS[:3], store=store)
    batch = tokenizer(TEXTS[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**batch, output_hidden_states=True).hidden_states
    for row, mask in enumerate(batch["attention_mask"]):
        real = torch.stack(states)[:, row, mask.bool()].numpy()
        np.testing.assert_allclose(found.first[:, row], real[:, 0], atol=1e-5)
        np.testing.assert_allclose(found.by_layer[:, row], real.mean(1), atol=1e-5)


def test_the_order_of_the_texts_does_not_matter(tiny_bert: Path, store: Store) -> None:
    found = extract(opened(tiny_bert), TEXTS, store=store)
    turned = extract(opened(tiny_bert), TEXTS[::-1], store=store)
    np.testing.assert_allclose(turned.by_layer[:, ::-1], found.by_layer, atol=1e-5)


def test_features_are_computed_once(tiny_bert: Path, store: Store, passes: list[int]) -> None:
    first = extract(opened(tiny_bert), TEXTS, store=store)
    assert sum(passes) == len(TEXTS)
    assert first.seconds > 0
    again = extract(opened(tiny_bert), TEXTS, store=store)
    assert sum(passes) == len(TEXTS)
    assert again.seconds == 0
    assert np.array_equal(again.by_layer, first.by_layer)
    extract(opened(tiny_bert), TEXTS[:2], store=store)
    extract(opened(tiny_bert), TEXTS[:2], store=store, dtype=torch.bfloat16)
    assert sum(passes) == len(TEXTS) + 4


def test_another_model_of_the_same_weights_has_its_own_features(
    tiny_bert: Path, copy_of: Any, store: Store, passes: list[int]
) -> None:
    folder = copy_of(tiny_bert)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    one, other = (extract(opened(at), TEXTS, store=store) for at in (tiny_bert, folder))
    assert sum(passes) == 2 * len(TEXTS)
    assert not np.allclose(one.last, other.last, atol=1e-4)


def test_truncations_share_one_pass(tiny_bert: Path, tmp_path: Path, store: Store, passes: list[int]) -> None:
    zoo = [opened(tiny_bert, "#layers=2"), opened(tiny_bert), opened(tiny_bert, "#layers=1")]
    found = extract_all(zoo, TEXTS, store=store)
    assert list(found) == [one.name for one in zoo]
    assert [len(one.by_layer) - 1 for one in found.values()] == [2, 4, 1]
    assert sum(passes) == len(TEXTS) + 2 * 2 * 4  # the whole; each truncation and the whole again on four texts
    passes.clear()
    again = extract_all(zoo, TEXTS, store=store)
    assert passes == []
    for checkpoint in zoo:
        alone = extract(checkpoint, TEXTS, store=Store(tmp_path / checkpoint.name.replace("#", "-")))
        shared = found[checkpoint.name]
        assert shared.by_layer.shape == alone.by_layer.shape
        np.testing.assert_allclose(shared.by_layer, alone.by_layer, atol=1e-5)
        np.testing.assert_allclose(shared.last, alone.last, atol=1e-5)
        np.testing.assert_allclose(shared.mean, alone.mean, atol=1e-5)
        assert np.array_equal(again[checkpoint.name].all, shared.all)


def test_a_decoder_with_a_final_norm_shares_no_pass(tiny_gpt2: Path, tmp_path: Path, store: Store) -> None:
    whole, short = opened(tiny_gpt2), opened(tiny_gpt2, "#layers=2")
    assert not _shares(short, whole, TEXTS, {"store": store})
    found = extract_all([whole, short], TEXTS, store=store)
    alone = extract(short, TEXTS, store=Store(tmp_path / "other"))
    assert np.array_equal(found[short.name].last, alone.last)
    assert not np.allclose(found[short.name].last, found[whole.name].by_layer[2], atol=1e-3)


def test_what_shares_a_pass(tiny_bert: Path, tiny_gpt2: Path, tiny_adapter: Path) -> None:
    fragments = ["#layers=1", "", "#random=0", "#layers=3", f"+{tiny_adapter}"]
    zoo = [opened(tiny_gpt2), *(opened(tiny_bert, fragment) for fragment in fragments)]
    groups = [[one.name for one in group] for group in shared_passes(zoo).values()]
    name = tiny_bert.name
    assert groups == [
        [tiny_gpt2.name], [name, f"{name}#layers=3", f"{name}#layers=1"], [f"{name}#random=0"],
        [f"{name}+{tiny_adapter}"],
    ]  # fmt: skip


@pytest.fixture
def cut_to_two(tiny_bert: Path, copy_of: Any) -> Path:
    """The first two layers in a folder of their own, as a stock model writes them."""
    folder: Path = copy_of(tiny_bert, "cut")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if not re.search(r"layer\.[23]\.", name)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_folders_of_equal_tensors_share_one_pass(
    cut_to_two: Path, tiny_bert: Path, tmp_path: Path, store: Store, passes: list[int]
) -> None:
    zoo = [opened(cut_to_two), opened(tiny_bert), opened(cut_to_two, "#layers=1")]
    assert [[one.num_layers for one in group] for group in shared_passes(zoo).values()] == [[4, 2, 1]]
    found = extract_all(zoo, TEXTS, store=store)
    assert sum(passes) == len(TEXTS) + 2 * 2 * 4
    alone = extract(zoo[0], TEXTS, store=Store(tmp_path / "alone"))
    np.testing.assert_allclose(found[zoo[0].name].by_layer, alone.by_layer, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    ["encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight", "layer_norm_eps", "tokenizer"],
)
def test_folders_that_differ_share_no_pass(change: str, cut_to_two: Path, tiny_bert: Path) -> None:
    if change == "tokenizer":
        path = cut_to_two / "tokenizer.json"
        path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false').replace(
            '"lowercase":true', '"lowercase":false'))  # fmt: skip
    elif change == "layer_norm_eps":
        config = json.loads((cut_to_two / "config.json").read_text())
        (cut_to_two / "config.json").write_text(json.dumps(config | {change: 1e-6}))
    else:
        tensors = load_file(cut_to_two / "model.safetensors")
        tensors[change][-1, -1] += 1.0
        save_file(tensors, cut_to_two / "model.safetensors", metadata={"format": "pt"})
    assert len(shared_passes([opened(cut_to_two), opened(tiny_bert)])) == 2


def test_a_head_does_not_keep_folders_from_sharing(cut_to_two: Path, tiny_bert: Path) -> None:
    tensors = load_file(cut_to_two / "model.safetensors")
    for name in tensors:
        if "pooler" in name:
            tensors[name] += 1.0
    save_file(tensors, cut_to_two / "model.safetensors", metadata={"format": "pt"})
    assert len(shared_passes([opened(cut_to_two), opened(tiny_bert)])) == 1


@pytest.fixture
def damaged(tiny_bert: Path, copy_of: Any) -> Path:
    folder: Path = copy_of(tiny_bert, "damaged")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.2.output.dense.bias"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_is_not_finite_is_refused_and_not_kept(damaged: Path, store: Store) -> None:
    with pytest.raises(NonFiniteError, match=r"damaged.*NaN or infinite features"):
        extract(opened(damaged), TEXTS, store=store)
    assert store.entries() == []
    assert not list(store.root.rglob("*.npy"))


def test_one_that_fails_does_not_stop_the_others(damaged: Path, tiny_bert: Path, store: Store) -> None:
    failed: dict[str, Exception] = {}
    zoo = [opened(damaged), opened(tiny_bert), opened(damaged, "#layers=1")]
    found = extract_all(zoo, TEXTS, failed=failed, store=store)
    assert list(found) == [tiny_bert.name, f"{damaged.name}#layers=1"]  # its first layer is sound
    assert list(failed) == [damaged.name]
    with pytest.raises(CheckpointError):
        extract_all(zoo, TEXTS, store=store)


def test_features_outlive_their_eviction(tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "small", limit=1)
    found = extract_all([opened(tiny_bert), opened(tiny_gpt2), opened(tiny_bert, "#layers=1")], TEXTS, store=store)
    store.collect(limit=0)
    assert store.entries() == []
    for one in found.values():
        assert np.isfinite(one.all).all()
        assert np.isfinite(one.first).all()


def test_a_full_disk_is_an_error_in_words(tiny_bert: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(StoreError, match="The disk is full"):
        extract(opened(tiny_bert), TEXTS, store=store)
    assert store.entries() == []


def test_rows_and_joined_are_views_of_the_same_numbers(tiny_bert: Path, store: Store) -> None:
    found: Features = extract(opened(tiny_bert), TEXTS, store=store)
    chosen = np.array([4, 0, 2])
    rows = found.rows(chosen)
    assert np.array_equal(rows.by_layer, found.by_layer[:, chosen])
    assert np.array_equal(rows.last, found.last[chosen])
    np.testing.assert_allclose(rows.mean, found.mean[chosen], atol=1e-6)
    assert np.array_equal(rows.all, found.all[chosen])
    joined = Joined(rows, found)
    assert np.array_equal(joined.last, np.concatenate([rows.last, found.last]))
    assert np.array_equal(joined.mean, np.concatenate([rows.mean, found.mean]))
