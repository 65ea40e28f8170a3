"""Every package and module of Regraft has a place in the layers, so that import-linter holds all of them to it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_everything_is_in_a_layer() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    placed = {name for layer in contract["layers"] for name in re.findall(r"\w+", layer)}
    own = (ROOT / "src" / "regraft").iterdir()
    found = {path.stem for path in own if path.suffix == ".py" or (path / "__init__.py").exists()}
    outside = {"__init__", "__main__"}  # the package's face: it imports from the top when it is asked
    assert found - outside <= placed
