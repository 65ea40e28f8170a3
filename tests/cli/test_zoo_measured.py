"""`regraft evaluate` of a checkpoint of the catalogue: what was measured is kept, with the outcome of each example."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from regraft.cli.app import app
from regraft.zoo.catalogue import open_catalogue
from regraft.zoo.catalogue.measurements import read_outcomes

CARD = """---
model-index:
- name: x
  results:
  - task: {type: text-classification}
    dataset: {name: toy, type: TASK}
    metrics: [{type: accuracy, value: 99.5}]
---
"""


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path: Path, tiny_classifier: Path, toy_task_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier that the catalogue knows, with a bold claim."""
    monkeypatch.setenv("REGRAFT_CATALOGUE", str(tmp_path / "catalogue.sqlite"))
    monkeypatch.setenv("REGRAFT_STORE", str(tmp_path / "store"))
    made = Path(shutil.copytree(tiny_classifier, tmp_path / "zoo" / "classifier"))
    (made / "README.md").write_text(CARD.replace("TASK", toy_task_files.name))
    assert call("zoo", "add", tmp_path / "zoo")["added"] == 1
    return made


def test_a_measurement_is_kept_beside_the_claim(folder: Path, toy_task_files: Path) -> None:
    found = call("evaluate", folder, toy_task_files)
    assert found["recorded"].endswith("catalogue.sqlite")
    shown = call("zoo", "show", "classifier")
    kept = {one["metric"]: one for one in shown["measurements"]}
    assert {name: one["value"] for name, one in kept.items()} == {
        name: found["score"][name] for name in ("accuracy", "macro_f1", "calibration_error")
    }
    one = kept["accuracy"]
    assert [one["low"], one["high"]] == found["score"]["intervals"]["accuracy"] and one[
        "protocol"
    ] == "test split, as it is"
    assert one["n"] == 30 and one["current"] and one["machine"]["cores"] and one["identity"]
    outcomes = read_outcomes(one["outcomes"])
    assert len(outcomes.correct) == 30 and outcomes.correct.mean() == found["score"]["accuracy"]
    assert call("zoo", "ls", "measured:accuracy>=0")["checkpoints"][0]["name"] == "classifier"
    (line,) = [one for one in shown["results"] if one["claimed"] is not None]
    assert line["verdict"] == "below the claim" and line["measured"] == found["score"]["accuracy"]


def test_it_is_of_the_files_that_were_measured(folder: Path, toy_task_files: Path) -> None:
    call("evaluate", folder, toy_task_files)
    (folder / "NOTES.md").write_text("The folder changed, and the catalogue has not looked yet.")
    assert call("evaluate", "zoo:classifier", toy_task_files)["recorded"]
    with open_catalogue() as opened:
        current = [one.current for one in opened.measurements("classifier") if one.metric == "accuracy"]
        assert current == [True, False]
    call("zoo", "add", folder)
    with open_catalogue() as opened:
        current = [one.current for one in opened.measurements("classifier") if one.metric == "accuracy"]
        assert current == [False, True]


def test_files_that_change_meanwhile_are_not_recorded(
    folder: Path, toy_task_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.cli.measured import Recording

    def see(self: Recording, *seen: Any) -> None:
        self.seen = seen
        (folder / "NOTES.md").write_text("A training saved again.")

    monkeypatch.setattr(Recording, "see", see)
    assert call("evaluate", folder, toy_task_files)["recorded"] is None
    with open_catalogue() as opened:
        assert opened.measurements("classifier") == []


def test_what_is_not_to_be_recorded(folder: Path, toy_task_files: Path, tmp_path: Path) -> None:
    assert call("evaluate", folder, toy_task_files, "--no-record")["recorded"] is None
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    assert call("evaluate", elsewhere, toy_task_files)["recorded"] is None
    assert call("evaluate", folder, toy_task_files, "--catalogue", tmp_path / "none.sqlite")["recorded"] is None
    with open_catalogue() as opened:
        assert opened.measurements("classifier") == []
