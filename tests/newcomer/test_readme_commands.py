"""The README's commands and Python, run for real in the order of the page. Takes minutes; .ci/run runs it.

`make` lines are left to .ci/run, which runs them before this; `source` puts programs on PATH, as .ci/run does.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIMIT_S = 600


def steps() -> list[tuple[str, list[str]]]:
    """What the page runs: (name, arguments)."""
    found: list[tuple[str, list[str]]] = []
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        if language == "python":
            found.append(("python", [sys.executable, "-c", block]))
            continue
        lines = [line.removeprefix("$ ") for line in block.splitlines()]
        found += [(line, shlex.split(line)) for line in lines if line.startswith("regraft ")]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all commands: later ones use what earlier ones wrote."""
    return tmp_path_factory.mktemp("newcomer")


@pytest.mark.parametrize(("name", "arguments"), steps(), ids=[name for name, _ in steps()])
def test_runs(folder: Path, name: str, arguments: list[str]) -> None:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"{name}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
