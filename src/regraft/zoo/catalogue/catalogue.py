"""The catalogue: what is known of checkpoints, kept; asked by filter, words, name or lineage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from sqlalchemy import Connection, and_, func, or_, select

from regraft.errors import CatalogueError
from regraft.zoo.catalogue import filtering, fulltext, grammar, lineage, measurements, rows, writing
from regraft.zoo.catalogue.measurements import Compared, Measurement, Outcomes
from regraft.zoo.catalogue.opening import Database, connect
from regraft.zoo.catalogue.place import place_of
from regraft.zoo.catalogue.schema import checkpoints, records, risks
from regraft.zoo.catalogue.text import key, path_key, words_of
from regraft.zoo.record.record import Record, Risk

PAGE = 50
CANDIDATES = 1000  # of a search, before they are put in order


@dataclass(frozen=True)
class Entry:
    """A checkpoint of the catalogue. `gone`: its folder was not there the last time; `deep`: its weights were read."""

    id: int
    record: Record
    gone: bool
    deep: bool
    indexed_at: float


@dataclass(frozen=True)
class Page:
    """Some entries, and what to pass as `after` for those that follow; None when there are none."""

    entries: tuple[Entry, ...]
    next: int | None


@dataclass(frozen=True)
class Known:
    """What indexing asks of a folder."""

    id: int
    file_id: str
    gone: bool
    deep: bool
    unreadable: bool


def open_catalogue(where: str | Path | None = None, *, create: bool = True, read_only: bool = False) -> Catalogue:
    """Open a catalogue, or make it.

    Args:
        where: None (`$REGRAFT_CATALOGUE`, else `catalogue.sqlite` in the store's folder), a file, or the URL of a PostgreSQL
            database (postgresql+psycopg://user:password@host/name). A password is never shown.
        create: Make a file that is not there.
        read_only: Do not write, whatever the file allows.

    A file, or its folder, that can only be read is opened for reading. Tables of an older Regraft are brought up to date.

    Raises:
        CatalogueError: No database, a damaged one, a newer Regraft's, or one that cannot be reached.
    """
    place = place_of(where)
    return Catalogue(connect(place, create=create, read_only=read_only), place.shown)


class Catalogue:
    """See `open_catalogue`. May be used from several threads; close it, or use it in a `with`."""

    def __init__(self, database: Database, shown: str) -> None:
        self.database = database
        self.where = shown

    def __repr__(self) -> str:
        return f"Catalogue({self.where!r})"

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self.database.engine.dispose()

    @property
    def writable(self) -> bool:
        """Whether it can be written."""
        return self.database.writable

    # Records

    def put(self, found: Iterable[Record], *, deep: bool = False) -> None:
        """Record checkpoints, in one transaction. `deep`: their weights were read."""
        with self.database.writing() as connection:
            writing.put(connection, [(record, deep) for record in found])
            self._relink(connection)

    def known(self, roots: Sequence[Path]) -> dict[str, Known]:
        """Every checkpoint that is recorded at or below the roots, by path key."""
        columns = (checkpoints.c.path_key, checkpoints.c.id, checkpoints.c.file_id, checkpoints.c.gone, checkpoints.c.deep,
                   checkpoints.c.kind)  # fmt: skip
        found: dict[str, Known] = {}
        with self.database.reading() as connection:
            for root in roots:
                at = path_key(str(root))
                below = at.rstrip("/") + "/"
                inside = and_(
                    checkpoints.c.path_key >= below, checkpoints.c.path_key < below[:-1] + "0"
                )  # "0" follows "/"
                statement = select(*columns).where(or_(checkpoints.c.path_key == at, inside))
                for path, number, file_id, gone, deep, kind in connection.execute(statement):
                    found[path] = Known(number, file_id, gone, deep, kind == "unreadable")
        return found

    def remove(self, name: str) -> int:
        """Take a checkpoint (or all of one name) out, with its measurements; files stay. Returns how many.

        Raises:
            CatalogueError: It is not in the catalogue.
        """
        with self.database.writing() as connection:
            numbers = _named(connection, name)
            if not numbers:
                raise self._unknown(connection, name)
            writing.remove(connection, numbers)
            self._relink(connection)
        return len(numbers)

    # Questions

    def find(self, text: str = "", *, after: int = 0, limit: int = PAGE) -> Page:
        """A page of the checkpoints that a filter means (see `grammar`), in the order of being recorded.

        Raises:
            CatalogueError: A filter that cannot be read.
        """
        conditions = grammar.parse(text)
        with self.database.reading() as connection:
            numbers = filtering.page_of(connection, conditions, after, limit + 1)
            entries = _entries(connection, numbers[:limit])
        return Page(tuple(entries), numbers[limit - 1] if len(numbers) > limit else None)

    def every(self, text: str = "") -> Iterable[Entry]:
        """All checkpoints that a filter means, page by page."""
        after: int | None = 0
        while after is not None:
            page = self.find(text, after=after, limit=500)
            yield from page.entries
            after = page.next

    def count(self, text: str = "") -> int:
        """How many checkpoints a filter means."""
        conditions = grammar.parse(text)
        with self.database.reading() as connection:
            return filtering.count_of(connection, conditions)

    def get(self, name: str) -> Entry:
        """The checkpoint with this path or name (org/name, or the last part where only one has it).

        Raises:
            CatalogueError: None, or several.
        """
        with self.database.reading() as connection:
            numbers = _named(connection, name)
            if not numbers:
                raise self._unknown(connection, name)
            entries = _entries(connection, numbers[:10])
        if len(numbers) > 1:
            paths = ", ".join(entry.record.path for entry in entries)
            raise CatalogueError(f"{len(numbers)} checkpoints are called {name!r}: {paths}.", "Give the path of one.")
        return entries[0]

    def has(self, name: str) -> bool:
        """Whether one checkpoint or several have this path or name."""
        with self.database.reading() as connection:
            return bool(_named(connection, name))

    def search(self, words: str, *, offset: int = 0, limit: int = PAGE) -> tuple[Entry, ...]:
        """Checkpoints with all of the words in name, tags, datasets, languages, task or model type; `mini*` is a beginning.

        Those with all of them in their name come first, short names before long ones. Of more than 1,000 of either kind the
        first recorded are put in order.

        Raises:
            CatalogueError: No word.
        """
        asked = fulltext.query_of(words)
        with self.database.reading() as connection:
            ordered = _by_length(connection, fulltext.matches(connection, asked, "name", CANDIDATES))
            if len(ordered) < offset + limit:
                seen = set(ordered)
                rest = fulltext.matches(connection, asked, "anywhere", CANDIDATES)
                ordered += _by_length(connection, [number for number in rest if number not in seen])
            return tuple(_entries(connection, ordered[offset : offset + limit]))

    def tree(self, name: str, limit: int = lineage.LIMIT) -> lineage.Tree:
        """Ancestors and descendants of a checkpoint, or the children of a name that only cards speak of.

        Raises:
            CatalogueError: Nothing is known of it, or several have the name.
        """
        with self.database.reading() as connection:
            numbers = _named(connection, name)
            if len(numbers) == 1:
                return lineage.tree(connection, numbers[0], name, limit)
            if not numbers:
                found = lineage.tree(connection, None, name, limit)
                if found.edges:
                    return found
                raise self._unknown(connection, name)
        self.get(name)  # says which ones
        raise AssertionError("several have the name")

    def add_edges(self, found: Iterable[lineage.EdgeLike], children: Iterable[str] = ()) -> int:
        """Record lineage that was found from weights, in place of what was found before for the same children.

        Children and parents are paths or names. `children` names those that were looked at, so that one without an edge now
        keeps none of before. Returns how many pairs of child and parent.

        Raises:
            CatalogueError: One is not in the catalogue, or its name is not its own.
        """
        listed, children = list(found), list(children)
        numbered: dict[str, tuple[int, str]] = {}
        for name in {*children, *(name for edge in listed for name in (edge.child, *edge.parents))}:
            entry = self.get(name)
            numbered[name] = (entry.id, entry.record.path)
        with self.database.writing() as connection:
            return lineage.add_edges(
                connection,
                [(numbered[edge.child][0], edge, [numbered[parent] for parent in edge.parents]) for edge in listed],
                [numbered[name][0] for name in children],
            )

    def risks(self, severity: str | None = None) -> Iterator[tuple[str, Risk]]:
        """(path, risk) of every checkpoint that is there; of one severity, or of all."""
        columns = (risks.c.id, records.c.path, risks.c.severity, risks.c.code, risks.c.place, risks.c.problem)
        statement = select(*columns).join(checkpoints, checkpoints.c.id == risks.c.checkpoint_id)
        statement = statement.join(records, records.c.checkpoint_id == risks.c.checkpoint_id)
        statement = statement.where(
            checkpoints.c.gone.is_(False), *([risks.c.severity == severity] if severity else [])
        )
        after = 0
        while True:
            with self.database.reading() as connection:
                page = connection.execute(statement.where(risks.c.id > after).order_by(risks.c.id).limit(1000)).all()
            for _, path, level, code, place, problem in page:
                yield path, Risk(code, level, place, problem)
            if len(page) < 1000:
                return
            after = page[-1].id

    def licence_risks(self, name: str | None = None) -> list[tuple[str, Risk]]:
        """(path, risk) where a parent's licence forbids the one that its child states; of one checkpoint, or of all."""
        from regraft.zoo.record import forbids

        child = None if name is None else self.get(name).id
        with self.database.reading() as connection:
            pairs = lineage.licences(connection, child)
        return [
            (path, Risk("licence-forbidden", "danger", parent, f"Its parent {parent} is under {licence}. {reason}"))
            for path, own, parent, licence in pairs if (reason := forbids(licence, own)) is not None
        ]  # fmt: skip

    # Measurements

    def record_measurement(self, name: str, found: Measurement, outcomes: Outcomes | None = None) -> Measurement:
        """Record what was measured of a checkpoint (by name or path), with the outcomes of each example where they are known.

        Raises:
            CatalogueError: An unknown checkpoint, a value that is no number, or not `n` outcomes.
            StoreError: The outcomes cannot be written.
        """
        entry = self.get(name)
        if outcomes is not None:
            if len(outcomes.correct) != found.n:
                raise CatalogueError(
                    f"{len(outcomes.correct)} outcomes of {found.n} examples.", "Give one outcome an example."
                )
            found = replace(found, outcomes=measurements.write_outcomes(outcomes))
        with self.database.writing() as connection:
            measurements.record(connection, entry.id, entry.record.file_id, found)
        return found

    def measurements(self, name: str) -> list[Measurement]:
        """What was measured of a checkpoint, the oldest first."""
        number = self.get(name).id
        with self.database.reading() as connection:
            return measurements.of(connection, number)

    def compare(self, name: str) -> list[Compared]:
        """What the card of a checkpoint claims and what was measured, side by side."""
        return measurements.compare(self.get(name).record, self.measurements(name))

    def _relink(self, connection: Connection) -> None:
        if writing.relink_asked(connection):
            lineage.relink(connection)

    def _unknown(self, connection: Connection, name: str) -> CatalogueError:
        cut = [word for word in words_of(name) if len(word) > 1][:1]
        near = fulltext.matches(connection, [f"{word}*" for word in cut], "name", 3) if cut else []
        names = [entry.record.name for entry in _entries(connection, near)]
        hint = (
            f"Did you mean {' or '.join(names)}?"
            if names
            else "Look with `regraft zoo search`, or `regraft zoo add` it."
        )
        return CatalogueError(f"{name!r} is not in the catalogue {self.where}.", hint)


def _named(connection: Connection, name: str) -> list[int]:
    """Ids of the checkpoints that a name means: by path, else by full name, else by its last part."""
    given = name.strip()
    paths = {path_key(given), path_key(str(Path(given).expanduser().absolute()))}
    ways = (
        checkpoints.c.path_key.in_(paths),
        checkpoints.c.name_key == key(given),
        checkpoints.c.last_key == key(given),
    )
    for way in ways:
        found = list(connection.execute(select(checkpoints.c.id).where(way).order_by(checkpoints.c.id)).scalars())
        if found:
            return found
    return []


def _entries(connection: Connection, numbers: Sequence[int]) -> list[Entry]:
    """The entries of ids, in their order."""
    columns = (checkpoints.c.id, records.c.record, checkpoints.c.gone, checkpoints.c.deep, checkpoints.c.indexed_at)
    found: dict[int, Entry] = {}
    for part in writing.parts(numbers):
        statement = select(*columns).join(records, records.c.checkpoint_id == checkpoints.c.id)
        for number, kept, gone, deep, at in connection.execute(statement.where(checkpoints.c.id.in_(part))):
            found[number] = Entry(number, rows.from_json(kept), gone, deep, at)
    return [found[number] for number in numbers if number in found]


def _by_length(connection: Connection, numbers: Sequence[int]) -> list[int]:
    """Those that are there, short names before long ones."""
    found: list[tuple[int, int]] = []
    for part in writing.parts(numbers):
        statement = select(func.length(checkpoints.c.name_key), checkpoints.c.id)
        present = statement.where(checkpoints.c.id.in_(part), checkpoints.c.gone.is_(False))
        found += [(length, number) for length, number in connection.execute(present)]
    return [number for _, number in sorted(found)]
