"""Zoos: what is found, what is left out and why, and that "from scratch" is always there."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from regraft.budget import Deadline
from regraft.errors import BadReferenceError, CheckpointError, HubError
from regraft.zoo import open_zoo


def put(folder: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copytree(folder, target))


def names(reference: Path | str) -> list[str]:
    return [found.name for found in open_zoo(str(reference)).checkpoints]


def set_base(adapter: Path, base: str) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))


def test_the_embedded_minilm() -> None:
    zoo = open_zoo("builtin:minilm")
    assert [found.name for found in zoo.checkpoints] == [*(f"minilm-l{k}" for k in range(1, 7)), "minilm-random"]
    assert [found.num_layers for found in zoo.checkpoints] == [1, 2, 3, 4, 5, 6, 6]
    assert [found.random for found in zoo.checkpoints] == [None] * 6 + [0]
    assert {found.licence for found in zoo.checkpoints} == {"apache-2.0"}
    assert zoo.left_out == []
    assert len({found.parameters for found in zoo.checkpoints}) == 6


def test_one_checkpoint_and_from_scratch(tiny_bert: Path) -> None:
    zoo = open_zoo(str(tiny_bert))
    assert [found.name for found in zoo.checkpoints] == ["tiny-bert", "tiny-bert-random"]
    scratch = zoo.checkpoints[1]
    assert (scratch.random, scratch.folder, scratch.reference) == (0, tiny_bert, f"{tiny_bert}#random=0")
    assert names(f"{tiny_bert}#random=3") == ["tiny-bert-random-3"]
    assert names(f"{tiny_bert}, {tiny_bert}#random=3") == ["tiny-bert", "tiny-bert-random-3"]


def test_a_folder_of_checkpoints(tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    put(tiny_bert, tmp_path / "b")
    put(tiny_gpt2, tmp_path / "one" / "two" / "a")
    put(tiny_gpt2, tmp_path / "one" / "two" / "three" / "too-deep")
    put(tiny_bert, tmp_path / "b" / "checkpoint-500")
    put(tiny_bert, tmp_path / ".hidden")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("no checkpoint")
    zoo = open_zoo(str(tmp_path))
    assert [found.name for found in zoo.checkpoints] == ["b", "a", "b-random"]
    assert zoo.left_out == []


def test_the_smallest_gives_the_architecture_from_scratch(tiny_bert: Path, tiny_gpt2: Path) -> None:
    assert names(f"{tiny_bert},{tiny_gpt2},{tiny_bert}#layers=1") == [
        "tiny-bert", "tiny-gpt2", "tiny-bert-l1", "tiny-bert-l1-random",
    ]  # fmt: skip


def test_link_loops_end(tiny_bert: Path, tmp_path: Path) -> None:
    put(tiny_bert, tmp_path / "models" / "a")
    (tmp_path / "models" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "models")
    assert names(tmp_path) == ["a", "a-random"]


def test_what_cannot_be_used_is_left_out_and_the_rest_goes_on(tiny_bert: Path, tmp_path: Path) -> None:
    put(tiny_bert, tmp_path / "good")
    pickled = put(tiny_bert, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cut = put(tiny_bert, tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (put(tiny_bert, tmp_path / "no-config") / "config.json").unlink()
    zoo = open_zoo(str(tmp_path))
    assert [found.name for found in zoo.checkpoints] == ["good", "good-random"]
    left_out = {Path(entry.reference).name: entry for entry in zoo.left_out}
    assert set(left_out) == {"pickled", "cut", "no-config"}
    assert "only as a pickle (pytorch_model.bin)" in left_out["pickled"].problem
    assert str(cut) in left_out["cut"].problem
    assert "is missing" in left_out["no-config"].problem
    assert all(entry.remedy for entry in zoo.left_out)


def test_a_folder_that_cannot_be_listed_is_said(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tiny_bert, tmp_path / "good")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def hindered(folder: Any) -> Any:
        if str(folder) == str(tmp_path / "closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", hindered)
    zoo = open_zoo(str(tmp_path))
    assert [found.name for found in zoo.checkpoints] == ["good", "good-random"]
    assert [(one.reference, one.problem) for one in zoo.left_out] == [
        (str(tmp_path / "closed"), "The folder cannot be listed: Permission denied.")
    ]


def test_adapters_go_over_the_base_that_they_name(tiny_bert: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    base = put(tiny_bert, tmp_path / "my-base")
    for name, named in {
        "by-path": str(base), "by-name": "my-base", "by-hub-name": "org/my-base", "by-relative-path": "../my-base",
    }.items():  # fmt: skip
        set_base(put(tiny_adapter, tmp_path / name), named)
    set_base(put(tiny_adapter, tmp_path / "orphan"), "org/other")
    set_base(put(tiny_adapter, tmp_path / "unnamed"), "")
    zoo = open_zoo(str(tmp_path))
    merged = [found for found in zoo.checkpoints if found.adapter is not None]
    assert {found.name for found in merged} == {
        "my-base+by-path", "my-base+by-name", "my-base+by-hub-name", "my-base+by-relative-path",
    }  # fmt: skip
    assert {found.folder for found in merged} == {base}
    assert {found.name for found in zoo.checkpoints if found.adapter is None} == {"my-base", "my-base-random"}
    problems = {Path(entry.reference).name: entry.problem for entry in zoo.left_out}
    assert "is an adapter over org/other, which is not in the zoo" in problems["orphan"]
    assert "a base that it does not name" in problems["unnamed"]


def test_names_are_made_unique_and_repeats_dropped(tiny_bert: Path, tmp_path: Path) -> None:
    first, second = put(tiny_bert, tmp_path / "a" / "same"), put(tiny_bert, tmp_path / "b" / "same")
    zoo = open_zoo(f"{first},{second},{first}/,{first}#layers=4,{first}#layers=2")
    assert [found.name for found in zoo.checkpoints] == ["same", "b-same", "same-l2", "same-l2-random"]


def test_a_list_goes_on_past_what_is_not_there(tiny_bert: Path) -> None:
    zoo = open_zoo(f"no/such/folder, {tiny_bert} ,pip:no-such-package-anywhere,zip:x")
    assert [found.name for found in zoo.checkpoints] == ["tiny-bert", "tiny-bert-random"]
    assert [entry.reference for entry in zoo.left_out] == ["no/such/folder", "pip:no-such-package-anywhere", "zip:x"]
    assert all(entry.problem and entry.remedy for entry in zoo.left_out)


def test_what_is_not_downloaded_in_time_is_left_out(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.checkpoint.hub._fetch", lambda *_: threading.Event().wait())
    zoo = open_zoo(f"hf:org/name,{tiny_bert}", Deadline(0.05))
    assert [found.name for found in zoo.checkpoints] == ["tiny-bert", "tiny-bert-random"]
    assert [entry.reference for entry in zoo.left_out] == ["hf:org/name"]
    assert "was not downloaded within" in zoo.left_out[0].problem


def test_a_comma_in_a_folders_name(tiny_bert: Path, tmp_path: Path) -> None:
    assert names(put(tiny_bert, tmp_path / "one, two"))[0] == "one, two"


def test_a_zoo_without_any_that_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(BadReferenceError, match="is no reference to a zoo"):
        open_zoo(" , ")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        open_zoo(f"{tmp_path / 'empty'},{tmp_path / 'broken'}")
    assert "holds no checkpoint, 3 levels deep" in caught.value.problem
    assert "names no model_type" in caught.value.problem
    assert "builtin:minilm" in caught.value.remedy


def hub_cache(root: Path, repository: str, folder: Path, commit: str) -> Path:
    home = root / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = home / "blobs" / f"{commit[:8]}{number:056d}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_the_local_hub_cache(
    tiny_bert: Path, tiny_gpt2: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    adapter = put(tiny_adapter, tmp_path / "outside" / "adapter")
    set_base(adapter, "org/bert")
    hub_cache(tmp_path, "org/bert", tiny_bert, "a" * 40)
    hub_cache(tmp_path, "gpt2", tiny_gpt2, "b" * 40)
    hub_cache(tmp_path, "org/lora", adapter, "c" * 40)
    shutil.rmtree(tmp_path / "outside")
    (tmp_path / "models--org--partial" / "snapshots" / ("d" * 40)).mkdir(parents=True)
    (tmp_path / "models--org--partial" / "snapshots" / ("d" * 40) / "tokenizer.json").write_text("{}")
    assert names("hf-cache:") == ["gpt2", "bert", "bert+lora", "bert-random"]
    assert names(tmp_path) == ["gpt2", "bert", "bert+lora", "bert-random"], "the cache's folder is a zoo as well"


def test_no_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(HubError, match="There is no local Hub cache"):
        open_zoo("hf-cache:")
    with pytest.raises(HubError, match=r"no/such/folder.*no local Hub cache"):
        open_zoo("no/such/folder,hf-cache:")


def test_a_zoo_of_which_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        BadReferenceError, match=r"holds no checkpoint that can be used.*There is no folder no/such/folder"
    ):
        open_zoo("no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadReferenceError, match="3 levels deep"):
        open_zoo(f"{tmp_path / 'empty'},pip:no-such-package-anywhere")


def test_of_one_name_folders_tell_apart_and_numbers_only_where_they_do_not(
    tiny_bert: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    for place in ("x/m/base", "y/m/base", "sub/base", "y-m-base"):
        put(tiny_bert, tmp_path / place)
    assert names(",".join(str(tmp_path / place) for place in ("x/m/base", "sub/base", "y/m/base")))[:3] == [
        "base", "sub-base", "y-m-base",
    ]  # fmt: skip
    assert names(",".join(str(tmp_path / place) for place in ("y-m-base", "x/m/base", "y/m/base")))[:3] == [
        "y-m-base", "base", f"{tmp_path.name}-y-m-base",
    ]  # fmt: skip
    for place in ("a/tuned", "b/tuned"):
        put(tiny_adapter, tmp_path / place)
    base = tmp_path / "sub" / "base"
    assert names(f"{base}+{tmp_path}/a/tuned,{base}+{tmp_path}/b/tuned")[:2] == ["base+tuned", "base+tuned-2"]


def test_of_one_name_in_the_hub_cache_the_owners_tell_apart(tiny_bert: Path, tmp_path: Path) -> None:
    hub_cache(tmp_path, "one/bert", tiny_bert, "a" * 40)
    hub_cache(tmp_path, "two/bert", tiny_bert, "b" * 40)
    assert names(tmp_path)[:2] == ["bert", "two-bert"]


@pytest.mark.parametrize("name", [b" sp ", b"caf\xe9", b"a, b "])
def test_odd_names_of_folders(name: bytes, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.zoo.catalogue import index, open_catalogue

    folder = put(tiny_bert, tmp_path / "zoo" / os.fsdecode(name))
    monkeypatch.setenv("REGRAFT_CATALOGUE", str(tmp_path / "c.sqlite"))
    with open_catalogue() as catalogue:
        index(catalogue, [tmp_path / "zoo"])
    for reference in (str(folder), str(tmp_path / "zoo"), "zoo:architecture=bert"):
        zoo = open_zoo(reference)
        assert [found.folder for found in zoo.checkpoints] == [folder, folder] and zoo.left_out == []
        assert all(found.name.encode() for found in zoo.checkpoints)


def test_no_text_is_no_zoo() -> None:
    with pytest.raises(BadReferenceError, match="is no reference to a zoo"):
        open_zoo("")


@pytest.mark.parametrize("named", ["loop", "~nobody-of-that-name/x", "a\0b", "x" * 5000])
def test_a_base_that_no_path_can_be_is_left_out(
    named: str, tiny_bert: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    put(tiny_bert, tmp_path / "good")
    adapter = put(tiny_adapter, tmp_path / "adapter")
    set_base(adapter, named)
    (adapter / "loop").symlink_to("loop")
    zoo = open_zoo(str(tmp_path))
    assert [found.name for found in zoo.checkpoints] == ["good", "good-random"]
    assert [Path(entry.reference).name for entry in zoo.left_out] == ["adapter"]
