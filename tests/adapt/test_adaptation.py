"""Adaptations: what every training method owes, and what each one trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from regraft import methods
from regraft.adapt import Adaptation, Head, Plan, classifier_from
from regraft.checkpoint import load_tokenizer, max_length, open_checkpoint
from regraft.checkpoint.batches import tokenize
from regraft.checkpoint.classifier import logits_of
from regraft.errors import MethodError, NonFiniteError
from regraft.task import Task, load_task
from regraft.train.loop import Data, Leg

TRAINING = [one.name for one in methods.methods("adapt") if "training" in one.needs]
SETTINGS: dict[str, Any] = {"batch": 8, "warmup": 2, "average": 4}
LEGS = [Leg(3), Leg(4, decay=4)]


@pytest.fixture(scope="module")
def task(toy_task_files: Path) -> Task:
    return load_task(str(toy_task_files))


@pytest.fixture
def make(task: Task, tiny_bert: Path, tmp_path: Path) -> Any:
    """A function that makes an adaptation of a checkpoint, from a head of small random weights."""

    def made(method: str, folder: str = "trial", reference: str = str(tiny_bert), **changes: Any) -> Adaptation:
        weight = 0.1 * np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
        plan = Plan(method, SETTINGS | changes.pop("settings", {}), changes.pop("options", {}), changes.pop("seed", 0))
        head = Head(changes.pop("view", "last"), weight, weight[:, 0].copy())
        return Adaptation(open_checkpoint(reference), task.label_names, head, plan, tmp_path / folder)

    return made


@pytest.fixture(scope="module")
def data(task: Task, tiny_bert: Path) -> Data:
    return data_for(str(tiny_bert), task)


def data_for(reference: str, task: Task) -> Data:
    checkpoint = open_checkpoint(reference)
    return Data(tokenize(load_tokenizer(checkpoint), task.train.texts, max_length(checkpoint)), task.train.labels)


def weights(adaptation: Adaptation) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in adaptation.classifier.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_registered_methods() -> None:
    assert [one.name for one in methods.methods("adapt")] == ["full", "lora", "probe"]
    assert TRAINING == ["full", "lora"]


@pytest.mark.parametrize("method", TRAINING)
class TestEveryMethod:
    def test_starts_from_the_probe(self, method: str, make: Any, task: Task, tiny_bert: Path) -> None:
        adaptation = make(method)
        start = classifier_from(open_checkpoint(str(tiny_bert)), task.label_names, adaptation._from[2])
        expected = logits_of(start, task.test.texts)
        np.testing.assert_allclose(logits_of(adaptation.classifier, task.test.texts), expected, atol=1e-6)
        assert adaptation.steps == 0

    def test_learns(self, method: str, make: Any, task: Task, data: Data) -> None:
        adaptation = make(method, settings={"learning_rate": 3e-3, "head_learning_rate": 1e-2})
        assert adaptation.train(data, Leg(60, decay=60)) == 60
        tokens = tokenize(adaptation.classifier.tokenizer, task.test.texts, 64)
        probabilities = adaptation.probabilities(tokens)
        assert (probabilities.argmax(1) == task.test.labels).mean() > 0.9

    def test_the_merged_model_is_the_trained_one_on_stock_classes(
        self, method: str, make: Any, task: Task, data: Data
    ) -> None:
        adaptation = make(method, view="mean")
        adaptation.train(data, Leg(5))
        before = logits_of(adaptation.classifier, task.test.texts)
        names = {name for name, _ in AutoModel.from_config(adaptation._from[0].stock_config).named_parameters()}
        finished = adaptation.finished()
        np.testing.assert_allclose(logits_of(finished, task.test.texts), before, atol=1e-5)
        assert {name for name, _ in finished.encoder.named_parameters()} == names
        assert type(finished.encoder).__name__ == "BertModel"
        assert not any(parameter.requires_grad for parameter in finished.parameters())

    def test_goes_on_from_the_disk_as_if_it_had_not_stopped(self, method: str, make: Any, data: Data) -> None:
        straight = make(method, "straight")
        for leg in LEGS:
            straight.train(data, leg)
        first = make(method, "stopped")
        first.train(data, LEGS[0])
        second = make(method, "stopped")
        assert not second.resume(2)
        assert second.resume(1)
        assert second.steps == 3
        assert equal(weights(second), weights(first))
        second.train(data, LEGS[1])
        assert equal(weights(second), weights(straight))

    def test_restarting_and_replaying_gives_the_same_weights(self, method: str, make: Any, data: Data) -> None:
        adaptation = make(method)
        start = weights(adaptation)
        for leg in LEGS:
            adaptation.train(data, leg)
        trained = weights(adaptation)
        adaptation.restart()
        assert adaptation.steps == 0
        assert equal(weights(adaptation), start)
        for leg in LEGS:
            adaptation.train(data, leg)
        assert equal(weights(adaptation), trained)

    def test_the_seed_decides(self, method: str, make: Any, data: Data) -> None:
        found = []
        for seed in (0, 0, 1):
            torch.manual_seed(99 + len(found))  # the state of the process's generator does not matter
            adaptation = make(method, f"trial-{len(found)}", seed=seed)
            adaptation.train(data, Leg(3))
            found.append(weights(adaptation))
        assert equal(found[0], found[1])
        assert not equal(found[0], found[2])

    def test_other_models_than_bert(self, method: str, make: Any, task: Task, tiny_gpt2: Path) -> None:
        adaptation = make(method, reference=str(tiny_gpt2))
        adaptation.train(data_for(str(tiny_gpt2), task), Leg(2))
        before = logits_of(adaptation.classifier, task.test.texts)
        np.testing.assert_allclose(logits_of(adaptation.finished(), task.test.texts), before, atol=1e-5)

    def test_a_failed_leg_leaves_the_last_good_state(self, method: str, make: Any, data: Data) -> None:
        adaptation = make(method)
        adaptation.train(data, LEGS[0])
        good = weights(adaptation)
        broken = Data(data.tokens, data.labels.copy())
        broken.labels[:] = -100  # ignored by the loss, whose mean over nothing is NaN
        with pytest.raises(NonFiniteError):
            adaptation.train(broken, Leg(2))
        assert adaptation.resume(1)
        assert equal(weights(adaptation), good)
        adaptation.train(data, LEGS[1])
        straight = make(method, "straight")
        for leg in LEGS:
            straight.train(data, leg)
        assert equal(weights(adaptation), weights(straight))

    def test_states_that_are_no_longer_needed_go(self, method: str, make: Any, data: Data) -> None:
        adaptation = make(method)
        for _ in range(3):
            adaptation.train(data, Leg(1))
        adaptation.forget_before(3)
        assert [path.name for path in adaptation.folder.iterdir()] == ["leg-3"]
        assert adaptation.resume(3)
        assert not adaptation.resume(2)


def changed(adaptation: Adaptation, data: Data) -> tuple[set[str], set[str]]:
    """The encoder's parameters that three steps change, and those that stay."""
    before = weights(adaptation)
    adaptation.train(data, Leg(3))
    after = weights(adaptation)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert {"head.weight", "head.bias"} <= moved
    encoder = {name for name in after if name.startswith("encoder.")}
    return encoder & moved, encoder - moved


