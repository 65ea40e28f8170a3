"""The embedded task: which standard-library package does this docstring come from?

Real English of real engineers, on every machine that has Python, and not solved by counting words. The texts are
docstrings of the user's own Python, read by parsing source files: nothing is imported or run.

    source files --ast--> docstrings --mask--> texts --units--> train | validation | test --near-copies out--> task

- The name of the package and the names of its modules are masked, so that the answer is not in the question.
- A *unit* (a module; in a package of few modules, a top-level class or function) goes to one split as a whole. Sibling
  methods are worded alike, and a random split would measure memory.
- What is still alike across splits (a shared run of `SHINGLE` words, or word sets with a Jaccard index of at least
  `JACCARD`; Broder 1997, "On the resemblance and containment of documents") is taken out of train, then of validation.
- A text that occurs in two packages has no one answer, and is taken out.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.errors import TaskError
from regraft.task.clean import Example, fold

# Packages present in CPython 3.11 to 3.14, and not split off by Linux distributions (as tkinter is). A module that
# became a package, or whose Python source is the fallback of a C module, has several places.
PACKAGES: dict[str, tuple[str, ...]] = {
    "asyncio": ("asyncio",),
    "datetime": ("_pydatetime.py", "datetime.py"),
    "decimal": ("_pydecimal.py",),
    "email": ("email",),
    "http": ("http",),
    "importlib": ("importlib",),
    "inspect": ("inspect.py",),
    "ipaddress": ("ipaddress.py",),
    "logging": ("logging",),
    "mailbox": ("mailbox.py",),
    "multiprocessing": ("multiprocessing",),
    "pathlib": ("pathlib", "pathlib.py"),
    "statistics": ("statistics.py",),
    "typing": ("typing.py",),
    "unittest": ("unittest",),
    "xml": ("xml",),
}
MIN_CLASSES = 12
MIN_TEXTS = 30  # of a package, else it is left out
MAX_TEXTS = 200  # of a package, so that none dominates
MIN_WORDS, MAX_WORDS = 4, 60
SHINGLE = 8
JACCARD = 0.8
MASK = "_"
_PARTS = {"test": 0.2, "validation": 0.12}
_FEW_MODULES = 6


@dataclass(frozen=True)
class Docstring:
    """A masked docstring, the package it is from (the answer) and the unit that must stay in one split."""

    text: str
    package: str
    unit: str


@dataclass(frozen=True)
class Built:
    """The splits of the task, and notes."""

    splits: dict[str, list[Example]]
    notes: tuple[str, ...]


def build(folder: Path | None = None) -> Built:
    """Build the task out of a standard library.

    Args:
        folder: The library's folder; None means that of the running Python.

    Raises:
        TaskError: The folder does not hold the sources of enough packages (a frozen or zipped Python).
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    found = {package: list(docstrings(folder, package)) for package in PACKAGES}
    capped = {package: cap(texts) for package, texts in without_ambiguous(found).items()}
    kept = {package: texts for package, texts in capped.items() if len(texts) >= MIN_TEXTS}
    if len(kept) < MIN_CLASSES:
        raise TaskError(
            f"builtin:pydoc: {folder} holds the docstrings of {len(kept)} packages, {MIN_CLASSES} are needed: this "
            "Python has no .py sources of its standard library (frozen or zipped), or only part of them.",
            "Use a Python from python.org, pyenv, uv or a distribution's full package, or another task.",
        )
    notes = [f"Docstrings of {len(kept)} packages in {_version(folder)}; their own names are masked by {MASK}."]
    missing = sorted(set(PACKAGES) - set(kept))
    if missing:
        notes.append(f"Packages with too few docstrings here: {', '.join(missing)}.")
    splits: dict[str, list[Docstring]] = {"train": [], "validation": [], "test": []}
    for texts in kept.values():
        for split, part in assign(texts).items():
            splits[split] += part
    before = sum(map(len, splits.values()))
    splits["validation"] = without_near_copies(splits["validation"], splits["test"])
    splits["train"] = without_near_copies(splits["train"], splits["test"] + splits["validation"])
    removed = before - sum(map(len, splits.values()))
    notes.append(f"{removed} docstrings left out of train and validation: near-copies of one in another split.")
    return Built({name: [Example(d.text, d.package) for d in part] for name, part in splits.items()}, tuple(notes))


def _version(folder: Path) -> str:
    return folder.name if folder.name.startswith("python") else "this Python"


def docstrings(folder: Path, package: str) -> Iterator[Docstring]:
    """The masked docstrings of a package, each text once, in the order of files and lines."""
    files = list(_sources(folder, package))
    names = {package, *(path.stem.strip("_") for path in files if path.stem not in ("__init__", "__main__"))}
    mask = masker(package, names)
    seen: set[str] = set()
    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's sources are not ours to report
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # a file of another version, or half-deleted: the rest is still there
        module = path.relative_to(folder).as_posix()
        for top, docstring in _of_module(tree):
            text = mask(shorten(docstring))
            if len(re.findall(r"[A-Za-z]{2,}", text)) >= MIN_WORDS and fold(text) not in seen:
                seen.add(fold(text))
                yield Docstring(text, package, f"{module}:{top}" if len(files) < _FEW_MODULES else module)


