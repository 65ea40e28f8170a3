"""README.md and the pages of docs/ say what exists: commands parse, targets exist, Python compiles, figures are measured.

The commands themselves are run by tests/newcomer, which takes minutes.
"""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from regraft.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of one language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Every line that starts with `$ ` in a console block."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines), f"{page.name}: a console block holds a line that is no command"
    return [line.removeprefix("$ ") for line in lines]


def parse(words: list[str]) -> None:
    """Parse a `regraft` command line as the command would, without running it; an exception when it would not."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words, f"which command of {command.name}?"
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_commands(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in commands(page):
        words = shlex.split(line)
        if "|" in words:  # what is piped into a command of ours
            words = words[words.index("|") + 1 :]
        match words[0]:
            case "make":
                assert words[1] in targets, line
            case "regraft":
                parse(words[1:])
            case program:
                assert program == "source", f"{page.name}: {line}"


@pytest.mark.parametrize("wrong", ["reuse builtin:pydoc --nope", "adapt", "store", "fly"])
def test_wrong_commands_would_be_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r"no command|which command|No such option|Missing"):
        parse(wrong.split())


def test_the_two_commands_come_first() -> None:
    assert commands(ROOT / "README.md")[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_compiles_and_its_imports_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
        for module, names in re.findall(r"^from (regraft\S*) import (.+)$", block, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{page.name}: {module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = set(re.findall(r"'(\w+\.md)'", repr(project["nav"])))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_figures_are_those_of_the_results() -> None:
    """What stands in marked places is what `benchmarks/summary.py --write` would write: no figure typed by hand."""
    program = (
        "import sys; sys.path.insert(0, 'benchmarks'); import summary; "
        "print([page.name for page in summary.pages() if summary.filled(page.read_text()) != page.read_text()])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "run: python benchmarks/summary.py --write"
