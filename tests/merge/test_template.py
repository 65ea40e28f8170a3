"""Without a base the input that was given first is the template: config, tokenizer and layout are its own, weights are not."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regraft import certificate
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import spec_of
from regraft.merge.run import merge


@pytest.fixture
def unlike(tiny_bert: Path, tuned: Any, edited: Any) -> list[Path]:
    """Three fine-tunes, each with its own small files."""
    folders = [tuned(tiny_bert, name, seed) for seed, name in enumerate("abc")]
    for number, folder in enumerate(folders):
        edited(folder, hidden_dropout_prob=0.1 * number)
        edited(folder, "tokenizer_config.json", model_max_length=30 + number)
        (folder / "generation_config.json").write_text(json.dumps({"max_length": 20 + number}))
    return folders


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_the_first_input_is_the_template_whatever_the_content(
    method: str, unlike: list[Path], tmp_path: Path, raw_of: Any
) -> None:
    weights = []
    for number, order in enumerate(itertools.permutations(unlike)):
        spec = spec_of(method, list(order))
        assert open_inputs(spec)[1].template.reference == str(order[0])
        out = tmp_path / str(number)
        merge(spec, out)
        for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
            assert (out / name).read_bytes() == (order[0] / name).read_bytes()
        weights.append(raw_of(out))
        about = json.loads((out / "regraft.json").read_text())
        assert about["merge"]["inputs"][0]["checkpoint"] == about["parents"][0]["reference"] == str(order[0])
        assert {verdict.outcome for verdict in certificate.verify(out)} == {"pass"}
    assert all(one == weights[0] for one in weights)


def test_heads_that_differ_are_the_first_inputs(written: Any, llama: Any, tmp_path: Path) -> None:
    import numpy as np

    folders = [
        written(name, {**llama(0), "score.weight": np.full((rows, 32), rows, np.float32)})
        for name, rows in (("a", 2), ("b", 3))
    ]
    for order in (folders, folders[::-1]):
        out = tmp_path / f"first-{order[0].name}"
        merge(spec_of("linear", order), out, allow=["heads"])
        head = load_file(out / "model.safetensors")["score.weight"]
        assert torch.equal(head, load_file(order[0] / "model.safetensors")["score.weight"])


def test_half_of_a_merge_is_not_gone_on_with_under_another_template(
    unlike: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft import faults

    class Stopped(BaseException):
        pass

    left = [5]

    def stop(name: str) -> None:
        left[0] -= name == "tensor merged"
        if left[0] == 0:
            raise Stopped

    out, (a, b, _) = tmp_path / "out", unlike
    monkeypatch.setattr(faults, "hook", stop)
    with pytest.raises(Stopped):
        merge(spec_of("linear", [a, b]), out)
    passed: list[str] = []
    monkeypatch.setattr(faults, "hook", passed.append)
    result = merge(spec_of("linear", [b, a]), out)
    assert passed.count("tensor merged") == result.merged + result.copied
    assert (out / "config.json").read_bytes() == (b / "config.json").read_bytes()


def test_with_a_base_it_is_the_base(tiny_bert: Path, unlike: list[Path], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    merge(spec_of("ties", unlike[1:], unlike[0]), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (unlike[0] / "config.json").read_bytes()
