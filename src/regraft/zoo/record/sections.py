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
from collections.abc import Collection
from dataclasses import dataclass

FEWEST_WORDS = 5


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
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"\(https?://[^)\s]*\)")
# "- **Hardware Type:**": a label with nothing after it, once placeholders are gone.
_EMPTY_FIELD = re.compile(r"^[ \t]*[-*+][ \t]*\**[^:*\n]{1,60}:?\**:?[ \t\]\[.]*$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(```|~~~)")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_BOLD = re.compile(r"^ {0,3}\*\*([^*]{3,60}?):?\*\*:?[ \t]*$")
_WORD = re.compile(r"\w+")


def sections_of(text: str) -> tuple[str, ...]:
    """The names of the sections that a card's text has, in the order of `SECTIONS`."""
    found: set[str] = set()
    parts = _parts(text)
    for at, (level, title, _) in enumerate(parts):
        names = _named(title)
        if not names or names <= found:
            continue
        words = 0
        for other, (below, _, own) in enumerate(parts[at:]):
            if other and below <= level:
                break
            words += own
            if words >= FEWEST_WORDS:
                break
        if words >= FEWEST_WORDS:
            found |= names
    return tuple(section.name for section in SECTIONS if section.name in found)


def completeness(sections: Collection[str], filled: Collection[str]) -> float:
    """The share of `FIELDS` among the sections that are there and the metadata fields that are filled."""
    return sum(name in sections or name in filled for name in FIELDS) / len(FIELDS)


def _parts(text: str) -> list[tuple[int, str, int]]:
    """(level, heading, words of its own) of every part; a line that is wholly bold is a heading below all others."""
    parts: list[tuple[int, str, list[str]]] = []
    fenced = False
    for line in _COMMENT.sub(" ", text).splitlines():
        if _FENCE.match(line):
            fenced = not fenced
            continue
        match = None if fenced else _HEADING.match(line)
        bold = None if fenced or match else _BOLD.match(line)
        if match:
            parts.append((len(match[1]), match[2], []))
        elif bold:
            parts.append((7, bold[1], []))
        elif parts:
            parts[-1][2].append(line)
    return [(level, title, _words("\n".join(lines))) for level, title, lines in parts]


def _words(text: str) -> int:
    text = _LINK.sub(" ", text.lower())
    for sentence in _BOILERPLATE:
        text = text.replace(sentence, " ")
    return len(_WORD.findall(_EMPTY_FIELD.sub(" ", text)))


def _named(title: str) -> set[str]:
    words = " " + re.sub(r"[^a-z0-9-]+", " ", title.lower())
    return {section.name for section in SECTIONS if any(f" {heading}" in words for heading in section.headings)}
