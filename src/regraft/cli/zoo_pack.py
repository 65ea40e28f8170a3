"""`regraft zoo pack` and `restore`: fine-tunes kept as lossless deltas of their parent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from regraft.cli import options as opt
from regraft.cli.zoo_names import given_path

Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--workers", min=1, help="Threads; all cores by default. The result is the same for any number."),
]
MaxMemory = Annotated[
    str, typer.Option("--max-memory", help="Memory beyond what the program itself takes: 512MiB, 2GiB.")
]


def register(app: typer.Typer) -> None:
    """Add the two commands to an application."""
    app.command("pack")(pack)
    app.command("restore")(restore)


def pack(
    folder: Annotated[Path, typer.Argument(parser=given_path, metavar="FOLDER", help="The checkpoint.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=given_path, metavar="FOLDER", help="The pack that is made.")
    ],
    parent: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--parent",
            parser=given_path,
            metavar="FOLDER",
            help="The checkpoint that it came from; it has to stay as it is.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the original, once the pack was read back and compared.")
    ] = False,
    workers: Workers = None,
    max_memory: MaxMemory = "512MiB",
    json: opt.Json = False,
) -> None:
    """Keep a checkpoint as the difference from its parent, without loss. The pack is read back before it counts.

    Example: regraft zoo pack models/tuned --parent models/base -o packed/tuned
    """
    from regraft.cli import show
    from regraft.cli.merge import size_of
    from regraft.zoo.pack import pack as run

    found = run(folder, parent, out, workers=workers, max_memory=size_of(max_memory), replace=replace,
                progress=show.Terminal())  # fmt: skip
    if json:
        show.as_json(found.to_json())
        return
    typer.echo(f"{found.files} files, {found.bytes:,} bytes kept in {found.packed_bytes:,} ({found.ratio:.1%}).")
    typer.echo(f"Written to {found.out}, read back and compared" + (f"; {folder} removed." if found.replaced else "."))


def restore(
    packed: Annotated[Path, typer.Argument(parser=given_path, metavar="FOLDER", help="The pack.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=given_path, metavar="FOLDER", help="The folder that is made.")
    ],
    parent: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--parent",
            parser=given_path,
            metavar="FOLDER",
            help="The parent, where it is not where it lay when the pack was made.",
        ),
    ] = None,
    workers: Workers = None,
    max_memory: MaxMemory = "512MiB",
    json: opt.Json = False,
) -> None:
    """Write the checkpoint of a pack again, byte for byte.

    Example: regraft zoo restore packed/tuned -o models/tuned
    """
    from regraft.cli import show
    from regraft.cli.merge import size_of
    from regraft.zoo.pack import restore as run

    found = run(packed, out, parent, workers=workers, max_memory=size_of(max_memory), progress=show.Terminal())
    if json:
        show.as_json(found.to_json())
    else:
        typer.echo(f"{found.files} files, {found.bytes:,} bytes, as they were, {found.seconds:.1f} s.")
        typer.echo(f"Written to {found.out}")
