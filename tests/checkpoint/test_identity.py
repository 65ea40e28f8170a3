"""Identity: equal for the same function whatever the files, different for different ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from regraft.checkpoint import Checkpoint, identity, open_checkpoint

Copy = Callable[..., Path]


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def ids(reference: Path | str) -> tuple[str, str]:
    found = open_checkpoint(str(reference))
    return found.weights_id, found.checkpoint_id


def reshard(folder: Path, parts: int) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{number % parts}.safetensors" for number, name in enumerate(reversed(list(tensors)))}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_layout_and_place_do_not_matter(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert, "another-name")
    assert ids(folder) == ids(tiny_bert)
    reshard(folder, 3)
    assert ids(folder) == ids(tiny_bert)


def test_what_changes_the_function_changes_the_id(tiny_bert: Path, copy_of: Copy) -> None:
    weights, checkpoint = ids(tiny_bert)
    folder = copy_of(tiny_bert)
    for changes in ({"num_attention_heads": 4}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-5}):
        original = (folder / "config.json").read_text()
        edit(folder / "config.json", **changes)
        assert ids(folder)[0] == weights
        assert ids(folder)[1] != checkpoint
        (folder / "config.json").write_text(original)
    assert ids(folder) == (weights, checkpoint)


def test_what_does_not_change_the_function_does_not(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    edit(folder / "config.json", _name_or_path="elsewhere", transformers_version="4.0.0", dtype="float16", use_cache=False,
         architectures=["BertForMaskedLM"], hidden_dropout_prob=...)  # fmt: skip
    edit(folder / "tokenizer_config.json", name_or_path="elsewhere", is_local=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))
    (folder / "README.md").write_text("another card")
    assert ids(folder) == ids(tiny_bert)


def test_tokens_and_length_are_part_of_the_function(tiny_bert: Path, copy_of: Copy) -> None:
    seen = {ids(tiny_bert)[1]}
    for number, (name, changes) in enumerate([
        ("tokenizer_config.json", {"padding_side": "left"}),
        ("tokenizer_config.json", {"model_max_length": 32}),
        ("sentence_bert_config.json", {"max_seq_length": 48}),
        ("tokenizer.json", {"normalizer": None}),
    ]):  # fmt: skip
        folder = copy_of(tiny_bert, f"copy-{number}")
        (folder / name).touch()
        (folder / name).write_text((folder / name).read_text() or "{}")
        edit(folder / name, **changes)
        assert ids(folder)[0] == ids(tiny_bert)[0]
        seen.add(ids(folder)[1])
    assert len(seen) == 5


def test_one_bit_of_the_weights_counts(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-4] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    assert ids(folder)[0] != ids(tiny_bert)[0]


def test_fragments_and_adapters(tiny_bert: Path, tiny_adapter: Path) -> None:
    assert ids(f"{tiny_bert}#layers=4") == ids(tiny_bert)
    endings = ("", "#layers=3", "#random=0", "#random=1", "#layers=3&random=0", f"+{tiny_adapter}")
    references = [f"{tiny_bert}{ending}" for ending in (*endings, f"+{tiny_adapter}#layers=3")]
    assert len({ids(reference)[0] for reference in references}) == len(references)
    assert len({ids(reference)[1] for reference in references}) == len(references)


def test_an_adapter_counts_by_its_content(tiny_bert: Path, tiny_adapter: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_adapter)
    edit(folder / "adapter_config.json", base_model_name_or_path="elsewhere", target_modules=["value", "query"])
    assert ids(f"{tiny_bert}+{folder}") == ids(f"{tiny_bert}+{tiny_adapter}")
    edit(folder / "adapter_config.json", lora_alpha=99)
    assert ids(f"{tiny_bert}+{folder}")[0] != ids(f"{tiny_bert}+{tiny_adapter}")[0]


def test_a_truncated_folder_equals_a_truncating_reference(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if "layer.2." not in name and "layer.3." not in name}
    save_file(kept, folder / "model.safetensors")
    edit(folder / "config.json", num_hidden_layers=2)
    assert ids(folder) == ids(f"{tiny_bert}#layers=2")


def test_file_id_reads_no_weights(tiny_bert: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(tiny_bert)
    found = open_checkpoint(str(folder))
    monkeypatch.setattr(identity, "weights_id", lambda tensors: pytest.fail("weights were read"))
    before = found.file_id
    assert before == open_checkpoint(str(folder)).file_id
    assert before != open_checkpoint(f"{folder}#layers=2").file_id
    (folder / "model.safetensors").touch()
    assert found.file_id != before


def test_hashes_are_computed_once_a_file(tiny_bert: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(tiny_bert)
    reads = []
    original = identity.blocks
    monkeypatch.setattr(identity, "blocks", lambda *inputs: reads.append(inputs) or original(*inputs))
    whole: Checkpoint = open_checkpoint(str(folder))
    assert whole.weights_id != open_checkpoint(f"{folder}#layers=2").weights_id
    assert len(reads) == len(whole.tensors)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(1, 7), max_size=60), size=st.sampled_from([1, 2, 4, 8]))
def test_whole_items_keeps_every_byte(data: bytes, cuts: list[int], size: int) -> None:
    data = data[: len(data) - len(data) % size]
    parts, start = [], 0
    for cut in cuts:
        parts.append(memoryview(data[start : start + cut]))
        start += cut
    parts.append(memoryview(data[start:]))
    found = [bytes(part) for part in identity.whole_items(parts, size)]
    assert b"".join(found) == data
    assert all(len(part) % size == 0 for part in found)


def test_sha256_tells_lists_apart() -> None:
    assert identity.sha256("ab", "c") != identity.sha256("a", "bc") != identity.sha256("abc")
