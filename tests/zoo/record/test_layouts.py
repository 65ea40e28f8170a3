"""Records of folders in every layout, whole and damaged; nothing is run, followed or read beyond its limit."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoModel

from regraft.zoo.record import FileFact, Parent, Record, file_id_of, read_record
from regraft.zoo.record.listing import list_folder
from regraft.zoo.record.risks import CODES

Copy = Callable[..., Path]


def codes(record: Record) -> set[str]:
    """Without what is said of licences: the folders here have none."""
    return {risk.code for risk in record.risks if not risk.code.startswith("licence")}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_transformers_folder(tiny_classifier: Path) -> None:
    record = read_record(tiny_classifier)
    assert (record.kind, record.name, record.path) == ("checkpoint", "tiny-classifier", str(tiny_classifier))
    assert record.labels == ("animals", "weather", "music")
    assert (record.task, record.library, record.tokenizer) == ("text-classification", "transformers", "WordPiece")
    assert record.files == tuple(
        FileFact(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(tiny_classifier.iterdir())
    )
    assert codes(record) == set()


def test_shards(tiny_bert: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny_bert)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    record = read_record(tmp_path)
    assert record.parameters == model.num_parameters() == read_record(tiny_bert).parameters
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    damaged = read_record(tmp_path)
    assert damaged.parameters is None
    assert [(risk.code, risk.where) for risk in damaged.risks if risk.severity == "danger"] == [
        ("missing-file", shard.name)
    ]


@pytest.mark.parametrize("where", ["", "0_Transformer"])
def test_sentence_transformers(tiny_bert: Path, tmp_path: Path, where: str) -> None:
    encoder = tmp_path / where
    encoder.mkdir(exist_ok=True)
    for file in tiny_bert.iterdir():
        (encoder / file.name).write_bytes(file.read_bytes())
    kinds = [("Transformer", where), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    (tmp_path / "modules.json").write_text(json.dumps([
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(kinds)
    ]))  # fmt: skip
    (tmp_path / "2_Dense").mkdir()
    save_file({"linear.weight": np.zeros((3, 32), np.float32)}, tmp_path / "2_Dense" / "model.safetensors")
    (encoder / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    record, alone = read_record(tmp_path), read_record(tiny_bert)
    assert (record.kind, record.library, record.task) == ("checkpoint", "sentence-transformers", "sentence-similarity")
    assert alone.parameters is not None
    assert record.parameters == alone.parameters + 96
    assert (record.encoder_parameters, record.tokenizer_id) == (alone.encoder_parameters, alone.tokenizer_id)
    assert (record.layers, record.max_length, alone.max_length) == (4, 48, 64)
    assert not codes(record) & {"code", "path-out", "missing-file"}


def test_modules_that_are_not_stock_or_lead_out(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([
        {"path": "", "type": "my_package.Evil"}, {"path": "../../etc", "type": "sentence_transformers.models.Pooling"},
    ]))  # fmt: skip
    assert {"code", "path-out"} <= codes(read_record(tmp_path))


def test_an_adapter(tiny_adapter: Path, tiny_bert: Path) -> None:
    record = read_record(tiny_adapter)
    assert (record.kind, record.library) == ("adapter", "peft")
    assert Parent(str(tiny_bert), "adapter") in record.parents
    stored = load_file(tiny_adapter / "adapter_model.safetensors")
    assert record.parameters == record.encoder_parameters == sum(value.size for value in stored.values())
    assert record.extra == {"peft_type": "LORA", "rank": 4.0}


def test_a_snapshot_of_the_hubs_cache(tiny_bert: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--my-name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--my-name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(tiny_bert.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    record = read_record(snapshot)
    assert record.name == "org/my-name"
    assert record.parameters == read_record(tiny_bert).parameters
    assert codes(record) == set()
    (blobs / "0").unlink()
    assert "missing-file" in codes(read_record(snapshot))


def test_pickles_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    record = read_record(tmp_path)
    assert (record.kind, record.hidden_size, record.parameters) == ("checkpoint", 8, None)
    assert [(risk.severity, risk.where) for risk in record.risks if risk.code == "pickle"] == [
        ("danger", "pytorch_model.bin")
    ]


def test_a_pickle_beside_safetensors_is_less_of_a_danger(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "training_args.bin").write_bytes(b"\x80")
    assert [risk.severity for risk in read_record(folder).risks if risk.code == "pickle"] == ["warning"]


def test_config_without_weights_and_weights_without_config(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert, "weights")
    (folder / "config.json").unlink()
    record = read_record(folder)
    assert (record.kind, record.layers, record.model_type) == ("checkpoint", 4, None)
    assert record.parameters == read_record(tiny_bert).parameters
    assert [risk.where for risk in record.risks if risk.code == "missing-file"] == ["config.json"]
    folder = copy_of(tiny_bert, "config")
    (folder / "model.safetensors").unlink()
    record = read_record(folder)
    assert (record.kind, record.layers, record.tensors) == ("checkpoint", 4, None)
    assert [risk.where for risk in record.risks if risk.code == "missing-file"] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["model-q4.gguf", "onnx/model.onnx"])
def test_formats_that_are_only_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"GGUF")
    record = read_record(tmp_path)
    assert (record.kind, [file.name for file in record.files], record.parameters) == ("checkpoint", [name], None)
    assert "format" in codes(record)


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no model here")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", tmp_path / "file", tmp_path / "notes", Path("/dev/null")):
        record = read_record(path)
        assert record.kind == "unreadable"
        assert [risk.code for risk in record.risks] == ["unreadable"]
        assert record.file_id == file_id_of(path)


def test_links_out_are_named_and_not_followed(tiny_bert: Path, copy_of: Copy, tmp_path: Path) -> None:
    folder = copy_of(tiny_bert)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    record = read_record(folder)
    assert (record.model_type, record.parameters) == (None, None)
    assert {file.name for file in record.files}.isdisjoint({"config.json", "model.safetensors"})
    assert [(risk.severity, risk.where) for risk in record.risks if risk.code == "link-out"] == [
        ("danger", "config.json")
    ]


def test_a_folder_of_links_out_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "config.json").symlink_to(tmp_path / "config.json")
    record = read_record(tmp_path / "zoo")
    assert (record.kind, record.files, codes(record)) == ("unreadable", (), {"unreadable", "link-out"})


def test_files_that_vanish_meanwhile(tiny_bert: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(tiny_bert)
    seen = list_folder(folder)
    for file in folder.iterdir():
        file.unlink()
    monkeypatch.setattr("regraft.zoo.record.folder.list_folder", lambda path: seen)
    record = read_record(folder)
    assert (record.kind, record.parameters, record.file_id) == ("checkpoint", None, seen.file_id)
    assert "unreadable-file" in codes(record) and "header" not in codes(record)


def test_link_loops_pipes_and_odd_names(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "loop").symlink_to("loop")
    (folder / "up").symlink_to(folder)
    os.mkfifo(folder / "LICENSE")
    (folder / os.fsdecode(b"odd\xff\n.txt")).write_text("")
    record = read_record(folder)
    assert record.parameters == read_record(tiny_bert).parameters
    assert {"missing-file", "special-file"} <= codes(record)
    special = next(risk for risk in record.risks if risk.code == "special-file")
    assert special.problem.startswith("1 file of a kind") and "are" not in special.problem.split()
    assert all(file.name.isprintable() and file.name.encode() for file in record.files)


def test_code_and_requests_to_run_it(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "modeling.py").write_text("raise SystemExit")
    edit(folder / "config.json", auto_map={"AutoModel": "modeling.Mine"})
    found = [(risk.severity, risk.where) for risk in read_record(folder).risks if risk.code == "code"]
    assert sorted(found) == [("danger", "config.json"), ("warning", "modeling.py")]


def test_files_above_their_limits_are_not_opened(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    for name in ("config.json", "tokenizer_config.json"):
        with (folder / name).open("r+b") as file:
            file.truncate(2**30)
    record = read_record(folder)
    assert record.kind == "checkpoint"
    assert sum(risk.code == "too-large" for risk in record.risks) == 2


def test_a_header_that_lies(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = [name for name in header if name != "__metadata__" and header[name]["shape"] == [32]][:2]
    header[first]["data_offsets"] = header[second]["data_offsets"]
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])
    record = read_record(folder)
    assert (record.kind, record.parameters) == ("checkpoint", None)
    assert "header" in codes(record)
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "header" in codes(read_record(folder))


def test_config_and_tensors_that_disagree(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    edit(folder / "config.json", num_hidden_layers=6, hidden_size=48)
    found = [risk.severity for risk in read_record(folder).risks if risk.code == "config-mismatch"]
    assert sorted(found) == ["danger", "warning"]


def test_quantised(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantised" in codes(read_record(folder))


def test_buffers_are_no_parameters(tiny_gpt2: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_gpt2)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32)}, folder / "model.safetensors")
    assert read_record(folder).parameters == AutoModel.from_pretrained(tiny_gpt2).num_parameters()


def test_file_id_changes_with_the_files_and_opens_none(
    tiny_bert: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(tiny_bert)
    seen = {read_record(folder).file_id}
    assert file_id_of(folder) in seen
    changes: list[Callable[[], Any]] = [
        lambda: (folder / "new").write_text("x"), lambda: (folder / "new").rename(folder / "other"),
        lambda: (folder / "other").unlink(), lambda: os.utime(folder / "config.json", ns=(1, 1)),
        lambda: (folder / "below").mkdir() or (folder / "below" / "x").write_text("x"),
    ]  # fmt: skip
    for change in changes[:2]:
        change()
        found = file_id_of(folder)
        assert found not in seen
        seen.add(found)
    changes[2]()
    assert file_id_of(folder) in seen
    for change in changes[3:]:
        change()
        found = file_id_of(folder)
        assert found not in seen
        seen.add(found)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert file_id_of(folder) in seen


def test_each_file_is_opened_once(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = io.open

    def note(path: Any, *args: Any, **options: Any) -> Any:
        opened.append(Path(path).name)
        return real(path, *args, **options)

    monkeypatch.setattr(io, "open", note)
    monkeypatch.setattr("builtins.open", note)
    read_record(tiny_bert)
    ours = [name for name in opened if (tiny_bert / name).exists()]
    assert {"config.json", "model.safetensors", "README.md"} <= set(ours)
    assert len(ours) == len(set(ours))


def test_heavy_libraries_are_not_imported(tiny_bert: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from regraft.zoo.record import read_record;"
        "assert read_record(Path(sys.argv[1])).kind == 'checkpoint';"
        "print(sorted({'torch', 'transformers', 'ruamel.yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bert)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_docs_name_every_risk() -> None:
    page = (Path(__file__).parents[3] / "docs" / "zoo_records.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \| (?:danger|warning|note)", page, re.MULTILINE)) == CODES.keys()


def closed_file(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file whose path ends so may not be read, by anybody."""
    opened = os.open

    def refuse(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)


