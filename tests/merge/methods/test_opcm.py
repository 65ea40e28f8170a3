"""OPCM: held to the published sequence with its full bases and its scale after every input, and to what it promises."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.opcm import opcm, prepare, project
from regraft.merge.register import traits_of
from regraft.merge.stack import Stack


def draw(seed: int, count: int, *shape: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and a base."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return [(base + 0.1 * rng.normal(size=shape)).astype(np.float32) for _ in range(count)], base


def merge_model(models: list[dict], base: dict, weights: list[float], **options: object) -> dict:
    """As the engine does it: prepare with all tensors, then merge each."""
    stacks = [Stack.of([model[name] for model in models], base[name], weights, name=name) for name in base]
    prepared = prepare(stacks, **options)
    return {stack.name: opcm(stack, prepared=prepared, **options) for stack in stacks}


def reference(models: list[dict], base: dict, weights: list[float], alpha: float) -> dict:
    """One input after another, rescaled each time, with the full bases of the merged delta."""
    tasks = [
        {k: w * (np.float64(m[k]) - np.float64(base[k])) for k in base} for w, m in zip(weights, models, strict=True)
    ]

    def length(vector: dict) -> float:
        return float(np.sqrt(sum((value**2).sum() for value in vector.values())))

    now, lam, lengths = dict(tasks[0]), 1.0, [length(tasks[0])]
    for task in tasks[1:]:
        lengths.append(length(task))
        for name in now:
            new = task[name]
            if new.ndim == 2 and "embed" not in name:
                u, s, vt = np.linalg.svd(now[name], full_matrices=True)
                seen = u.T @ new @ vt.T
                np.fill_diagonal(seen, 0.0)
                above = np.cumsum(s) / s.sum() > alpha
                split = int(np.argmax(above)) if above.any() else len(s)
                seen[:split, :split] = 0.0
                new = u @ seen @ vt
            now[name] = lam * now[name] + new
        lam = length(now) / np.mean(lengths)
        now = {name: value / lam for name, value in now.items()}
    return {name: np.float64(base[name]) + now[name] for name in base}


def model_of(seed: int, count: int, shapes: dict[str, tuple[int, ...]]) -> tuple[list[dict], dict]:
    parts = {name: draw(seed + place, count, *shape) for place, (name, shape) in enumerate(shapes.items())}
    return [{name: parts[name][0][i] for name in shapes} for i in range(count)], {n: parts[n][1] for n in shapes}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 7),
    st.lists(st.sampled_from([0.5, 1.0, -1.0, 2.0]), min_size=1, max_size=4), st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)  # fmt: skip
def test_equals_the_published_sequence(seed, rows, columns, weights, alpha):
    shapes = {"linear.weight": (rows, columns), "linear.bias": (rows,), "embed_tokens.weight": (5, 3)}
    models, base = model_of(seed, len(weights), shapes)
    expected = reference(models, base, weights, alpha)
    merged = merge_model(models, base, weights, alpha=alpha)
    for name in base:
        assert merged[name].dtype == np.float32
        np.testing.assert_allclose(merged[name], expected[name], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.0, 0.5, 1.0]))
def test_what_is_added_is_orthogonal_to_what_is_there(seed, rows, columns, alpha):
    rng = np.random.default_rng(seed)
    change, delta = rng.normal(size=(2, rows, columns))
    u, s, vt = np.linalg.svd(change)
    added = project(delta.copy(), change, alpha)
    assert abs(np.vdot(added, change)) < 1e-9 * np.linalg.norm(change) * np.linalg.norm(delta)
    strong = int((np.cumsum(s) / s.sum() <= alpha - 1e-12).sum())
    assert np.abs(u[:, :strong].T @ added @ vt[:strong].T).max(initial=0.0) < 1e-9
    again = project(added.copy(), change, alpha)
    np.testing.assert_allclose(again, added, atol=1e-9)


def test_alpha_one_leaves_what_the_merged_delta_does_not_span():
    rng = np.random.default_rng(1)
    change, delta = rng.normal(size=(2, 6, 4))
    left = np.linalg.qr(change)[0]
    np.testing.assert_allclose(project(delta.copy(), change, 1.0), delta - left @ left.T @ delta, atol=1e-9)


def test_the_distance_is_kept_over_the_model():
    models, base = model_of(2, 3, {"a.weight": (6, 5), "b.weight": (4, 9), "a.bias": (6,)})
    merged = merge_model(models, base, [1.0] * 3)

    def distance(model: dict) -> float:
        return float(np.sqrt(sum(((np.float64(model[name]) - base[name]) ** 2).sum() for name in base)))

    assert distance(merged) == pytest.approx(np.mean([distance(model) for model in models]), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (7,), (2, 3, 2), (1, 1), (1,), ()])
def test_the_distance_is_kept_in_each_tensor(shape):
    inputs, base = draw(3, 3, *shape)
    merged = opcm(Stack.of(inputs, base), distance="tensor")
    distances = [np.linalg.norm(np.ravel(np.float64(x) - base)) for x in inputs]
    if np.abs(np.add.reduce([np.float64(x) - base for x in inputs])).max() > 0.01:
        assert np.linalg.norm(np.ravel(np.float64(merged) - base)) == pytest.approx(np.mean(distances), rel=1e-4)


def test_distance_by_tensor_needs_no_preparation():
    inputs, base = draw(4, 2, 4, 4)
    stack = Stack.of(inputs, base)
    assert prepare([stack], distance="tensor") is None
    assert prepare([]) is None
    np.testing.assert_array_equal(opcm(stack, distance="tensor"), opcm(stack))


def test_the_order_matters():
    one, two, base = np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]), np.zeros((1, 2))
    first, second = opcm(Stack.of([one, two], base)), opcm(Stack.of([two, one], base))
    np.testing.assert_allclose(first / first[0, 0], [[1.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(second / second[0, 1], [[3.0, 1.0]], atol=1e-6)


def test_equal_matrices_come_back():
    inputs, base = draw(5, 1, 6, 4)
    np.testing.assert_allclose(opcm(Stack.of(inputs * 3, base)), inputs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3, 4), (0, 4), (4, 0), (1, 1), (3, 4)])
def test_a_single_input_comes_back_and_the_base_stays(shape):
    inputs, base = draw(6, 1, *shape)
    np.testing.assert_allclose(opcm(Stack.of(inputs, base)), inputs[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(opcm(Stack.of([base, base], base)), base)
    assert prepare([Stack.of([base, base], base)]) == 1.0


def test_an_input_equal_to_the_base_counts_in_the_mean_only():
    inputs, base = draw(7, 1, 4, 4)
    for order in ([base, inputs[0]], [inputs[0], base]):
        expected = base + (np.float64(inputs[0]) - base) / 2
        np.testing.assert_allclose(opcm(Stack.of(order, base)), expected, rtol=1e-5, atol=1e-6)


def test_weight_zero_ignores_an_input():
    models, base = model_of(8, 3, {"a.weight": (6, 5), "a.bias": (6,), "wte.weight": (4, 3)})
    some = merge_model(models, base, [1.0, 0.0, 0.5])
    fewer = merge_model([models[0], models[2]], base, [1.0, 0.5])
    none = merge_model(models, base, [0.0, 0.0, 0.0])
    for name in base:
        np.testing.assert_allclose(some[name], fewer[name], rtol=1e-6)
        np.testing.assert_array_equal(none[name], base[name])


def test_embeddings_are_added_up_unless_told():
    inputs, base = draw(9, 2, 6, 4)
    table, linear = (Stack.of(inputs, base, name=name) for name in ("model.embed_tokens.weight", "q_proj.weight"))
    assert not np.allclose(opcm(table), opcm(linear))
    np.testing.assert_array_equal(opcm(table, embeddings="matrix"), opcm(linear))


@pytest.mark.parametrize("shape", [(600, 200), (200, 600)])
def test_memory_stays_within_what_is_stated(shape):
    inputs, base = draw(10, 3, *shape)
    stack = Stack.of(inputs, base)
    stated = traits_of("opcm").working(shape, 3)
    tracemalloc.start()
    opcm(stack)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.4 * stated < peak <= stated
