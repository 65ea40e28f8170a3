"""Soups of the trials: what is averaged, that it is taken only when it wins, and that it comes out the same again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from regraft import faults
from regraft.checkpoint import load_encoder, open_checkpoint
from regraft.checkpoint.export import load_member
from regraft.planner import soup
from regraft.planner.family import Family
from regraft.planner.reuse import reuse
from regraft.recipe import replay
from regraft.store import Store

Reuse = Callable[..., Family]
SOUP = "tiny-bert-soup"


@pytest.fixture
def run(run_reuse: Reuse, tiny_bert: Path) -> Reuse:
    """`reuse` with one checkpoint, on which a full fine-tune at two rates and a LoRA are trained."""
    return partial(run_reuse, zoo=str(tiny_bert))


def say(patch: pytest.MonkeyPatch, *values: float) -> None:
    """Say what the averages measure on validation data, one after the other; the last of them for all others."""
    given: Iterator[float] = iter(values)
    measure = soup.score

    def score(*args: Any) -> dict[str, Any]:
        return {**measure(*args), "accuracy": next(given, values[-1])}

    patch.setattr(soup, "score", score)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`say`, for one test."""
    return partial(say, monkeypatch)


@pytest.fixture(scope="module")
def won(tiny_bert: Path, toy_task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A run in which every average is better than its ingredients."""
    folder = tmp_path_factory.mktemp("won")
    with pytest.MonkeyPatch.context() as patch:
        say(patch, 2.0)
        return reuse(str(toy_task_files), str(tiny_bert), "14trials", out=folder / "run", store=Store(folder / "store"))


def weights(family: Family) -> dict[str, str]:
    return {member.name: member.facts["weights_id"] for member in family}


def candidate(family: Family, name: str = SOUP) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in family.result["candidates"] if one["name"] == name)
    return found


def of_states(trials: Path, step: dict[str, Any], start: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """fp64 weights of a trial, from the files that its training left: W, or W + (alpha / rank) B A."""
    if step["method"] == "probe":
        return start
    state = load_file(trials / f"leg-{len(step['legs'])}" / "state.safetensors")
    moved = {key.removeprefix("averaged/"): value for key, value in state.items() if key.startswith("averaged/")}
    found = dict(start)
    for key, value in moved.items():
        if ".lora_A." in key:
            other = moved[key.replace(".lora_A.", ".lora_B.")].astype(np.float64)
            plain = key.replace("base_model.model.", "").replace(".lora_A.default", "")
            found[plain] = start[plain] + 2.0 * other @ value.astype(np.float64)
        elif ".lora_B." not in key:
            found[key] = value.astype(np.float64)
    return found


def test_a_soup_that_wins_is_the_average_of_its_trials(won: Family, tiny_bert: Path) -> None:
    family, folder = won, Path(won.result["recipe"]).parents[1]
    assert family.best is not None and family.best.name == SOUP
    assert candidate(family)["status"] == "in family"
    steps = YAML(typ="safe").load(Path(won.result["recipe"]))["steps"]
    models = steps[f"{SOUP}.merge"]["models"]
    assert sorted(steps[name]["method"] for name in models) == ["full", "full", "lora", "probe"]
    assert all(name.removesuffix(".adapt") in candidate(family)["reason"] for name in models)

    trials = folder / "trials"
    encoder = load_encoder(open_checkpoint(str(tiny_bert)))
    start = {f"encoder.{name}": value.detach().numpy().astype(np.float64) for name, value in encoder.named_parameters()}
    with np.load(trials / "tiny-bert-probe" / "head" / "head.npz") as head:
        start |= {"head.weight": head["weight"].astype(np.float64), "head.bias": head["bias"].astype(np.float64)}
    parts = [of_states(trials / name.removesuffix(".adapt"), steps[name], start) for name in models]
    for part, name in zip(parts, models, strict=True):
        moved = {key for key in start if not np.array_equal(part[key], start[key])}
        wanted = {"head.weight", "encoder.encoder.layer.0.attention.self.query.weight"}
        assert moved & wanted == (set() if steps[name]["method"] == "probe" else wanted)
    stored = dict(load_member(family.best.path).named_parameters())
    assert set(stored) == set(start)
    for name, value in stored.items():
        assert np.allclose(value.detach().numpy(), sum(part[name] for part in parts) / 4, rtol=1e-6, atol=1e-7), name


def test_a_soup_is_certified_and_replayed(won: Family, tmp_path: Path) -> None:
    family = won
    assert family.best is not None and family.best.name == SOUP
    facts = family.best.facts
    assert facts["method"] == "soup"
    assert facts["certificate"]["passed"] == facts["certificate"]["claims"]
    assert "average of the weights" in (family.best.path / "README.md").read_text()
    made = json.loads((family.best.path / "regraft.json").read_text())["made"]
    assert {"tiny-bert-full", "tiny-bert-lora", "tiny-bert-probe"} < set(made["settings"]["models"])
    found = replay(Path(family.result["recipe"]), tmp_path / "again", store=Store(tmp_path / "other"))
    assert {one["name"]: one["weights_id"] for one in found["models"]} == weights(family)
    assert all(one["same_weights"] for one in found["models"])
    assert {path.name for path in (tmp_path / "again").iterdir()} == set(weights(family))


def test_an_ingredient_that_lowers_the_score_is_left_out(
    run: Reuse, scores: Callable[..., None], tmp_path: Path
) -> None:
    scores(2.0, 1.5, 2.5)
    family = run()
    found = candidate(family)
    averaged, lowered = found["reason"].split("; ")[:2]
    assert found["validation"]["accuracy"] == 2.5
    assert lowered.endswith("lowered it to 150.0%")
    assert averaged.count("tiny-bert") == 2 + 1 and lowered.split()[0] not in averaged
    recipe = (tmp_path / "run" / "family" / "recipe.yaml").read_text()
    assert f"{lowered.split()[0]}.adapt" not in recipe.split(f"{SOUP}.merge:")[1].split(f"{SOUP}.evaluate:")[0]


@pytest.mark.parametrize("value", [0.0, None])
def test_a_soup_that_does_not_win_changes_nothing(
    value: float | None, run: Reuse, scores: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("regraft.planner.reuse.make_soups", lambda *_: None)
        without = run(out="without")
    best = max(one["validation"]["accuracy"] for one in without.result["candidates"] if "tiny-bert-" in one["name"])
    scores(best if value is None else value)  # a tie is no win
    family = run()
    assert weights(family) == weights(without)
    found = candidate(family)
    assert found["status"] == "not kept"
    assert "no better than tiny-bert-" in found["reason"]
    assert family.answer == without.answer


@pytest.mark.parametrize("point", ["soup measured", "family chosen", "member aside"])
def test_killed_and_started_again_it_has_the_same_weights(
    point: str, won: Family, run: Reuse, scores: Callable[..., None], tmp_path: Path
) -> None:
    scores(2.0)
    child = os.fork()
    if child == 0:
        faults.hook = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None
        run(out="killed")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    if point == "family chosen":  # states that were lost meanwhile are made again
        for state in (tmp_path / "killed" / "trials").glob("tiny-bert-*/*-*"):
            shutil.rmtree(state)
    again = run(out="killed")
    assert SOUP in weights(won)
    assert weights(again) == weights(won)


def test_without_time_there_is_no_soup(run: Reuse, monkeypatch: pytest.MonkeyPatch, scores: Any) -> None:
    scores(2.0)
    monkeypatch.setattr(soup, "KERNELS_S", 1e6)
    family = run("20s")
    assert family.members
    assert all(one["method"] != "soup" for one in family.result["candidates"])
    tried = [one for one in family.result["decisions"] if "average" in one["what"]]
    assert tried and all("takes about 10000" in one["reason"] for one in tried)


def test_a_soup_that_computes_nothing_finite_is_listed_as_failed(run: Reuse, monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.errors import NonFiniteError

    def fail(*_: Any) -> None:
        raise NonFiniteError("tensor holds NaN.", "Leave it out.")

    monkeypatch.setattr(soup, "combine", fail)
    family = run()
    assert family.members
    found = candidate(family)
    assert (found["status"], found["validation"]) == ("failed", None)
    assert "tensor holds NaN" in found["reason"]
