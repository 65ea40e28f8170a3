"""The command line. `main` is what the `regraft` script calls."""

from __future__ import annotations


def main() -> None:
    """Run the command line; an error of ours is one message and exit status 1, never a traceback."""
    from regraft.cli.app import run

    run()
