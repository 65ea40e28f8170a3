"""Robust weight signatures: shallow differences as patches that come off again."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.errors import MethodError
from regraft.merge.methods.rws import rws, rws_projected
from regraft.merge.stack import GRAIN, Stack
from regraft.randomness import generator

SHALLOW = "model.layers.0.mlp.weight"


def checkpoints(robust: int = 2, size: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Pretrained, clean, target and robust tensors."""
    draw = generator(0, "rws", robust, size)
    pretrained = draw.standard_normal(size)
    clean = pretrained + 0.2 * draw.standard_normal(size)
    target = clean + 0.1 * draw.standard_normal(size)
    robusts = [clean + 0.3 * (clean - pretrained) + 0.1 * draw.standard_normal(size) for _ in range(robust)]
    return (
        *(one.astype(np.float32) for one in (pretrained, clean, target)),
        [one.astype(np.float32) for one in robusts],
    )  # type: ignore[return-value]


def patched(name: str = SHALLOW, weights: list[float] | None = None, **options: object) -> np.ndarray:
    _, clean, target, robusts = checkpoints()
    return rws(Stack.of([target, *robusts], clean, weights, name=name), **({"num_layers": 4} | options))  # type: ignore[arg-type]


def test_differences_to_the_clean_one_are_added() -> None:
    _, clean, target, robusts = checkpoints()
    exact = [one.astype(np.float64) - clean for one in robusts]
    expected = target + 0.5 * (2.0 * exact[0] + 0.25 * exact[1])
    np.testing.assert_allclose(patched(weights=[9.0, 2.0, 0.25], scale=0.5), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shallow"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wpe.weight", True),
        ("model.layers.1.mlp.weight", True),
        ("model.layers.2.mlp.weight", False),
        ("model.norm.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_the_shallow_half_is_patched_and_the_rest_is_the_target(name: str, shallow: bool) -> None:
    target = checkpoints()[2]
    assert np.array_equal(patched(name), target) is not shallow
    assert np.array_equal(patched(name, layers=0), target)


def test_the_number_of_layers_can_be_given() -> None:
    target = checkpoints()[2]
    assert not np.array_equal(patched("h.2.weight", layers=3), target)
    assert np.array_equal(patched("h.3.weight", layers=3), target)
    assert not np.array_equal(patched("h.2.weight", layers=3, num_layers=None), target)
    with pytest.raises(MethodError, match="is not given"):
        patched(num_layers=None)


def test_a_patch_comes_off_again() -> None:
    _, clean, target, robusts = checkpoints()
    on = rws(Stack.of([target, *robusts], clean, name=SHALLOW), num_layers=4)
    off = rws(Stack.of([on, *robusts], clean, name=SHALLOW), scale=-1.0, num_layers=4)
    assert np.abs(on - target).max() > 0.1
    np.testing.assert_allclose(off, target, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_quantised_signatures_are_off_by_half_a_step(bits: int) -> None:
    _, clean, target, robusts = checkpoints(robust=1, size=2 * GRAIN + 33)
    robusts[0][:100] = clean[:100]
    found = rws(Stack.of([target, robusts[0]], clean, name=SHALLOW), bits=bits, num_layers=4)
    signature = robusts[0].astype(np.float64) - clean
    step = np.abs(signature).max() / (2 ** (bits - 1) - 1)
    patch = found.astype(np.float64) - target
    assert np.abs(patch - signature).max() <= step / 2 + 1e-6
    np.testing.assert_allclose(patch, np.round(patch / step) * step, atol=1e-6)
    assert np.array_equal(found[:100], target[:100])


def test_one_bit_is_not_enough() -> None:
    with pytest.raises(MethodError, match="bits is 1"):
        patched(bits=1)


def test_projected_signatures_share_nothing_with_what_clean_training_changed() -> None:
    pretrained, clean, target, robusts = checkpoints()
    stack = Stack.of([target, clean, *robusts], pretrained, [1.0, 1.0, 2.0, 0.5], name=SHALLOW)
    found = rws_projected(stack, num_layers=4)
    direction = clean.astype(np.float64) - pretrained
    expected = target.astype(np.float64)
    for weight, robust in zip((2.0, 0.5), robusts, strict=True):
        delta = robust.astype(np.float64) - pretrained
        expected += weight * (delta - delta @ direction / (direction @ direction) * direction)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    patch = found.astype(np.float64) - target
    assert abs(patch @ direction) < 1e-5 * np.linalg.norm(patch) * np.linalg.norm(direction)


def test_where_clean_training_changed_nothing_projection_changes_nothing() -> None:
    _, clean, target, robusts = checkpoints()
    stack = Stack.of([target, clean, *robusts], clean, name=SHALLOW)
    found, simple = (
        rws_projected(stack, num_layers=4),
        rws(Stack.of([target, *robusts], clean, name=SHALLOW), num_layers=4),
    )
    np.testing.assert_allclose(found, simple, rtol=1e-6, atol=1e-6)


def test_deep_tensors_of_the_projected_kind_are_the_targets_too() -> None:
    pretrained, clean, target, robusts = checkpoints()
    stack = Stack.of([target, clean, *robusts], pretrained, name="model.layers.3.weight")
    assert np.array_equal(rws_projected(stack, num_layers=4), target)
