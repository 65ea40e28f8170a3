"""Folders packed and restored: every byte and permission, killed at every point, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft import faults
from regraft.checkpoint.headers import read_tensors
from regraft.checkpoint.identity import canonical, sha256, weights_id
from regraft.delta.manifest import read_manifest
from regraft.errors import BudgetError, CheckpointError, RegraftError, StoreError, UnsafeCheckpointError
from regraft.zoo.pack import pack, restore, verify

# What is forked is killed, or ends without using a thread of its parent's.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

POINTS = ("packed file written", "pack written", "pack verified", "pack in place", "original aside", "original removed")


@pytest.fixture(autouse=True)
def no_hook() -> Iterator[None]:
    yield
    faults.hook = None


@pytest.fixture
def base(tiny_bert: Path, tmp_path: Path) -> Path:
    """A checkpoint as transformers saves it, in bfloat16."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value.bfloat16() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    """Its fine-tune: two shards, other names in front, an int8 tensor, a pickle, odd permissions, an empty folder."""
    folder = Path(shutil.copytree(base, tmp_path / "tuned"))
    (folder / "model.safetensors").unlink()
    random = torch.Generator().manual_seed(0)
    tensors = {
        f"bert.{name}": (value.float() + 0.0005 * torch.randn(value.shape, generator=random)).bfloat16()
        for name, value in load_file(base / "model.safetensors").items()
    }
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for shard, held in shards.items():
        more = {"classifier.scale": torch.arange(9, dtype=torch.int8)} if shard.startswith("model-00002") else {}
        save_file({name: tensors[name] for name in held} | more, folder / shard, {"format": "pt"})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    weight_map["classifier.scale"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "training_args.bin").write_bytes(bytes(range(256)) * 50)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "logs" / "none").mkdir(parents=True)
    (folder / "runs").mkdir()
    (folder / "runs" / "train.sh").write_text("#!/bin/sh\n")
    (folder / "runs" / "train.sh").chmod(0o750)
    (folder / "vocab.txt.zst").write_bytes(b"no frame")
    return folder


def content(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every file and folder below: permissions of files, bytes."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode & 0o777, path.read_bytes()) if path.is_file() else (0, None)
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_everything_comes_back(tuned: Path, base: Path, tmp_path: Path) -> None:
    before = content(tuned)
    report = pack(tuned, base, tmp_path / "packed")
    assert content(tuned) == before
    assert report.files == sum(value is not None for _, value in before.values())
    assert report.bytes == sum(len(value) for _, value in before.values() if value is not None)
    assert report.packed_bytes == sum(len(value or b"") for _, value in content(tmp_path / "packed").values())
    assert report.ratio < 0.8 and not report.replaced and not report.already
    assert sum(size for plan, size in report.plans.items() if plan != "plain") > 0.9 * sum(report.plans.values())
    assert json.loads(json.dumps(report.to_json()))["parent_id"] == weights_id(read_tensors(base))
    restored = restore(tmp_path / "packed", tmp_path / "again")
    assert content(tmp_path / "again") == before
    assert restored.bytes == report.bytes
    assert names(tmp_path) == {"base", "tuned", "packed", "again"}


def test_the_same_bytes_for_any_number_of_workers(tuned: Path, base: Path, tmp_path: Path) -> None:
    packs = [tmp_path / f"packed-{workers}" for workers in (1, 2, 5)]
    for workers, out in zip((1, 2, 5), packs, strict=True):
        pack(tuned, base, out, workers=workers)
    first, *others = [
        {name: value for name, value in content(out).items() if name != "pack.json"} for out in packs
    ]  # pack.json says where the parent lies, seen from the pack
    assert all(other == first for other in others)
    restore(packs[0], tmp_path / "again", workers=3)
    assert content(tmp_path / "again") == content(tuned)


def test_without_a_parent(tuned: Path, tmp_path: Path) -> None:
    report = pack(tuned, None, tmp_path / "packed")
    assert set(report.plans) == {"plain"} and report.parent_id is None
    restore(tmp_path / "packed", tmp_path / "again")
    assert content(tmp_path / "again") == content(tuned)


def test_a_header_that_cannot_be_read_is_packed_as_bytes(tuned: Path, base: Path, tmp_path: Path) -> None:
    """Quantised or damaged: nobody is to lose a file because we cannot read it."""
    (tuned / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      more")
    pack(tuned, base, tmp_path / "packed")
    assert {one.path: one.form for one in read_manifest(tmp_path / "packed").files}["broken.safetensors"] == "zstd"
    restore(tmp_path / "packed", tmp_path / "again")
    assert content(tmp_path / "again") == content(tuned)


def test_packed_names_never_meet(tmp_path: Path) -> None:
    """A folder of the original called as the packed form of a file beside it."""
    folder = tmp_path / "odd"
    (folder / "a.zst").mkdir(parents=True)
    for name in ("a", "a.zst/b", "pack.json", "a.zst_"):
        (folder / name).write_text(name)
    pack(folder, None, tmp_path / "packed")
    restore(tmp_path / "packed", tmp_path / "again")
    assert content(tmp_path / "again") == content(folder)


def test_replace_removes_the_original_at_the_end(tuned: Path, base: Path, tmp_path: Path) -> None:
    before, passed = content(tuned), []

    def hook(name: str) -> None:
        passed.append((name, tuned.exists(), (tmp_path / "packed").exists()))

    faults.hook = hook
    assert pack(tuned, base, tmp_path / "packed", replace=True).replaced
    assert [one for one in passed if one[0] in POINTS[1:] ] == [
        ("pack written", True, False), ("pack verified", True, False), ("pack in place", True, True),
        ("original aside", False, True), ("original removed", False, True),
    ]  # fmt: skip
    faults.hook = None
    restore(tmp_path / "packed", tuned)
    assert content(tuned) == before
    assert names(tmp_path) == {"base", "tuned", "packed"}


@pytest.mark.parametrize(("point", "passes"), [(point, 1) for point in POINTS] + [("packed file written", 4)])
def test_killed_anywhere_something_whole_is_left(
    point: str, passes: int, tuned: Path, base: Path, tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    """The original, or the verified pack; and a second call ends what the first began."""
    before, out = content(tuned), tmp_path / "packed"
    killed_at(point, lambda: pack(tuned, base, out, workers=1, replace=True), passes)
    if tuned.exists():
        assert content(tuned) == before
    else:
        restore(out, tmp_path / "again")
        assert content(tmp_path / "again") == before
        shutil.rmtree(tmp_path / "again")
    if tuned.exists():
        report = pack(tuned, base, out, replace=True)
        assert report.replaced and report.already == (point == "pack in place")
    else:
        with pytest.raises(CheckpointError, match="It may be packed already"):
            pack(tuned, base, out, replace=True)
    assert names(tmp_path) == {"base", "packed"}
    restore(out, tmp_path / "again")
    assert content(tmp_path / "again") == before


@pytest.mark.parametrize("point", ["restored file written", "restore verified"])
def test_a_killed_restore_leaves_nothing_that_looks_whole(
    point: str, tuned: Path, base: Path, tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    pack(tuned, base, tmp_path / "packed")
    killed_at(point, lambda: restore(tmp_path / "packed", tmp_path / "again", workers=1))
    assert not (tmp_path / "again").exists()
    restore(tmp_path / "packed", tmp_path / "again")
    assert content(tmp_path / "again") == content(tuned)
    assert names(tmp_path) == {"base", "tuned", "packed", "again"}


def test_nothing_is_removed_when_reading_back_fails(tuned: Path, base: Path, tmp_path: Path) -> None:
    """A disk that gives back other bytes than it was given."""
    before = content(tuned)

    def hook(name: str) -> None:
        if name == "pack written":
            (written,) = tmp_path.glob(".packed.*.partial/model-00002-of-00002.safetensors.delta")
            data = bytearray(written.read_bytes())
            data[-5] ^= 1
            written.write_bytes(data)

    faults.hook = hook
    with pytest.raises(CheckpointError, match=r"is damaged: tensor 'classifier"):
        pack(tuned, base, tmp_path / "packed", replace=True)
    assert content(tuned) == before and not (tmp_path / "packed").exists()


@pytest.mark.parametrize("point", ["pack written", "pack in place"])
def test_a_folder_that_changes_meanwhile_is_not_removed(point: str, tuned: Path, base: Path, tmp_path: Path) -> None:
    def hook(name: str) -> None:
        if name == point:
            (tuned / "new.txt").write_text("saved a moment ago")

    faults.hook = hook
    with pytest.raises(CheckpointError, match="has changed while it was packed"):
        pack(tuned, base, tmp_path / "packed", replace=True)
    assert (tuned / "new.txt").exists()


def test_out_is_never_overwritten(tuned: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(StoreError, match="is not the pack of"):
        pack(tuned, base, tmp_path / "mine")
    pack(tuned, base, tmp_path / "packed")
    assert pack(tuned, base, tmp_path / "packed").already
    (tuned / "empty.txt").write_text("x")
    with pytest.raises(StoreError, match="is not the pack of"):
        pack(tuned, base, tmp_path / "packed")
    with pytest.raises(StoreError, match="exists"):
        restore(tmp_path / "packed", tmp_path / "mine")
    assert names(tmp_path / "mine") == {"thesis.txt"}


def test_the_parent_is_found_where_it_lay(tuned: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    for name in ("base", "tuned"):
        (tmp_path / name).rename(tmp_path / "zoo" / name)
    before = content(tmp_path / "zoo" / "tuned")
    pack(tmp_path / "zoo" / "tuned", tmp_path / "zoo" / "base", tmp_path / "zoo" / "packed")
    (tmp_path / "zoo").rename(tmp_path / "moved")  # both: the relative path still leads there
    restore(tmp_path / "moved" / "packed", tmp_path / "again")
    assert content(tmp_path / "again") == before
    (tmp_path / "moved" / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"its parent is missing: it lay at .*base \(weights_id [0-9a-f]{64}\)"):
        restore(tmp_path / "moved" / "packed", tmp_path / "third")
    restore(tmp_path / "moved" / "packed", tmp_path / "third", tmp_path / "elsewhere")
    assert content(tmp_path / "third") == before


def test_another_parent_is_refused(tuned: Path, base: Path, tmp_path: Path) -> None:
    pack(tuned, base, tmp_path / "packed")
    other = Path(shutil.copytree(base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.2.output.dense.weight"][0, 0] += 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'encoder\.layer\.2\.output\.dense\.weight' \(block 0\)"):
        restore(tmp_path / "packed", tmp_path / "again", other)
    with pytest.raises(CheckpointError, match=r"is not the one|has changed"):
        verify(tmp_path / "packed", other)
    assert not (tmp_path / "again").exists()
    verify(tmp_path / "packed")


def test_damage_and_truncation_name_the_tensor(tuned: Path, base: Path, tmp_path: Path) -> None:
    pack(tuned, base, tmp_path / "packed")
    delta = tmp_path / "packed" / "model-00002-of-00002.safetensors.delta"
    whole = delta.read_bytes()
    delta.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"is truncated: tensor 'classifier\.scale' is not whole"):
        restore(tmp_path / "packed", tmp_path / "again")
    delta.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"is damaged: tensor 'classifier\.scale' \(block 0\)"):
        restore(tmp_path / "packed", tmp_path / "again")
    delta.unlink()
    with pytest.raises(CheckpointError, match=r"is missing, so model-00002-of-00002\.safetensors cannot be restored"):
        restore(tmp_path / "packed", tmp_path / "again")
    delta.write_bytes(whole)
    small = tmp_path / "packed" / "training_args.bin.zst"
    data = bytearray(small.read_bytes())
    data[len(data) // 2] ^= 1
    small.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"training_args\.bin\.zst is damaged"):
        restore(tmp_path / "packed", tmp_path / "again")
    assert names(tmp_path) == {"base", "tuned", "packed"}


def forged(packed: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change pack.json, and make its hash right again."""
    about = json.loads((packed / "pack.json").read_text())
    about.pop("check")
    change(about)
    (packed / "pack.json").write_text(json.dumps(about | {"check": sha256(canonical(about))}))


