"""S039, robust weight signatures (Cai et al. 2023, 2302.12480): robustness is a patch of shallow layers that transfers.

Protocol
    corruption   typing mistakes in 40 % of the words of four letters and more (typos.py); other ones in training (seed 1) than in
                 the test texts (seed 2)
    source       a task; MiniLM trained on its clean texts, and on the same texts corrupted: same seed, same order
    target       another task's expert, trained on clean texts only
    patched      target + signature in the shallower half of the layers and the embeddings (the authors patch 7 of 13), scale 1,
                 by the method `rws_projected`: what corrupted training changed from the base, less its projection on what
                 clean training changed
Pairs: banking77 to hwu64, hwu64 to banking77, banking77 to snips; 3 seeds. The target keeps its own head throughout.
Verdict: it holds when accuracy on corrupted test texts rises (the interval lies above zero) and accuracy on clean ones falls by
less than a point (the interval lies above -1 point); it does not when either interval lies wholly on the other side.
Reported beside it: the signature without projection (`rws`), over all layers, at scales 0.5 and 2, and, as the ceiling, the
target's task trained on corrupted texts itself, where that was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from merge_experts import Suite, Workshop
from merge_quality import Merger
from merge_stats import difference
from typos import with_typos

CLAIM = "a signature from one task, patched into another task's model, makes it robust and keeps its clean accuracy"
PAIRS = (("banking77", "hwu64"), ("hwu64", "banking77"), ("banking77", "snips"))
KEPT = -0.01
TRAIN_SEED, TEST_SEED = 1, 2
# Beside the published way: method and options.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "patched": ("rws_projected", {}),
    "not projected": ("rws", {}),
    "all layers": ("rws_projected", {"layers": 6}),
    "scale 0.5": ("rws_projected", {"scale": 0.5}),
    "scale 2": ("rws_projected", {"scale": 2.0}),
}


def check(workshop: Workshop, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Train what is missing, patch, measure."""
    targets = sorted({target for _, target in PAIRS})
    suites = {
        "clean": Suite(workshop, targets, "test"),
        "typos": Suite(workshop, targets, "test", partial(with_typos, seed=TEST_SEED)),
    }
    change = ("typos", partial(with_typos, seed=TRAIN_SEED))
    rights: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {}
    for seed in seeds:
        found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        robust = {name: workshop.expert(name, seed, change=change) for name in dict.fromkeys(a for a, _ in PAIRS)}
        for source, target in PAIRS:
            pair, expert = f"{source} to {target}", workshop.expert(target, seed)
            clean = workshop.expert(source, seed)
            measured = {"target": (expert.folder, expert.head)}
            if target in robust:
                measured["ceiling"] = (robust[target].folder, robust[target].head)
            merger = Merger(workshop)
            for way, (method, options) in WAYS.items():
                rws = method == "rws"
                inputs = [expert, robust[source]] if rws else [expert, clean, robust[source]]
                base = clean.folder if rws else workshop.base
                merger.make_of(method, [str(one.folder) for one in inputs], options, seed, str(base), name=way)
                measured[way] = (merger.folder(way), expert.head)
            for way, (folder, head) in measured.items():
                for texts, suite in suites.items():
                    found.setdefault((way, texts), {})[pair] = suite.right(folder, {target: head})[target]
            merger.clear()
        for at, by_pair in found.items():
            rights.setdefault(at, []).append(by_pair)
    gain = difference(rights["patched", "typos"], rights["target", "typos"])
    kept = difference(rights["patched", "clean"], rights["target", "clean"])
    verdict = "too close to call"
    if gain.low > 0 and kept.low > KEPT:
        verdict = "holds"
    elif gain.high < 0 or kept.high < KEPT:
        verdict = "does not hold"
    return {
        "claim": CLAIM,
        "verdict": verdict,
        "differences": {"corrupted texts, patched over not": gain.to_json(), "clean texts": kept.to_json()},
        "accuracy": {f"{way}, {texts}": _by_pair(found) for (way, texts), found in rights.items()},
    }


def _by_pair(rights: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    return {name: round(float(np.mean([one[name].mean() for one in rights])), 5) for name in rights[0]}
