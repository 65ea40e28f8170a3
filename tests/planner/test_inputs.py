"""What a run was begun with: a finished or interrupted one is only gone on with when data and checkpoints are the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import BadReferenceError, HubError, RunError
from regraft.planner.family import Family

Reuse = Callable[..., Family]


def weights(family: Family) -> dict[str, str]:
    return {member.name: member.facts["weights_id"] for member in family}


def used(family: Family) -> set[str]:
    return {one["name"] for one in family.result["zoo"]["checkpoints"]}


@pytest.fixture
def folder_zoo(tiny_bert: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bert, tmp_path / "zoo" / "first")
    return tmp_path / "zoo"


@pytest.fixture
def begun(run_reuse: Reuse, tmp_path: Path) -> Callable[..., Family]:
    """A function that makes a run and takes its result away, as if it had been killed before it was written."""

    def begin(**options: Any) -> Family:
        family = run_reuse(**options)
        (tmp_path / "run" / "result.json").unlink()
        return family

    return begin


def test_a_finished_run_whose_data_were_corrected_is_refused(
    run_reuse: Reuse, toy_task_files: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(toy_task_files, tmp_path / "data")
    first = run_reuse(task=str(data))
    assert weights(run_reuse(task=str(data))) == weights(first)
    whole = (data / "train.csv").read_text()
    (data / "train.csv").write_text(whole + "one more text,animals\n")
    with pytest.raises(RunError, match=r"begun with another task \(the content of .*data is not what it was") as caught:
        run_reuse(task=str(data))
    assert "remove this one" in caught.value.remedy
    shutil.rmtree(tmp_path / "run")
    assert run_reuse(task=str(data)).members


def test_a_finished_run_whose_checkpoint_changed_is_refused(run_reuse: Reuse, folder_zoo: Path) -> None:
    run_reuse(zoo=str(folder_zoo))
    config = folder_zoo / "first" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(RunError, match=r"other checkpoints \(changed, or gone: first"):
        run_reuse(zoo=str(folder_zoo))


def test_checkpoints_that_arrive_later_are_left_out(
    begun: Callable[..., Family], run_reuse: Reuse, folder_zoo: Path, tiny_gpt2: Path
) -> None:
    first = begun(zoo=str(folder_zoo))
    shutil.copytree(
        tiny_gpt2, folder_zoo / "early"
    )  # before the first by name, and smaller: "from scratch" is another now
    again = run_reuse(zoo=str(folder_zoo))
    assert used(again) == used(first)
    assert weights(again) == weights(first)
    late = [one for one in again.result["left_out"] if "not in the zoo when this run began" in one["problem"]]
    assert str(folder_zoo / "early") in {one["reference"] for one in late}
    assert weights(run_reuse(zoo=str(folder_zoo))) == weights(first)  # finished


def test_a_checkpoint_that_is_gone_is_named(
    begun: Callable[..., Family], run_reuse: Reuse, folder_zoo: Path, tiny_gpt2: Path
) -> None:
    shutil.copytree(tiny_gpt2, folder_zoo / "second")
    begun(zoo=str(folder_zoo))
    shutil.rmtree(folder_zoo / "first")
    with pytest.raises(RunError, match=r"changed, or gone: first"):
        run_reuse(zoo=str(folder_zoo))


@pytest.mark.parametrize(
    ("zoo", "kind"), [("no/such/folder", BadReferenceError), ("pip:no-such-package-anywhere", BadReferenceError),
                      ("hf:org/never-downloaded", HubError)]
)  # fmt: skip
def test_a_zoo_that_is_not_there_is_an_error_and_spoils_nothing(
    zoo: str, kind: type[Exception], run_reuse: Reuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any) -> None:
        raise AssertionError("baselines were measured before the zoo was looked at")

    with monkeypatch.context() as patch:
        patch.setattr("regraft.planner.reuse.measure_baselines", measured)
        with pytest.raises(kind, match="holds no checkpoint that can be used"):
            run_reuse(zoo=zoo)
    assert not (tmp_path / "run" / "result.json").exists()
    assert run_reuse().members  # the same folder, with a zoo that is there


def test_a_zoo_that_held_nothing_usable_and_does_now_is_not_passed_over(run_reuse: Reuse, folder_zoo: Path) -> None:
    config = folder_zoo / "first" / "config.json"
    whole = config.read_text()
    config.write_text("{}")
    assert run_reuse(zoo=str(folder_zoo)).answer in {"tfidf", "majority"}
    assert run_reuse(zoo=str(folder_zoo)).answer in {"tfidf", "majority"}
    config.write_text(whole)
    with pytest.raises(RunError, match="begun with no checkpoint"):
        run_reuse(zoo=str(folder_zoo))


def test_a_mistyped_option_spoils_nothing(run_reuse: Reuse) -> None:
    with pytest.raises(Exception, match="nowhere"):
        run_reuse(text_column="nowhere")
    assert run_reuse().members
