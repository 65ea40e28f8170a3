"""Results that a report must survive, made from the realistic one in `result.json` (banking77, ten minutes)."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]

SCRIPT = "<script>document.title='owned'</script>"
BREAKOUT = "\"><img src=x onerror=\"document.title='owned'\">'</style></svg>{{ 7*7 }}]]>&amp;"


def realistic() -> Result:
    """Five members, three baselines, fourteen candidates."""
    loaded: Result = json.loads((Path(__file__).parent / "result.json").read_text(encoding="utf-8"))
    return loaded


def hostile() -> Result:
    """Markup, control characters, bidirectional overrides, lone surrogates and endless words wherever a user names."""
    result = realistic()
    long = "x" * 300
    result["family"][0]["name"] = result["best"] = SCRIPT
    result["candidates"][0]["name"] = SCRIPT
    result["family"][0]["path"] = f'runs/{SCRIPT}/it\'s "here"\\'
    result["family"][1]["name"] = result["candidates"][1]["name"] = BREAKOUT
    result["family"][2]["name"] = result["candidates"][2]["name"] = long
    result["family"][2]["path"] = f"runs/{long}"
    result["baselines"][2]["name"] = BREAKOUT
    result["task"] |= {"name": BREAKOUT, "reference": long, "labels": [SCRIPT, "\x00\x1b[31m", "\u202edesrever", ""]}
    result["task"]["notes"] = [SCRIPT, "\ud800 alone", long]
    result["zoo"]["reference"] = SCRIPT
    result["zoo"]["checkpoints"][0] |= {"name": SCRIPT, "model_type": BREAKOUT, "licence": SCRIPT, "reference": long}
    result["ranking"][0]["checkpoint"] = SCRIPT
    result["ranking"][0]["scores"][SCRIPT] = 0.5
    result["decisions"][0] |= {"what": SCRIPT, "reason": BREAKOUT}
    result["candidates"][3] |= {"reason": long, "status": SCRIPT, "settings": {SCRIPT: BREAKOUT}}
    result["left_out"][0] = {"reference": long, "problem": SCRIPT, "remedy": BREAKOUT}
    result["machine"]["processor"] = SCRIPT
    result["report"] = f"runs/{SCRIPT}/report.html"
    return result


def baseline_best() -> Result:
    """The budget was too small for anything: no family, no ranking, no candidates."""
    result = realistic()
    result |= {"best": "tfidf", "family": [], "ranking": [], "candidates": [], "decisions": result["decisions"][:2]}
    result |= {"budget": {"text": "5s", "seconds": 5.0, "trials": None}, "spent_s": 4.4, "left_out": []}
    result["baselines"] = result["baselines"][:2]
    return result


def baseline_beats_family() -> Result:
    """A family exists, but a baseline is the answer."""
    result = realistic()
    result["best"] = "tfidf"
    for split in ("validation", "test"):
        result["baselines"][0][split] = _shifted(result["family"][0][split], 0.02)
    return result


def one_member() -> Result:
    """A family of one, in the transformers format, measured by macro F1 under a budget of work."""
    result = realistic()
    result["family"] = result["family"][:1]
    result["family"][0]["format"] = "transformers"
    result["candidates"] = result["candidates"][:1]
    result["baselines"] = result["baselines"][:1]
    result["task"]["metric"] = "macro_f1"
    result["budget"] = {"text": "4trials", "seconds": None, "trials": 4}
    return result


def many() -> Result:
    """Thirty members and 200 candidates: more than any plot or first screen can name."""
    result = realistic()
    template = copy.deepcopy(result["candidates"][5])
    for place in range(200):
        value = 0.5 + 0.4 * math.sin(place) ** 2
        extra = copy.deepcopy(template) | {
            "name": f"candidate-{place}",
            "seconds": 1.0 + place,
            "latency_ms": 1 + place / 40,
        }
        extra["validation"] = _shifted(template["validation"], value - template["validation"]["accuracy"])
        result["candidates"].append(extra)
    for place in range(25):
        member = copy.deepcopy(result["family"][3]) | {"name": f"member-{place}", "latency_ms": 2 - place / 20}
        member["path"] = f"runs/banking77-10m/family/member-{place}"
        member["test"] = _shifted(member["test"], -place / 1000)
        result["family"].append(member)
    return result


def nulls() -> Result:
    """Everything that may be null is, and what was measured holds NaN and infinity."""
    result = realistic()
    for one in [*result["family"], *result["baselines"], *result["candidates"]]:
        one |= {"parameters": None, "bytes": None, "latency_ms": None, "seconds": None}
    for member in result["family"]:
        member |= {"encoder_parameters": None, "bytes_bf16": None, "throughput": math.nan}
    for candidate in result["candidates"]:
        candidate |= {"validation": None, "settings": {}, "curve": []}
    for one in result["ranking"]:
        one |= {"score": None, "low": math.nan, "high": math.inf, "scores": {"logme": None}, "seconds": None}
    for one in result["zoo"]["checkpoints"]:
        one |= {"layers": None, "hidden_size": None, "licence": None, "encoder_parameters": None}
    result["baselines"][1]["test"] = None
    result["baselines"][1]["validation"] = {"accuracy": math.nan, "intervals": {}}
    result["machine"] |= {"processor": "", "cores": None, "threads": None}
    return result


def predicted() -> Result:
    """The history is trusted: the ranking is in the order of predicted accuracy."""
    result = realistic()
    count = len(result["ranking"])
    for place, one in enumerate(result["ranking"]):
        accuracy = 0.93 - 0.01 * place
        one["predicted"] = {"accuracy": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.015, "best": 1 / count,
                            "group": one["group"]}  # fmt: skip
    return result


def nothing() -> Result:
    """Neither a checkpoint nor a baseline could be measured."""
    result = baseline_best()
    result |= {"best": None, "baselines": [], "decisions": []}
    result["zoo"]["checkpoints"] = []
    result["task"]["notes"] = []
    return result


def _shifted(score: Result, by: float) -> Result:
    moved = copy.deepcopy(score)
    for metric in ("accuracy", "macro_f1"):
        moved[metric] += by
        moved["intervals"][metric] = [value + by for value in moved["intervals"][metric]]
    return moved


VARIANTS: dict[str, Callable[[], Result]] = {
    made.__name__: made
    for made in (realistic, hostile, baseline_best, baseline_beats_family, one_member, many, predicted, nulls, nothing)
}
