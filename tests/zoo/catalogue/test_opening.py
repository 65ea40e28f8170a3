"""Opening: where a catalogue is, who may write it, whose file it is, its version; errors are words and never show a password."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, select, text

from regraft.errors import CatalogueError, RegraftError
from regraft.zoo.catalogue import Catalogue, NoCatalogueError, open_catalogue, opening, rows
from regraft.zoo.catalogue import schema as tables
from regraft.zoo.catalogue.in_words import Speaker
from regraft.zoo.catalogue.opening import _upgrade
from regraft.zoo.catalogue.place import on_network, place_of

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def file(tmp_path: Path, record_maker: Any) -> Path:
    """A catalogue of three records."""
    with open_catalogue(tmp_path / "c.sqlite") as opened:
        opened.put(record_maker(number) for number in range(3))
    return tmp_path / "c.sqlite"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAFT_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("REGRAFT_CATALOGUE", raising=False)
    assert place_of(None).path == tmp_path / "store" / "catalogue.sqlite"
    monkeypatch.setenv("REGRAFT_CATALOGUE", str(tmp_path / "other.sqlite"))
    assert place_of(None).path == tmp_path / "other.sqlite" and place_of("x").path == Path("x")
    assert place_of("sqlite:////a/b.sqlite").path == Path("/a/b.sqlite")
    with open_catalogue() as opened:
        assert opened.count() == 0 and opened.writable
    assert (tmp_path / "other.sqlite").exists()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:s3cr%40t@localhost:1/x",
        "postgresql://me:s3cr%40t@localhost:1/x?connect_timeout=1",
        "postgresql+psycopg://localhost:1/x?user=me&password=s3cr%40t",
        "postgresql+psycopg://me:s3cr%40t@localhost:port/x",
        "mysql://me:s3cr%40t@localhost/x",
    ],
)
def test_a_password_is_never_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    with pytest.raises(CatalogueError) as caught:
        open_catalogue(url)
    said = f"{caught.value!r} {caught.value} {caught.value.__cause__!r} {caplog.text}"
    assert "s3cr" not in said and caught.value.remedy
    if "1/x" in url:
        assert "***" in place_of(url).shown and "s3cr" not in place_of(url).shown


def test_none_is_made_where_none_is_to_be(tmp_path: Path) -> None:
    with pytest.raises(NoCatalogueError, match="There is no catalogue"):
        open_catalogue(tmp_path / "no" / "c.sqlite", create=False)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "content", [b"hello", b"\x80\x04 a pickle", b"SQLite format 3\x00" + b"\xff" * 4096, b"{" * 10_000]
)
def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(CatalogueError) as caught:
        open_catalogue(tmp_path / "c")
    assert str(tmp_path / "c") in caught.value.problem and caught.value.remedy
    assert (tmp_path / "c").read_bytes() == content
    with pytest.raises(CatalogueError, match="is a folder"):
        open_catalogue(tmp_path)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "c")
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.commit()
    other.close()
    with pytest.raises(CatalogueError, match="database of another program"):
        open_catalogue(tmp_path / "c")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_damaged_file_is_said_to_be_so(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with (
        pytest.raises(CatalogueError, match=r"damaged|not whole|no catalogue|cannot be"),
        open_catalogue(file) as opened,
    ):
        list(opened.every())
        opened.search("bert")
        opened.tree("bert")


def test_a_missing_table_is_said(file: Path) -> None:
    broken = sqlite3.connect(file)
    broken.execute("DROP TABLE terms")
    broken.commit()
    broken.close()
    with pytest.raises(CatalogueError, match="a table is missing"), open_catalogue(file) as opened:
        opened.find("tag=x")


def test_a_newer_version_is_refused(where: str) -> None:
    with open_catalogue(where) as opened, opened.database.writing() as connection:
        connection.execute(text(f"UPDATE {tables.VERSION_TABLE} SET version_num = '0099'"))
    with pytest.raises(
        CatalogueError, match=r"made by a newer Regraft \(its tables are version 0099, this one knows up to"
    ):
        open_catalogue(where)


def test_an_older_one_is_brought_up_to_date_and_keeps_what_it_has(where: str, record_maker: Any) -> None:
    before = opening.REVISIONS
    try:
        opening.REVISIONS = ("0001",)  # as the first version was
        opening._upgrade = lambda connection: _upgrade(connection, "0001")
        old = Catalogue(opening.connect(place_of(where)), where)
    finally:
        opening.REVISIONS, opening._upgrade = before, _upgrade
    with old.database.writing() as connection:
        for number in (1, 2):
            record = record_maker(number)
            connection.execute(text(
                "INSERT INTO checkpoints (id, path_key, name_key, last_key, file_id, licence_conflict, deep, gone, indexed_at) "
                "VALUES (:id, :path, :name, :name, 'x', false, true, false, 5.0)"
            ), {"id": number, "path": record.path, "name": f"m{number}"})  # fmt: skip
            connection.execute(tables.records.insert().values(rows.record_row(number, record)))
        connection.execute(tables.edges.insert().values(
            child_id=2, parent_id=1, parent=record_maker(1).path, parent_key="", relation="finetuned", source="weights",
            evidence="",
        ))  # fmt: skip
    old.close()
    with open_catalogue(where) as opened:
        first, second = opened.find().entries
        assert (
            first.record == record_maker(1) and opened.measurements(first.record.path) == [] and first.first_seen == 5.0
        )
        assert opened.find("parent=m1").entries == (second,), "parents that were found from weights are terms now"
        assert {one.reader for one in opened.known([Path("/zoo")]).values()} == {None}, "to be read again"


def test_the_migrations_make_the_tables_of_the_schema(catalogue: Catalogue) -> None:
    def ours(name: str | None, kind: str, _: object) -> bool:
        return kind != "table" or not str(name).startswith(("words", "regraft_"))

    with catalogue.database.reading() as connection:
        options = {"include_name": ours, "version_table": tables.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []
    scripts = ScriptDirectory(str(Path(tables.__file__).parent / "migrations"))
    assert tuple(reversed([one.revision for one in scripts.walk_revisions()])) == tables.REVISIONS


def open_and_put(where: str, first: int, barrier: Any) -> None:
    """What a second process does; found by its file, since it is forked."""
    from regraft.zoo.record.record import Record

    barrier.wait()
    with open_catalogue(where) as opened:
        for number in range(first, first + 20):
            opened.put([Record(path=f"/{number}", name=f"m{number % 25}", kind="checkpoint", file_id="x")])


def test_processes_that_open_a_new_one_and_write_at_once(where: str) -> None:
    """Three make the tables and write: nothing is lost, nobody fails."""
    forked = multiprocessing.get_context("fork")
    barrier = forked.Barrier(3)
    workers = [forked.Process(target=open_and_put, args=(where, first, barrier)) for first in (0, 15, 30)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with open_catalogue(where) as opened:
        assert {entry.record.path for entry in opened.every()} == {f"/{number}" for number in range(50)}


def test_a_reader_sees_one_state_while_another_writes(where: str, record_maker: Any) -> None:
    with open_catalogue(where) as writer, open_catalogue(where) as reader:
        writer.put([record_maker(1)])
        with writer.database.writing() as connection:
            connection.execute(tables.checkpoints.update().values(gone=True))
            assert reader.count() == 1  # does not wait, and does not see what is not committed
        assert reader.count() == 0


def test_everything_in_a_transaction_that_reads_sees_one_state(where: str, record_maker: Any) -> None:
    """Another process commits between two of its questions."""
    with open_catalogue(where) as writer, open_catalogue(where) as reader:
        writer.put([record_maker(1)])
        asked = select(func.count()).select_from(tables.checkpoints)
        with reader.database.reading() as connection:
            assert connection.execute(asked).scalar_one() == 1
            writer.put([record_maker(2)])
            assert connection.execute(asked).scalar_one() == 1
        assert reader.count() == 2


def test_a_file_that_is_read_without_locks_is_not_written_meanwhile(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that is only to be read SQLite cannot see that another process writes."""
    with monkeypatch.context() as closed:
        closed.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        opened = open_catalogue(file)
    with opened:
        assert not opened.writable and opened.count() == 3
        other = sqlite3.connect(file)
        other.execute("DELETE FROM checkpoints")
        other.commit()
        with pytest.raises(CatalogueError, match="was written by another process while it was read"):
            opened.count()
        other.close()