@pytest.mark.parametrize(("change", "error", "words"), [
    (lambda about: about["files"][0].update(path="../escaped"), UnsafeCheckpointError, "leaves the folder"),
    (lambda about: about["files"][0].update(path="/tmp/escaped"), UnsafeCheckpointError, "leaves the folder"),
    (lambda about: about["files"][0].update(path="a/../../b"), UnsafeCheckpointError, "leaves the folder"),
    (lambda about: about["files"][0].update(packed="../base/config.json"), UnsafeCheckpointError, "leaves the folder"),
    (lambda about: about["folders"].append(".."), UnsafeCheckpointError, "leaves the folder"),
    (lambda about: about["files"][0].update(path=about["files"][1]["path"]), UnsafeCheckpointError, "in one place"),
    (lambda about: about["files"][0].update(path=about["files"][1]["path"] + "/x"), UnsafeCheckpointError, "in one place"),
    (lambda about: about["folders"].append(about["files"][1]["path"]), UnsafeCheckpointError, "in one place"),
    (lambda about: about["files"][0].update(mode=0o4755), CheckpointError, "does not say what it must"),
    (lambda about: about["files"][0].update(form="pickle"), CheckpointError, "does not say what it must"),
    (lambda about: about["files"][0].update(bytes=-1), CheckpointError, "does not say what it must"),
    (lambda about: about["files"][0].update(bytes=2**59), StoreError, "the disk of .* has .* free"),
    (lambda about: about["files"][0].update(more=1), CheckpointError, "does not say what it must"),
    (lambda about: about.pop("folders"), CheckpointError, "does not say what it must"),
    (lambda about: about.update(version=2), CheckpointError, "format version 2; this Regraft reads version 1"),
    (lambda about: about.update(format="zip"), CheckpointError, "is not the list of a pack"),
])  # fmt: skip
def test_lies_in_the_list_are_refused(
    change: Any, error: type[RegraftError], words: str, tuned: Path, base: Path, tmp_path: Path
) -> None:
    pack(tuned, base, tmp_path / "packed")
    forged(tmp_path / "packed", change)
    with pytest.raises(error, match=words):
        restore(tmp_path / "packed", tmp_path / "again")
    assert names(tmp_path) == {"base", "tuned", "packed"}


