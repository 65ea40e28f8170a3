"""The search as a whole, on tiny classifiers: what is in the table, what is chosen, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft import certificate
from regraft.checkpoint import load_encoder, open_checkpoint
from regraft.checkpoint.classifier import probabilities, softmax
from regraft.checkpoint.export import load_member
from regraft.evaluate import metrics, score
from regraft.features import extract
from regraft.merge.recipe.spec import Spec, spec_of
from regraft.merge.search import table as search_table
from regraft.merge.search.models import merged_values, stored_values
from regraft.merge.search.search import SearchResult
from regraft.merge.search.space import ARITHMETIC, AVERAGE
from regraft.store import Store
from regraft.task import load_task
from regraft.train.logistic import fit_logistic


def names(found: SearchResult, *kinds: str) -> list[str]:
    return [row["name"] for row in found.table if not kinds or row["kind"] in kinds]


def row_of(found: SearchResult, name: str) -> dict[str, Any]:
    return next(row for row in found.table if row["name"] == name)


def two_labels(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][:2].clone()


def test_the_dull_candidates_are_in_every_table(recipe: Spec, find: Any) -> None:
    found = find(recipe, budget="1trials")
    assert names(found, "input", "base", "baseline") == ["on-topics", "on-starts", "base", AVERAGE, ARITHMETIC]
    assert names(found, "recipe") == ["recipe: ties density 0.5"]
    assert len(found.table) == 6 and found.trials == 1
    for row in found.table:
        assert row["status"] == "measured"
        assert len(row["scores"]) == 2
        assert set(row["seconds"]) == {"merge", "evaluate"}
    best = max(names(found, "input"), key=lambda name: row_of(found, name)["mean"])
    assert found.best_input == best


def test_scores_are_normalised_by_the_inputs_own(recipe: Spec, find: Any) -> None:
    found = find(recipe, budget="2trials")
    own = [row_of(found, name)["scores"][number] for number, name in enumerate(("on-topics", "on-starts"))]
    assert [task["own"] for task in found.tasks] == own
    for row in found.table:
        assert row["mean"] == pytest.approx(sum(mine / best for mine, best in zip(row["scores"], own, strict=True)) / 2)


def test_the_inputs_own_rows_are_those_of_the_stored_classifiers(
    recipe: Spec, experts: list[str], topics: str, starts: str, find: Any
) -> None:
    found = find(recipe, budget="1trials")
    for number, (folder, reference) in enumerate(zip(experts, (topics, starts), strict=True)):
        task = load_task(reference)
        seen = probabilities(load_member(Path(folder)), task.validation.texts)
        assert found.tasks[number]["own"] == metrics(task.validation.labels, seen)["accuracy"]


def test_the_winner_is_never_worse_than_the_plain_average(recipe: Spec, find: Any) -> None:
    found = find(recipe, budget="9trials")
    means = {row["name"]: row["mean"] for row in found.table}
    assert means[found.winner] == max(means.values()) >= means[AVERAGE]
    assert found.validation["difference"] == pytest.approx(means[found.winner] - means[AVERAGE])
    assert found.answer == (AVERAGE if found.validation["too_close"] else found.winner)
    assert found.verdict.startswith("The plain average" if found.winner == AVERAGE else found.winner)


def test_what_is_too_close_to_call_gives_the_plain_average(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    original = search_table.differences
    monkeypatch.setattr(
        search_table,
        "differences",
        lambda tasks, reference, seed: [
            type(one)(one.difference, -1.0, 1.0) for one in original(tasks, reference, seed)
        ],
    )
    found = find(recipe, budget="9trials")
    assert found.answer == AVERAGE
    if found.winner != AVERAGE:
        assert found.validation["too_close"]
        assert "too close to the plain average to call" in found.verdict
        assert "take the plain average" in found.verdict


def test_what_is_written_is_what_was_measured(recipe: Spec, find: Any, tmp_path: Path, experts: list[str]) -> None:
    found = find(recipe)
    out = tmp_path / "out"
    assert all(verdict.outcome == "pass" for verdict in certificate.verify(out))
    assert json.loads((out / "search.json").read_text())["verdict"] == found.verdict
    about = json.loads((out / "regraft.json").read_text())
    assert about["merge"]["merge"] == row_of(found, found.answer)["recipe"]["merge"]
    tested = found.test["rows"][0]
    assert tested["name"] == found.answer
    encoder = load_encoder(open_checkpoint(str(out)))
    for number, reference in enumerate(experts):
        classifier, task = load_member(Path(reference)), load_task(found.tasks[number]["reference"])
        classifier.encoder = encoder
        seen = score(task.test.labels, probabilities(classifier, task.test.texts))
        assert seen["accuracy"] == tested["scores"][number] == tested["intervals"][number]["accuracy"]
        assert seen["intervals"] == tested["intervals"][number]["intervals"]


def test_held_out_probes_and_forgetting(
    recipe: Spec, find: Any, tiny_bert: Path, experts: list[str], topics: str, starts: str, tmp_path: Path
) -> None:
    found = find(recipe, held_out=[starts], budget="1trials")
    task, store = load_task(starts), Store(tmp_path / "store")

    def seen(reference: str, texts: list[str]) -> np.ndarray:
        return extract(open_checkpoint(reference), texts, store=store).last

    of_base = fit_logistic(seen(str(tiny_bert), task.train.texts), task.train.labels, 2)
    for name, reference in (("base", str(tiny_bert)), ("on-topics", experts[0])):
        own = fit_logistic(seen(reference, task.train.texts), task.train.labels, 2)
        features = seen(reference, task.validation.texts)
        for probe, key in ((own, "probe"), (of_base, "base_probe")):
            expected = metrics(task.validation.labels, softmax(probe.logits(features)))["accuracy"]
            assert row_of(found, name)["held_out"][0][key] == pytest.approx(expected, abs=0.034)  # a row of 30
    base = row_of(found, "base")
    assert base["forgetting"] == 0.0
    for row in found.table:
        lost = base["held_out"][0]["base_probe"] - row["held_out"][0]["base_probe"]
        assert row["forgetting"] == pytest.approx(lost)
    assert [one["reference"] for one in found.held_out] == [starts]
    assert found.test["rows"][0]["held_out"]


def test_without_a_base(experts: list[str], starts: str, find: Any) -> None:
    found = find(spec_of("linear", experts), held_out=[starts], methods=None, budget="4trials")
    assert names(found, "input", "base", "baseline") == ["on-topics", "on-starts", AVERAGE]
    assert {row["forgetting"] for row in found.table} == {None}
    assert "probe" in found.table[0]["held_out"][0] and "base_probe" not in found.table[0]["held_out"][0]
    assert found.not_tried["ties"] == "it needs a base, and the recipe has none"


def test_a_soup_has_a_merged_head_and_is_a_classifier(runs: list[str], topics: str, find: Any, tmp_path: Path) -> None:
    found = find(spec_of("linear", runs), tasks=[topics], budget="8trials", methods=["linear", "karcher"])
    assert found.tasks[0]["own"] == max(row_of(found, name)["scores"][0] for name in names(found, "input"))
    assert names(found, "greedy soup")
    task = load_task(topics)
    seen = probabilities(load_member(tmp_path / "out"), task.test.texts)
    assert metrics(task.test.labels, seen)["accuracy"] == found.test["rows"][0]["scores"][0]
    average = dict(merged_values(spec_of("linear", runs)))
    heads = (
        [dict(stored_values(one))["2_Dense.linear.weight"] for one in runs]
        if "2_Dense.linear.weight" in average
        else []
    )
    dense = next(name for name in average if name.endswith("_Dense.linear.weight"))
    heads = heads or [dict(stored_values(one))[dense] for one in runs]
    np.testing.assert_allclose(average[dense], np.mean(heads, axis=0), rtol=1e-5, atol=1e-7)


def test_the_greedy_soup_adds_from_the_best_down(runs: list[str], topics: str, find: Any) -> None:
    found = find(spec_of("linear", runs), tasks=[topics], budget="8trials", methods=["linear"])
    order = sorted(names(found, "input"), key=lambda name: -row_of(found, name)["mean"])
    kept, best = order[:1], row_of(found, order[0])["mean"]
    for name in order[1:]:
        parts = [one for one in names(found, "input") if one in [*kept, name]]
        row = row_of(found, AVERAGE if len(parts) == 3 else f"soup of {', '.join(parts)}")
        if row["mean"] >= best:
            kept, best = parts, row["mean"]
    assert row_of(found, found.winner)["mean"] >= best


def test_stock_classifiers_keep_their_heads(
    tiny_classifier: Path, tuned: Any, edited: Any, topics: str, starts: str, find: Any, tmp_path: Path
) -> None:
    first = tuned(tiny_classifier, "first", 1)
    second = edited(tuned(tiny_classifier, "second", 2, change=two_labels), id2label={"0": "early", "1": "late"},
                    label2id={"early": 0, "late": 1})  # fmt: skip
    found = find(spec_of("task_arithmetic", [first, second], tiny_classifier, scale=0.5), budget="2trials")
    spec = spec_of("task_arithmetic", [first, second], tiny_classifier, scale=0.5)
    merged, task = dict(merged_values(spec)), load_task(starts)
    model = load_member(second)
    with torch.no_grad():
        for name, parameter in model.model.bert.named_parameters():
            parameter.copy_(torch.from_numpy(merged[f"bert.{name}"]))
    expected = metrics(task.validation.labels, probabilities(model, task.validation.texts))["accuracy"]
    assert row_of(found, names(found, "recipe")[0])["scores"][1] == expected
