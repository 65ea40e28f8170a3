"""Hold the licence rules of the zoo against the real pairs of PeaTMOSS (Jiang et al. 2024, arXiv 2401.00699).

    python benchmarks/licences.py FOLDER        FOLDER: data/peatmoss_sample (its files are named below)

mapping.csv                 22,861 uses of a model by a repository: repository, model, URL, the model's licence. The licences of
                            the repositories are not in it: its rows say how often a model's licence occurs, no more
incompatibleMapping.json    for 21 licences of models, the licences of repositories that the authors' table (the Linux
                            Foundation's) calls incompatible with them; a pair that is not listed is compatible, unknown to the
                            table, or did not occur
groundTruth.json            50 hand-labelled cards, with their licence and, for some, the model that they come from

The authors ask whether a *program that uses* a model may be published under its licence; our rules ask whether a *model made
from* a model may. Where the two differ, the disagreement is put into words and counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from common import Results

from regraft.zoo.record.licences import forbids, recognised, terms_of


def main() -> None:
    """Print and store the agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with (folder / "mapping.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == 4]
    licences = Counter(row[3].lower() for row in rows)
    models = {row[1].lower(): row[3] for row in rows}
    incompatible = json.loads((folder / "incompatibleMapping.json").read_text(encoding="utf-8"))
    cards = json.loads((folder / "groundTruth.json").read_text(encoding="utf-8"))
    cell = {"names": names(licences), "pairs": pairs(incompatible, licences), "cards": of_cards(cards, models)}
    print(json.dumps(cell, indent=1))
    Results("licences").put("peatmoss", cell)


def names(licences: Counter[str]) -> dict[str, Any]:
    """How many of the models' licences are known by name, and how many have terms that are known."""
    total = sum(licences.values())
    known = [name for name in licences if recognised(name) is not None]
    clear = [name for name in known if (terms := terms_of(name)) is not None and terms.family != "unknown"]
    return {
        "spellings": len(licences), "spellings_known": len(known), "rows": total,
        "rows_known": sum(licences[name] for name in known), "rows_with_terms": sum(licences[name] for name in clear),
        "without_terms": {name: count for name, count in licences.items() if name not in clear},
    }  # fmt: skip


def pairs(incompatible: dict[str, list[str]], licences: Counter[str]) -> dict[str, Any]:
    """Every licence of a model against every licence of a repository that the table names."""
    children = sorted({child for listed in incompatible.values() for child in listed} | incompatible.keys())
    both, ours, theirs, neither = [], [], [], 0
    for parent, listed in incompatible.items():
        for child in children:
            reason = forbids(parent, "NONE" if child == "no license" else child) if parent != "no license" else None
            pair = {"model": parent, "repository": child, "rows_of_model": licences.get(parent, 0)}
            if reason is not None and child in listed:
                both.append(pair | {"reason": reason})
            elif reason is not None:
                ours.append(pair | {"reason": reason, "why_they_differ": why(parent)})
            elif child in listed:
                theirs.append(pair | {"why_they_differ": why_not(child)})
            else:
                neither += 1
    listed_pairs = len(both) + len(theirs)
    return {
        "listed_as_incompatible": listed_pairs, "of_these_forbidden_here": len(both),
        "not_listed": neither + len(ours), "of_these_forbidden_here_too": len(ours),
        "agreement": round((len(both) + neither) / (listed_pairs + neither + len(ours)), 4),
        "only_listed": theirs, "only_forbidden_here": Counter(pair["why_they_differ"] for pair in ours),
        "only_forbidden_here_pairs": [f"{pair['model']} -> {pair['repository']}" for pair in ours],
        "both": [f"{pair['model']} -> {pair['repository']}" for pair in both],
    }  # fmt: skip


def why(parent: str) -> str:
    """Why a pair that they do not list is forbidden here, by the family of the model's licence."""
    terms = terms_of(parent)
    family = "unknown" if terms is None else terms.family
    return {
        "non-commercial": "their table lists nothing for non-commercial licences",
        "weak-copyleft": "a program may use it under other terms, a changed model may not",
        "copyleft": "same licence demanded; the pair is not in their list",
        "use-restricted": "restrictions of use must be passed on; they list one such pair only",
        "permissive": "the patent terms of Apache-2.0 against version 2 of the GPL",
    }.get(family, family)


def why_not(child: str) -> str:
    """Why a pair that they list is not forbidden here, by the repository's licence."""
    terms = terms_of(child)
    if terms is None or terms.family == "unknown":
        return "what the repository's licence allows is not known here"
    return "held compatible here"


def of_cards(cards: dict[str, dict[str, Any]], models: dict[str, str]) -> dict[str, Any]:
    """Hand-labelled licences against those of the Hub, and the cards that name a parent whose licence is known."""
    stated = {name: card["license"] for name, card in cards.items() if card.get("license")}
    unknown = [text for text in stated.values() if recognised(text) is None]
    both = {name: (text, models[name.lower()]) for name, text in stated.items() if name.lower() in models}
    differ = [f"{name}: {a} / {b}" for name, (a, b) in both.items() if recognised(a) != recognised(b)]
    family = []
    for name, card in cards.items():
        parent = re.sub(r"^https://huggingface\.co/|\s+", "", str(card.get("upstream_model") or "")).lower()
        if parent in models and card.get("license"):
            family.append({
                "child": name, "licence": card["license"], "parent": parent, "parent_licence": models[parent],
                "forbidden": forbids(models[parent], card["license"]),
            })  # fmt: skip
    return {
        "stated": len(stated), "not_known_by_name": unknown, "also_in_mapping": len(both), "different_there": differ,
        "parents_with_known_licence": family,
    }  # fmt: skip


if __name__ == "__main__":
    main()