def test_a_changed_list_is_refused(tuned: Path, base: Path, tmp_path: Path) -> None:
    pack(tuned, base, tmp_path / "packed")
    listed = tmp_path / "packed" / "pack.json"
    listed.write_text(listed.read_text().replace("empty.txt", "emptied.txt", 1))
    with pytest.raises(CheckpointError, match=r"pack\.json is damaged"):
        restore(tmp_path / "packed", tmp_path / "again")
    with pytest.raises(CheckpointError, match="is no pack"):
        restore(tuned, tmp_path / "again")


def test_a_bomb_among_the_small_files_is_bounded(tuned: Path, base: Path, tmp_path: Path) -> None:
    import zstandard

    pack(tuned, base, tmp_path / "packed")
    bomb = zstandard.ZstdCompressor().compress(bytes(2**28))
    (tmp_path / "packed" / "empty.txt.zst").write_bytes(bomb)

    def change(about: dict[str, Any]) -> None:
        (one,) = [file for file in about["files"] if file["path"] == "empty.txt"]
        one.update(packed_bytes=len(bomb), bytes=100)

    forged(tmp_path / "packed", change)
    with pytest.raises(CheckpointError, match="more than the 100 bytes"):
        restore(tmp_path / "packed", tmp_path / "again")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_said_in_words(code: int, tuned: Path, base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from regraft.delta import files

    pack(tuned, base, tmp_path / "packed")
    before = content(tuned)
    written = files.Target.write

    def full(self: files.Target, data: Any) -> None:
        if self._file is not None and self.written > 5000:
            raise OSError(code, os.strerror(code))
        written(self, data)

    monkeypatch.setattr(files.Target, "write", full)
    words = "The disk is full" if code == errno.ENOSPC else "cannot be written"
    with pytest.raises(StoreError, match=words):
        pack(tuned, base, tmp_path / "second", replace=True)
    with pytest.raises(StoreError, match=words):
        restore(tmp_path / "packed", tmp_path / "again")
    assert content(tuned) == before
    assert not (tmp_path / "second").exists() and not (tmp_path / "again").exists()


def test_places_in_one_another_are_refused(tuned: Path, base: Path, tmp_path: Path) -> None:
    for out in (tuned / "packed", tuned, tmp_path, base / "packed"):
        with pytest.raises(StoreError, match=r"lie in one another|is inside the parent"):
            pack(tuned, base, out)
    with pytest.raises(CheckpointError, match="lie in one another"):
        pack(tuned, tuned, tmp_path / "packed")
    pack(tuned, base, tmp_path / "packed")
    with pytest.raises(CheckpointError, match="is a pack"):
        pack(tmp_path / "packed", base, tmp_path / "twice")
    with pytest.raises(CheckpointError, match="is a pack"):
        pack(tuned, tmp_path / "packed", tmp_path / "twice")
    with pytest.raises(StoreError, match="inside the pack"):
        restore(tmp_path / "packed", tmp_path / "packed" / "again")
    with pytest.raises(BudgetError, match="too few"):
        pack(tuned, base, tmp_path / "small", max_memory=1000)


def test_nothing_is_restored_into_the_parent(tuned: Path, base: Path, tmp_path: Path) -> None:
    pack(tuned, base, tmp_path / "packed")
    before = sorted(base.rglob("*"))
    (tmp_path / "link").symlink_to(base)
    for out in (base / "in", tmp_path / "link" / "deeper" / "in"):
        with pytest.raises(StoreError, match="is inside the parent"):
            restore(tmp_path / "packed", out)
    assert sorted(base.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that takes no files")
def test_a_folder_that_takes_no_files_is_not_called_locked(tuned: Path, tmp_path: Path) -> None:
    pack(tuned, None, tmp_path / "packed")
    with pytest.raises(StoreError, match="/proc/x cannot be written: no file can be made in /proc"):
        restore(tmp_path / "packed", Path("/proc/x"))


def test_links(tuned: Path, base: Path, tmp_path: Path) -> None:
    """A link inside comes back as the file that it led to; one that leaves is refused; none is removed."""
    (tuned / "same.json").symlink_to("config.json")
    with pytest.raises(UnsafeCheckpointError, match="holds links"):
        pack(tuned, base, tmp_path / "packed", replace=True)
    pack(tuned, base, tmp_path / "packed")
    restore(tmp_path / "packed", tmp_path / "again")
    assert (tmp_path / "again" / "same.json").read_bytes() == (tuned / "config.json").read_bytes()
    assert not (tmp_path / "again" / "same.json").is_symlink()
    (tuned / "out.json").symlink_to(base / "config.json")
    with pytest.raises(UnsafeCheckpointError, match="is a link that leaves"):
        pack(tuned, base, tmp_path / "other")


def test_links_in_a_pack_stay_inside(tuned: Path, base: Path, tmp_path: Path) -> None:
    pack(tuned, base, tmp_path / "packed")
    frame = tmp_path / "packed" / "config.json.zst"
    frame.rename(tmp_path / "secret")
    frame.symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeCheckpointError, match="is a link that leaves"):
        restore(tmp_path / "packed", tmp_path / "again")


def test_an_original_that_was_moved_aside_goes_only_for_its_own_pack(
    tuned: Path, base: Path, tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    """The pack of a killed call was thrown away as a failure; another pack must not pass for it."""
    before, other = content(tuned), Path(shutil.copytree(base, tmp_path / "other"))
    pack(other, None, tmp_path / "others")
    killed_at("original aside", lambda: pack(tuned, base, tmp_path / "packed", workers=1, replace=True))
    (tmp_path / "packed").rename(tmp_path / "thrown away")
    (aside,) = tmp_path.glob(".tuned.*.packed.partial")
    with pytest.raises(CheckpointError, match=r"was moved aside to .*\.packed\.partial when it was packed"):
        pack(tuned, base, tmp_path / "others", replace=True)
    assert content(aside) == before
    shutil.copytree(other, tuned)
    (tuned / "README.md").write_text("An older copy.")
    with pytest.raises(StoreError, match="exists, and is not the pack of"):
        pack(tuned, base, tmp_path / "others", replace=True)
    assert content(aside) == before
    (tmp_path / "thrown away").rename(tmp_path / "packed")
    shutil.rmtree(tuned)
    with pytest.raises(CheckpointError, match="It may be packed already"):
        pack(tuned, base, tmp_path / "packed")
    assert not aside.exists()


def test_a_file_that_is_written_at_the_last_moment_is_not_removed(tuned: Path, base: Path, tmp_path: Path) -> None:
    def hook(name: str) -> None:
        if name == "original aside":
            (aside,) = tmp_path.glob(".tuned.*.packed.partial")
            (aside / "model.pt").write_text("through a folder that was open")

    faults.hook = hook
    with pytest.raises(CheckpointError, match="has changed while it was packed, and was not removed"):
        pack(tuned, base, tmp_path / "packed", replace=True)
    assert (tuned / "model.pt").exists() and names(tmp_path) == {"base", "tuned", "packed"}


def test_a_bomb_among_the_deltas_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """Empty planes take a few bytes in the table and 16 MiB on the disk: 2^40 bytes of nothing."""
    from regraft.delta.layout import BLOCK_LIMIT, START, as_json, head_entry, preamble, read_layout
    from regraft.delta.layout import Entry as Listed

    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors")
    (tmp_path / "one").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "one" / "model.safetensors")
    pack(tmp_path / "one", None, tmp_path / "packed")
    delta = tmp_path / "packed" / "model.safetensors.delta"
    listed = [head_entry(8), Listed("a", "U8", 2**40 - 8, "plain")]
    blocks = 1 + -(-(2**40 - 8) // BLOCK_LIMIT)
    table = bytes(12 * blocks)
    delta.write_bytes(preamble(as_json(2**40, "0" * 64, BLOCK_LIMIT, listed), table))
    assert read_layout(delta).bytes == 2**40 and START < delta.stat().st_size < 2**20

    def change(about: dict[str, Any]) -> None:
        about["files"][0].update(packed_bytes=delta.stat().st_size)

    forged(tmp_path / "packed", change)
    with pytest.raises(CheckpointError, match=r"claims to unpack to 1099511627776 bytes, pack\.json says \d+"):
        restore(tmp_path / "packed", tmp_path / "again")


def test_nobody_can_read_more_of_a_pack_than_of_the_original(tuned: Path, base: Path, tmp_path: Path) -> None:
    def modes(folder: Path) -> dict[str, int]:
        return {
            path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))
        }

    secret = tuned / "model-00001-of-00002.safetensors"
    secret.chmod(0o600)
    (tuned / "config.json").chmod(0o640)
    (tuned / "runs").chmod(0o750)
    (tuned / "logs" / "none").chmod(0o500)
    tuned.chmod(0o700)
    before, seen = modes(tuned), []

    def hook(name: str) -> None:
        if name in ("packed file written", "restored file written"):
            seen.extend(path.stat().st_mode & 0o777 for path in tmp_path.glob(".*.partial"))

    faults.hook = hook
    pack(tuned, base, tmp_path / "packed")
    packed = modes(tmp_path / "packed")
    assert (packed["."], packed["runs"]) == (0o700, 0o750)
    assert (packed[f"{secret.name}.delta"], packed["config.json.zst"], packed["pack.json"]) == (0o600, 0o640, 0o600)
    restore(tmp_path / "packed", tmp_path / "again")
    assert modes(tmp_path / "again") == before and set(seen) == {0o700}, "nor while they are written"
    forged(tmp_path / "packed", lambda about: about.pop("modes"))  # as an older Regraft packed
    faults.hook = None
    restore(tmp_path / "packed", tmp_path / "third")
    assert content(tmp_path / "third") == content(tuned) and (tmp_path / "third").stat().st_mode & 0o500 == 0o500
    forged(tmp_path / "packed", lambda about: about.update(modes={"../base": 0o777}))
    with pytest.raises(UnsafeCheckpointError, match="leaves the folder"):
        restore(tmp_path / "packed", tmp_path / "fourth")


