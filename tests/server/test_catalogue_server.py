"""What only a server can show; what both databases must do is in tests/zoo/catalogue, which runs against the server as well."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from regraft.errors import CatalogueError
from regraft.zoo.catalogue import Measurement, open_catalogue, opening
from regraft.zoo.record.record import Parent, Record

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def record(number: int, **more: Any) -> Record:
    return Record(path=f"/zoo/{number}", name=f"org/m{number}", kind="checkpoint", file_id="x", layers=number, **more)


def test_it_is_postgresql_and_keeps_what_it_is_told(url: str) -> None:
    with open_catalogue(url) as opened:
        assert not opened.database.sqlite
        opened.put([record(1), record(2, parents=(Parent("org/m1", "finetune"),))])
        opened.record_measurement("org/m1", Measurement("id", "t", "as it is", "accuracy", 0.5, 10))
    with open_catalogue(url) as opened:
        assert [node.name for node in opened.tree("org/m2").nodes] == ["org/m1", "org/m2"]
        assert opened.measurements("org/m1")[0].value == 0.5 and opened.count("layers<2") == 1
        assert [entry.record.name for entry in opened.search("m2")] == ["org/m2"]


def test_the_password_of_a_server_is_never_shown(url: str) -> None:
    given = sqlalchemy.make_url(url).set(password="s3cr%@t").render_as_string(hide_password=False)
    with open_catalogue(given) as opened:
        assert "s3cr" not in repr(opened) + opened.where and "***" in opened.where
    wrong = sqlalchemy.make_url(given).set(username="nobody_of_this_name").render_as_string(hide_password=False)
    with pytest.raises(CatalogueError) as caught:
        open_catalogue(wrong)
    assert "s3cr" not in str(caught.value) and "nobody_of_this_name" in str(caught.value)


def test_a_database_that_is_not_there(url: str) -> None:
    with pytest.raises(CatalogueError, match="is not there"):
        open_catalogue(sqlalchemy.make_url(url).set(database="no_such_database").render_as_string(hide_password=False))


def test_a_role_that_may_only_read(url: str) -> None:
    with open_catalogue(url) as opened:
        opened.put([record(1)])
        with opened.database.writing() as connection:
            connection.execute(text("DROP ROLE IF EXISTS regraft_reader"))
            connection.execute(text("CREATE ROLE regraft_reader LOGIN"))
            connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO regraft_reader"))
    reader = sqlalchemy.make_url(url).set(username="regraft_reader").render_as_string(hide_password=False)
    try:
        with open_catalogue(reader) as opened:
            assert opened.count() == 1
            with pytest.raises(CatalogueError, match="may not be used by this account"):
                opened.put([record(2)])
        with open_catalogue(url, read_only=True) as opened, pytest.raises(CatalogueError, match="read but not written"):
            opened.put([record(2)])
    finally:
        with open_catalogue(url) as opened, opened.database.writing() as connection:
            connection.execute(text("DROP OWNED BY regraft_reader"))
            connection.execute(text("DROP ROLE regraft_reader"))


def write_many(where: str, first: int, barrier: Any) -> None:
    """What each of several processes does."""
    barrier.wait()
    with open_catalogue(where) as opened:
        for start in range(first, first + 60, 10):
            opened.put(record(number, parents=(Parent(f"org/m{number + 1}"),)) for number in range(start, start + 10))


def test_several_writers_at_once_on_the_same_rows(url: str) -> None:
    """Rows overlap, and each links parents: no deadlock, nothing lost."""
    forked = multiprocessing.get_context("fork")
    barrier = forked.Barrier(4)
    workers = [forked.Process(target=write_many, args=(url, first, barrier)) for first in (0, 20, 40, 0)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    with open_catalogue(url) as opened:
        assert opened.count() == 100 and opened.count("layers<50") == 50
        assert len(opened.tree("org/m99").nodes) == 101


def test_a_connection_that_the_server_ends_is_made_again(url: str) -> None:
    with open_catalogue(url) as opened:
        opened.put([record(1)])
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = :name"
                ),
                {"name": sqlalchemy.make_url(url).database},
            )
        engine.dispose()
        assert opened.count() == 1


def test_a_writer_does_not_wait_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process was stopped while it held the lock."""
    with open_catalogue(url) as opened, open_catalogue(url) as other, other.database.writing():
        monkeypatch.setattr(opening, "PATIENCE_S", 1)
        with pytest.raises(CatalogueError, match="is being written by another process for too long"):
            opened.put([record(1)])


@pytest.mark.parametrize("name", ["records", "words", "state"])
def test_tables_of_another_program_are_left_alone(url: str, name: str) -> None:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {name} (total INTEGER)"))
    with pytest.raises(CatalogueError, match="is the database of another program"):
        open_catalogue(url)
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT count(total) FROM {name}")).scalar_one() == 0
    engine.dispose()
