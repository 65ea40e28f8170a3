"""Are merges those of mergekit where definitions agree? Every value of small checkpoints, in float32, one recipe for both.

    python benchmarks/merge_exact.py --mergekit VENV/bin/mergekit-yaml [--scratch FOLDER]

A base and three fine-tunes of a Llama shape of 1M parameters (benchmarks/merge_models.py), `dtype: float32`; the plain recipes,
then a gradient over depth with a filter. For each recipe the largest difference of any element, in units in the last place of
the larger of the two and as a share of the tensor's largest magnitude, and the share of elements that are equal. What differs
on purpose (docs/merge.md, "Recipes of mergekit") is in the table as it is. Methods that draw random numbers are left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import merge_models
import numpy as np
from peers import mergekit_peer
from safetensors import safe_open

LIMIT_S = 600.0
SIZE, INPUTS = "1M", 3
GRADIENT = "[{filter: self_attn, value: [0.2, 0.8]}, {filter: mlp, value: [1.0, 0.1, 0.5]}, {value: 0.7}]"


def recipes(base: Path, tuned: list[Path]) -> Iterator[tuple[str, str]]:
    """(name, mergekit YAML)."""
    for name, with_base, parameters in (
        ("linear", False, {"weight": [0.5, 0.3, 0.9]}),
        ("linear, gradient and filter", False, {"weight": [GRADIENT, "0.4", "0.9"]}),
        ("task_arithmetic", True, {"weight": [0.5, 0.3, 0.9]}),
        ("task_arithmetic, gradient and filter", True, {"weight": [GRADIENT, "0.4", "0.9"]}),
        ("ties", True, {"weight": [0.5, 0.3, 0.9], "density": [0.2, 0.5, 0.35]}),
        ("breadcrumbs", True, {"weight": [0.5, 0.3, 0.9], "density": [0.9] * 3, "gamma": [0.01] * 3}),
        ("sce", True, {"select_topk": 0.3}),
        ("model_stock", True, {}),
        ("karcher", False, {}),
        ("slerp", False, {"t": 0.3}),
        ("nuslerp", False, {"weight": [0.6, 0.4]}),
    ):
        method = name.split(",")[0]
        inputs = tuned[:2] if method in ("slerp", "nuslerp") else tuned
        lines = [f"merge_method: {method}", "dtype: float32"]
        if with_base or method == "slerp":
            lines.append(f"base_model: {base if with_base else inputs[0]}")
        lines.append("models:")
        for at, path in enumerate(inputs):
            own = {key: values[at] for key, values in parameters.items() if isinstance(values, list)}
            lines.append(f"  - model: {path}")
            lines += ["    parameters:", *(f"      {key}: {value}" for key, value in own.items())] if own else []
        whole = {key: value for key, value in parameters.items() if not isinstance(value, list)}
        lines += ["parameters:", *(f"  {key}: {value}" for key, value in whole.items())] if whole else []
        yield name, "\n".join([*lines, ""])


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, which may be sharded."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    return found


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far apart two checkpoints are."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"Other tensors: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    ulp, share, equal, elements, where = 0.0, 0.0, 0, 0, ""
    for name, mine in ours.items():
        other = theirs[name].astype(np.float32)
        apart = np.abs(mine.astype(np.float64) - other.astype(np.float64))
        units = float((apart / np.spacing(np.maximum(np.abs(mine), np.abs(other)))).max())
        if units > ulp:
            ulp, where = units, name
        share = max(share, float(apart.max() / max(np.abs(other).max(), 1e-30)))
        equal, elements = equal + int((apart == 0).sum()), elements + apart.size
    return {
        "largest_ulp": round(ulp, 2), "largest_ulp_in": where, "largest_share": float(f"{share:.3g}"),
        "equal_elements": round(equal / elements, 6), "elements": elements,
    }  # fmt: skip


def main() -> None:
    """Merge by both, compare everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, required=True, help="mergekit-yaml of its virtual environment")
    parser.add_argument("--scratch", type=Path, help="kept between runs when given")
    given = parser.parse_args()
    results = common.Results("merge_exact")
    versions = mergekit_peer.versions(given.mergekit)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = given.scratch or Path(temporary)
        base, tuned = merge_models.make(SIZE, INPUTS, scratch / "checkpoints")
        for name, text in recipes(base, tuned):
            yaml, ours, theirs = scratch / "recipe.yaml", scratch / "ours", scratch / "theirs"
            yaml.write_text(text, encoding="utf-8")
            for out, command in (
                (ours, common.regraft("merge", str(yaml), "-o", str(ours), "--json")),
                (theirs, mergekit_peer.command(given.mergekit, yaml, theirs)),
            ):
                shutil.rmtree(out, ignore_errors=True)
                done = common.run(command, LIMIT_S)
                if done.code != 0:
                    raise SystemExit(f"{name}: {done.output[-1000:]}\n{done.errors[-2000:]}")
            found = differences(tensors(ours), tensors(theirs))
            results.put(name, {**found, "recipe": text.replace(f"{base.parent}/", ""), "versions": versions})
            print(f"{name:40} {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
