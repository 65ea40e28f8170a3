"""`regraft merge`: recipes of both kinds, the dry run, JSON, and errors in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from regraft.cli.app import app, run
from regraft.cli.merge import size_of
from regraft.errors import BudgetError
from regraft.merge.checks import weights


@pytest.fixture
def recipe(tiny_bert: Path, copy_of: Any, tmp_path: Path) -> Path:
    """The recipe of a merge of two checkpoints that differ from their base."""
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = copy_of(tiny_bert, name)
        weights = load_file(folder / "model.safetensors")
        moved = {key: value + 0.01 * draw.standard_normal(value.shape).astype(value.dtype)
                 if value.dtype == np.float32 else value for key, value in weights.items()}  # fmt: skip
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "merge.yaml"
    path.write_text(f"""\
merge: task_arithmetic
base: {tiny_bert}
inputs:
  - {{checkpoint: {tmp_path / "a"}, weight: 0.5}}
  - {{checkpoint: {tmp_path / "b"}, weight: 0.25}}
""")
    return path


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)], catch_exceptions=False)


def refused(*arguments: object, capsys: Any, monkeypatch: Any) -> str:
    """What the command line says on standard error, with status 1."""
    monkeypatch.setattr(sys, "argv", ["regraft", "merge", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    return str(said)


def test_help_has_examples() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for word in (
        "Example: regraft merge",
        "--dry-run",
        "--max-memory",
        "--workers",
        "--allow",
        "--check-values",
        "--json",
    ):
        assert word in result.output


@pytest.mark.parametrize("last", ["import regraft.cli.app", "import regraft.merge.recipe.file, regraft.merge.run"])
def test_it_starts_without_torch(last: str) -> None:
    code = f"import sys; {last}; print([name for name in ('torch', 'transformers', 'sklearn') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_merge_is_written_and_said(recipe: Path, tiny_bert: Path, tmp_path: Path) -> None:
    result = call(recipe, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "tensors with task_arithmetic" in result.stdout
    assert f"Written to {tmp_path / 'out'}" in result.stdout
    base, a, b = (load_file(folder / "model.safetensors") for folder in (tiny_bert, tmp_path / "a", tmp_path / "b"))
    for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
        if values.dtype == np.float32:
            one, two, origin = (part[name].astype(np.float64) for part in (a, b, base))
            np.testing.assert_allclose(values, origin + 0.5 * (one - origin) + 0.25 * (two - origin), atol=1e-7)


def test_a_merge_as_json(recipe: Path, tmp_path: Path) -> None:
    result = call(recipe, "--out", tmp_path / "out", "--workers", 1, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["out"], found["method"]) == (str(tmp_path / "out"), "task_arithmetic")
    assert found["merged"] > 0


def test_a_dry_run_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = json.loads(call(recipe, "--dry-run", "--json").stdout)
    assert found["method"] == "task_arithmetic"
    assert len(found["checkpoints"]) == 3
    shown = call(recipe, "-o", tmp_path / "out", "--dry-run")
    assert shown.exit_code == 0
    for word in ("base", "input", "memory", "disk", "time"):
        assert word in shown.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_that_refuses_has_status_1(recipe: Path, copy_of: Any, tiny_gpt2: Path) -> None:
    other = copy_of(tiny_gpt2, "other")
    recipe.write_text(recipe.read_text().replace(str(recipe.parent / "b"), str(other)))
    result = call(recipe, "--dry-run", "--json")
    assert result.exit_code == 1
    assert "error" in {one["severity"] for one in json.loads(result.stdout)["findings"]}
    assert call(recipe, "--dry-run").exit_code == 1


def test_a_mergekit_recipe_is_taken_as_it_is(tiny_bert: Path, recipe: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "mergekit.yaml"
    theirs.write_text(f"""\
merge_method: task_arithmetic
base_model: {tiny_bert}
models:
  - {{model: {tmp_path / "a"}, parameters: {{weight: 0.5, density: 1}}}}
  - {{model: {tmp_path / "b"}, parameters: {{weight: 0.25}}}}
dtype: float32
""")
    assert call(recipe, "-o", tmp_path / "ours").exit_code == 0
    result = call(theirs, "-o", tmp_path / "theirs")
    assert "note: " in result.stdout and "does not read density" in result.stdout
    ours, same = (tmp_path / name / "model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == same.read_bytes()


def test_every_value_is_looked_at_when_that_is_asked_for(recipe: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(weights, "WHOLE", 0)
    sampled = call(recipe, "--dry-run", "--json")
    assert json.loads(sampled.stdout)["every_value"] is False
    seen = call(recipe, "--dry-run", "--json", "--check-values")
    assert json.loads(seen.stdout)["every_value"] is True
    done = call(recipe, "-o", tmp_path / "out", "--json", "--check-values")
    assert json.loads(done.stdout)["preflight"]["every_value"] is True
    both = CliRunner().invoke(app, ["merge", str(recipe), "--search", "--check-values", "-o", str(tmp_path / "x")])
    assert both.exit_code == 2 and "--check-values" in both.output


def test_errors_are_words(recipe: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def said(*arguments: object) -> str:
        return refused(*arguments, "-o", tmp_path / "out", capsys=capsys, monkeypatch=monkeypatch)

    assert "cannot be read" in said(tmp_path / "nowhere.yaml")
    assert "Cannot read the size 'much'" in said(recipe, "--max-memory", "much")
    assert "nothing to allow by the name 'everything'" in said(recipe, "--allow", "everything")
    assert "1.0 KiB" in said(recipe, "--max-memory", "1KiB")
    recipe.write_text(recipe.read_text().replace("weight: 0.25", "weigth: 0.25"))
    words = said(recipe)
    assert f"{recipe}, line 5: an input of task_arithmetic has no key 'weigth'." in words
    assert "Did you mean 'weight'?" in words
    assert not (tmp_path / "out").exists()


def test_an_output_or_a_dry_run_is_asked_for(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["merge", str(recipe)])
    assert result.exit_code == 2
    assert "--dry-run" in result.output


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 2**29), ("2GiB", 2**31), ("1.5 GB", 1_500_000_000), ("1000", 1000), ("1kb", 1000)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "5 parsecs", "1e9", 400 * "9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(BudgetError, match="Cannot read the size"):
        size_of(text)
