"""The self-check counts what it says it counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from regraft.errors import TaskError
from regraft.rank.fusion.fusion import Candidate, Prediction
from regraft.rank.fusion.history import Result
from regraft.rank.fusion.selfcheck import noise_ceiling, regret, selfcheck, weighted_tau


def tau_by_hand(truth: list[float], guess: list[float]) -> float:
    """Vigna's tau: pairs weighed by 1 / (rank + 1) of both, the mean over ranks by truth and by guess; no ties."""
    found = []
    for by, other in ((truth, guess), (guess, truth)):
        # Ranks by one list, ties by the other.
        order = sorted(range(len(by)), key=lambda at: (by[at], other[at]), reverse=True)
        rank = {at: place for place, at in enumerate(order)}
        total = agree = 0.0
        for i in range(len(by)):
            for j in range(i):
                weight = 1 / (rank[i] + 1) + 1 / (rank[j] + 1)
                total += weight
                agree += weight * np.sign(truth[i] - truth[j]) * np.sign(guess[i] - guess[j])
        found.append(agree / total)
    return float(np.mean(found))


def test_weighted_tau_is_vignas() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, guess = rng.permutation(9).astype(float).tolist(), rng.permutation(9).astype(float).tolist()
        assert weighted_tau(truth, guess) == pytest.approx(tau_by_hand(truth, guess))
    assert weighted_tau([1, 2, 3], [5, 5, 5]) == 0.0


def test_regret() -> None:
    assert regret([0.5, 0.9, 0.7], [1, 3, 2]) == 0.0
    assert regret([0.5, 0.9, 0.7], [3, 1, 2]) == pytest.approx(0.4)
    assert regret([0.5, 0.9, 0.7], [1, 1, 0]) == pytest.approx(0.2)  # a coin between the first two


def history(seeds: int = 2) -> list[Result]:
    rng = np.random.default_rng(0)
    skill, level = np.linspace(-0.4, 2.2, 8), rng.normal(0, 0.4, 8)
    return [
        Result(
            f"m{at}", f"t{task}", float(1 / (1 + np.exp(-level[task] - skill[at] - rng.normal(0, 0.05)))), seed=seed,
            family=f"f{at // 2}",
            scores={"right": float(at), "wrong": -float(at), "none": float(rng.normal())},
        )
        for task in range(8) for seed in range(seeds) for at in range(8)
    ]  # fmt: skip


@pytest.mark.parametrize("leave_out", ["task", "family"])
def test_good_ways_come_out_good(leave_out: str) -> None:
    found = {one.name: one for one in selfcheck(history(), leave_out=leave_out)}  # type: ignore[arg-type]
    assert found["right"].tau[0] > 0.9 and found["right"].regret[0] < 0.02
    assert found["wrong"].tau[0] < -0.9 and found["wrong"].regret[0] > 0.4
    assert abs(found["none"].tau[0]) < 0.7
    assert found["fusion"].tau[0] > 0.85 and found["fusion"].regret[0] < 0.03
    assert found["fusion"].coverage is not None and found["fusion"].coverage[0] > 0.8
    assert found["noise ceiling"].tau[0] > 0.9 and found["noise ceiling"].coverage is None
    assert found["right"].coverage is None
    for one in found.values():
        assert one.tau[1] <= one.tau[0] <= one.tau[2]


def test_the_prior_knows_nothing_of_a_family_that_is_left_out() -> None:
    by_task = {one.name: one for one in selfcheck(history(1))}
    by_family = {one.name: one for one in selfcheck(history(1), leave_out="family")}
    assert by_family["prior"].tau[0] < by_task["prior"].tau[0]
    assert by_family["prior"].parts == by_task["prior"].parts == 8
    assert "noise ceiling" not in by_task


def test_repeats_make_nothing_surer() -> None:
    """A score says the same whichever family or seed is left out: its figures and their intervals stay as they are."""
    one, twice = history(1), [*history(1), *(dataclasses.replace(one, seed=1) for one in history(1))]
    found = [
        next(figures for figures in selfcheck(results, leave_out=what, only={"none"}) if figures.name == "none")
        for results, what in ((one, "task"), (twice, "task"), (one, "family"), (twice, "family"))
    ]
    assert all(figures == found[0] for figures in found)
    assert found[0].tau[1] < found[0].tau[0] < found[0].tau[2]


def test_coverage_is_of_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each interval that is counted is that of an accuracy on as many rows as the result was measured on."""
    asked: dict[str, set[int | None]] = {}

    def noted(known: object, candidates: list[Candidate], task: str, **options: object) -> list[Prediction]:
        asked.setdefault(task, set()).update(one.rows for one in candidates)
        return [Prediction(one.checkpoint, 0.5, 0.4, 0.6, 0.0, 1) for one in candidates]

    monkeypatch.setattr("regraft.rank.fusion.selfcheck.predict", noted)
    rows = {"t0": 50, "t1": None}
    selfcheck([dataclasses.replace(one, rows=rows.get(one.task, 900)) for one in history(1)], only={"fusion"})
    assert asked["t0"] == {50} and asked["t1"] == {None} and asked["t2"] == {900}


def test_tasks_of_one_source_are_left_out_together() -> None:
    """Two labellings of the same texts: what is true of one is known from the other, and must not count as foresight."""
    rng = np.random.default_rng(0)
    results = []
    for source in range(5):
        skill = rng.normal(0, 1, 6)
        for part in "ab":
            results += [
                Result(f"m{at}", f"{source}{part}", float(1 / (1 + np.exp(-skill[at]))), source=f"s{source}")
                for at in range(6)
            ]
    apart = next(one for one in selfcheck(results) if one.name == "prior")
    together = next(
        one for one in selfcheck([dataclasses.replace(one, source="") for one in results]) if one.name == "prior"
    )
    assert apart.parts == 5 and together.parts == 10
    assert together.tau[0] > apart.tau[0] + 0.2


def test_noise_is_what_seeds_disagree_in() -> None:
    rng = np.random.default_rng(1)
    noisy = [Result(f"m{at}", "t", float(rng.uniform()), seed=seed) for seed in range(2) for at in range(30)]
    found = noise_ceiling(noisy)
    assert found is not None and abs(found.tau[0]) < 0.4
    assert noise_ceiling(noisy[:30]) is None


def test_too_little_history() -> None:
    with pytest.raises(TaskError, match="2 are needed"):
        selfcheck([Result(f"m{at}", "t", 0.5) for at in range(5)])
    with pytest.raises(TaskError, match="task or family"):
        selfcheck(history(1), leave_out="seed")