def test_tables_of_another_program_in_a_shared_database() -> None:
    assert opening._is_foreign({"words", "invoices"}, sqlite=False) and opening._is_foreign({"invoices"}, sqlite=True)
    assert not opening._is_foreign({"invoices"}, sqlite=False) and not opening._is_foreign(set(), sqlite=True)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that anybody can reach."""
    folder = Path(tempfile.mkdtemp(prefix="regraft-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_somebody(work: Callable[[], str]) -> str:
    """What the work returns in a child without the right to write what is not its own (root may write anything)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(writing, work().encode())
        except BaseException as fault:
            os.write(writing, f"{type(fault).__name__}: {fault}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("mode", [0o555, 0o755], ids=["folder closed", "folder of another"])
def test_a_catalogue_that_can_only_be_read(public: Path, file: Path, mode: int, record_maker: Any) -> None:
    place = public / "c.sqlite"
    shutil.copy(file, place)
    place.chmod(0o444)
    public.chmod(mode)

    def look() -> str:
        with open_catalogue(place) as opened:
            said = [str(opened.writable), str(opened.count()), str(len(opened.search("b* OR m*".replace(" OR", ""))))]
            for work in (lambda: opened.put([record_maker(9)]), lambda: opened.remove(record_maker(0).path)):
                try:
                    work()
                except CatalogueError as fault:
                    said.append(fault.problem)
        return "|".join(said)

    said = as_somebody(look).split("|")
    assert said[:2] == ["False", "3"]
    assert said[3:] == [f"{place} can be read but not written."] * 2
    assert sorted(path.name for path in public.iterdir()) == ["c.sqlite"]


def test_a_folder_that_cannot_be_written_or_read(public: Path) -> None:
    public.chmod(0o555)
    assert "its folder cannot be written" in as_somebody(lambda: str(open_catalogue(public / "new.sqlite")))
    assert "CatalogueError" in as_somebody(lambda: str(open_catalogue(public / "deeper" / "new.sqlite")))
    (public / "c.sqlite").write_bytes(b"")
    (public / "c.sqlite").chmod(0)
    assert "cannot be opened: Permission denied" in as_somebody(lambda: str(open_catalogue(public / "c.sqlite")))


def test_read_only_on_demand(file: Path, record_maker: Any) -> None:
    with open_catalogue(file, read_only=True) as opened:
        assert opened.count() == 3
        with pytest.raises(RegraftError, match="can be read but not written"):
            opened.put([record_maker(9)])


def test_where_files_cannot_grow_a_catalogue_is_still_read(public: Path, file: Path) -> None:
    """SQLite wants to make a file beside it; a limit of file sizes acts as a full disk does."""
    place = public / "c.sqlite"
    shutil.copy(file, place)
    place.chmod(0o666)
    public.chmod(0o777)

    def look() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with open_catalogue(place, create=False) as opened:
            said = [str(opened.count()), str(opened.writable)]
            try:
                opened.remove("m")
            except CatalogueError as fault:
                said.append(fault.problem)
        try:
            open_catalogue(place)
        except CatalogueError as fault:
            said.append(fault.problem)
        return "|".join(said)

    problem = f"{place} cannot be written: files may not grow so large here."
    assert as_somebody(look).split("|") == ["3", "False", problem, problem]


def test_a_full_disk_is_not_called_broken(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker(str(file), sqlite=True)
    fault = sqlite3.OperationalError("disk I/O error")
    usage = shutil.disk_usage(file.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert "the disk is full" in str(speaker.error(fault))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    assert "the disk reports an error" in str(speaker.error(fault))


def test_an_empty_file_holds_no_catalogue_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"")
    with pytest.raises(NoCatalogueError, match="is empty"):
        open_catalogue(tmp_path / "c.sqlite", create=False)
    assert (tmp_path / "c.sqlite").read_bytes() == b""
    open_catalogue(tmp_path / "c.sqlite").close()


def test_network_file_systems_are_known_by_their_mounts(tmp_path: Path) -> None:
    mounts = f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/sdb {tmp_path}/local xfs rw 0 0\n"
    (tmp_path / "local").mkdir()
    assert on_network(tmp_path / "c.sqlite", mounts) and not on_network(Path("/c.sqlite"), mounts)
    assert not on_network(tmp_path / "local" / "c.sqlite", mounts)


def test_on_a_network_file_system_the_log_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_maker: Any
) -> None:
    monkeypatch.setattr("regraft.zoo.catalogue.opening.on_network", lambda path: True)
    with open_catalogue(tmp_path / "c.sqlite") as opened:
        opened.put([record_maker(1)])
        assert opened.count() == 1 and not (tmp_path / "c.sqlite-wal").exists()


def test_circles_of_links_and_pipes_are_words(tmp_path: Path) -> None:
    (tmp_path / "loop.sqlite").symlink_to("loop.sqlite")
    os.mkfifo(tmp_path / "pipe.sqlite")
    for name, words in (
        ("loop.sqlite", "links lead in a circle"),
        ("pipe.sqlite", "it is a pipe, a socket or a device"),
    ):
        for create in (True, False):
            with pytest.raises(CatalogueError, match=words):
                open_catalogue(tmp_path / name, create=create)


@pytest.mark.parametrize("text", ["", " "])
def test_no_text_is_no_catalogue(text: str) -> None:
    with pytest.raises(CatalogueError, match="is no place of a catalogue"):
        place_of(text)
