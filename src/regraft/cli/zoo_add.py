"""`regraft zoo add`: record the checkpoints of folders."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from regraft.cli import options as opt
from regraft.cli.zoo_names import LOOKED_FOR, folder_of
from regraft.errors import CatalogueError

if TYPE_CHECKING:
    from regraft.zoo.catalogue import Catalogue

Where = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--catalogue",
        help="The catalogue: a file, or postgresql+psycopg://host/database. By default $REGRAFT_CATALOGUE, "
        "else a file beside the store.",
    ),
]


def add(
    places: Annotated[
        list[str], typer.Argument(help="Folders, hf-cache:, or one checkpoint: hf:org/name, pip:package.")
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Read the weights: NaN, dead layers, and which descends from which.")
    ] = False,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--workers", min=1, help="Processes that read; by default as many as cores, at most eight."),
    ] = None,
    catalogue: Where = None,
    json: opt.Json = False,
) -> None:
    """Record the checkpoints in and below folders; run it again to bring the catalogue up to date.

    What was once added with --deep stays so: its weights are read again when they change.

    Example: regraft zoo add models/ hf-cache:
    """
    from regraft.cli import show
    from regraft.zoo.catalogue import index

    roots = [folder_of(place).expanduser() for place in places]
    with _opened(catalogue, roots) as opened:
        found = index(opened, roots, workers=workers, progress=show.Terminal(), deep=deep)
        some = found.added or found.changed or found.unchanged or found.gone
        gone = 0 if some else sum(_is_below(path, roots) for path in opened.paths(gone=True))
        if not (some or gone or found.unreadable):
            raise _nothing(roots)
        lineage = _find_lineage(opened) if deep or found.weights_read else None
        dangers = opened.count("severity=danger")
        where = opened.where
    if json:
        show.as_json({**asdict(found), "edges": lineage, "dangers": dangers, "catalogue": where})
        return
    for one in found.unreadable:
        typer.echo(f"unreadable {one.path}: {one.problem}")
    if gone:
        typer.echo(f"{gone:,} that were recorded there before are still gone.")
    typer.echo(
        f"{found.added:,} added, {found.changed:,} changed, {found.unchanged:,} as they were, {found.gone:,} gone, "
        f"{len(found.unreadable):,} unreadable, {found.seconds:.1f} s."
        + ("" if lineage is None else f" {lineage:,} edges of lineage found from weights.")
    )
    if dangers:
        typer.echo(f"{dangers:,} in the catalogue with a danger: see `regraft zoo check`.")
    typer.echo(f"Catalogue: {where}")


def _opened(catalogue: str | None, roots: list[Path]) -> Catalogue:
    """The catalogue; none is made where there is nothing to record.

    Raises:
        CatalogueError: There is neither a catalogue nor a checkpoint.
    """
    from regraft.zoo.catalogue import NoCatalogueError, open_catalogue
    from regraft.zoo.walk import Unreadable, walk

    troubles: list[Unreadable] = []
    try:
        return open_catalogue(catalogue, create=any(True for _ in walk(roots, troubles)) or bool(troubles))
    except NoCatalogueError:
        raise _nothing(roots) from None


def _nothing(roots: list[Path]) -> CatalogueError:
    absent = [root for root in roots if not root.is_dir()]
    if absent:
        what = "is a file, expected a folder" if absent[0].exists() else "is not there"
        return CatalogueError(f"{absent[0]} {what}.", "Give a folder of checkpoints.")
    return CatalogueError(
        f"Nothing that looks like a checkpoint was found in {', '.join(map(str, roots))}.", LOOKED_FOR
    )


def _is_below(path: str, roots: list[Path]) -> bool:
    return any(Path(path).is_relative_to(place) for root in roots for place in (root.absolute(), root.resolve()))


def _find_lineage(opened: Catalogue) -> int:
    """Look for lineage among the checkpoints whose weights may be read, and record it."""
    from regraft.cli import show
    from regraft.zoo.lineage import find_edges

    paths = [entry.record.path for entry in opened.every("deep=yes kind=checkpoint")]
    return opened.add_edges(find_edges(paths, progress=show.Terminal()), children=paths)
