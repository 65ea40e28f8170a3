"""What a process that reads folders does: it is sent a job, then lists of orders, and sends back what it read; see `workers`.

It is started as a program of its own, not by `multiprocessing`, whose new processes run the user's script again to have what is
defined in it. So nothing of that script is repeated, whether it has an `if __name__ == "__main__"` or not.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regraft.zoo.catalogue.workers import Job, Order, Reading

# An interrupt is for the process that started this one. Modules are found where that one finds them, and nowhere else.
_PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = sys.argv[2:]
from regraft.zoo.catalogue.worker import serve
serve(int(sys.argv[1]))
"""
_READY = "ready"


def serve(descriptor: int) -> None:
    """Read folders until the other end is closed."""
    with Connection(descriptor) as connection, suppress(EOFError, OSError):  # either: the one that asked is gone
        try:
            job = connection.recv()
        except (AttributeError, ImportError):  # a function of the user's script, which is not run here
            return
        connection.send(_READY)
        while True:
            connection.send([job(order) for order in connection.recv()])


class Worker:
    """A process that reads folders. It is started at once; what it is asked first waits until it is ready."""

    def __init__(self, job: Job) -> None:
        sent = ForkingPickler.dumps(job)  # first: what cannot be sent starts no process
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), *map(str, sys.path)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        with suppress(OSError):  # it has ended: `is_ready` says so
            self._connection.send_bytes(sent)

    def is_ready(self) -> bool:
        """Whether it has come up and knows what to do; waits for that."""
        try:
            return bool(self._connection.recv() == _READY)
        except (EOFError, OSError):
            return False

    def ask(self, orders: Sequence[Order]) -> list[Reading]:
        """What it reads.

        Raises:
            EOFError, OSError: It died.
        """
        self._connection.send(list(orders))
        found: Any = self._connection.recv()
        return list(found)

    def stop(self) -> None:
        """End it, whatever it is doing; it only reads. A thread that waits for it gets an EOFError."""
        self._process.kill()
        self._process.wait()
