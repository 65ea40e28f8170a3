"""What there is time for, with paces that are told and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.budget import Budget, Deadline
from regraft.checkpoint import open_checkpoint
from regraft.planner import baselines, pace, scope
from regraft.planner.family import Family
from regraft.planner.job import Job
from regraft.planner.reserve import reserve
from regraft.planner.run import Run
from regraft.progress import SILENT
from regraft.recipe import replay
from regraft.store import Store
from regraft.task import Split, load_task
from regraft.zoo import Zoo

Reuse = Callable[..., Family]
MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tiny_bert: Path, tiny_gpt2: Path, toy_task_files: Path, tmp_path: Path) -> Iterator[MakeJob]:
    """A function that makes a job whose checkpoints, a BERT (and its first two layers) and a GPT-2, have the paces given."""
    with Run(tmp_path / "run", {}) as run:

        def make(budget: str, paces: dict[str, float], validation: int = 30) -> Job:
            task = load_task(str(toy_task_files))
            rows = np.arange(validation) % len(task.validation)
            texts = [f"{task.validation.texts[row]} {number}" for number, row in enumerate(rows)]
            task = replace(task, validation=Split(texts, task.validation.labels[rows]))
            references = {"bert": str(tiny_bert), "bert-2": f"{tiny_bert}#layers=2", "gpt2": str(tiny_gpt2)}
            found = [open_checkpoint(references[name]).renamed(name) for name in paces]
            limit = Budget.parse(budget)
            deadline = Deadline(limit.seconds, clock=lambda: 0.0)
            job = Job(task, Zoo("zoo", found, []), limit, deadline, run, Store(tmp_path / "store"), SILENT)
            job.pace = dict(paces)
            return job

        yield make


def names(job: Job) -> list[str]:
    return [one.name for one in job.zoo.checkpoints]


def test_a_slow_checkpoint_beside_a_fast_one_does_not_cost_the_ranking(make_job: MakeJob) -> None:
    job = make_job("60s", {"gpt2": 2.0, "bert": 0.001})
    scope.leave_out_slow(job)
    assert names(job) == ["bert"]
    (left,) = job.left_out
    assert "2000 ms a text: the budget has no time to rank it" in left["problem"]
    reserve(job)
    assert job.reserve_s < 20  # the end of the run is the fast one's
    scope.choose_rows(job)
    assert len(job.rank_rows) == len(job.task.train)


def test_of_checkpoints_that_share_a_pass_the_deepest_goes_first(make_job: MakeJob) -> None:
    job = make_job("60s", {"bert": 0.4, "bert-2": 0.01})
    scope.leave_out_slow(job)
    assert names(job) == ["bert-2"]


@pytest.mark.parametrize("budget", ["10m", "14trials"])
def test_what_fits_is_ranked_whole(budget: str, make_job: MakeJob) -> None:
    job = make_job(budget, {"gpt2": 0.003, "bert": 0.003}, validation=1000)
    scope.leave_out_slow(job)
    scope.choose_validation(job)
    assert names(job) == ["gpt2", "bert"]
    assert len(job.task.validation) == 1000
    assert job.left_out == []


def test_the_last_one_is_kept_however_slow(make_job: MakeJob) -> None:
    job = make_job("60s", {"gpt2": 20.0, "bert": 10.0})
    scope.leave_out_slow(job)
    assert names(job) == ["bert"]


def test_validation_data_that_are_too_many_are_used_in_part(make_job: MakeJob) -> None:
    job = make_job("60s", {"bert": 0.003}, validation=50_000)
    baselines.measure_baselines(job)
    before = [one["validation"]["accuracy"] for one in job.baselines]
    scope.leave_out_slow(job)
    scope.choose_validation(job)
    part = job.task.validation
    assert len(part) == job.validation_rows == 2000  # a tenth of the budget, in a pass
    assert np.ptp(np.bincount(part.labels)) <= 1  # stratified
    assert any("2,000 of 50,000 rows used" in note for note in job.task.notes)
    # The baselines are scored on these rows as well: the majority's accuracy is the share of its class among them.
    majority = next(one for one in job.baselines if one["name"] == "majority")
    frequent = np.bincount(job.task.train.labels).argmax()
    assert majority["validation"]["accuracy"] == pytest.approx((part.labels == frequent).mean())
    assert len(before) == len(job.baselines)
    scope.choose_rows(job)
    assert len(job.rank_rows) > 0


def test_one_slow_checkpoint_uses_fewer_validation_rows(make_job: MakeJob) -> None:
    job = make_job("600s", {"bert": 0.3}, validation=1500)
    baselines.measure_baselines(job)
    scope.leave_out_slow(job)
    scope.choose_validation(job)
    assert 200 <= len(job.task.validation) < 1500
    reserve(job)
    scope.choose_rows(job)
    assert len(job.rank_rows) > 0


def test_a_slow_checkpoint_is_left_out_of_a_whole_run(
    run_reuse: Reuse, tiny_bert: Path, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = pace._pace

    def told(job: Any, checkpoint: Any, *rest: Any) -> dict[str, float]:
        return {"seconds_a_text": 5.0} if "gpt2" in checkpoint.name else measured(job, checkpoint, *rest)

    monkeypatch.setattr(pace, "_pace", told)
    family = run_reuse("20s", zoo=f"{tiny_gpt2},{tiny_bert}")
    assert family.members
    assert all("bert" in member.name for member in family)
    assert any("no time to rank it" in one["problem"] for one in family.result["left_out"])


def test_a_run_on_part_of_validation_says_so_and_is_replayed(
    run_reuse: Reuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "VALIDATION_ROWS", 12)
    monkeypatch.setattr(scope, "VALIDATION_SHARE", 0.0)
    family = run_reuse("20s")
    assert family.result["task"]["sizes"]["validation"] == 12
    assert any("12 of 30 rows used" in note for note in family.result["task"]["notes"])
    assert any("validation examples that are used: 12" in one["what"] for one in family.result["decisions"])
    found = replay(tmp_path / "run" / "family" / "recipe.yaml", tmp_path / "again", store=Store(tmp_path / "other"))
    assert all(one["same_weights"] for one in found["models"])


def test_time_to_fit_a_baseline_again_is_held_back(make_job: MakeJob) -> None:
    job = make_job("60s", {"bert": 0.001})
    baselines.measure_baselines(job)
    reserve(job)
    fresh = job.reserve_s
    job.baselines = [{**one, "seconds": 7.0} for one in job.baselines]
    job.fitted["tfidf"] = lambda: None  # an earlier process fitted it
    reserve(job)
    assert job.reserve_s == pytest.approx(fresh + 7.0)
    job.run.ledger.log("baseline test/tfidf", {})
    reserve(job)
    assert job.reserve_s == pytest.approx(fresh)
