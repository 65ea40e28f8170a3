"""Ancestry: fine-tunes are related, independent models are not, and what says nothing is no evidence."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft.checkpoint.ancestry import LEVEL, Ancestry, ancestry, matched
from regraft.checkpoint.weights import open_weights


def compared(first: Path, second: Path, seed: int = 0) -> Ancestry:
    return ancestry(open_weights(str(first)).tensors, open_weights(str(second)).tensors, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fine_tune_is_related(dtype: torch.dtype, llama: Any, written: Any, tuned: Any) -> None:
    base = written("base", llama(0))
    found = compared(base, tuned(base, "tuned", noise=2e-3, dtype=dtype))
    assert found.related
    assert found.correlation > 0.98
    assert found.p_value < 1e-30
    assert found.replaced == ()
    assert len(found.tensors) == 8
    assert all("mlp" in name for name in found.tensors)  # squares would do only if there were no others


def test_long_training_is_still_related(llama: Any, written: Any, tuned: Any) -> None:
    base = written("base", llama(0))
    found = compared(base, tuned(base, "far", noise=0.06))  # three times as much as the weights themselves
    assert found.related
    assert 0.2 < found.correlation < 0.45


def test_two_fine_tunes_of_one_base_are_related(llama: Any, written: Any, tuned: Any) -> None:
    base = written("base", llama(0))
    assert compared(tuned(base, "a", 1, 0.01), tuned(base, "b", 2, 0.01)).related


def test_independent_models_have_uniform_p_values(llama: Any, written: Any) -> None:
    folders = [written(f"m{seed}", llama(seed)) for seed in range(8)]
    found = [compared(one, two) for one, two in itertools.combinations(folders, 2)]
    values = np.array([one.p_value for one in found])
    assert not any(one.related for one in found)
    assert 0.35 < values.mean() < 0.65
    assert values.min() > 1e-4
    spread = np.array([one.correlation for one in found]) * np.sqrt(found[0].elements)
    assert 0.6 < spread.std() < 1.5  # 1 / sqrt(m)


def test_permuted_units_cannot_be_merged(llama: Any, written: Any) -> None:
    tensors, order = llama(0), np.random.default_rng(0).permutation(32)
    turned = {
        name: np.ascontiguousarray(value[:, order] if value.ndim == 2 and "down" not in name else value[order])
        for name, value in tensors.items()
    }
    found = compared(written("base", tensors), written("turned", turned))
    assert found.related is False
    assert abs(found.correlation) < 0.1


def test_what_independent_models_share_in_structure_is_no_evidence(llama: Any, written: Any) -> None:
    """Huge units, tokens of unequal frequency, means away from zero: all there in any two trained models."""

    def trained(seed: int) -> dict[str, np.ndarray]:
        draw, tensors = np.random.default_rng(seed + 100), llama(seed)
        huge = draw.choice(32, 3, replace=False)
        frequency = 1 / np.arange(1, 97)
        for value in tensors.values():
            if value.ndim == 2 and value.shape[1] == 32:
                value += 0.02
                value[:, huge] *= 30
        tensors["model.embed_tokens.weight"] += np.outer(frequency, draw.standard_normal(32)).astype(np.float32)
        return tensors

    pairs = [
        compared(written(f"a{seed}", trained(seed)), written(f"b{seed}", trained(seed + 50))) for seed in range(10)
    ]
    assert not any(one.related for one in pairs)
    assert min(one.p_value for one in pairs) > 1e-4


def test_constants_and_formulas_are_no_evidence(llama: Any, written: Any) -> None:
    table = np.sin(np.outer(np.arange(64), np.arange(1, 33))).astype(np.float32)
    extra = {"model.embed_positions.weight": table, "model.layers.0.gates.weight": np.full((96, 32), 0.1, np.float32)}
    one, two = llama(1), llama(2)
    found = compared(written("a", {**one, **extra}), written("b", {**two, **extra}))
    assert found.related is False
    only = {name: value for name, value in one.items() if value.ndim == 1}
    assert compared(written("c", {**only, **extra}), written("d", {**only, **extra})).related is None


def test_embeddings_serve_where_there_is_nothing_else(written: Any) -> None:
    draw = np.random.default_rng(0)
    table = draw.standard_normal((500, 40)).astype(np.float32)
    base = written("a", {"embeddings.weight": table})
    assert compared(base, written("b", {"embeddings.weight": table + 0.1})).related
    other = {"embeddings.weight": draw.standard_normal((500, 40)).astype(np.float32)}
    assert compared(base, written("c", other)).related is False


def test_too_small_to_tell(llama: Any, written: Any) -> None:
    base = written("a", llama(0, hidden=8))
    found = compared(base, written("b", llama(0, hidden=8)))
    assert (found.related, found.elements) == (None, 0)
    assert compared(base, written("c", llama(0))).related is None  # no matrix of one shape


def test_a_layer_that_was_trained_anew_is_named(llama: Any, written: Any, tuned: Any) -> None:
    base = written("base", llama(0))

    def anew(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "layers.1.mlp" in name:
                tensors[name] = 0.02 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(5))

    found = compared(base, tuned(base, "patched", change=anew))
    assert found.related
    assert found.replaced
    assert all("layers.1.mlp" in name for name in found.replaced)


def test_real_models(tiny_bert: Path, tiny_gpt2: Path, tuned: Any) -> None:
    for folder in (tiny_bert, tiny_gpt2):  # GPT-2 stores [in, out]
        found = compared(folder, tuned(folder, f"tuned-{folder.name}"))
        assert found.related
        assert found.correlation > 0.95
    assert compared(tiny_bert, tiny_gpt2).related is None


def test_a_pure_function_that_is_data(llama: Any, written: Any, tuned: Any) -> None:
    base = written("base", llama(0))
    other = tuned(base, "tuned")
    first = compared(base, other)
    assert first == compared(base, other)
    assert first.related is compared(base, other, seed=7).related is True
    content = json.loads(json.dumps(first.to_json()))
    assert content["related"] is True
    assert set(content["tensors"]) == set(first.tensors)


def test_the_moments_are_those_of_all_orders() -> None:
    """T and its deviation against every one of the 7! orders."""
    draw = np.random.default_rng(3)
    mine = draw.standard_normal((7, 5))
    theirs = 0.3 * mine + draw.standard_normal((7, 5))
    a, b = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (mine, theirs))
    cosines = a @ b.T
    sums = np.array([cosines[range(7), order].mean() for order in itertools.permutations(range(7))])
    statistic = cosines.trace() / 7 - sums.mean()
    tail = torch.distributions.Normal(0.0, float(sums.std())).cdf(torch.tensor(-statistic)).item()
    correlation, p_value = matched(mine, theirs)
    assert correlation == pytest.approx(statistic, abs=1e-12)
    assert p_value == pytest.approx(tail, rel=1e-4)


def test_the_normal_tail_is_near_that_of_random_orders() -> None:
    """The order that one in 100 (1,000) of 100,000 random ones exceeds has about that p-value."""
    draw = np.random.default_rng(4)
    mine, theirs = draw.standard_normal((2, 64, 16))
    a, b = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (mine, theirs))
    orders = draw.permuted(np.tile(np.arange(64), (100_000, 1)), axis=1)
    ranked = np.argsort(-(a @ b.T)[np.arange(64), orders].mean(axis=1))
    for place in (1000, 100):
        assert matched(mine, theirs[orders[ranked[place]]])[1] == pytest.approx(place / 100_000, rel=0.35)


def test_no_p_value_below_what_the_orders_allow() -> None:
    same = np.random.default_rng(0).standard_normal((6, 4))
    assert matched(same, same)[1] == pytest.approx(1 / 720)
    assert matched(np.zeros((6, 4)), same) == (0.0, 1.0)
    assert LEVEL < 1 / 720
