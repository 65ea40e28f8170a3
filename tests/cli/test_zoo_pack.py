"""`zoo pack` and `zoo restore` as a person types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import typer
from typer.testing import CliRunner

from regraft.cli import zoo_pack
from regraft.errors import CheckpointError


def app() -> typer.Typer:
    made = typer.Typer()
    zoo_pack.register(made)
    return made


def test_there_and_back(tiny_bert: Path, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(tiny_bert, tmp_path / "tuned"))
    (tuned / "README.md").write_text("A copy.")
    packed = ["pack", str(tuned), "--parent", str(tiny_bert), "-o", str(tmp_path / "packed"), "--replace", "--json"]
    done = CliRunner().invoke(app(), packed)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["replaced"] and report["ratio"] < 0.6 and not tuned.exists()
    done = CliRunner().invoke(app(), ["restore", str(tmp_path / "packed"), "-o", str(tuned)])
    assert done.exit_code == 0 and "as they were" in done.output
    assert (tuned / "model.safetensors").read_bytes() == (tiny_bert / "model.safetensors").read_bytes()
    assert (tuned / "README.md").read_text() == "A copy."


def test_faults_are_ours(tmp_path: Path) -> None:
    """The command line turns them into words and an exit code."""
    done = CliRunner().invoke(app(), ["restore", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, CheckpointError)
