"""The models that merges are loaded into: what is measured is what the engine writes, and what is not merged is their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft.checkpoint.classifier import logits_of
from regraft.errors import CheckpointError
from regraft.merge.recipe.spec import Output, spec_of
from regraft.merge.run import merge
from regraft.merge.search import models as search_models
from regraft.merge.search.models import load_member as member_of
from regraft.merge.search.models import merged_values, open_bench, stored_values
from regraft.task import load_task


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


def test_tensors_that_are_loaded_otherwise_are_noticed(experts: list[str], topics: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(search_models, "read_values", lambda info: np.zeros(info.elements, np.float32))
    with pytest.raises(CheckpointError, match="otherwise than it is stored"):
        member_of(experts[0], load_task(topics))
