"""Open a catalogue: connect, check whose database it is, bring its tables up to date under a lock.

SQLite: a write-ahead log, so that readers and one writer do not wait for each other; a second writer waits its turn (30 s).
A write transaction takes the lock when it begins (BEGIN IMMEDIATE), so that no two find out half way. On a network file
system, where the log does not work, an ordinary journal is used. PostgreSQL: a write transaction takes an advisory lock, and
waits as long for it; one that reads sees a single snapshot. Either way there is one writer at a time, and a transaction is
whole or was not: also that of a migration.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.pool import QueuePool

from regraft.errors import CatalogueError
from regraft.zoo.catalogue.in_words import NoRoomError, Speaker
from regraft.zoo.catalogue.place import NoCatalogueError, Place, check_file, on_network
from regraft.zoo.catalogue.schema import REVISIONS, VERSION_TABLE, metadata

PATIENCE_S = 30.0
_WRITES = "regraft_writes"
_LOCK = 0x72656772616674  # "regraft"
_OURS = frozenset({*metadata.tables, "words"})


class Database:
    """Connections to one catalogue; `reading` and `writing` are the only ways to use them."""

    def __init__(
        self,
        engine: Engine,
        speaker: Speaker,
        writable: bool,
        watched: Path | None = None,
        closed: CatalogueError | None = None,
    ) -> None:
        self.engine = engine
        self.speaker = speaker
        self.writable = writable
        self._closed = closed or CatalogueError(
            f"{speaker.shown} can be read but not written.", "Give --catalogue a file in a folder of yours."
        )
        self._watched = watched
        self._state = None if watched is None else _state_of(watched)

    @property
    def sqlite(self) -> bool:
        """Whether it is SQLite and not PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads: everything in it sees one state.

        Raises:
            CatalogueError: A file that is read without locks was written meanwhile.
        """
        try:
            with self.speaker.in_words(), self.engine.connect() as connection:
                if not self.sqlite:  # by default each statement of a transaction there sees another state
                    connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection
        except CatalogueError:
            self._check_unchanged()  # a file that changes under its reader looks damaged
            raise
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        if self._watched is not None and _state_of(self._watched) != self._state:
            raise CatalogueError(
                f"{self.speaker.shown} was written by another process while it was read.", "Run the same command again."
            )

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes, alone; committed when the block ends, undone when it raises or the process dies.

        Raises:
            CatalogueError: The catalogue can only be read, the disk is full, another process does not let go.
        """
        if not self.writable:
            raise self._closed
        with (
            self.speaker.in_words(),
            self.engine.connect().execution_options(**{_WRITES: True}) as connection,
            connection.begin(),
        ):
            if not self.sqlite:
                connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE_S:.0f}s'"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            yield connection


def connect(place: Place, *, create: bool = True, read_only: bool = False) -> Database:
    """A database with every table that this code knows.

    Raises:
        CatalogueError: No catalogue, a damaged one, one of a newer Regraft, or none that can be reached.
    """
    if place.path is not None:
        writable = check_file(place.path, create=create) and not read_only
        if not create and not place.path.stat().st_size:
            raise NoCatalogueError(
                f"{place.path} is empty: it holds no catalogue.", "Fill it with `regraft zoo add FOLDER`."
            )
        speaker = Speaker(place.shown, sqlite=True)
        alone = not writable and _without_locks(place.path)
        database = Database(_sqlite(place.path, writable, alone), speaker, writable, place.path if alone else None)
    else:
        speaker = Speaker(place.shown, sqlite=False, secrets=place.secrets)
        database = Database(_postgres(place, read_only), speaker, not read_only)
    try:
        if place.path is not None and database.writable:
            _write_ahead(database, place.path)
        _prepare(database)
    except NoRoomError as fault:  # SQLite cannot make the files that it keeps beside a catalogue
        database.engine.dispose()
        if create or place.path is None or _state_of(place.path)[2] > 0:
            raise
        database = Database(_sqlite(place.path, False, True), speaker, False, place.path, fault)
        _prepare(database)
    except BaseException:
        database.engine.dispose()
        raise
    return database


