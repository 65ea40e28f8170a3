"""Indexing: what is found is what `discover` finds; what changed is read and nothing else; killed anywhere, nothing is lost."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from regraft import faults
from regraft.errors import CatalogueError
from regraft.zoo import discover
from regraft.zoo.catalogue import Catalogue, index, open_catalogue
from regraft.zoo.catalogue import schema as tables
from regraft.zoo.record.record import Record, Risk
from regraft.zoo.walk import Unreadable, walk

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    faults.hook = None


@pytest.fixture
def zoo(tmp_path: Path, checkpoint_maker: Any) -> Path:
    """Nine checkpoints in several layouts, with a parent, links and folders that are none."""
    root = tmp_path / "zoo"
    for number in range(4):
        card = f"---\nlicense: mit\nbase_model: {'org/base' if number else 'far/away'}\ntags: [t{number}]\n---\n"
        checkpoint_maker(root / "flat" / f"m{number}", layers=number + 1, card=card)
    checkpoint_maker(root / "models--org--base" / "snapshots" / ("a" * 40))
    checkpoint_maker(root / "deep" / "er" / "still" / "x")
    checkpoint_maker(root / "deep" / "er" / "still" / "x" / "encoder")  # inside another: none of its own
    checkpoint_maker(root / ".hidden" / "y")
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    )
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_bytes(b"\xff\xfe{")
    (root / "pickled").mkdir()
    (root / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    (root / "loop").symlink_to(root)
    (root / "flat" / "again").symlink_to(root / "flat" / "m0")
    (root / "self").symlink_to(root / "self")
    (root / "notes").mkdir()
    return root


def state_of(catalogue: Catalogue) -> dict[str, Any]:
    """All that a catalogue knows, without numbers and times, so that two can be compared."""
    with catalogue.database.reading() as connection:
        rows = connection.execute(select(tables.checkpoints)).mappings().all()
        paths = {row["id"]: row["path_key"] for row in rows}
        found: dict[str, Any] = {
            "checkpoints": sorted(
                [str({**row, "id": 0, "indexed_at": 0, "first_seen": 0}) for row in rows]
            ),
            "words": [entry.record.path for entry in catalogue.search("base", limit=100)],
        }  # fmt: skip
        for table in (tables.records, tables.terms, tables.claims, tables.risks, tables.edges):
            listed = []
            for row in connection.execute(select(table)).mappings():
                plain = {name: value for name, value in row.items() if name != "id"}
                for name in ("checkpoint_id", "child_id", "parent_id"):
                    if name in plain:
                        plain[name] = paths.get(plain[name])
                listed.append(str(plain))
            found[table.name] = sorted(listed)
    return found


def test_what_is_found_is_what_discover_finds(zoo: Path) -> None:
    troubles: list[Unreadable] = []
    found = [Path(one) for one in walk([zoo], troubles)]
    listed = [one.folder for one in discover.in_folder(zoo)]
    assert {one.resolve() for one in found} - {one.resolve() for one in listed} == {zoo / "deep" / "er" / "still" / "x"}
    assert not {one.resolve() for one in listed} - {one.resolve() for one in found} and troubles == []
    assert len(found) == len({one.resolve() for one in found}) == 9


def test_only_what_changed_is_read(catalogue: Catalogue, zoo: Path, checkpoint_maker: Any) -> None:
    from regraft.zoo.record import read_record

    read: list[str] = []

    def noted(folder: Path) -> Record:
        read.append(folder.name)
        return read_record(folder)

    first = index(catalogue, [zoo], read=noted)
    assert (first.added, first.changed, first.unchanged, first.gone) == (9, 0, 0, 0) and len(read) == 9
    read.clear()
    again = index(catalogue, [zoo], read=noted)
    assert (again.added, again.changed, again.unchanged, again.gone) == (0, 0, 9, 0) and read == []
    checkpoint_maker(zoo / "flat" / "m1", layers=7, weights=9)
    checkpoint_maker(zoo / "new")
    shutil.rmtree(zoo / "adapter")
    more = index(catalogue, [zoo], read=noted)
    assert (more.added, more.changed, more.unchanged, more.gone) == (1, 1, 7, 1) and sorted(read) == ["m1", "new"]
    assert catalogue.get(str(zoo / "flat" / "m1")).record.layers == 7
    assert [entry.record.name for entry in catalogue.find("gone=yes").entries] == ["adapter"]
    below = index(catalogue, [zoo / "flat"], read=noted)
    assert (below.unchanged, below.gone) == (4, 0), "what is elsewhere is not asked after"


def test_what_comes_back_is_there_again_with_its_measurements(catalogue: Catalogue, zoo: Path) -> None:
    from regraft.zoo.catalogue import Measurement

    index(catalogue, [zoo])
    place = str(zoo / "flat" / "m2")
    catalogue.record_measurement(place, Measurement("id", "t", "as it is", "accuracy", 0.5, 10))
    (zoo / "flat").rename(zoo.parent / "aside")
    assert index(catalogue, [zoo / "flat"]).gone == 4, "a root that is gone"
    (zoo.parent / "aside").rename(zoo / "flat")
    assert index(catalogue, [zoo]).changed == 4
    assert not catalogue.get(place).gone and [one.value for one in catalogue.measurements(place)] == [0.5]


def test_a_place_that_is_nothing(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place, words in ((tmp_path / "nowhere", "is not there"), (tmp_path / "file", "is a file, expected a folder")):
        with pytest.raises(CatalogueError, match=words):
            index(catalogue, [place])


def test_folders_that_cannot_be_listed_are_reported_and_nothing_below_is_forgotten(
    catalogue: Catalogue, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(catalogue, [zoo])
    scan = os.scandir

    def closed(folder: Any) -> Any:
        if str(folder) == str(zoo / "flat"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", closed)
    found = index(catalogue, [zoo])
    assert (found.unchanged, found.gone) == (5, 0) and catalogue.count() == 9
    assert [(one.path, one.problem) for one in found.unreadable] == [
        (str(zoo / "flat"), "cannot be listed: Permission denied")
    ]


def test_a_folder_that_vanishes_meanwhile(catalogue: Catalogue, zoo: Path) -> None:
    from regraft.zoo.record import read_record

    def slow(folder: Path) -> Record:
        if folder.name == "m1":
            shutil.rmtree(folder)
        return read_record(folder)

    found = index(catalogue, [zoo], read=slow)
    assert found.added == 8 and not catalogue.has(str(zoo / "flat" / "m1"))


def test_a_reader_that_fails_costs_one_folder(catalogue: Catalogue, zoo: Path) -> None:
    from regraft.zoo.record import read_record

    def faulty(folder: Path) -> Record:
        if folder.name == "m3":
            raise MemoryError("too big")
        return read_record(folder)

    found = index(catalogue, [zoo], read=faulty)
    assert found.added == 9
    assert [one.problem for one in found.unreadable if one.path.endswith("m3")] == [
        "could not be read: MemoryError: too big"
    ]
    assert catalogue.count("kind=unreadable risk=unreadable name=m3") == 1


def test_workers_find_what_one_process_finds(catalogue: Catalogue, zoo: Path, tmp_path: Path) -> None:
    index(catalogue, [zoo], workers=2)
    with open_catalogue(tmp_path / "other.sqlite") as other:
        index(other, [zoo], workers=1)
        assert state_of(catalogue) == state_of(other)


def test_a_worker_that_dies_costs_one_folder(catalogue: Catalogue, zoo: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "deadly_reader.py").write_text(
        "import os\nfrom regraft.zoo.record import read_record\n"
        "def read(folder):\n    if folder.name == 'm2':\n        os._exit(9)\n    return read_record(folder)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = index(catalogue, [zoo], workers=2, read=importlib.import_module("deadly_reader").read)
    assert found.added == 9 and catalogue.count("risk=reader-died") == 1
    assert [Path(one.path).name for one in found.unreadable if "ended the process" in one.problem] == ["m2"]


@pytest.mark.parametrize(
    ("point", "passes"), [(point, 1) for point in faults.INDEX] + [(point, 2) for point in faults.INDEX[:2]]
)
def test_killed_and_run_again_is_as_never_killed(
    where: str,
    zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint_maker: Any,
    point: str,
    passes: int,
    killed_at: Callable[..., None],
) -> None:
    monkeypatch.setattr(sys.modules["regraft.zoo.catalogue.index"], "BATCH", 2)
    other = tmp_path / "clean.sqlite"
    for place in (where, other):  # both know a state from before: one checkpoint changes, one goes
        with open_catalogue(place) as opened:
            index(opened, [zoo], workers=1)
    for number in range(5):
        checkpoint_maker(zoo / "more" / f"n{number}", card="---\nbase_model: m3\n---\n")
    checkpoint_maker(zoo / "flat" / "m1", layers=11, weights=10)
    shutil.rmtree(zoo / "models--org--base")

    def work() -> None:
        with open_catalogue(where) as opened:
            index(opened, [zoo], workers=1)

    killed_at(point, work, passes)
    with open_catalogue(where) as opened:
        for entry in opened.every():  # whole, whatever there is
            assert opened.has(entry.record.path) and opened.count(f'path="{entry.record.path}"') == 1
        found = index(opened, [zoo], workers=1)
        assert found.added + found.changed + found.unchanged == 13
        with open_catalogue(other) as clean:
            index(clean, [zoo], workers=1)
            assert state_of(opened) == state_of(clean)


def test_deep_reads_weights_once(catalogue: Catalogue, zoo: Path) -> None:
    looked: list[str] = []

    def inspect(folder: Path) -> tuple[Risk, ...]:
        looked.append(folder.name)
        return (Risk("nan", "danger", "w", "NaN"),)

    index(catalogue, [zoo])
    assert index(catalogue, [zoo], deep=True, inspect=inspect).changed == 9
    assert (
        len(looked)
        == catalogue.count("risk=nan deep=yes")
        == len([r for _, r in catalogue.risks("danger") if r.code == "nan"])
    )
    assert index(catalogue, [zoo], deep=True, inspect=inspect).unchanged == 9
    assert index(catalogue, [zoo]).unchanged == 9, "what is known of the weights is kept"


class Inspected:
    """Reads no weights, but says what they show, and which it was asked about."""

    def __init__(self) -> None:
        self.looked: list[str] = []

    def __call__(self, folder: Path) -> tuple[Risk, ...]:
        self.looked.append(folder.name)
        return (Risk("nan", "danger", "w", "NaN"),)


def test_a_new_card_leaves_what_is_known_of_the_weights(catalogue: Catalogue, zoo: Path, checkpoint_maker: Any) -> None:
    inspect = Inspected()
    index(catalogue, [zoo], deep=True, inspect=inspect)
    (zoo / "flat" / "m2" / "README.md").write_text("A card, with a slip mended.")
    (zoo / "flat" / "m1").rename(zoo.parent / "aside")  # a disk is gone, and comes back
    assert index(catalogue, [zoo], inspect=inspect).gone == 1
    (zoo.parent / "aside").rename(zoo / "flat" / "m1")
    assert index(catalogue, [zoo], deep=True, inspect=inspect).weights_read == 0
    assert len(inspect.looked) == catalogue.count("risk=nan severity=danger deep=yes") == 9
    checkpoint_maker(zoo / "flat" / "m2", weights=12)
    found = index(catalogue, [zoo], inspect=inspect)  # once deep, always deep
    assert (found.changed, found.weights_read) == (1, 1) and inspect.looked[9:] == ["m2"]
    assert catalogue.count("risk=nan deep=yes") == 9


def test_lineage_of_weights_that_are_others_now_goes(catalogue: Catalogue, zoo: Path, checkpoint_maker: Any) -> None:
    from regraft.zoo.lineage import Edge

    inspect = Inspected()
    index(catalogue, [zoo], deep=True, inspect=inspect)
    base, *children = (str(zoo / "flat" / name) for name in ("m3", "m1", "m2"))
    assert catalogue.add_edges([Edge(child, (base,), "finetuned", 0.0, 0.1, "") for child in children]) == 2
    (zoo / "flat" / "m1" / "README.md").write_text("Another card.")
    checkpoint_maker(zoo / "flat" / "m2", weights=12)
    index(catalogue, [zoo], inspect=inspect)
    found = catalogue.tree(base)
    assert [(found.nodes[edge.child].path, edge.source) for edge in found.edges if edge.source == "weights"] == [
        (children[0], "weights")
    ]


def test_what_could_not_be_read_is_tried_again(catalogue: Catalogue, tmp_path: Path, checkpoint_maker: Any) -> None:
    """Permissions change no size and no time of a file."""
    from regraft.zoo.record import read_record

    checkpoint_maker(tmp_path / "zoo" / "m")
    closed, read = True, []

    def noted(folder: Path) -> Record:
        read.append(folder.name)
        record = read_record(folder)
        risk = Risk("unreadable-file", "danger", "config.json", "cannot be read (Permission denied).")
        return replace(record, model_type=None, risks=(risk,)) if closed else record

    first, again = (index(catalogue, [tmp_path / "zoo"], read=noted) for _ in range(2))
    assert (first.added, again.changed, again.unchanged) == (1, 0, 1)
    assert len(first.unreadable) == len(again.unreadable) == 1 and "Permission denied" in again.unreadable[0].problem
    closed = False
    assert index(catalogue, [tmp_path / "zoo"], read=noted).changed == 1
    assert catalogue.get("m").record.model_type == "bert" and catalogue.count("risk=unreadable-file") == 0
    assert index(catalogue, [tmp_path / "zoo"], read=noted).unchanged == 1 and len(read) == 3


def test_a_newer_reader_reads_again(catalogue: Catalogue, zoo: Path) -> None:
    index(catalogue, [zoo])
    seen = {entry.record.path: entry.first_seen for entry in catalogue.every()}
    with catalogue.database.writing() as connection:
        connection.execute(tables.checkpoints.update().values(reader=1))
    assert index(catalogue, [zoo]).changed == 9 and index(catalogue, [zoo]).unchanged == 9
    assert {entry.record.path: entry.first_seen for entry in catalogue.every()} == seen


def test_what_trainers_leave_inside_and_weights_alone_are_found(tmp_path: Path, checkpoint_maker: Any) -> None:
    checkpoint_maker(tmp_path / "run")
    checkpoint_maker(tmp_path / "run" / "checkpoint-500")
    checkpoint_maker(tmp_path / "run" / "checkpoint-best")
    for name in ("q4/model-q4.gguf", "onnx/model.onnx", "lora/weights.safetensors", "old/pytorch_model.bin.index.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"{}")
    checkpoint_maker(tmp_path / "many" / "one")
    (tmp_path / "many" / "loose.safetensors").write_bytes(b"")  # where somebody keeps models is none
    found = [Path(one).relative_to(tmp_path).as_posix() for one in walk([tmp_path], [])]
    assert found == ["lora", "many/one", "old", "onnx", "q4", "run", "run/checkpoint-500"]


def test_a_folder_that_is_reached_by_a_link_is_read_again_by_its_path(
    catalogue: Catalogue, tmp_path: Path, zoo: Path
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "m").symlink_to(zoo / "flat" / "m0")
    index(catalogue, [tmp_path / "links"])
    found = index(catalogue, [tmp_path / "links" / "m"])
    assert (found.unchanged, found.added, catalogue.count()) == (1, 0, 1)


def test_a_folder_that_several_paths_lead_to_is_one_checkpoint_in_whatever_order(
    catalogue: Catalogue, tmp_path: Path, checkpoint_maker: Any
) -> None:
    from regraft.zoo.catalogue import Measurement

    model = checkpoint_maker(tmp_path / "real" / "m")
    other = checkpoint_maker(tmp_path / "real" / "n", card="A copy, with another card.")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(model)
    inspect = Inspected()
    index(catalogue, [tmp_path / "a"], deep=True, inspect=inspect)
    assert catalogue.paths() == [str(tmp_path / "a" / "link")], "by the name that its owner gave it"
    catalogue.record_measurement("link", Measurement("id", "t", "as it is", "accuracy", 0.5, 10))
    assert (index(catalogue, [tmp_path / "b"]).added, catalogue.paths()) == (0, [str(tmp_path / "a" / "link")])
    found = index(catalogue, [tmp_path / "real"], inspect=inspect)
    assert (found.added, found.changed) == (1, 1) and catalogue.paths() == [str(model), str(other)]
    assert inspect.looked == ["link"] and catalogue.count("deep=yes risk=nan name=m") == 1
    assert [one.value for one in catalogue.measurements("m")] == [0.5] and not catalogue.has("link")
    for root in ("a", "b", "real", "."):
        again = index(catalogue, [tmp_path / root])
        assert (again.added, again.changed, again.gone, catalogue.count()) == (0, 0, 0, 2)
    shutil.rmtree(model)
    assert index(catalogue, [tmp_path]).gone == 1 and catalogue.paths(gone=True) == [str(model)]


def test_weights_are_read_again_where_that_is_asked_for(catalogue: Catalogue, zoo: Path, checkpoint_maker: Any) -> None:
    """A copy that keeps times, such as that of `cp -p`, shows in nothing but the weights."""
    from regraft.zoo.lineage import Edge

    index(catalogue, [zoo], deep=True)
    base, child, file = str(zoo / "flat" / "m3"), str(zoo / "flat" / "m1"), zoo / "flat" / "m1" / "model.safetensors"
    catalogue.add_edges([Edge(child, (base,), "finetuned", 0.0, 0.1, "")])
    before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-32] + b"\xff" * 32)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert index(catalogue, [zoo], deep=True).unchanged == 9 and catalogue.count("risk=nan") == 0
    found = index(catalogue, [zoo], deep=True, reread=True)
    assert found.weights_read == 9 and found.changed == 1
    assert [entry.record.path for entry in catalogue.every("risk=nan")] == [child]
    assert base in catalogue.parents(child), "the same files: what was found from them stays"


EXAMPLE = Path(__file__).parents[3] / "docs" / "zoo.md"


def test_the_example_of_the_manual_runs_once(tmp_path: Path, checkpoint_maker: Any) -> None:
    """Run as a script without `if __name__ == "__main__"`: workers must not run it again."""
    for number in range(3):
        checkpoint_maker(tmp_path / "models" / f"m{number}")
    (example,) = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(), re.DOTALL)
    assert 'index(catalogue, ["models/"])' in example
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nwith open('runs.txt', 'a') as notes:\n    notes.write(f'{os.getpid()} ')\n"
        + example.replace('["models/"])', '["models/"], workers=2)')
        + "print(summary.added, len(summary.unreadable), catalogue.where)\n"
    )
    environment = {**os.environ, "REGRAFT_CATALOGUE": str(tmp_path / "c.sqlite")}
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len((tmp_path / "runs.txt").read_text().split()) == 1
    assert done.stdout.splitlines()[-1] == f"3 0 {tmp_path / 'c.sqlite'}"


def test_workers_are_processes_and_what_only_this_one_has_is_read_here(
    catalogue: Catalogue, tmp_path: Path, checkpoint_maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        checkpoint_maker(tmp_path / "zoo" / f"m{number}")
    monkeypatch.setattr("regraft.zoo.catalogue.workers.AT_ONCE", 2)
    (tmp_path / "own_reader.py").write_text(
        "import os\nfrom regraft.zoo.record.record import Record\ndef read(folder):\n"
        "    return Record(path=str(folder), name=str(os.getpid()), kind='checkpoint', file_id='x')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = importlib.import_module("own_reader").read
    for read, elsewhere in ((own, True), (lambda folder: own(folder), False)):
        index(catalogue, [tmp_path / "zoo"], workers=2, read=read, reread=True)
        names = {entry.record.name for entry in catalogue.every()}
        assert (str(os.getpid()) not in names) == elsewhere and catalogue.count() == 5


def test_where_a_snapshot_is_from(catalogue: Catalogue, zoo: Path) -> None:
    index(catalogue, [zoo])
    (entry,) = catalogue.find("source=hf:org/base").entries
    assert (entry.record.name, entry.record.revision) == ("org/base", "a" * 40)
    assert catalogue.count(f"revision={'a' * 40}") == 1 and catalogue.count("source=none") == 8


def test_weights_that_may_not_be_read_are_counted_and_tried_again(
    catalogue: Catalogue, tmp_path: Path, checkpoint_maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `chmod 000` and then `chmod 644` leave them: sizes and times of the files do not change."""
    checkpoint_maker(tmp_path / "zoo" / "m")
    opened = os.open

    def refuse(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("model.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **more)

    with monkeypatch.context() as closed:
        closed.setattr(os, "open", refuse)
        first = index(catalogue, [tmp_path / "zoo"])
    assert [(one.path, one.problem) for one in first.unreadable] == [
        (str(tmp_path / "zoo" / "m"), "model.safetensors cannot be read (Permission denied).")
    ]
    assert catalogue.get("m").record.parameters is None
    again = index(catalogue, [tmp_path / "zoo"])
    assert (again.changed, again.unreadable) == (1, ())
    assert catalogue.get("m").record.parameters == 8 and catalogue.count("risk=unreadable-file") == 0


def test_a_root_of_links_in_a_circle(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(CatalogueError, match=r"self leads nowhere: links lead in a circle"):
        index(catalogue, [tmp_path / "self"])


@pytest.mark.parametrize("name", [b" sp ", b"sp\t", b"caf\xe9"], ids=["blanks", "tab", "latin-1"])
def test_odd_names_can_be_asked_for_by_path_and_read_again(
    name: bytes, catalogue: Catalogue, tmp_path: Path, checkpoint_maker: Any
) -> None:
    from regraft.zoo.catalogue.text import path_of

    folder = checkpoint_maker(tmp_path / "zoo" / os.fsdecode(name))
    checkpoint_maker(tmp_path / "zoo" / "sp")
    index(catalogue, [tmp_path / "zoo"])
    entry = catalogue.get(str(folder))
    assert path_of(entry.record.path) == folder and entry.record.path.encode()
    again = index(catalogue, [entry.record.path], deep=True)
    assert (again.changed, again.gone) == (1, 0)
    assert catalogue.get(entry.record.path).deep
