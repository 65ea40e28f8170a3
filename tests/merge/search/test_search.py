"""The search as a whole, on tiny classifiers: what is in the table, what is chosen, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft import certificate, faults
from regraft.budget import Deadline
from regraft.checkpoint import load_encoder, load_tokenizer, open_checkpoint
from regraft.checkpoint.classifier import TextClassifier, logits_of, probabilities, softmax
from regraft.checkpoint.export import load_member, write_classifier
from regraft.errors import BudgetError, CheckpointError, MethodError, RunError, RunLockedError, TaskError
from regraft.evaluate import metrics, score
from regraft.features import extract
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.run import merge
from regraft.merge.search import models as search_models
from regraft.merge.search import search as searching
from regraft.merge.search import session as search_session
from regraft.merge.search import table as search_table
from regraft.merge.search.folder import SearchRun
from regraft.merge.search.models import load_member as member_of
from regraft.merge.search.models import merged_values, open_bench, stored_values
from regraft.merge.search.search import SearchResult, search
from regraft.merge.search.space import ARITHMETIC, AVERAGE
from regraft.store import Store
from regraft.task import Task, load_task
from regraft.train.logistic import fit_logistic

FEW = ("task_arithmetic", "ties", "model_stock", "linear")


@pytest.fixture(scope="session")
def topics(toy_task_files: Path) -> str:
    return str(toy_task_files)


@pytest.fixture(scope="session")
def starts(toy_task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same texts, told apart by their first letter."""
    folder = tmp_path_factory.mktemp("starts")
    for split in ("train", "validation", "test"):
        with (toy_task_files / f"{split}.csv").open() as file:
            rows = list(csv.DictReader(file))
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([row["text"], "early" if row["text"][0] < "n" else "late"] for row in rows)
    return str(folder)


def tune(base: Path, task: Task, folder: Path, seed: int, noise: float = 0.02) -> Path:
    """A classifier over the base plus noise, its head fitted on the task."""
    opened = open_checkpoint(str(base))
    encoder, generator = load_encoder(opened), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    classifier = TextClassifier(encoder, load_tokenizer(opened), task.label_names, 64)
    features = features_of(classifier, task.train.texts)
    fitted = fit_logistic(features, task.train.labels, len(task.label_names), l2=1e-3)
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(fitted.weight))
        classifier.head.bias.copy_(torch.from_numpy(fitted.bias))
    folder.mkdir()
    write_classifier(classifier, folder, {})
    return folder


def features_of(classifier: TextClassifier, texts: list[str]) -> np.ndarray:
    batch = classifier.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return classifier.pooled(batch["input_ids"], batch["attention_mask"]).numpy()


