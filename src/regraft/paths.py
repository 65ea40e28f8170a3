"""Paths that others made: links that lead in a circle, and pipes and devices where a file should be, said in words."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from regraft.errors import CheckpointError, RegraftError


def resolved(path: Path, error: type[RegraftError] = CheckpointError) -> Path:
    """The absolute path without links; what it leads to need not be there.

    Args:
        error: What to raise.

    Raises:
        RegraftError: Of the kind `error`: its links lead in a circle, or no path can be so.
    """
    try:
        real = path.resolve()
        if real.is_symlink():  # some versions of Python raise RuntimeError for a circle, others leave it as it is
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return real
    except (OSError, RuntimeError, ValueError) as fault:
        circle = isinstance(fault, RuntimeError) or getattr(fault, "errno", None) == errno.ELOOP
        why = "links lead in a circle" if circle else getattr(fault, "strerror", None) or str(fault)
        raise error(f"{path} leads nowhere: {why}.", "Put the file or folder itself there.") from None


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; never waits, as opening a pipe would until somebody writes into it.

    Raises:
        OSError: As `open`; or it is a folder, a pipe, a socket or a device, which `strerror` says.
    """
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115 - `Path.open` takes no opener; the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device", str(path))
    return file


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
