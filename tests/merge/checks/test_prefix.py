"""A model that was saved without its head, beside the same one with it: names are matched by what they have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from regraft import certificate
from regraft.errors import CheckpointError
from regraft.merge.checks.compatible import compare
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import spec_of
from regraft.merge.run import merge


@pytest.fixture
def bare(tiny_classifier: Path, copy_of: Any, tmp_path: Path) -> Path:
    """The encoder of the classifier, moved a little, saved by the class without a head."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_classifier)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    folder: Path = copy_of(tiny_classifier, "bare")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


def test_the_encoder_of_a_classifier_is_merged_with_one(tiny_classifier: Path, bare: Path, tmp_path: Path) -> None:
    """Against the plain average of the stock models' parameters; the head is the classifier's own."""
    result = merge(spec_of("linear", [tiny_classifier, bare]), tmp_path / "out")
    first, second = load_file(tiny_classifier / "model.safetensors"), load_file(bare / "model.safetensors")
    assert "encoder.layer.0.output.dense.weight" in second
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == first.keys()
    for name, values in found.items():
        other = second.get(name.removeprefix("bert."))
        expected = first[name] if other is None else (first[name].double() + other.double()) / 2
        assert torch.allclose(values.double(), expected.double(), atol=1e-7), name
    assert result.copied == 2 and {name for name in found if name.startswith("classifier")} == set(
        result.preflight.aligned.copied
    )
    (matched,) = (one for one in result.preflight.findings if one.code == "names")
    assert matched.severity == "note" and "'bert.' in front" in matched.problem
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert {one["code"] for one in about["findings"]} >= {"names", "heads"}
    assert {verdict.outcome for verdict in certificate.verify(tmp_path / "out")} == {"pass"}


def test_a_head_that_would_be_lost_is_refused(tiny_classifier: Path, bare: Path, tmp_path: Path) -> None:
    spec = spec_of("linear", [bare, tiny_classifier])
    with pytest.raises(CheckpointError, match=r"classifier\.\w+.* only.*--allow heads"):
        merge(spec, tmp_path / "out")
    merge(spec, tmp_path / "out", allow=["heads"])
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(bare / "model.safetensors").keys()


def test_a_base_without_a_head(tiny_classifier: Path, bare: Path, tuned: Any, tmp_path: Path) -> None:
    """Changes are taken to the base under its own names, and ancestors are looked for under them."""
    other = tuned(tiny_classifier, "other", 3)
    result = merge(spec_of("task_arithmetic", [tiny_classifier, other], bare), tmp_path / "out", allow=["heads"])
    assert all(test.related for test in result.preflight.ancestry.values()) and len(result.preflight.ancestry) == 2
    name = "encoder.layer.1.output.dense.weight"
    base, first, second = (load_file(one / "model.safetensors") for one in (bare, tiny_classifier, other))
    expected = first[f"bert.{name}"] + second[f"bert.{name}"] - base[name]
    assert torch.allclose(load_file(tmp_path / "out" / "model.safetensors")[name], expected, atol=1e-6)


def test_an_adapter_over_either(tiny_classifier: Path, bare: Path, adapter_maker: Any) -> None:
    """What an adapter changes is found under the template's names."""
    adapter = adapter_maker(bare, bare.parent / "lora", r=2)
    spec = spec_of("linear", [str(tiny_classifier), f"{bare}+{adapter}"])
    from regraft.merge.align import align

    ordered, opened = open_inputs(spec)
    aligned = align(opened)
    (one,) = (one for one in aligned.opened.inputs if one.adapter is not None)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert name in aligned.opened.changes[one.reference].factors
    assert ordered.inputs[0].reference in (spec.inputs[0].reference, spec.inputs[1].reference)


def test_statistics_are_known_by_the_templates_names(
    tiny_classifier: Path, bare: Path, toy_task_files: Path, tmp_path: Path
) -> None:
    from regraft.merge.align import align
    from regraft.merge.tensors import prepared_for

    spec, opened = open_inputs(spec_of("regmean", [tiny_classifier, bare], data=str(toy_task_files), rows=6))
    aligned = align(opened)
    prepared = prepared_for(spec, aligned.opened, aligned.merged)
    found = prepared.at("bert.encoder.layer.0.output.dense.weight").arrays
    assert all(one is not None and one.shape == (found[0].shape) for one in found)


def test_shapes_must_fit(written: Any, llama: Any) -> None:
    from regraft.checkpoint.weights import open_weights

    mine = {name: value for name, value in llama(0).items() if name != "lm_head.weight"}
    theirs = {name.removeprefix("model."): value for name, value in mine.items()}
    theirs["layers.1.mlp.up_proj.weight"] = np.zeros((5, 32), np.float32)
    first, second = (open_weights(str(written(name, one))) for name, one in (("a", mine), ("b", theirs)))
    for pair in ((first, second), (second, first)):
        found = compare(*pair, "b", "a")
        (one,) = (one for one in found.findings if one.severity == "error")
        assert (one.code, found.renamed) == ("tensors", {}) and "their shapes differ" in one.problem