@pytest.fixture(scope="session")
def experts(tiny_bert: Path, topics: str, starts: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A fine-tune for each of the two tasks."""
    folder = tmp_path_factory.mktemp("experts")
    return [
        str(tune(tiny_bert, load_task(task), folder / f"on-{name}", seed))
        for seed, (name, task) in enumerate((("topics", topics), ("starts", starts)))
    ]


@pytest.fixture(scope="session")
def runs(tiny_bert: Path, topics: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three fine-tunes for one task, the last of which is bad."""
    folder = tmp_path_factory.mktemp("runs")
    task = load_task(topics)
    return [
        str(tune(tiny_bert, task, folder / f"seed-{seed}", 10 + seed, noise))
        for seed, noise in enumerate((0.02, 0.02, 0.2))
    ]


@pytest.fixture
def recipe(tiny_bert: Path, experts: list[str]) -> Spec:
    return spec_of("ties", experts, tiny_bert, density=0.5)


@pytest.fixture
def find(topics: str, starts: str, tmp_path: Path) -> Callable[..., SearchResult]:
    """A search over the two experts with few methods and trials."""

    def run(recipe: Spec, out: str = "out", **options: Any) -> SearchResult:
        tasks = options.pop("tasks", [topics, starts])
        budget = options.pop("budget", "6trials")
        return search(recipe, tmp_path / out, tasks, budget, **({"methods": FEW} | options))

    return run


def names(found: SearchResult, *kinds: str) -> list[str]:
    return [row["name"] for row in found.table if not kinds or row["kind"] in kinds]


def row_of(found: SearchResult, name: str) -> dict[str, Any]:
    return next(row for row in found.table if row["name"] == name)


def without_times(found: SearchResult) -> dict[str, Any]:
    """What must not depend on the machine's mood."""
    content = json.loads(json.dumps(found.to_json()))
    for row in content["table"]:
        del row["seconds"]
    return {key: value for key, value in content.items() if key not in ("seconds", "out")}


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


def test_a_trial_budget_gives_the_same_table_and_bytes(recipe: Spec, find: Any, tmp_path: Path, topics: str) -> None:
    first, second = find(recipe, "first", held_out=[topics]), find(recipe, "second", held_out=[topics])
    assert without_times(first) == without_times(second)
    assert first.trials == 6
    one, two = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert one.read_bytes() == two.read_bytes()
    other = find(recipe, "third", budget="9trials", seed=1)
    assert names(other, "proposal") != names(find(recipe, "fourth", budget="9trials"), "proposal")


def test_a_killed_search_goes_on_where_it_was(recipe: Spec, find: Any, monkeypatch: Any, topics: str) -> None:
    class Killed(BaseException):
        pass

    left = 8

    def kill(name: str) -> None:
        nonlocal left
        left -= name == "candidate measured"
        if left == 0:
            raise Killed

    whole = find(recipe, "whole", held_out=[topics])
    monkeypatch.setattr(faults, "hook", kill)
    with pytest.raises(Killed):
        find(recipe, "again", held_out=[topics])
    measured = []
    monkeypatch.setattr(faults, "hook", None)
    original = searching.Session._measurement
    monkeypatch.setattr(
        searching.Session,
        "_measurement",
        lambda self, candidate, must: measured.append(candidate.name) or original(self, candidate, must),
    )
    assert without_times(find(recipe, "again", held_out=[topics])) == without_times(whole)
    assert measured == names(whole)[8:]


def test_killed_while_writing_it_still_tests_once(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(searching, "tested", kill)
    with pytest.raises(Killed):
        find(recipe)
    monkeypatch.undo()
    monkeypatch.setattr(searching, "merge", kill)  # the output is there already
    assert find(recipe).test["rows"][0]["name"] == find(recipe).answer


def test_a_finished_search_is_not_done_again(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    found = find(recipe)

    def never(*_: Any) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(searching, "open_bench", never)
    assert find(recipe).to_json() == json.loads(json.dumps(found.to_json()))


def test_an_output_that_was_removed_is_written_again(recipe: Spec, find: Any, tmp_path: Path) -> None:
    found = find(recipe)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "out").rmdir()
    assert find(recipe).to_json() == json.loads(json.dumps(found.to_json()))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "iso_c"])
def test_what_is_measured_is_what_the_engine_writes(
    method: str, dtype: str, tiny_bert: Path, experts: list[str], tmp_path: Path
) -> None:
    base = None if method == "linear" else tiny_bert
    spec = spec_of(method, experts, base, output=Output(dtype))
    merge(spec, tmp_path / "out", allow=["heads"])
    written = dict(stored_values(str(tmp_path / "out")))
    measured = dict(merged_values(spec, 2))
    assert measured
    for name, values in measured.items():
        assert values.tobytes() == np.ascontiguousarray(written[name]).tobytes(), name


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


def two_labels(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][:2].clone()


