"""mergekit, as a competent user runs it: `mergekit-yaml RECIPE OUT` in a virtual environment of its own.

Its pins are its own affair, so it is installed apart and only its path is given:

    python -m venv mk && mk/bin/pip install mergekit==0.1.5

The same recipe goes to Regraft. Linear averages base and fine-tunes alike, so that every method reads the same files.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

IMPORTS = "import mergekit.scripts.run_yaml"
METHODS = ("ties", "dare_ties", "task_arithmetic", "linear")
_PARAMETERS = {
    "ties": {"weight": 1.0, "density": 0.2},
    "dare_ties": {"weight": 1.0, "density": 0.2},
    "task_arithmetic": {"weight": 0.4},
    "linear": {"weight": 1.0},
}


def recipe(method: str, base: Path, tuned: Sequence[Path]) -> str:
    """The YAML of a merge, which both programs take."""
    with_base = method != "linear"
    lines = [f"merge_method: {method}"]
    if with_base:
        lines.append(f"base_model: {base}")
    lines.append("models:")
    for path in tuned if with_base else [base, *tuned]:
        lines += [f"  - model: {path}", "    parameters:"]
        lines += [f"      {name}: {value}" for name, value in _PARAMETERS[method].items()]
    return "\n".join([*lines, "dtype: bfloat16", ""])


def command(mergekit: Path, yaml: Path, out: Path) -> list[str]:
    """Its defaults, a seed, and no progress bars."""
    return [str(mergekit), str(yaml), str(out), "--quiet", "--random-seed", "0"]


def python(mergekit: Path) -> str:
    """The interpreter of its virtual environment."""
    return str(mergekit.parent / "python")


def versions(mergekit: Path) -> dict[str, str]:
    """The versions that its figures depend on."""
    names = ("mergekit", "torch", "transformers", "safetensors", "numpy")
    lines = "; ".join(f"print(version('{name}'))" for name in names)
    found = subprocess.run(
        [python(mergekit), "-c", f"from importlib.metadata import version; {lines}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(zip(names, found.stdout.split(), strict=True))
