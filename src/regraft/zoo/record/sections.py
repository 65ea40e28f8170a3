"""How well a checkpoint is documented: which sections its card has, and the share of documentation fields that are filled.

Sections are the seven whose presence Liang et al. (2024, arXiv 2402.05160) counted over 32,111 cards of the Hub (training,
limitations, intended uses, how to start, evaluation, environmental impact, citation) and the description of the model, the first
of the sections that Mitchell et al. (2019, arXiv 1810.03993) proposed. Metadata fields are those that reusers were found to look
for and to miss (Jiang et al. 2023, arXiv 2303.02552; Taraghi et al. 2024, arXiv 2401.13177: cards get no fuller over the years).

A section counts when a heading names it and at least `FEWEST_WORDS` words of its own stand below that heading (code counts),
those of deeper headings included. Comments, "[More Information Needed]" and the sentences that the Hub's template puts there are
no words. Environmental impact also counts when the metadata states emissions.

    completeness = filled / len(FIELDS)     every field weighs the same

Parents are no field: a model from scratch has none, and could never be complete.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

FEWEST_WORDS = 5
MOST_HEADINGS = 10_000
LONGEST_TITLE = 200  # characters of a heading that are looked at


@dataclass(frozen=True)
class Section:
    """A section, and words of which a heading must have one to name it (matched at the start of a word)."""

    name: str
    headings: tuple[str, ...]


SECTIONS = (
    Section("description", ("model description", "model details", "model summary", "description", "overview", "introduction",
                            "about", "model information", "model architecture", "summary")),
    Section("uses", ("intended use", "uses", "direct use", "downstream use", "use cases", "primary use", "out-of-scope")),
    Section("how-to-start", ("how to get started", "how to use", "how to run", "how to load", "getting started", "get started",
                             "quick start", "quickstart", "usage", "inference", "example")),
    Section("training", ("training", "fine-tuning", "finetuning", "pre-training", "pretraining", "dataset", "hyperparameter")),
    Section("evaluation", ("evaluation", "eval result", "result", "performance", "metrics", "benchmark")),
    Section("limitations", ("limitation", "bias", "risk", "ethical", "caveat", "safety")),
    Section("environment", ("environmental impact", "carbon", "co2", "emission", "energy")),
    Section("citation", ("citation", "citing", "cite", "bibtex", "reference")),
)  # fmt: skip
METADATA = ("licence", "task", "datasets", "results", "library")
FIELDS = (*(section.name for section in SECTIONS), *METADATA)

# Sentences of the Hub's template (huggingface_hub, modelcard_template.md) and of the Trainer's, that say nothing of the model.
_BOILERPLATE = (
    "use the code below to get started with the model",
    "users (both direct and downstream) should be made aware of the risks, biases and limitations of the model",
    "more information needed for further recommendations",
    "more information needed",
    "carbon emissions can be estimated using the [machine learning impact calculator]",
    "presented in [lacoste et al. (2019)]",
    "this is the model card of a 🤗 transformers model that has been pushed on the hub",
    "this model card has been automatically generated",
)
# Cards are by strangers: no expression here can be made to go back over what it has read.
# A link may have one pair of brackets inside.
_LINK = re.compile(r"\(https?://(?:[^()\s]++|\([^()\s]*+\))*+\)")
_FENCE = re.compile(r"^[ \t]*(```|~~~)")
_BOLD = re.compile(r"^ {0,3}\*\*([^*]{3,60}?):?\*\*:?[ \t]*$")
_WORD = re.compile(r"\w+")


def sections_of(text: str) -> tuple[str, ...]:
    """The names of the sections that a card's text has, in the order of `SECTIONS`."""
    found: set[str] = set()
    parts = list(_parts(text))
    for at, (level, title, own) in enumerate(parts):
        names = _named(title)
        if not names or names <= found:
            continue
        words, other = own, at + 1
        while words < FEWEST_WORDS and other < len(parts) and parts[other][0] > level:
            words, other = words + parts[other][2], other + 1
        if words >= FEWEST_WORDS:
            found |= names
    return tuple(section.name for section in SECTIONS if section.name in found)


def completeness(sections: Collection[str], filled: Collection[str]) -> float:
    """The share of `FIELDS` among the sections that are there and the metadata fields that are filled."""
    return sum(name in sections or name in filled for name in FIELDS) / len(FIELDS)


def _parts(text: str) -> Iterator[tuple[int, str, int]]:
    """(level, heading, words of its own, `FEWEST_WORDS` at most) of every part; a line that is wholly bold is a heading below
    all others."""
    level, title, lines = 0, "", list[str]()
    headings, fenced = 0, False
    for line in _without_comments(text).splitlines():
        if not line or _FENCE.match(line):
            fenced = fenced != bool(line)
            continue
        heading = None if fenced else _heading(line)
        if heading is None:
            lines.append(line)
            continue
        if headings:
            yield level, title, _words("\n".join(lines))
        headings += 1
        if headings > MOST_HEADINGS:
            return
        (level, title), lines = heading, []
    if headings:
        yield level, title, _words("\n".join(lines))


def _heading(line: str) -> tuple[int, str] | None:
    """Level and words of a line that is a heading: `## Uses ##`, or `**Uses:**`."""
    body = line.lstrip(" ")
    if len(line) - len(body) > 3:
        return None
    title = body.lstrip("#")
    level = len(body) - len(title)
    if 1 <= level <= 6 and title[:1] in (" ", "\t"):
        return level, title.strip(" \t").rstrip("#").rstrip(" \t")[:LONGEST_TITLE]
    bold = _BOLD.match(line)
    return None if bold is None else (7, bold[1])


def _without_comments(text: str) -> str:
    kept, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept.append(text[at:start])
        at = end + 3
    return " ".join([*kept, text[at:]])


def _words(text: str) -> int:
    """How many words a text has, up to `FEWEST_WORDS`."""
    text = _LINK.sub(" ", text.lower())
    for sentence in _BOILERPLATE:
        text = text.replace(sentence, " ")
    words = 0
    for line in text.split("\n"):
        if not _is_empty_field(line):
            words += sum(1 for _ in islice(_WORD.finditer(line), FEWEST_WORDS))
        if words >= FEWEST_WORDS:
            break
    return min(words, FEWEST_WORDS)


def _is_empty_field(line: str) -> bool:
    """Whether a line is a label with nothing after it, such as `- **Hardware Type:** [ ]`, once placeholders are gone."""
    text = line.strip(" \t")
    if not text.startswith(("-", "*", "+")):
        return False
    label = text[1:].rstrip(" \t[].").lstrip(" \t").lstrip("*").removesuffix(":").rstrip("*").removesuffix(":")
    return len(label) <= 60 and ":" not in label and "*" not in label


def _named(title: str) -> set[str]:
    words = " " + re.sub(r"[^a-z0-9-]+", " ", title.lower())
    return {section.name for section in SECTIONS if any(f" {heading}" in words for heading in section.headings)}
