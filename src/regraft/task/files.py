"""CSV, TSV, JSON and JSON Lines, read as a stream; whatever cannot be read is refused with file and line.

The standard library's readers are used rather than `datasets`, which goes through pandas: they name the line of a
fault, read strictly (no row is padded or guessed), and write no copy of the data to disk.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regraft.errors import TaskError
from regraft.task.table import Table

# The standard library's own limit, 131,072 characters, is shorter than many a document.
LONGEST_FIELD = 2**31 - 1
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def detect_encoding(path: Path) -> str:
    """The one encoding that explains every byte of a text file.

    A byte-order mark decides, and all lines must keep to it; else UTF-8 if all lines are UTF-8; else Windows-1252 (the
    superset of Latin-1 that such files are nearly always in) if no line needs UTF-8.

    Raises:
        TaskError: Some lines are UTF-8 and others are not, or the file is binary; names file and line.
    """
    with path.open("rb") as file:
        head = file.read(4)
        marked = next((encoding for mark, encoding in _BOMS.items() if head.startswith(mark)), None)
        if marked == "utf-16":
            return marked
        file.seek(0)
        wide, broken = 0, 0  # first line with valid multi-byte UTF-8; first line that is not UTF-8
        for number, line in enumerate(file, 1):
            if b"\0" in line:
                raise TaskError(
                    f"{path}, line {number}: holds a NUL byte, so this is not UTF-8 text.",
                    "Save it as UTF-8; if it is UTF-16, with its byte-order mark.",
                )
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
                wide = wide or number
            except UnicodeDecodeError:
                broken = broken or number
                _check_legacy(path, number, line)
                if not line.decode("utf-8", "ignore").isascii():
                    wide = wide or number
            if wide and broken:
                raise TaskError(
                    f"{path}: mixed encodings: line {wide} is UTF-8, line {broken} is not.",
                    "Convert the whole file to UTF-8.",
                )
    return marked or ("cp1252" if broken else "utf-8")


def _check_legacy(path: Path, number: int, line: bytes) -> None:
    try:
        line.decode("cp1252")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path}, line {number}: byte 0x{line[error.start]:02x} is neither UTF-8 nor Windows-1252.",
            "Convert the file to UTF-8.",
        ) from error


def _encoding_notes(path: Path, encoding: str) -> tuple[str, ...]:
    if encoding == "cp1252":
        return (f"{path.name} is not UTF-8; read as Windows-1252 (Latin-1).",)
    return (f"{path.name} read as UTF-16.",) if encoding == "utf-16" else ()


def csv_table(path: Path, delimiter: str | None = None) -> Table:
    """A CSV or TSV file with a header row.

    Quoting follows RFC 4180. A tab-separated file whose quotes do not add up is read without quoting, as GLUE's are.

    Args:
        path: The file.
        delimiter: None chooses among comma, semicolon and tab by what the header row holds.

    Raises:
        TaskError: Encoding, header, quoting or a row of another length than the header; names file and line.
    """
    encoding = detect_encoding(path)
    notes = _encoding_notes(path, encoding)
    with _readable(path, encoding), path.open(encoding=encoding, newline="") as file:
        header_line = _first_line(path, file.readline())
    if delimiter is None:
        delimiter = "," if "," in header_line else max(";\t", key=header_line.count)
    quoting: Any = csv.QUOTE_MINIMAL
    if delimiter == "\t":
        try:
            for _ in _csv_records(path, encoding, delimiter, quoting):
                pass
        except TaskError:
            quoting = csv.QUOTE_NONE
            notes += (f"{path.name}: quotes are read as plain characters.",)
    header = next(_csv_records(path, encoding, delimiter, quoting))
    columns = tuple(name.strip() or f"column {i}" for i, name in enumerate(header, 1))
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise TaskError(f"{path}, line 1: the header names {', '.join(twice)} more than once.", "Rename the columns.")

    def rows(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        at = [columns.index(name) for name in names]
        records = _csv_records(path, encoding, delimiter, quoting)
        next(records)
        for record in records:
            yield tuple(record[i] for i in at)

    return Table(str(path), columns, rows, notes=notes)


def _first_line(path: Path, line: str) -> str:
    if not line.strip():
        raise TaskError(f"{path}, line 1: expected a header row, found nothing.", "Put the column names in line 1.")
    return line


def _csv_records(path: Path, encoding: str, delimiter: str, quoting: Any) -> Iterator[list[str]]:
    """Header and rows; blank lines are skipped, everything else must have the header's length."""
    width = 0
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            for record in reader:
                if not record:
                    continue
                width = width or len(record)
                if len(record) != width:
                    raise TaskError(
                        f"{path}, line {reader.line_num}: {len(record)} fields, the header has {width}.",
                        "Put texts that hold the separator into double quotes.",
                    )
                yield record
        except csv.Error as error:
            raise TaskError(
                f"{path}, line {reader.line_num}: {error}.",
                'Put texts into double quotes and write a quote inside as "" (or use JSON Lines).',
            ) from error
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{path}, after line {reader.line_num}: not {encoding}.", "Convert the file to UTF-8."
            ) from error


@contextmanager
def _readable(path: Path, encoding: str) -> Iterator[None]:
    """What cannot be decoded inside the block is an error in words; a UTF-16 file is only seen to be broken when it is read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not {encoding}: {error.reason}.", "Convert the file to UTF-8.") from error


def json_table(path: Path) -> Table:
    """JSON Lines (one object a line), or one JSON array of objects.

    Columns are the keys of the first 1,000 objects; a key that an object lacks is a missing value.

    Raises:
        TaskError: A line that is not JSON or not an object; names file and line (or element of the array).
    """
    encoding = detect_encoding(path)
    columns: dict[str, None] = {}
    for number, record in enumerate(_json_records(path, encoding)):
        columns.update(dict.fromkeys(record))
        if number == 999:
            break

    def rows(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for record in _json_records(path, encoding):
            yield tuple(record.get(name) for name in names)

    return Table(str(path), tuple(columns), rows, notes=_encoding_notes(path, encoding))


def _json_records(path: Path, encoding: str) -> Iterator[dict[str, Any]]:
    remedy = "Write one JSON object a line, or one array of objects."
    with _readable(path, encoding), path.open(encoding=encoding) as file:
        first = file.readline()
        while first and not first.strip():
            first = file.readline()
        file.seek(0)
        if first.lstrip().startswith("["):
            try:
                records = json.load(file)
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{path}: not JSON: {error}.", remedy) from error
            numbered = ((f"element {number}", record) for number, record in enumerate(records, 1))
        else:
            numbered = ((f"line {n}", _json_line(path, n, line)) for n, line in enumerate(file, 1) if line.strip())
        for where, record in numbered:
            if not isinstance(record, dict):
                raise TaskError(f"{path}, {where}: expected an object, found {type(record).__name__}.", remedy)
            yield record


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}, line {number}: not JSON: {error}.", "Write one JSON object a line.") from error