def _sources(folder: Path, package: str) -> Iterator[Path]:
    for place in PACKAGES[package]:
        path = folder / place
        if path.is_file():
            yield path
        else:
            # Distributions leave test folders out, so nobody gets them.
            inside = ((p, set(p.relative_to(path).parts)) for p in sorted(path.rglob("*.py")))
            yield from (p for p, parts in inside if parts.isdisjoint({"test", "tests"}))


def _of_module(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Docstrings with the name of the top-level definition that they stand in ("" for the module's own)."""
    for owner in [tree, *tree.body]:
        inside: Iterable[ast.AST] = [tree] if owner is tree else ast.walk(owner)
        for node in inside:
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield getattr(owner, "name", ""), docstring


def shorten(docstring: str) -> str:
    """The first `MAX_WORDS` words on one line."""
    return " ".join(docstring.split()[:MAX_WORDS])


def masker(package: str, names: Iterable[str]) -> Callable[[str], str]:
    """A function that hides the answer, case-insensitively.

    The package's name is hidden wherever it stands, inside other words too (TarFile in `tarfile`); the names of its
    modules as whole words.
    """
    modules = "|".join(sorted(map(re.escape, names), key=lambda name: (-len(name), name)))
    pattern = re.compile(rf"{re.escape(package)}|(?<![A-Za-z0-9])(?:{modules})(?![A-Za-z0-9])", re.IGNORECASE)
    return lambda text: pattern.sub(MASK, text)


def without_ambiguous(found: Mapping[str, Sequence[Docstring]]) -> dict[str, list[Docstring]]:
    """Leave out the texts that occur in more than one package."""
    counts = Counter(fold(docstring.text) for texts in found.values() for docstring in texts)
    return {package: [d for d in texts if counts[fold(d.text)] == 1] for package, texts in found.items()}


def cap(texts: Sequence[Docstring]) -> list[Docstring]:
    """At most `MAX_TEXTS`, those with the smallest hashes."""
    return sorted(texts, key=lambda d: _hash(d.text))[:MAX_TEXTS]


def assign(texts: Sequence[Docstring]) -> dict[str, list[Docstring]]:
    """Put whole units into test, validation and train, near the wanted parts.

    Units are taken by falling size, so that small ones even out; each goes to the split that lacks most. At equal size
    the hash of the name decides.
    """
    units: defaultdict[str, list[Docstring]] = defaultdict(list)
    for docstring in texts:
        units[docstring.unit].append(docstring)
    wanted = {"train": 1 - sum(_PARTS.values()), **_PARTS}
    splits: dict[str, list[Docstring]] = {name: [] for name in wanted}
    for unit in sorted(units, key=lambda name: (-len(units[name]), _hash(name))):
        lacking = max(wanted, key=lambda name: wanted[name] * len(texts) - len(splits[name]))
        splits[lacking] += units[unit]
    return splits


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def words_of(text: str) -> list[str]:
    """The words of a text for comparing: lower case, without punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


def shingles(words: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of `SHINGLE` words; the whole text if it is shorter."""
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def without_near_copies(texts: Sequence[Docstring], others: Sequence[Docstring]) -> list[Docstring]:
    """The texts that are no near-copy of any of the others.

    Two word sets with a Jaccard index J >= t share one of the first n - ceil(t n) + 1 words of each, when words are
    ordered by rarity (prefix filtering; Bayardo et al. 2007, "Scaling up all pairs similarity search"), so few pairs
    are compared.
    """
    bags = [words_of(docstring.text) for docstring in others]
    taken = {shingle for bag in bags for shingle in shingles(bag)}
    rarity = Counter(word for bag in bags for word in set(bag))
    index: defaultdict[str, list[set[str]]] = defaultdict(list)
    for bag in bags:
        for word in _prefix(bag, rarity):
            index[word].append(set(bag))
    kept: list[Docstring] = []
    for docstring in texts:
        words = words_of(docstring.text)
        mine = set(words)
        near = (other for word in _prefix(words, rarity) for other in index.get(word, ()))
        if taken.isdisjoint(shingles(words)) and not any(
            len(mine & other) >= JACCARD * len(mine | other) for other in near
        ):
            kept.append(docstring)
    return kept


def _prefix(words: Sequence[str], rarity: Counter[str]) -> list[str]:
    ordered = sorted(set(words), key=lambda word: (rarity[word], word))
    return ordered[: len(ordered) - math.ceil(JACCARD * len(ordered)) + 1]
