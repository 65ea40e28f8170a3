"""The catalogue: what is known of checkpoints, kept; asked by filter, words, name or lineage."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from sqlalchemy import Connection, select

from regraft.errors import CatalogueError
from regraft.zoo.catalogue import entries, filtering, fulltext, grammar, lineage, measurements, writing
from regraft.zoo.catalogue.entries import Entry, Known, Page
from regraft.zoo.catalogue.measurements import Compared, Measurement, Outcomes
from regraft.zoo.catalogue.opening import Database, connect
from regraft.zoo.catalogue.place import place_of
from regraft.zoo.catalogue.schema import checkpoints, edges, records, risks
from regraft.zoo.record.record import Record, Risk

PAGE = 50
CANDIDATES = 1000  # of a search, before they are put in order


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
        with self.database.reading() as connection:
            return entries.known(connection, roots)

    def remove(self, *names: str, several: bool = False) -> int:
        """Take checkpoints out, with their measurements; files stay. All of them, or none. Returns how many.

        Args:
            names: Each a path, a name, or the last part of one.
            several: Take out all that have a name.

        Raises:
            CatalogueError: One is not in the catalogue, or several have its name; all are as they were.
        """
        found: dict[int, None] = {}
        with self.database.writing() as connection:
            for name in names:
                numbers = entries.named(connection, name)
                if not numbers:
                    raise self._unknown(connection, name)
                if len(numbers) > 1 and not several:
                    raise entries.ambiguous(connection, name, numbers)
                found |= dict.fromkeys(numbers)
            writing.remove(connection, list(found))
            self._relink(connection)
        return len(found)

    # Questions

    def find(self, text: str = "", *, after: int = 0, limit: int = PAGE) -> Page:
        """A page of the checkpoints that a filter means (see `grammar`), in the order of being recorded.

        Raises:
            CatalogueError: A filter that cannot be read.
        """
        conditions = grammar.parse(text)
        with self.database.reading() as connection:
            numbers = filtering.page_of(connection, conditions, after, limit + 1)
            found = entries.entries(connection, numbers[:limit])
        return Page(tuple(found), numbers[limit - 1] if len(numbers) > limit else None)

    def every(self, text: str = "") -> Iterable[Entry]:
        """All checkpoints that a filter means, page by page."""
        after: int | None = 0
        while after is not None:
            page = self.find(text, after=after, limit=500)
            yield from page.entries
            after = page.next

    def paths(self, gone: bool = False) -> list[str]:
        """The paths of all checkpoints that were there when they were last looked for; or of those that were gone."""
        statement = select(records.c.path).join(checkpoints, checkpoints.c.id == records.c.checkpoint_id)
        with self.database.reading() as connection:
            return list(
                connection.execute(statement.where(checkpoints.c.gone.is_(gone)).order_by(records.c.path)).scalars()
            )

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
            numbers = entries.named(connection, name)
            if not numbers:
                raise self._unknown(connection, name)
            if len(numbers) > 1:
                raise entries.ambiguous(connection, name, numbers)
            return entries.entries(connection, numbers)[0]

    def has(self, name: str) -> bool:
        """Whether one checkpoint or several have this path or name."""
        with self.database.reading() as connection:
            return bool(entries.named(connection, name))

    def search(self, words: str, *, offset: int = 0, limit: int = PAGE) -> tuple[Entry, ...]:
        """Checkpoints with all of the words in name, tags, datasets, languages, task or model type; `mini*` is a beginning.

        Those with all of them in their name come first, short names before long ones. Of more than 1,000 of either kind the
        first recorded are put in order.

        Raises:
            CatalogueError: No word.
        """
        asked = fulltext.query_of(words)
        with self.database.reading() as connection:
            ordered = entries.by_length(connection, fulltext.matches(connection, asked, "name", CANDIDATES))
            if len(ordered) < offset + limit:
                seen = set(ordered)
                rest = fulltext.matches(connection, asked, "anywhere", CANDIDATES)
                ordered += entries.by_length(connection, [number for number in rest if number not in seen])
            return tuple(entries.entries(connection, ordered[offset : offset + limit]))

    def tree(self, name: str, limit: int = lineage.LIMIT) -> lineage.Tree:
        """Ancestors and descendants of a checkpoint, or the children of a name that only cards speak of.

        Raises:
            CatalogueError: Nothing is known of it, or several have the name.
        """
        with self.database.reading() as connection:
            numbers = entries.named(connection, name)
            if len(numbers) > 1:
                raise entries.ambiguous(connection, name, numbers)
            found = lineage.tree(connection, numbers[0] if numbers else None, name, limit)
            if not numbers and not found.edges:
                raise self._unknown(connection, name)
            return found

    # Lineage and risks

    def parents(self, name: str) -> list[str]:
        """Paths of a checkpoint's parents, stated or found from weights, that are in the catalogue and there."""
        number = self.get(name).id
        statement = (
            select(records.c.path)
            .join(edges, edges.c.parent_id == records.c.checkpoint_id)
            .join(checkpoints, checkpoints.c.id == records.c.checkpoint_id)
            .where(edges.c.child_id == number, checkpoints.c.gone.is_(False))
            .distinct()
            .order_by(records.c.path)
        )
        with self.database.reading() as connection:
            return list(connection.execute(statement).scalars())

    def add_edges(self, found: Iterable[lineage.EdgeLike], children: Iterable[str] = ()) -> int:
        """Record lineage that was found from weights, in place of what was found before for the same children.

        Children and parents are paths or names. `children` names those that were looked at, so that one without an edge now
        keeps none of before; one whose parent's folder is gone keeps what it has. Returns how many pairs of child and parent.

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

    def risks(self, severity: str | None = None, name: str | None = None) -> Iterator[tuple[str, Risk]]:
        """(path, risk) of every checkpoint that is there, or of the one with a name; of one severity, or of all.

        Licences that a parent forbids are among them.
        """
        columns = (risks.c.id, records.c.path, risks.c.severity, risks.c.code, risks.c.place, risks.c.problem)
        statement = select(*columns).join(checkpoints, checkpoints.c.id == risks.c.checkpoint_id)
        statement = statement.join(records, records.c.checkpoint_id == risks.c.checkpoint_id)
        whose = checkpoints.c.gone.is_(False) if name is None else checkpoints.c.id == self.get(name).id
        statement = statement.where(whose, *([risks.c.severity == severity] if severity else []))
        after = 0
        while True:
            with self.database.reading() as connection:
                page = connection.execute(statement.where(risks.c.id > after).order_by(risks.c.id).limit(1000)).all()
            for _, path, level, code, place, problem in page:
                yield path, Risk(code, level, place, problem)
            if len(page) < 1000:
                return
            after = page[-1].id

    def keep_risks(self, name: str, codes: Collection[str], found: Iterable[Risk]) -> None:
        """Record risks of some codes that were looked for just now, in place of those that were recorded of a checkpoint.

        Raises:
            CatalogueError: None has the name, or several.
        """
        entry = self.get(name)
        kept = tuple(risk for risk in entry.record.risks if risk.code not in codes)
        record = replace(entry.record, risks=(*kept, *found))
        if record == entry.record:
            return
        with self.database.writing() as connection:
            writing.put(connection, [(record, entry.deep)])
            self._relink(connection)

    # Measurements

    def record_measurement(
        self, name: str, found: Measurement, outcomes: Outcomes | None = None, *, file_id: str | None = None
    ) -> Measurement:
        """Record what was measured of a checkpoint (by name or path), with the outcomes of each example where they are known.

        Args:
            file_id: Of the files that were measured; None for those that are recorded.

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
            measurements.record(connection, entry.id, file_id or entry.record.file_id, found)
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
        return entries.unknown(connection, name, self.where)