@pytest.mark.parametrize(("fixture", "words"), [("tiny_bert", "word_embeddings"), ("tiny_gpt2", "wte")])
def test_full_trains_all_but_word_embeddings_and_pooler(
    fixture: str, words: str, make: Any, task: Task, request: pytest.FixtureRequest
) -> None:
    reference = str(request.getfixturevalue(fixture))
    moved, kept = changed(make("full", reference=reference), data_for(reference, task))
    assert kept
    assert all(words in name or "pooler" in name for name in kept)
    assert not any(words in name or "pooler" in name for name in moved)


def test_lora_trains_low_rank_updates_of_every_linear_layer(make: Any, data: Data) -> None:
    adaptation = make("lora", options={"rank": 2, "alpha": 4})
    moved, kept = changed(adaptation, data)
    assert all("lora_" in name for name in moved)
    assert not any("lora_" in name for name in kept)
    assert len(moved) == 4 * 6 * 2  # layers; query, key, value and three dense ones; A and B
    assert {min(adaptation.classifier.get_parameter(name).shape) for name in moved} == {2}


def test_lora_merges_to_the_formula(make: Any, data: Data) -> None:
    adaptation = make("lora", options={"rank": 2, "alpha": 6})
    adaptation.train(data, Leg(3))
    layer = adaptation.classifier.encoder.base_model.model.encoder.layer[0].intermediate.dense
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = (layer.base_layer.weight + 6 / 2 * b @ a).detach().clone()
    merged = adaptation.finished().encoder.encoder.layer[0].intermediate.dense.weight
    torch.testing.assert_close(merged, expected)


def test_unknown_names_are_refused_in_words() -> None:
    with pytest.raises(MethodError, match=r"takes no setting 'learning_rat'.*learning_rate"):
        Plan("full", {"learning_rat": 1.0}, {}).tuning()
    with pytest.raises(MethodError, match=r"takes no option 'rnk'.*alpha, rank"):
        Plan("lora", {}, {"rnk": 4}).tuning()
    with pytest.raises(MethodError, match=r"takes no option 'rank'.*none"):
        Plan("full", {}, {"rank": 4}).tuning()
    with pytest.raises(MethodError, match="takes no setting 'seed'"):
        Plan("full", {"seed": 3}, {}).tuning()
    with pytest.raises(MethodError, match="trains nothing"):
        Plan("probe", {}, {}).tuning()
    with pytest.raises(MethodError, match="Did you mean lora"):
        Plan("lroa", {}, {}).tuning()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": "fast"}, "learning_rate is 'fast', expected a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001"),
        ({"batch": 0}, "batch is 0, expected a whole number of at least 1"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"average": True}, "average is True"),
        ({"bfloat16": 1}, "bfloat16 is 1, expected true or false"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_in_words(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        Plan("full", settings, {}).tuning()


def test_options_of_the_wrong_kind_are_refused_in_words() -> None:
    for rank in (0, 2.5, "4"):
        with pytest.raises(MethodError, match=r"rank is .*expected a whole number of at least 1"):
            Plan("lora", {}, {"rank": rank}).tuning()


def test_settings_differ_from_the_methods_own_only_where_the_plan_says() -> None:
    own, changed_ = Plan("full", {}, {}).tuning().settings, Plan("full", {"batch": 4}, {}, seed=7).tuning().settings
    assert (changed_.batch, changed_.seed) == (4, 7)
    assert changed_.learning_rate == own.learning_rate