def test_members_share_one_encoder_and_poolers_come_back(experts: list[str], topics: str, starts: str) -> None:
    tasks = [load_task(topics), load_task(starts)]
    bench = open_bench(experts, tasks)
    one, two = (member.classifier for member in bench.members)
    before = [logits_of(member, tasks[0].validation.texts) for member in (one, two)]
    name = "encoder.layer.0.attention.self.query.weight"
    assert one.encoder.get_parameter(name).data_ptr() == two.encoder.get_parameter(name).data_ptr()
    pooler = [member.encoder.pooler.dense.weight.clone() for member in (one, two)]
    bench.load((key, values + 0.1) for key, values in stored_values(experts[1]))
    assert torch.equal(one.encoder.pooler.dense.weight, two.encoder.pooler.dense.weight)
    bench.load((key, values) for key, values in stored_values(experts[0]) if "pooler" not in key)
    assert all(
        torch.equal(member.encoder.pooler.dense.weight, own) for member, own in zip((one, two), pooler, strict=True)
    )
    np.testing.assert_array_equal(logits_of(one, tasks[0].validation.texts), before[0])
    with pytest.raises(CheckpointError, match=r"The merge leaves out embeddings\."):
        bench.load([])


def test_a_method_that_fails_is_in_the_table(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    original = searching.Session.evaluated

    def evaluated(self: Any, split: str, *rest: Any) -> Any:
        if split == "validation" and len(self.measured) == 5:
            raise CheckpointError("It computes nothing.")
        return original(self, split, *rest)

    monkeypatch.setattr(searching.Session, "evaluated", evaluated)
    found = find(recipe, budget="3trials")
    failed = [row for row in found.table if row["status"] == "failed"]
    assert [(row["kind"], row["reason"]) for row in failed] == [("recipe", "It computes nothing.")]
    assert "mean" not in failed[0] and len(found.table) == 8


def test_methods_that_need_too_much_memory_are_not_tried(recipe: Spec, find: Any) -> None:
    found = find(recipe, methods=["ties", "opcm"], max_memory=12 * 2**20, workers=1, budget="2trials")
    assert found.not_tried == {} or set(found.not_tried) == {"opcm"}
    with pytest.raises(BudgetError, match=r"the limit is 1\.0 KiB"):
        find(recipe, "small", max_memory=1024)


class Clock:
    """Time that passes with every look at it, so that what a budget allows does not depend on the machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


@pytest.mark.parametrize("budget", [25, 45])
def test_a_time_budget_is_kept(budget: int, recipe: Spec, find: Any, topics: str, monkeypatch: Any) -> None:
    clock = Clock()
    monkeypatch.setattr(searching, "time", clock)
    monkeypatch.setattr(search_session, "time", clock)
    monkeypatch.setattr(searching, "Deadline", lambda seconds, spent: Deadline(seconds, spent, clock.monotonic))
    found = find(recipe, budget=f"{budget}s", held_out=[topics], methods=None)
    assert names(found, "input", "base", "baseline") == ["on-topics", "on-starts", "base", AVERAGE, ARITHMETIC]
    assert found.seconds <= budget
    assert len(found.table) > 5
    statuses = [row["status"] for row in found.table]
    assert set(statuses[:-1]) == {"measured"} and statuses[-1] in ("measured", "abandoned")


def test_killed_after_the_choice_nothing_more_is_tried(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(searching, "tested", kill)
    monkeypatch.setattr(searching.Session, "_affords", lambda self, _: len(self.measured) < 7)
    with pytest.raises(Killed):
        find(recipe, budget="60s")
    monkeypatch.undo()
    monkeypatch.setattr(searching.Session, "_measurement", kill)
    assert len(find(recipe, budget="60s").table) == 7


def test_a_budget_without_room_for_the_baselines_is_refused(recipe: Spec, find: Any) -> None:
    with pytest.raises(BudgetError, match=r"0\.5s is too little: what is always measured, .* takes about \d+ s here"):
        find(recipe, budget="0.5s")
    with pytest.raises(BudgetError, match="Cannot read the budget"):
        find(recipe, budget="soon")


def test_tasks_must_fit_the_inputs(recipe: Spec, find: Any, topics: str, starts: str) -> None:
    with pytest.raises(TaskError, match=r"There are 3 tasks for 2 inputs\. Name one for each input"):
        find(recipe, tasks=[topics, starts, topics])
    with pytest.raises(CheckpointError, match=r"on-topics has 3 labels, but not early, late of the task"):
        find(recipe, "swapped", tasks=[starts, topics])


def test_one_task_needs_one_head(experts: list[str], topics: str, find: Any) -> None:
    with pytest.raises(CheckpointError, match=r"on-starts.*head"):
        find(spec_of("linear", experts), tasks=[topics])
    with pytest.raises(CheckpointError, match=r"on-starts has a head for other labels than .*on-topics"):
        find(spec_of("linear", experts), tasks=[topics], allow=["heads"])


def test_a_soup_over_a_base_without_a_head_is_refused(runs: list[str], tiny_bert: Path, topics: str, find: Any) -> None:
    with pytest.raises(CheckpointError, match="heads"):
        find(spec_of("ties", runs, tiny_bert), tasks=[topics])
    with pytest.raises(CheckpointError, match=r"has no .*_Dense\.linear\..*a merge with it would have none"):
        find(spec_of("ties", runs, tiny_bert), tasks=[topics], allow=["heads"])


def test_inputs_need_heads(tiny_bert: Path, experts: list[str], find: Any) -> None:
    with pytest.raises(CheckpointError, match="has no classification head"):
        find(spec_of("linear", [experts[0], tiny_bert]))


def test_tensors_that_are_loaded_otherwise_are_noticed(experts: list[str], topics: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(search_models, "read_values", lambda info: np.zeros(info.elements, np.float32))
    with pytest.raises(CheckpointError, match="otherwise than it is stored"):
        member_of(experts[0], load_task(topics))


def test_a_lora_output_is_refused(experts: list[str], tiny_bert: Path, find: Any) -> None:
    with pytest.raises(MethodError, match="A search writes a checkpoint"):
        find(spec_of("ties", experts, tiny_bert, output=Output(format="lora")))


def test_the_folder_beside_the_output(recipe: Spec, find: Any, tmp_path: Path) -> None:
    find(recipe, budget="1trials")
    with pytest.raises(RunError, match=r"other arguments \(methods, seed differ\)"):
        find(recipe, budget="1trials", methods=["ties"], seed=1)
    shown = find(recipe, budget="1trials")
    assert [row[0] for row in shown.rows()[1]] == [row["name"] for row in shown.table]
    for columns, rows in (shown.rows(), shown.test_rows()):
        assert {len(row) for row in rows} == {len(columns)}
    with pytest.raises(RunError, match="has chosen within 1trials already"):
        find(recipe, budget="2trials")
    with SearchRun(tmp_path / "held", {}), pytest.raises(RunLockedError, match="in use"):
        SearchRun(tmp_path / "held", {})
    (tmp_path / "mine.search").mkdir()
    (tmp_path / "mine.search" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty and is no search \(thesis\.txt\)"):
        find(recipe, "mine")


def test_a_refused_search_leaves_nothing(recipe: Spec, find: Any, tmp_path: Path, topics: str) -> None:
    with pytest.raises(TaskError):
        find(recipe, tasks=[topics] * 3)
    assert list(tmp_path.iterdir()) == []


def test_more_time_goes_on_with_what_was_measured(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    original, measured = searching.Session._measurement, []

    def measure(self: Any, candidate: Any, must: bool) -> Any:
        if self.budget.text == "3trials" and len(self.measured) == 6:
            raise BudgetError("Stopped.")
        measured.append(candidate.name)
        return original(self, candidate, must)

    monkeypatch.setattr(searching.Session, "_measurement", measure)
    with pytest.raises(BudgetError, match="Stopped"):
        find(recipe, budget="3trials")
    assert find(recipe, budget="4trials").trials == 4
    assert len(measured) == len(set(measured)) == 9


def test_an_output_that_is_not_empty_is_refused_before_anything_is_measured(
    recipe: Spec, find: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        find(recipe)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