def risks_in(record: Record) -> list[tuple[str, str, str]]:
    return [(risk.code, risk.where, risk.problem) for risk in record.risks if not risk.code.startswith("licence")]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_may_not_be_read_is_not_said_to_be_damaged(
    name: str, tiny_bert: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(tiny_bert)
    with monkeypatch.context() as closed:
        closed_file(closed, f"/{name}")
        found = risks_in(read_record(folder))
    assert found == [("unreadable-file", name, f"{name} cannot be read (Permission denied).")]
    assert codes(read_record(folder)) == set()


def index_of(folder: Path, **weight_map: object) -> Path:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("missing", ["nofile.safetensors", "!first.safetensors"])
def test_a_path_that_leaves_the_folder_does_not_hide_behind_a_missing_shard(
    missing: str, tiny_bert: Path, copy_of: Copy
) -> None:
    folder = index_of(copy_of(tiny_bert), a="../../../etc/passwd", b=missing)
    found, index = risks_in(read_record(folder)), "model.safetensors.index.json"
    assert ("missing-file", missing, f"{missing} of {index} is missing.") in found
    [(where, problem)] = [(where, problem) for code, where, problem in found if code == "path-out"]
    assert where == index and "../../../etc/passwd" in problem


@pytest.mark.parametrize("beside", [7, "a" * 300 + ".safetensors", "../b.safetensors"])
def test_nor_behind_a_value_that_is_no_name(beside: object, tiny_bert: Path, copy_of: Copy) -> None:
    assert "path-out" in codes(read_record(index_of(copy_of(tiny_bert), a="../../../etc/passwd", b=beside)))


def test_nor_behind_a_link_that_leaves_it(tiny_bert: Path, copy_of: Copy) -> None:
    folder = index_of(copy_of(tiny_bert), a="../../../etc/passwd", b="out.safetensors")
    (folder / "out.safetensors").symlink_to(tiny_bert / "model.safetensors")
    assert codes(read_record(folder)) == {"path-out", "link-out"}


def test_where_is_written_as_in_the_sentence(tiny_bert: Path, copy_of: Copy) -> None:
    folder = index_of(copy_of(tiny_bert), a="x\0y.safetensors")
    shards = [(where, problem) for _, where, problem in risks_in(read_record(folder)) if "of model" in problem]
    assert [where for where, _ in shards] == ["x\\x00y.safetensors"] and shards[0][1].startswith(shards[0][0])


def test_weights_without_a_tensor(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    found = [(risk.code, risk.severity, risk.where) for risk in read_record(folder).risks if risk.code == "header"]
    assert found == [("header", "danger", "model.safetensors")]
    (folder / "model.safetensors").write_bytes(b"")
    index_of(folder)
    assert ("header", "model.safetensors.index.json") in [one[:2] for one in risks_in(read_record(folder))]


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer_config.json"])
def test_null_is_a_broken_file(name: str, tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    (folder / name).write_text("null\n")
    assert ("broken-file", name) in [one[:2] for one in risks_in(read_record(folder))]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "true", '"32"', "32.5", '{"a": 1}'])
def test_sizes_of_the_wrong_type(value: str, tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 32', f'"hidden_size": {value}'))
    record = read_record(folder)
    assert record.hidden_size is None and record.layers == 4
    assert [(code, where) for code, where, problem in risks_in(record) if "hidden_size" in problem] == [
        ("absurd-size", "config.json")
    ]


def test_a_size_for_each_layer_is_none_of_the_whole(tiny_bert: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_bert)
    edit(folder / "config.json", num_attention_heads=[1, 2, 5, 8], intermediate_size=None)
    assert codes(read_record(folder)) == set()
