"""What `regraft resize` without a task is asked for: refused where it excludes each other or cannot be, before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.anatomy import Opened
from regraft.errors import ResizeError
from regraft.resize.cuts import check_sizes
from regraft.resize.formats.half import FORMATS
from regraft.resize.growth import GROWERS
from regraft.resize.importance import find, known

STORES = (*FORMATS, "int8-rounded")
# Texts that importance is measured on, and that outputs are compared on where no task scores.
TEXTS = 256


@dataclass(frozen=True)
class Corpus:
    """Texts, and where they came from: `source` is a file's path, `column` its column; None: nobody's file."""

    texts: Sequence[str] = ()
    source: str | None = None
    column: str | None = None

    def spread(self) -> list[str]:
        """At most `TEXTS` of them, spread evenly."""
        step = max(1, len(self.texts) // TEXTS)
        return [text for text in self.texts[::step] if text.strip()][:TEXTS]


def check_wishes(
    sizes: Mapping[str, int] | None, to: str | None, vocabulary: bool, store: str | None, method: str | None,
    criterion: str | None, corpus: Corpus,
) -> None:  # fmt: skip
    """Refuse what excludes each other before anything is opened."""
    if not sizes and to is None and not vocabulary and store is None:
        raise ResizeError(
            "There is nothing to do.",
            "Give sizes (--size layer=3), a limit (--to params=10M), --trim-vocabulary or --store.",
        )
    if sizes and to is not None:
        raise ResizeError(f"Sizes and the limit {to!r} are given.", "Give one of them: a limit chooses the sizes.")
    if store is not None and store not in STORES:
        raise ResizeError(f"There is no number format {store!r}.", f"Choose one of {', '.join(STORES)}.")
    if method is not None and method not in GROWERS:
        raise ResizeError(f"There is no growth method {method!r}.", f"Choose among {', '.join(sorted(GROWERS))}.")
    if method is not None and not sizes:
        raise ResizeError(f"The method {method} grows, and no size is given.", "Give one: --size layer=12.")
    if criterion is not None and not sizes and to is None:
        raise ResizeError(f"The criterion {criterion} is of cuts, and nothing is cut.", "Leave it out, or give sizes.")
    if vocabulary and not corpus.texts:
        raise ResizeError(
            "There are no texts to trim the vocabulary to.", "Give those that the model is for: --texts FILE."
        )


def check_readable(opened: Opened, why: str, remedy: str) -> None:
    """Refuse texts for a model that reads none.

    Args:
        why: What they are for, in words.
        remedy: What to do without them.

    Raises:
        ResizeError: Names the kind of the model.
    """
    if "vocab" not in opened.binding.carried:
        raise ResizeError(
            f"{opened.weights.reference} is of {opened.binding.anatomy.model_type}, which reads no texts, and {why}.",
            f"{remedy}: units stay by the magnitude of their weights.",
        )


def check_texts(opened: Opened, criterion: str | None, corpus: Corpus) -> None:
    """Refuse texts, and criteria that read texts, for a model that reads none."""
    if corpus.texts:
        check_readable(opened, "texts are given", "Leave them out")
    if criterion is not None and find(criterion).traits.reads_texts:
        others = ", ".join(name for name in sorted(known()) if not find(name).traits.reads_texts)
        check_readable(
            opened, f"the criterion {criterion} runs the model over texts", f"Choose among {others}, or none"
        )


def grows_to(opened: Opened, sizes: Mapping[str, int], method: str | None, criterion: str | None) -> bool:
    """Whether sizes are larger than the present ones; what cannot be cut is refused here, before anything is measured."""
    present = opened.binding.sizes
    larger = {name: size for name, size in sizes.items() if name in opened.binding.carried and size > present[name]}
    smaller = {name: size for name, size in sizes.items() if name in opened.binding.carried and size < present[name]}
    if larger and smaller:
        (up, more), (down, less) = next(iter(larger.items())), next(iter(smaller.items()))
        raise ResizeError(
            f"The axis {up} would grow from {present[up]} to {more} and {down} be cut from {present[down]} to {less}.",
            "Cut and grow in two commands, one after the other.",
        )
    if larger:
        if criterion is not None:
            raise ResizeError(f"The criterion {criterion} is of cuts, and sizes are larger than now.", "Leave it out.")
        return True
    check_sizes(opened.binding, sizes)
    if not smaller:
        said_sizes = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ResizeError(f"Nothing changes: the checkpoint has {said_sizes} already.", "Give another size.")
    if method is not None:
        raise ResizeError(
            f"The method {method} grows, and sizes are smaller than now.", "Leave it out, or choose a --criterion."
        )
    return False
