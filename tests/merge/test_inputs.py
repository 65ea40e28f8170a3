"""The inputs of a merge: opened once, in an order that is their own where the method does not care for it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.errors import BadReferenceError
from regraft.merge.inputs import Opened, open_inputs
from regraft.merge.recipe.spec import Spec, spec_of
from regraft.merge.sources import FileSource, LoraSource

Order = list[tuple[str, float]]


def order(spec: Spec) -> Order:
    """The names of the folders and their weights, as the method will see them."""
    ordered, opened = open_inputs(spec)
    assert [one.reference for one in ordered.inputs] == [one.reference for one in opened.inputs]
    return [(Path(one.reference).name, float(one.options.get("weight", 1.0))) for one in ordered.inputs]  # type: ignore[arg-type]


@pytest.fixture
def four(written: Any, llama: Any) -> list[Path]:
    """A base and three others, far from each other."""
    return [written(name, llama(seed)) for seed, name in enumerate(("base", "a", "b", "c"))]


def test_the_order_of_a_sum_is_that_of_the_content(four: list[Path]) -> None:
    """However they are given; each keeps its own weight."""
    base, *inputs = four
    found = []
    for shuffled in itertools.permutations(zip(inputs, (0.2, 0.5, 0.3), strict=True)):
        folders, weights = [folder for folder, _ in shuffled], [weight for _, weight in shuffled]
        found.append(order(spec_of("ties", folders, base, weight=weights)))
    assert all(one == found[0] for one in found)
    assert dict(found[0]) == {"a": 0.2, "b": 0.5, "c": 0.3}


def test_the_order_does_not_depend_on_where_they_lie(four: list[Path], tmp_path: Path) -> None:
    base, *inputs = four
    before = [name for name, _ in order(spec_of("ties", inputs, base))]
    moved = [
        Path(shutil.copytree(one, tmp_path / "elsewhere" / name / one.name))
        for one, name in zip(inputs, "zxy", strict=True)
    ]
    assert [name for name, _ in order(spec_of("ties", moved, base))] == before


def test_where_the_order_matters_it_is_the_users(four: list[Path]) -> None:
    base, a, b, c = four
    assert [name for name, _ in order(spec_of("dare_ties", [c, a, b], base))] == ["c", "a", "b"]
    assert [name for name, _ in order(spec_of("slerp", [b, a]))] == ["b", "a"]


def test_inputs_that_differ_in_few_places_have_an_order_too(written: Any, llama: Any) -> None:
    """Where a sample of each tensor is the same: all bytes decide."""
    folders = []
    for number in range(3):
        tensors = llama(0)
        tensors["model.embed_tokens.weight"][number, 0] += 1.0
        folders.append(written(f"n{number}", tensors))
    found = [order(spec_of("linear", shuffled)) for shuffled in itertools.permutations(folders)]
    assert all(one == found[0] for one in found)


def test_the_same_input_twice_with_other_weights(four: list[Path]) -> None:
    _, a, b, _ = four
    one = order(spec_of("linear", [a, b, a], weight=[0.1, 0.2, 0.7]))
    other = order(spec_of("linear", [a, a, b], weight=[0.7, 0.1, 0.2]))
    assert one == other
    assert sorted(one) == [("a", 0.1), ("a", 0.7), ("b", 0.2)]


def test_adapters_over_one_base_are_told_apart(tiny_bert: Path, adapter_maker: Any, tmp_path: Path) -> None:
    adapters = [
        f"{tiny_bert}+{adapter_maker(tiny_bert, tmp_path / name, r=rank)}" for name, rank in (("x", 2), ("y", 3))
    ]
    assert order(spec_of("linear", adapters)) == order(spec_of("linear", adapters[::-1]))


def test_the_base_is_the_template_and_without_one_an_input_is(four: list[Path]) -> None:
    base, a, b, _ = four
    _, opened = open_inputs(spec_of("ties", [a, b], base))
    assert opened.template is opened.base
    assert opened.all == (opened.base, *opened.inputs)
    _, opened = open_inputs(spec_of("slerp", [b, a]))
    assert opened.template is opened.inputs[0]
    assert opened.all == opened.inputs
    assert Path(opened.template.reference).name == "b"


def test_tensors_become_sources(tiny_bert: Path, tiny_adapter: Path) -> None:
    _, opened = open_inputs(spec_of("ties", [f"{tiny_bert}+{tiny_adapter}"], tiny_bert))
    assert opened.base is not None
    name = "encoder.layer.0.attention.self.value.weight"
    plain, changed = opened.source(opened.base, name), opened.source(opened.inputs[0], name)
    assert isinstance(plain, FileSource) and isinstance(changed, LoraSource)
    assert changed.factors is not None and changed.factors.shape == (32, 32)
    untouched = opened.source(opened.inputs[0], "pooler.dense.bias")
    assert isinstance(untouched, LoraSource) and untouched.factors is None


def test_a_tensor_that_an_adapter_replaces(tiny_classifier: Path, tmp_path: Path) -> None:
    """`modules_to_save`: the whole head is the adapter's."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification

    model = peft.get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(tiny_classifier),
        peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]),
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "modules_to_save" in key:
                parameter.fill_(0.25)
    model.save_pretrained(tmp_path / "lora")
    _, opened = open_inputs(spec_of("linear", [f"{tiny_classifier}+{tmp_path / 'lora'}"]))
    out = np.empty(3 * 32, np.float32)
    assert opened.source(opened.inputs[0], "classifier.weight").read(out, 0)
    assert set(out.tolist()) == {0.25}


def test_what_cannot_be_opened_is_named(four: list[Path], tmp_path: Path) -> None:
    base, a, *_ = four
    with pytest.raises(BadReferenceError, match="nowhere"):
        open_inputs(spec_of("ties", [a, tmp_path / "nowhere"], base))
    with pytest.raises(BadReferenceError, match="nobase"):
        open_inputs(spec_of("ties", [a], tmp_path / "nobase"))


def test_opened_checkpoints_are_plain_values(four: list[Path]) -> None:
    _, opened = open_inputs(spec_of("linear", four))
    assert Opened(None, opened.inputs).changes == {}


def test_adapters_of_one_file_are_told_apart_by_their_scale(
    tiny_bert: Path, adapter_maker: Any, edited: Any, tmp_path: Path
) -> None:
    """The same factors under another lora_alpha: their order is their own, too, not the user's."""
    one = adapter_maker(tiny_bert, tmp_path / "one", lora_alpha=4)
    two = edited(Path(shutil.copytree(one, tmp_path / "two")), "adapter_config.json", lora_alpha=8)
    inputs = [f"{tiny_bert}+{one}", f"{tiny_bert}+{two}"]
    found = [[one.reference for one in open_inputs(spec_of("ties", given, tiny_bert))[0].inputs]
             for given in (inputs, inputs[::-1])]  # fmt: skip
    assert found[0] == found[1]
    first, second = open_inputs(spec_of("ties", inputs, tiny_bert))[1].inputs
    assert first.file_id != second.file_id