def test_of_two_places_the_parent_is_where_its_weights_are(tuned: Path, base: Path, tmp_path: Path) -> None:
    """The pack was moved beside a folder that is called as its parent; or beside one without weights."""
    pack(tuned, base, tmp_path / "packed")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "packed").rename(tmp_path / "elsewhere" / "packed")
    other = Path(shutil.copytree(base, tmp_path / "elsewhere" / "base"))
    tensors = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, other / "model.safetensors")
    restore(tmp_path / "elsewhere" / "packed", tmp_path / "again")
    assert content(tmp_path / "again") == content(tuned)
    (other / "model.safetensors").unlink()
    verify(tmp_path / "elsewhere" / "packed")
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match="holds no safetensors weights"):
        verify(tmp_path / "elsewhere" / "packed")


def test_a_list_that_is_a_pipe_is_not_waited_for(tuned: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    os.mkfifo(tmp_path / "packed" / "pack.json")
    with pytest.raises(CheckpointError, match="it is a pipe"):
        restore(tmp_path / "packed", tmp_path / "again")
    with pytest.raises(StoreError, match="exists"):
        pack(tuned, base, tmp_path / "packed")


def test_links_in_a_circle_are_words(tuned: Path, tmp_path: Path) -> None:
    (tuned / "extra").symlink_to("extra")
    with pytest.raises(CheckpointError, match="links lead in a circle"):
        pack(tuned, None, tmp_path / "packed")
    (tuned / "extra").unlink()
    pack(tuned, None, tmp_path / "packed")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreError, match="links lead in a circle"):
        pack(tuned, None, tmp_path / "loop" / "out")
    with pytest.raises(StoreError, match="links lead in a circle"):
        restore(tmp_path / "packed", tmp_path / "loop" / "out")
