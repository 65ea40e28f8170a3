"""Linear algebra on one thread a tensor, and several tensors at a time: all cores, and the same bytes on any number of them.

The libraries under numpy and scipy split products and decompositions over their threads, and each number of threads rounds
otherwise. So every tensor has one, which is fixed and recorded, and the tensors are shared out instead (`regraft.merge.turns`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from regraft.merge.recipe.spec import Spec
from regraft.merge.register import traits_of

# Threads of the linear algebra of one tensor.
THREADS = 1


def by_tensor(spec: Spec) -> bool:
    """Whether a merge works with whole tensors in memory, several at a time; else all threads share the blocks of one."""
    return traits_of(spec.method).working is not None or spec.output.format == "lora"


@contextmanager
def one_thread_each(spec: Spec) -> Iterator[None]:
    """Within, a product or decomposition takes one thread; nothing changes for methods that have none.

    It holds for the whole process, so it is entered once around all of a merge's tensors, never by one of its threads.
    """
    if not by_tensor(spec):
        yield
        return
    import scipy.linalg  # noqa: F401  before: a library that is loaded later would come with all of its threads
    from threadpoolctl import threadpool_limits

    with threadpool_limits(THREADS, "blas"):
        yield
