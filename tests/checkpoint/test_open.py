"""Opening a checkpoint: what it says of itself, and every refusal in words."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from regraft.checkpoint import open_checkpoint, safety
from regraft.errors import BadReferenceError, CheckpointError, NonFiniteError, UnsafeCheckpointError

Copy = Callable[..., Path]


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def refused(folder: Path | str, error: type[CheckpointError], *words: str) -> None:
    """Opening is refused with an error whose problem holds the words, and which has a remedy."""
    with pytest.raises(error) as caught:
        open_checkpoint(str(folder))
    assert type(caught.value) is error
    for word in words:
        assert word in caught.value.problem
    assert caught.value.remedy.endswith((".", ")")), "a remedy is a sentence"


def test_what_a_checkpoint_says_of_itself(tiny_bert: Path) -> None:
    found = open_checkpoint(str(tiny_bert))
    assert (found.name, found.model_type, found.architectures) == ("tiny-bert", "bert", ("BertModel",))
    assert (found.hidden_size, found.num_layers, found.max_length) == (32, 4, 64)
    assert (found.licence, found.parents, found.labels) == ("mit", ("someone/parent",), None)
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert found.encoder_parameters == 4 * layer
    assert found.parameters == sum(tensor.elements for tensor in found.tensors.values())
    assert found.bytes == 4 * found.parameters
    assert found.random is None
    assert found.adapter is None


def test_a_decoder(tiny_gpt2: Path) -> None:
    found = open_checkpoint(f"{tiny_gpt2}#layers=2")
    assert (found.hidden_size, found.num_layers, found.max_length) == (32, 2, 64)
    assert max(int(name.split(".")[1]) for name in found.tensors if name.startswith("h.")) == 1


def test_labels_of_a_classifier(tiny_classifier: Path, copy_of: Copy) -> None:
    assert open_checkpoint(str(tiny_classifier)).labels == ("animals", "weather", "music")
    assert open_checkpoint(f"{tiny_classifier}#layers=4").labels == ("animals", "weather", "music")
    assert open_checkpoint(f"{tiny_classifier}#layers=3").labels is None
    assert open_checkpoint(f"{tiny_classifier}#random=0").labels is None
    folder = copy_of(tiny_classifier)
    edit(folder / "config.json", problem_type="regression")
    assert open_checkpoint(str(folder)).labels is None
    edit(folder / "config.json", problem_type=None, id2label={"0": "a", "2": "b"})
    refused(folder, CheckpointError, str(folder / "config.json"), "id2label has the numbers [0, 2]")


def test_truncation_keeps_the_first_layers(tiny_bert: Path) -> None:
    whole, cut = open_checkpoint(str(tiny_bert)), open_checkpoint(f"{tiny_bert}#layers=3")
    assert (cut.name, cut.layers, cut.num_layers, cut.config["num_hidden_layers"]) == ("tiny-bert-l3", 3, 3, 3)
    assert set(whole.tensors) - set(cut.tensors) == {name for name in whole.tensors if "layer.3." in name}
    assert whole.encoder_parameters == 4 * cut.encoder_parameters // 3
    with pytest.raises(BadReferenceError, match="asks for 9 layers, the model has 4") as caught:
        open_checkpoint(f"{tiny_bert}#layers=9")
    assert "#layers=4" in caught.value.remedy


def test_random_needs_no_weights(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "model.safetensors").unlink()
    found, stored = open_checkpoint(f"{folder}#layers=2&random=0"), open_checkpoint(f"{tiny_bert}#layers=2")
    assert (found.name, found.random, found.tensors) == ("copy-l2-random", 0, {})
    assert found.parameters == stored.parameters
    assert found.encoder_parameters == stored.encoder_parameters
    assert found.bytes == stored.bytes
    found.check_finite()


CONFIGS: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "remote code": ({"auto_map": {"AutoModel": "modeling.Evil"}}, UnsafeCheckpointError, "code from the checkpoint (auto_map)"),
    "trust": ({"trust_remote_code": True}, UnsafeCheckpointError, "(trust_remote_code)"),
    "pipelines": ({"custom_pipelines": {"x": {"impl": "y.Z"}}}, UnsafeCheckpointError, "(custom_pipelines)"),
    "nested": ({"x": [{"auto_map": {"a": "b.C"}}]}, UnsafeCheckpointError, "(auto_map)"),
    "kernel": ({"_attn_implementation": "org/kernel"}, UnsafeCheckpointError, "asks to download and run a kernel"),
    "gptq": ({"quantization_config": {"quant_method": "gptq"}}, CheckpointError, "is quantised (quantization_config: gptq)"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, CheckpointError, "quantization_config: awq"),
    "bitsandbytes": ({"quantization_config": {"load_in_8bit": True}}, CheckpointError, "cannot be computed here"),
    "no model_type": ({"model_type": ...}, CheckpointError, "names no model_type"),
    "model_type no text": ({"model_type": 7}, CheckpointError, "names no model_type"),
    "unknown model_type": ({"model_type": "skynet"}, CheckpointError, "'skynet', which the installed transformers does not"),
    "encoder-decoder": ({"model_type": "t5", "classifier_dropout": 0.0}, CheckpointError, "t5 is an encoder-decoder"),
    "encoder-decoder unsaid": ({"model_type": "bart"}, CheckpointError, "bart is an encoder-decoder"),
    "images": ({"model_type": "vit", "vocab_size": ...}, CheckpointError, "it is no text encoder"),
    "text": ({"hidden_size": "big"}, CheckpointError, "that bert refuses"),
    "negative": ({"num_hidden_layers": -1}, CheckpointError, "it is no text encoder"),
    "endless": ({"num_hidden_layers": 10**9}, CheckpointError, "expected 1 to 1000"),
    "of other weights": ({"hidden_size": 48}, CheckpointError, "hidden_size 48, but no tensor has that size"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be_used(case: str, tiny_bert: Path, copy_of: Copy) -> None:
    changes, error, words = CONFIGS[case]
    folder = copy_of(tiny_bert)
    edit(folder / "config.json", **changes)
    refused(folder, error, str(folder / "config.json"), words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{nonsense", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "holds a JSON list, expected an object"),
        (b" " * (16 * 2**20 + 1), "is larger than 16 MiB"),
    ],
)
def test_a_config_that_is_no_json_object(content: bytes, words: str, tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "config.json").write_bytes(content)
    refused(folder, CheckpointError, str(folder / "config.json"), words)


def test_a_missing_config(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "config.json").unlink()
    refused(folder, CheckpointError, str(folder / "config.json"), "is missing")
    (folder / "model_index.json").write_text("{}")
    refused(folder, CheckpointError, str(folder), "is a diffusers pipeline")


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "sentence_bert_config.json", "config_sentence_transformers.json"]
)
def test_small_files_that_ask_for_code(name: str, tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / name).write_text(json.dumps({"model_args": {"trust_remote_code": True}}))
    refused(folder, UnsafeCheckpointError, str(folder / name), "asks to run code from the checkpoint")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "last.ckpt"])
def test_pickles_are_not_read(name: str, tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, UnsafeCheckpointError, str(folder), f"only as a pickle ({name})")
    with pytest.raises(UnsafeCheckpointError, match="Convert it to safetensors"):
        open_checkpoint(str(folder))


def test_missing_weights(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    refused(folder, CheckpointError, str(folder), "holds no model.safetensors", "found model.fp16.safetensors")


def test_a_missing_tokenizer(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "tokenizer.json").unlink()
    refused(folder, CheckpointError, str(folder), "holds no tokenizer", "tokenizer.json")


def test_links_that_leave_the_folder(tiny_bert: Path, copy_of: Copy, tmp_path: Path) -> None:
    folder = copy_of(tiny_bert)
    (folder / "below").mkdir()
    (folder / "below" / "notes.txt").symlink_to("/etc/hostname")
    refused(folder, UnsafeCheckpointError, str(folder / "below" / "notes.txt"), "leaves the folder")
    (folder / "below" / "notes.txt").unlink()
    (folder / "below" / "inside.json").symlink_to(folder / "config.json")
    (tmp_path / "link").symlink_to(folder)
    assert open_checkpoint(str(tmp_path / "link")).num_layers == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of POSIX")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "notes"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, UnsafeCheckpointError, str(folder / name), "no regular file")


def test_weights_of_whole_numbers_are_no_weights(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: one.astype(np.int32) for name, one in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    refused(folder, CheckpointError, str(folder), "no floating-point numbers (I32)")


def test_links_are_found_however_deep_they_lie(tiny_bert: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(tiny_bert)
    deep = folder.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    (deep / "circle").symlink_to(folder)
    assert open_checkpoint(str(folder)).num_layers == 4
    (deep / "notes.txt").symlink_to("/etc/hostname")
    refused(folder, UnsafeCheckpointError, str(deep / "notes.txt"), "leaves the folder")
    monkeypatch.setattr(safety, "MOST_ENTRIES", 10)
    refused(folder, CheckpointError, str(folder), "holds more than 10 files and folders")


def test_the_bytes_of_a_member_do_not_depend_on_how_its_parent_is_stored(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    narrow = {name: tensor.astype(np.float16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(narrow, folder / "model.safetensors", metadata={"format": "pt"})
    found, wide = open_checkpoint(str(folder)), open_checkpoint(str(tiny_bert))
    assert found.bytes < wide.bytes
    expected = 4 * wide.parameters + (tiny_bert / "tokenizer.json").stat().st_size
    assert found.member_bytes == wide.member_bytes == expected


def test_the_hub_caches_own_links_are_followed(tiny_bert: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(tiny_bert.iterdir())):
        blob = repository / "blobs" / f"{number:064d}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    found = open_checkpoint(str(snapshot))
    assert found.name == "name"
    assert found.checkpoint_id == open_checkpoint(str(tiny_bert)).checkpoint_id
    (tmp_path / "secret").write_text("{}")
    (snapshot / "special_tokens_map.json").symlink_to("../../../secret")
    refused(snapshot, UnsafeCheckpointError, "special_tokens_map.json", "leaves the folder")


def test_int8_matrices_are_a_quantised_format(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"] = np.zeros((32, 64), np.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, CheckpointError, "encoder.layer.0.output.dense.weight", "I8, a quantised format")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(dtype: type, value: float, tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    tensors = {name: array.astype(dtype) for name, array in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    open_checkpoint(str(folder)).check_finite()
    tensors["encoder.layer.2.output.dense.weight"][31, 63] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(str(folder))
    with pytest.raises(NonFiniteError) as caught:
        found.check_finite()
    assert str(folder / "model.safetensors") in caught.value.problem
    assert "encoder.layer.2.output.dense.weight" in caught.value.problem
    assert caught.value.remedy
    open_checkpoint(f"{folder}#layers=2").check_finite()


def sentence_transformer(folder: Path, modules: list[dict[str, Any]]) -> Path:
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


FIRST = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}


def test_stock_modules_are_accepted_and_counted(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    for number, (name, config) in enumerate([("Pooling", {}), ("Dense", {"activation_function": "torch.nn.Tanh"})], 1):
        (folder / f"{number}_{name}").mkdir()
        (folder / f"{number}_{name}" / "config.json").write_text(json.dumps(config))
    save_file({"linear.weight": np.zeros((3, 32), np.float32)}, folder / "2_Dense" / "model.safetensors")
    kind = "sentence_transformers.base.modules.dense.Dense"
    sentence_transformer(folder, [
        FIRST,
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": kind},
    ])  # fmt: skip
    found, bare = open_checkpoint(str(folder)), open_checkpoint(str(tiny_bert))
    assert found.modules == (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    assert found.parameters == bare.parameters + 96
    assert found.encoder_parameters == bare.encoder_parameters
    assert found.labels is None
    (folder / "regraft.json").write_text(json.dumps({"labels": ["a", "b", "c"]}))
    assert open_checkpoint(str(folder)).labels == ("a", "b", "c")
    (folder / "regraft.json").write_text(json.dumps({"labels": "abc"}))
    refused(folder, CheckpointError, str(folder / "regraft.json"), "labels is not a list")
    (folder / "regraft.json").unlink()
    (folder / "2_Dense" / "config.json").write_text(json.dumps({"activation_function": "os.system"}))
    refused(folder, UnsafeCheckpointError, "'os.system', expected a class of torch.nn")


def test_an_encoder_in_a_folder_below(tiny_bert: Path, tmp_path: Path, copy_of: Copy) -> None:
    copy_of(tiny_bert, "sbert/0_Transformer")
    folder = sentence_transformer(tmp_path / "sbert", [FIRST | {"path": "0_Transformer"}])
    assert open_checkpoint(str(folder)).weights_id == open_checkpoint(str(tiny_bert)).weights_id


@pytest.mark.parametrize(
    ("modules", "error", "words"),
    [
        (
            [FIRST | {"type": "custom.Evil"}],
            UnsafeCheckpointError,
            "'custom.Evil', which is not one of the stock modules",
        ),
        ([FIRST | {"type": "sentence_transformers.models.Asym"}], UnsafeCheckpointError, "stock modules"),
        ([FIRST, FIRST | {"type": "os.Dense"}], UnsafeCheckpointError, "'os.Dense'"),
        ([FIRST | {"path": "../elsewhere"}], UnsafeCheckpointError, "which leaves the folder"),
        ([FIRST | {"path": "/elsewhere"}], UnsafeCheckpointError, "which leaves the folder"),
        ([FIRST | {"type": "sentence_transformers.models.Pooling"}], CheckpointError, "expected a Transformer"),
        ([], CheckpointError, "is not a list of modules"),
        ({}, CheckpointError, "is not a list of modules"),
    ],
)
def test_modules_that_are_not_stock(
    modules: Any, error: type[CheckpointError], words: str, tiny_bert: Path, copy_of: Copy
) -> None:
    refused(sentence_transformer(copy_of(tiny_bert), modules), error, "modules.json", words)


def test_a_model_and_an_adapter_in_one_folder(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    refused(folder, CheckpointError, str(folder), "holds a model and an adapter")


ADAPTERS: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "kind": ({"peft_type": "PROMPT_TUNING"}, CheckpointError, "PROMPT_TUNING cannot be merged into its base"),
    "code": ({"auto_map": {"x": "y.Z"}}, UnsafeCheckpointError, "asks to run code"),
    "import": ({"megatron_config": {"a": 1}, "megatron_core": "os"}, UnsafeCheckpointError, "names a module to import"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_that_cannot_be_used(case: str, tiny_bert: Path, tiny_adapter: Path, copy_of: Copy) -> None:
    changes, error, words = ADAPTERS[case]
    folder = copy_of(tiny_adapter)
    edit(folder / "adapter_config.json", **changes)
    refused(f"{tiny_bert}+{folder}", error, str(folder / "adapter_config.json"), words)


def test_adapters_with_missing_or_damaged_files(tiny_bert: Path, tiny_adapter: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_adapter)
    refused(folder, CheckpointError, str(folder), "is an adapter without its base model")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    refused(f"{tiny_bert}+{folder}", CheckpointError, str(weights), "truncated")
    weights.rename(folder / "adapter_model.bin")
    refused(f"{tiny_bert}+{folder}", UnsafeCheckpointError, "only as a pickle (adapter_model.bin)")
    (folder / "adapter_config.json").unlink()
    refused(f"{tiny_bert}+{folder}", CheckpointError, str(folder), "holds no adapter_config.json")


@pytest.mark.parametrize(
    ("card", "licence", "parents"),
    [
        ("", None, ()),
        ("# No metadata\n---\n", None, ()),
        ("---\nlicense: [mit, apache-2.0]\nbase_model: [a/b, c/d]\n---\n", "mit, apache-2.0", ("a/b", "c/d")),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own", ()),
        ("---\nlicense: {a: [\n---\n", None, ()),
        ("---\n- a list\n---\n", None, ()),
        ("---\nlicense: 7\nbase_model: 7\n---\n", None, ()),
        ("---\nlicense: mit\n", None, ()),
    ],
)
def test_cards(card: str, licence: str | None, parents: tuple[str, ...], tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "README.md").write_text(card)
    found = open_checkpoint(str(folder))
    assert (found.licence, found.parents) == (licence, parents)


@pytest.mark.parametrize(
    ("tokenizer", "sentence", "config", "expected"),
    [
        ({"model_max_length": 10**30}, {}, {}, 64),
        ({"model_max_length": 48}, {}, {}, 48),
        ({"model_max_length": 48}, {"max_seq_length": 32}, {}, 32),
        ({"model_max_length": ...}, {"max_seq_length": None}, {}, 64),
        ({"model_max_length": 10**30}, {}, {"model_type": "roberta", "pad_token_id": 1}, 62),
    ],
)
def test_max_length(
    tokenizer: dict[str, Any], sentence: dict[str, Any], config: dict[str, Any], expected: int,
    tiny_bert: Path, copy_of: Copy,
) -> None:  # fmt: skip
    folder = copy_of(tiny_bert)
    edit(folder / "tokenizer_config.json", **tokenizer)
    edit(folder / "config.json", **config)
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentence))
    assert open_checkpoint(str(folder)).max_length == expected


def test_links_that_lead_in_a_circle(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(folder, CheckpointError, str(folder / "config.json"), "links lead in a circle")


def test_weights_without_a_tensor(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    refused(folder, CheckpointError, f"{folder / 'model.safetensors'} holds no tensor")


@pytest.mark.parametrize(("kind", "what"), [("vit", "images"), ("hubert", "sound"), ("imagegpt", "images")])
def test_a_model_of_something_else_is_told_by_its_type(kind: str, what: str, tiny_bert: Path, copy_of: Copy) -> None:
    """Such a config may hold sizes of a text model: `vocab_size` is kept by any class."""
    folder = copy_of(tiny_bert)
    edit(folder / "config.json", model_type=kind, vocab_size=64)
    refused(folder, CheckpointError, f"{kind} takes {what}, a task here has texts")