def _without_locks(path: Path) -> bool:
    """Whether a file has to be read as if nobody wrote it: the log's index cannot be made in a folder that is only to be read.

    SQLite does not look for changes then, so `Database` does.
    """
    return not os.access(path.parent, os.W_OK) and _state_of(path)[2] <= 0


def _state_of(path: Path) -> tuple[int, int, int]:
    """Size and time of the file, and the size of its log; -1 where there is none."""
    log = path.with_name(path.name + "-wal")
    try:
        status = path.stat()
    except FileNotFoundError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, log.stat().st_size if log.exists() else -1


def _sqlite(path: Path, writable: bool, alone: bool) -> Engine:
    mode = "rwc" if writable else "ro"
    if alone:
        mode += "&immutable=1"
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}"

    def dial() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        for pragma in ("foreign_keys=ON", "synchronous=NORMAL", "temp_store=MEMORY", "cache_size=-65536"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    engine = create_engine("sqlite://", creator=dial, poolclass=QueuePool, pool_size=4, max_overflow=16)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres(place: Place, read_only: bool) -> Engine:
    assert place.url is not None
    options: dict[str, Any] = {"connect_args": {"connect_timeout": 10}, "pool_size": 4, "pool_pre_ping": True}
    try:
        engine = create_engine(place.url, hide_parameters=True, **options)
    except (ModuleNotFoundError, NoSuchModuleError):
        raise CatalogueError(
            f"{place.shown} needs the package psycopg, which is not installed.", "pip install 'regraft[postgres]'"
        ) from None
    return engine.execution_options(postgresql_readonly=True) if read_only else engine


def _write_ahead(database: Database, path: Path) -> None:
    """Switch the log on where it is not; two processes that open a new file may meet here."""
    wanted = "delete" if on_network(path) else "wal"
    until = time.monotonic() + PATIENCE_S
    with database.speaker.in_words():
        while True:
            raw = database.engine.raw_connection()
            try:
                if raw.cursor().execute("PRAGMA journal_mode").fetchone()[0] != wanted:
                    raw.cursor().execute(f"PRAGMA journal_mode={wanted}")
                return
            except sqlite3.OperationalError as fault:
                if "locked" not in str(fault) or time.monotonic() > until:
                    raise
                time.sleep(0.02)
            finally:
                raw.close()


def _prepare(database: Database) -> None:
    """Leave a database of this version as it is; make the tables of a new one, bring an older one up to date."""
    with database.reading() as connection:
        version = _version(connection, database)
    if version == REVISIONS[-1]:
        return
    if not database.writable:
        raise CatalogueError(
            f"{database.speaker.shown} can only be read, and was made by an older Regraft." if version else
            f"{database.speaker.shown} holds no catalogue, and can only be read.",
            "Open it once where it can be written.",
        )  # fmt: skip
    with database.writing() as connection:
        if _version(connection, database) != REVISIONS[-1]:  # unless another process has just done it
            _upgrade(connection)


def _version(connection: Connection, database: Database) -> str | None:
    """The revision of a catalogue; None for a database without tables.

    Raises:
        CatalogueError: A newer Regraft's, or another program's database.
    """
    names = set(inspect(connection).get_table_names())
    if VERSION_TABLE not in names:
        if _is_foreign(names, database.sqlite):
            raise CatalogueError(
                f"{database.speaker.shown} is the database of another program.",
                "Give another place; this one was not changed.",
            )
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    if found is not None and found not in REVISIONS:
        raise CatalogueError(
            f"{database.speaker.shown} was made by a newer Regraft (its tables are version {str(found)[:40]}, "
            f"this one knows up to {REVISIONS[-1]}).",
            "Use the newer Regraft, or another catalogue; this one was not changed.",
        )
    return None if found is None else str(found)


def _is_foreign(names: set[str], sqlite: bool) -> bool:
    """Whether tables that are no catalogue's are in the way: any in a file, those of our names in a database that is shared."""
    return bool(names) if sqlite else bool(names & _OURS)


def _upgrade(connection: Connection, to: str = "head") -> None:
    """Run the migrations inside the transaction of a connection."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
