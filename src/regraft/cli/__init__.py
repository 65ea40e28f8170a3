"""The command line. `main` is what the `regraft` script calls."""

from __future__ import annotations

import time

_begun: float | None = None


def begun() -> float | None:
    """`time.monotonic()` at which this process was started, where budgets begin; None where `main` did not start it."""
    return _begun


def main() -> None:
    """Run the command line; an error of ours is one message and exit status 1, never a traceback."""
    global _begun
    _begun = time.monotonic()
    from regraft.cli.app import run

    run()
